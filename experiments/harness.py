# SPDX-License-Identifier: Apache-2.0
"""How fast a network learns from random weights by what the harness gives it: the table in docs/experiments.md.

python experiments/harness.py --data ../shared/data --work runs/nyu
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(Path(__file__).resolve().parent)]

from m3l_model.openmp import share_cores  # noqa: E402

share_cores(os.environ)

from nyuv2_data import NyuBags  # noqa: E402
from rows import NYUV2, config_of  # noqa: E402

from m3l_model.run_log import VALIDATION_FILE  # noqa: E402
from m3l_model.training import Intervals, Machine, train  # noqa: E402

_METRIC: dict[str, Any] = {"depth_encoding": "metric"}
_TWO_THIRDS: dict[str, Any] = {**_METRIC, "crop": 2 / 3, "scales": (0.75, 1.5)}
_WHOLE: dict[str, Any] = {**_METRIC, "crop": 1.0, "scales": (1.0, 1.25)}
_NORMALS: dict[str, Any] = {**_WHOLE, "depth_encoding": "normals"}
_NO_OHEM: dict[str, Any] = {"ohem_share": 1.0}
RUNS: dict[str, dict[str, Any]] = {
    "two thirds, 300 steps": {**_TWO_THIRDS, "steps": 300},
    "two thirds, 300 steps, without OHEM": {**_TWO_THIRDS, **_NO_OHEM, "steps": 300},
    "two thirds, 300 steps, rate 0.002": {**_TWO_THIRDS, "steps": 300, "learning_rate": 0.002},
    "two thirds, 300 steps, rate 0.004": {**_TWO_THIRDS, "steps": 300, "learning_rate": 0.004},
    "two thirds, 1500 steps": {**_TWO_THIRDS, "steps": 1500},
    "whole, 500 steps": {**_WHOLE, "steps": 500},
    "whole, 500 steps, without OHEM": {**_WHOLE, **_NO_OHEM, "steps": 500},
    "whole, 500 steps, normals": {**_NORMALS, "steps": 500},
}


def main() -> int:
    """Train with the labels of all usable frames and print mIoU on validation, as the training itself takes it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with nyuv2 and redkitchen")
    parser.add_argument("--work", type=Path, required=True, help="for bags and runs")
    parser.add_argument("--only", nargs="+", choices=list(RUNS), default=list(RUNS))
    args = parser.parse_args()
    frames = NyuBags(args.data, args.work).training_frames(None)
    for name in args.only:
        config = dataclasses.replace(config_of(NYUV2, "supervised", 0.001), **RUNS[name])
        out = args.work / "harness" / name.replace(" ", "_").replace(",", "")
        intervals = Intervals(100, config.steps)
        if train(config, frames, out, 1, Machine("cpu", workers=1), intervals, resume=True) is None:
            return 0
        last = json.loads((out / VALIDATION_FILE).read_text().splitlines()[-1])
        print(f"{name}: mIoU with both modalities {100 * last['clean']:.1f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
