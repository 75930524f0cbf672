# SPDX-License-Identifier: Apache-2.0
"""Score models on the validation frames of NYUv2 where depth is left in one region of the image only.

python experiments/regions.py --data ../shared/data --work runs/nyu runs/nyu/runs/m3l*/checkpoint.safetensors
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(Path(__file__).resolve().parent)]

from m3l_model.openmp import share_cores  # noqa: E402

share_cores(os.environ)

import numpy as np  # noqa: E402
from nyuv2_data import NyuBags  # noqa: E402
from scoring import checkpoint_arguments  # noqa: E402

from m3l_model.bag_dataset import RgbdBagDataset  # noqa: E402
from m3l_model.metrics import confusion, miou  # noqa: E402
from m3l_model.predictor import Predictor  # noqa: E402

SHARES = (1.0, 0.75, 0.5, 0.25, 0.1, 0.03, 0.01, 0.0)
"""Of the image, in which there is depth: a rectangle of the image's shape, somewhere."""


def main() -> int:
    """Print a table of mIoU."""
    args = checkpoint_arguments(__doc__)
    dataset = NyuBags(args.data, args.work).scored("validation", holes=False)
    print(f"| model | {' | '.join(f'{share:.0%}' for share in SHARES)} |\n|{'---|' * (len(SHARES) + 1)}")
    for checkpoint in args.checkpoints:
        predictor = Predictor.from_checkpoint(checkpoint, precision="fp32")
        scores = (f"{100 * score(predictor, dataset, share):.1f}" for share in SHARES)
        print(f"| {checkpoint.parent.name} | {' | '.join(scores)} |", flush=True)
    return 0


def score(predictor: Predictor, dataset: RgbdBagDataset, share: float) -> float:
    """Give the mIoU over all frames; the regions are the same for every model."""
    rng = np.random.default_rng(0)
    classes = len(predictor.labels.classes)
    counts = np.zeros((classes, classes), np.int64)
    for position in range(len(dataset)):
        sample = dataset[position]
        height, width = (round(side * share**0.5) for side in sample.depth.shape)
        top = rng.integers(sample.depth.shape[0] - height + 1)
        left = rng.integers(sample.depth.shape[1] - width + 1)
        depth = np.zeros_like(sample.depth)
        region = slice(top, top + height), slice(left, left + width)
        depth[region] = sample.depth[region]
        prediction = predictor.predict(sample.rgb, depth, with_confidence=False)
        counts += confusion(sample.labels, prediction.labels, classes)
    return float(miou(counts))


if __name__ == "__main__":
    sys.exit(main())
