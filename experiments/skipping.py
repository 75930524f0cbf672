# SPDX-License-Identifier: Apache-2.0
"""Score models on the validation frames of NYUv2 with the mask token, and with a missing modality's branch left out.

python experiments/skipping.py --data ../shared/data --work runs/nyu runs/nyu/runs/m3l_token-*/checkpoint.safetensors
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(Path(__file__).resolve().parent)]

from m3l_model.openmp import share_cores  # noqa: E402

share_cores(os.environ)

from nyuv2_data import NyuBags  # noqa: E402
from scoring import LEFT_OUT, TOKEN, checkpoint_arguments, score  # noqa: E402

from m3l_model.checkpoint import load_checkpoint  # noqa: E402

COLUMNS = ("both", "rgb_only", "depth_only", "robust", "holes")


def main() -> int:
    """Print a table."""
    args = checkpoint_arguments(__doc__)
    bags = NyuBags(args.data, args.work)
    whole, holes = bags.scored("validation", holes=False), bags.scored("validation", holes=True)
    print(f"| model | missing | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 2)}")
    for checkpoint in args.checkpoints:
        if load_checkpoint(checkpoint).skip_missing:
            sys.exit(
                f"{checkpoint}: was trained without what is missing, so there is no token to compare with"
            )
        for fill in (TOKEN, LEFT_OUT):
            scores = score(checkpoint, whole, holes, fill)
            cells = " | ".join(f"{100 * scores[name]:.1f}" for name in COLUMNS)
            print(f"| {checkpoint.parent.name} | {fill.name} | {cells} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
