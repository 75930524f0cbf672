# SPDX-License-Identifier: Apache-2.0
"""Write a finished run's model as one that comes with the package, its weights in half precision.

    python experiments/ship.py runs/nyu/all_labels_m3l_finer/checkpoint.safetensors nyu13_b0

The package's card of it, m3l_model/weights/README.md, is written by hand.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from m3l_model.checkpoint import read_tensors, write_tensors  # noqa: E402


def main() -> int:
    """Convert."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="of the run")
    parser.add_argument("name", help="of the model in the package")
    args = parser.parse_args()
    tensors, header = read_tensors(args.checkpoint)
    halves = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
    }
    path = REPOSITORY / "m3l_model" / "weights" / f"{args.name}.safetensors"
    write_tensors(path, halves, header)
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
