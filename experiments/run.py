# SPDX-License-Identifier: Apache-2.0
"""Run what is missing of the NYUv2 table (docs/experiments.md): one JSON for each recipe, draw and configuration.

    python experiments/run.py --data ../shared/data --work runs/nyu --rows m3l_tuned m3l --draws 1 2 3

It may be stopped and started again at any moment; `experiments/table.py` makes the table of what there is.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(Path(__file__).resolve().parent)]

from m3l_model.openmp import share_cores  # noqa: E402

share_cores(os.environ)

import torch  # noqa: E402
from nyuv2_data import NyuBags  # noqa: E402
from pretrained_start import pretrain  # noqa: E402
from rows import (  # noqa: E402
    ALL_ROWS,
    LEARNING_RATES,
    NYUV2,
    ROWS,
    config_of,
    criterion,
    digest,
    pretraining_of,
)
from safetensors.torch import load_file  # noqa: E402
from scoring import TOKEN, fills, score  # noqa: E402
from step_kinds import kinds_of  # noqa: E402
from torch.utils.flop_counter import FlopCounterMode  # noqa: E402

from m3l_model.recipe import TrainConfig  # noqa: E402
from m3l_model.run_log import VALIDATION_FILE, read_log, wall_seconds  # noqa: E402
from m3l_model.training import BEST_FILE, CHECKPOINT_FILE, Intervals, Machine, train  # noqa: E402
from m3l_model.training_frames import TrainingFrames  # noqa: E402

RESULTS = REPOSITORY / "experiments" / "results" / "nyuv2"


def main() -> int:
    """Run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with nyuv2 and redkitchen")
    parser.add_argument("--work", type=Path, required=True, help="for bags and runs; 5 GB")
    parser.add_argument("--rows", nargs="+", choices=list(ALL_ROWS), default=list(ROWS))
    parser.add_argument("--draws", nargs="+", type=int, choices=(1, 2, 3), default=[1, 2, 3])
    parser.add_argument("--rates", nargs="+", type=float, default=list(LEARNING_RATES))
    parser.add_argument(
        "--test", action="store_true", help="score finished runs on the test frames, once each"
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    bags = NyuBags(args.data, args.work)
    machine = Machine(args.device, workers=args.workers)
    for draw in args.draws:
        for row in args.rows:
            for rate in args.rates if draw == 1 else [best_rate(row, args.rates)]:
                if row == "m3l_paper" and rate != args.rates[0]:
                    continue
                if not run_one(bags, args.work, machine, row, draw, rate, args.test):
                    return 0
    return 0


def result_path(row: str, draw: int, config: TrainConfig) -> Path:
    """Give where a run's JSON lies."""
    return RESULTS / f"{row}-{draw}-{digest(config, pretraining_of(NYUV2, row))}.json"


def best_rate(row: str, rates: list[float]) -> float:
    """Give the learning rate that was best on validation in the first draw."""
    configs = {rate: config_of(NYUV2, row, rate) for rate in rates}
    found = {
        rate: result["validation"]["final"][criterion(config.modalities)]
        for rate, config in configs.items()
        if (path := result_path(row, 1, config)).is_file()
        and "validation" in (result := json.loads(path.read_text()))
    }
    if len(found) < len(rates):
        sys.exit(f"{row}: draw 1 has to come first: {len(found)} of {len(rates)} learning rates are there")
    return max(found, key=lambda rate: found[rate])


def run_one(
    bags: NyuBags, work: Path, machine: Machine, row: str, draw: int, rate: float, test: bool
) -> bool:
    """Do one run and score it, unless that has been done; False where a signal ended it."""
    config = config_of(NYUV2, row, rate)
    path = result_path(row, draw, config)
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    frames = bags.training_frames(draw)
    out = work / "runs" / path.stem
    if not result:
        runs = [(config, frames, out)]
        weights = None
        if pretraining := pretraining_of(NYUV2, row):
            start = pretrain(pretraining, bags, work, draw, machine)
            if start.weights is None:
                return False
            weights = str(start.weights)
            runs.insert(0, (pretraining, start.frames, start.folder))
        checkpoint = train(
            config,
            frames,
            out,
            draw,
            machine,
            Intervals(100, 500),
            pretrained=weights,
            resume=True,
        )
        if checkpoint is None:
            return False
        result = {
            "row": row,
            "draw": draw,
            "seed": draw,
            "learning_rate": config.learning_rate,
            "config": dataclasses.asdict(config),
            **({"pretraining": dataclasses.asdict(pretraining)} if pretraining else {}),
            "commit": _commit(),
            "torch": torch.__version__,
            "device": machine.device,
            "threads": torch.get_num_threads(),
            "steps": sum(each.steps for each, _, _ in runs),
            "images": sum(_images(each) for each, _, _ in runs),
            "gflop": sum(_gflop(each, taken) for each, taken, _ in runs),
            "wall_seconds": _wall_seconds([folder for _, _, folder in runs]),
            "loss_supervised": read_log(out)[-1]["loss_supervised"],
            "curve": [json.loads(line) for line in (out / VALIDATION_FILE).read_text().splitlines()],
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        _write(path, result)
    for part in ("validation", *(["test"] if test else [])):
        if part not in result and not (out / CHECKPOINT_FILE).is_file():
            print(f"{path.name}: no {part}, its model is not in {out}; remove {path} to train it again")
            return True
    if "validation" not in result:
        result["validation"] = _scores(bags, "validation", config, frames, out, None)
        _write(path, result)
    if test and "test" not in result:
        # Results from before there was a choice name none: they had the token.
        fill = result["validation"]["fill"] or TOKEN.name
        result["test"] = _scores(bags, "test", config, frames, out, fill)
        _write(path, result)
    return True


def _scores(
    bags: NyuBags,
    part: str,
    config: TrainConfig,
    frames: TrainingFrames,
    out: Path,
    fill_name: str | None,
) -> dict[str, Any]:
    """Score the final teacher and the one that was best on validation; what fills a gap is chosen on validation."""
    whole, holes = bags.scored(part, holes=False), bags.scored(part, holes=True)
    choices = [fill for fill in fills(config, frames) if fill_name in (None, fill.name)]
    tried = {fill.name: score(out / CHECKPOINT_FILE, whole, holes, fill) for fill in choices}
    fill = max(choices, key=lambda fill: tried[fill.name]["robust"])
    final = tried[fill.name]
    best = final if _last_is_best(out) else score(out / BEST_FILE, whole, holes, fill)
    return {
        "final": final,
        "best": best,
        "fill": fill.name,
        "fills": tried,
    }


def _last_is_best(out: Path) -> bool:
    """Tell whether the two models of a run are one; what is noted beside the weights may differ."""
    final, best = load_file(out / CHECKPOINT_FILE), load_file(out / BEST_FILE)
    return final.keys() == best.keys() and all(torch.equal(final[name], best[name]) for name in final)


def _images(config: TrainConfig) -> int:
    return sum(sum(config.step_frames(step)) for step in range(config.steps))


def _wall_seconds(folders: list[Path]) -> float | None:
    times = [seconds for folder in folders if (seconds := wall_seconds(folder)) is not None]
    return sum(times) if len(times) == len(folders) else None


def _gflop(config: TrainConfig, frames: TrainingFrames) -> float:
    """Count what all steps compute: a few of each kind, since what is left out is drawn, times how many there are."""
    total = 0.0
    for kind in kinds_of(config, frames).values():
        with FlopCounterMode(display=False) as counter:
            counted = sum(1 for _ in islice(kind.steps, min(8, kind.number)))
        total += kind.number * counter.get_total_flops() / counted / 1e9
    return total


def _commit() -> str:
    git = ["git", "-C", str(REPOSITORY)]
    head = subprocess.run(
        [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "m3l_model", "experiments", "config"])
    return head + ("-changed" if changed.returncode else "")


def _write(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_text(json.dumps(result, indent=1) + "\n")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())
