# SPDX-License-Identifier: Apache-2.0
"""Train with the labels of all usable NYUv2 frames, for the model that is shipped (docs/experiments.md).

    python experiments/all_labels.py --data ../shared/data --work runs/nyu --run m3l

It may be stopped and started again at any moment; its scores go to experiments/results. What goes on from another run
comes after it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(Path(__file__).resolve().parent)]

from m3l_model.openmp import share_cores  # noqa: E402

share_cores(os.environ)

from nyuv2_data import NyuBags  # noqa: E402
from rows import HARNESS, NYUV2  # noqa: E402
from scoring import score  # noqa: E402

from m3l_model.recipe import load_config  # noqa: E402
from m3l_model.run_log import VALIDATION_FILE  # noqa: E402
from m3l_model.training import BEST_FILE, CHECKPOINT_FILE, Intervals, Machine, train  # noqa: E402

RESULTS = REPOSITORY / "experiments" / "results"
SEED = 1
FIELDS: dict[str, Any] = {
    **HARNESS,
    **NYUV2,
    "scales": (1.0, 1.5),
    "labelled_batch": 8,
    "warmup_steps": 100,
    "learning_rate": 0.001,
}


class Run(NamedTuple):
    """A recipe, what it has other than ``FIELDS``, and the run whose model it goes on from."""

    recipe: str
    fields: dict[str, Any]
    after: str | None = None


_ALL_LABELLED: dict[str, Any] = {"pseudo_weight": 0.0, "ema_decay": 0.998}
"""``m3l`` without its teacher's labels, as no frame lacks them."""

RUNS = {
    "supervised_dropout": Run("supervised_dropout", {"steps": 8000, "strong_augmentation": True}),
    "m3l": Run("m3l", {"steps": 4000, **_ALL_LABELLED}),
    "m3l_finer": Run(
        "m3l", {"steps": 1700, "short_side": 160, "learning_rate": 0.0006, **_ALL_LABELLED}, after="m3l"
    ),
}


def main() -> int:
    """Train and score on validation; with ``--test`` score a finished run on the test frames."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with nyuv2 and redkitchen")
    parser.add_argument("--work", type=Path, required=True, help="for bags and runs")
    parser.add_argument("--run", choices=RUNS, required=True)
    parser.add_argument("--device", default="cpu", help="what trains; scores are of the CPU")
    parser.add_argument("--test", action="store_true", help="score on the test frames, once")
    args = parser.parse_args()
    bags = NyuBags(args.data, args.work)
    machine = Machine(args.device, workers=1)
    run = RUNS[args.run]
    config = load_config(run.recipe, **{**FIELDS, **run.fields})
    out = args.work / f"all_labels_{args.run}"
    start = str(args.work / f"all_labels_{run.after}" / CHECKPOINT_FILE) if run.after else None
    frames = bags.training_frames(None)
    intervals = Intervals(250, 500)
    if train(config, frames, out, SEED, machine, intervals, pretrained=start, resume=True) is None:
        return 0
    path = RESULTS / f"nyuv2_all_labels_{args.run}.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if not result:
        result = {
            "seed": SEED,
            "device": machine.device,
            "config": dataclasses.asdict(config),
            "curve": [json.loads(line) for line in (out / VALIDATION_FILE).read_text().splitlines()],
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
    for part in ("validation", *(["test"] if args.test else [])):
        if part not in result:
            whole, holes = bags.scored(part, holes=False), bags.scored(part, holes=True)
            files = {"final": CHECKPOINT_FILE, "best": BEST_FILE}
            result[part] = {name: score(out / file, whole, holes) for name, file in files.items()}
    path.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
