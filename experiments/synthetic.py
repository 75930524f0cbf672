# SPDX-License-Identifier: Apache-2.0
"""Compare recipes on the synthetic rooms, 8 labelled frames, and make the table and the plot of docs/experiments.md.

python experiments/synthetic.py --work runs/rooms --tune      # learning rates, scored on rooms 0 to 9
python experiments/synthetic.py --work runs/rooms             # three seeds, scored on rooms 100 to 104
python experiments/synthetic.py --work runs/rooms --again     # the same models on rooms 105 to 109
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(Path(__file__).resolve().parent)]

from m3l_model.openmp import share_cores  # noqa: E402

share_cores(os.environ)


from paired import verdict  # noqa: E402
from rows import ALL_ROWS, LEARNING_RATES, SYNTHETIC, config_of, digest  # noqa: E402
from scoring import TOKEN, fills, score  # noqa: E402

from m3l_model.bag_dataset import RgbdBagDataset  # noqa: E402
from m3l_model.bags import BagFrames  # noqa: E402
from m3l_model.labels import LabelSet  # noqa: E402
from m3l_model.recipe import TrainConfig  # noqa: E402
from m3l_model.training import CHECKPOINT_FILE, Intervals, Machine, train  # noqa: E402
from m3l_model.training_frames import TrainingFrames  # noqa: E402
from m3l_ros.demo_bags import Recording, write_recording  # noqa: E402

RESULTS = REPOSITORY / "experiments" / "results" / "synthetic"
ROWS = ("supervised", "mean_teacher_dropout", "m3l_tuned", "m3l")
SEEDS = (0, 1, 2)
ROOMS = {"tune": tuple(range(10)), "final": tuple(range(100, 105)), "again": tuple(range(105, 110))}
"""Those that each kind of run is scored on; ``again`` has the models of ``final``."""
LABELS = LabelSet.load("demo")


def main() -> int:
    """Run what is missing, then print the table; of the final runs also draw the plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True, help="for bags and runs")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--tune", action="store_true", help="choose learning rates, on other rooms")
    kinds.add_argument("--again", action="store_true", help="score the final models on rooms 105 to 109")
    parser.add_argument("--rows", nargs="+", choices=list(ALL_ROWS), default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    parser.add_argument("--rates", nargs="+", type=float, default=list(LEARNING_RATES))
    args = parser.parse_args()
    kind = "tune" if args.tune else "again" if args.again else "final"
    for seed in [0] if args.tune else args.seeds:
        for row in args.rows:
            for rate in args.rates if args.tune else [best_rate(row, args.rates)]:
                if not run_one(args.work, row, seed, rate, kind):
                    return 0
    found = _results(kind)
    for run in found:
        figures = ", ".join(f"{name} {100 * value:.1f}" for name, value in run["miou"].items())
        print(f"- {run['row']}, seed {run['seed']}, rate {run['learning_rate']:g}: {figures}")
    if kind != "tune":
        _table(found)
    if kind == "final":
        _plot(found)
    return 0


def best_rate(row: str, rates: list[float]) -> float:
    """Give the learning rate that was best on the rooms to tune on.

    Exits where they have not all been tried.
    """
    found: dict[float, float] = {}
    for rate in rates:
        path = result_path("tune", row, 0, config_of(SYNTHETIC, row, rate))
        if not path.is_file():
            sys.exit(f"{row}: run with --tune first; learning rate {rate:g} is not there")
        found[rate] = json.loads(path.read_text())["miou"]["robust"]
    return max(found, key=lambda rate: found[rate])


def result_path(kind: str, row: str, seed: int, config: TrainConfig) -> Path:
    """Give where a run's JSON lies; ``kind`` is one of ``ROOMS``."""
    return RESULTS / f"{kind}-{row}-{seed}-{digest(config)}.json"


def tuned_fill(row: str, config: TrainConfig) -> str:
    """Give what was best in place of a missing modality on the rooms to tune on.

    Exits where that is not known.
    """
    path = result_path("tune", row, 0, config)
    result = json.loads(path.read_text())
    if config.masking == "none" and "fill" not in result:
        sys.exit(
            f"{path}: does not say what stood in for a missing modality; remove it and run with --tune again"
        )
    name: str = result.get("fill") or TOKEN.name  # all there was for recipes that mask
    return name


def run_one(work: Path, row: str, seed: int, rate: float, kind: str) -> bool:
    """Train and score, unless that has been done; False where a signal ended it."""
    config = config_of(SYNTHETIC, row, rate)
    rooms = ROOMS[kind]
    path = result_path(kind, row, seed, config)
    if path.is_file():
        return True
    fill_name = None if kind == "tune" else tuned_fill(row, config)
    first = 1000 + 100 * seed + (50 if kind == "tune" else 0)
    training = _bag(work, Recording(tuple(range(first, first + 16)), frames_per_room=30, labelled=8))
    scored = _bag(work, Recording(rooms, frames_per_room=10, labelled=10 * len(rooms)))
    frames = TrainingFrames.select([BagFrames.open(training)], LABELS)
    trained_for = "final" if kind == "again" else kind
    out = work / "runs" / result_path(trained_for, row, seed, config).stem
    finished = (out / CHECKPOINT_FILE).is_file()
    if not finished and not train(
        config, frames, out, seed, Machine(workers=0), Intervals(100, 0), resume=True
    ):
        return False
    dataset = RgbdBagDataset([scored], LABELS)
    choices = [fill for fill in fills(config, frames) if fill_name in (None, fill.name)]
    scores = [(score(out / CHECKPOINT_FILE, dataset, dataset, fill), fill) for fill in choices]
    miou, fill = max(scores, key=lambda pair: pair[0]["robust"])
    del miou["holes"]
    facts = {"row": row, "seed": seed, "learning_rate": rate, "rooms": rooms, "miou": miou, "fill": fill.name}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, "config": dataclasses.asdict(config)}, indent=1) + "\n")
    return True


