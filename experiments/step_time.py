# SPDX-License-Identifier: Apache-2.0
"""What a run of some rows takes, by steps of all of them in turn: medians of processor time, on one thread.

    python experiments/step_time.py --data ../shared/data --work runs/nyu m3l m3l_tuned

A thread's own time is hardly disturbed by what else the machine does; validation and states are not in it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(Path(__file__).resolve().parent)]

import torch  # noqa: E402
from nyuv2_data import NyuBags  # noqa: E402
from rows import ALL_ROWS, NYUV2, config_of  # noqa: E402
from step_kinds import kinds_of  # noqa: E402

from m3l_model.recipe import StepFrames  # noqa: E402


def main() -> int:
    """Measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with nyuv2 and redkitchen")
    parser.add_argument("--work", type=Path, required=True, help="that of experiments/run.py")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("rows", nargs="+", choices=list(ALL_ROWS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    frames = NyuBags(args.data, args.work).training_frames(1)
    kinds = {row: kinds_of(config_of(NYUV2, row, 0.001), frames) for row in args.rows}
    seconds: defaultdict[tuple[str, StepFrames], list[float]] = defaultdict(list)
    for _ in range(args.rounds + 1):
        for row, of_row in kinds.items():
            for taken, kind in of_row.items():
                began = time.process_time()
                next(kind.steps)
                seconds[row, taken].append(time.process_time() - began)
    for row, of_row in kinds.items():
        steps = [(kind.number, median(seconds[row, taken][1:])) for taken, kind in of_row.items()]
        each = ", ".join(f"{count} of {step:.2f} s" for count, step in steps)
        print(f"{row}: {sum(count * step for count, step in steps):.0f} s ({each})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