def _bag(work: Path, recording: Recording) -> Path:
    path = work / f"rooms_{recording.rooms[0]}_{recording.rooms[-1]}"
    if not path.exists():
        partial = path.with_name(path.name + ".part")
        write_recording(recording, partial, 2)
        partial.rename(path)
    return path


def _results(kind: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{kind}-*.json"))]


def _by_seed(runs: list[dict[str, Any]], row: str, column: str) -> dict[int, float]:
    return {run["seed"]: 100 * run["miou"][column] for run in runs if run["row"] == row}


def _table(runs: list[dict[str, Any]]) -> None:
    """Print the means over seeds as Markdown, and what the last row, ours, has more than the others."""
    columns = ("both", "rgb_only", "depth_only", "robust")
    print(f"\n| row | seeds | {' | '.join(columns)} |\n|{'---|' * (2 + len(columns))}")
    others = [row for row in ALL_ROWS if row != ROWS[-1]]
    found = [row for row in (*others, ROWS[-1]) if _by_seed(runs, row, "robust")]
    for row in found:
        means = (statistics.mean(_by_seed(runs, row, column).values()) for column in columns)
        seeds = ", ".join(map(str, _by_seed(runs, row, "robust")))
        print(f"| {row} | {seeds} | {' | '.join(f'{mean:.1f}' for mean in means)} |")
    print()
    for row in found[:-1]:
        difference = verdict(_by_seed(runs, found[-1], "robust"), _by_seed(runs, row, "robust"))
        print(f"robust, {found[-1]} - {row}: {difference}")


def _plot(runs: list[dict[str, Any]]) -> None:
    """Draw every run's robust mIoU and the means."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5))
    for place, row in enumerate(ROWS):
        values = list(_by_seed(runs, row, "robust").values())
        if values:
            axes.bar(place, statistics.mean(values), color="lightsteelblue")
            axes.plot([place] * len(values), values, "o", color="navy")
    axes.set_xticks(range(len(ROWS)), ROWS)
    axes.set_ylabel("robust mIoU, %")
    figure.tight_layout()
    RESULTS.mkdir(parents=True, exist_ok=True)
    figure.savefig(RESULTS / "robust.png", dpi=120)


if __name__ == "__main__":
    sys.exit(main())
