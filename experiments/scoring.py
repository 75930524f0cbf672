# SPDX-License-Identifier: Apache-2.0
"""mIoU of a finished run: both modalities, either one, and with holes, one confusion matrix over all frames each."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from m3l_model.bag_dataset import RgbdBagDataset, Sample
from m3l_model.checkpoint import load_checkpoint
from m3l_model.metrics import confusion, miou
from m3l_model.predictor import Predictor
from m3l_model.preprocessing import RGB_MEAN, to_metres
from m3l_model.recipe import TrainConfig
from m3l_model.training_frames import TrainingFrames


def checkpoint_arguments(description: str | None) -> argparse.Namespace:
    """Read the command line of a script that scores checkpoints on the validation frames."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with nyuv2 and redkitchen")
    parser.add_argument("--work", type=Path, required=True, help="that of experiments/run.py")
    parser.add_argument("checkpoints", nargs="+", type=Path)
    return parser.parse_args()


class Fill(NamedTuple):
    """What stands in for a missing modality.

    Attributes:
        name: of it, in results.
        rgb, depth: images; None: nothing but what the model itself has, its mask token.
        skip: the missing modality's branch is left out.
    """

    name: str
    rgb: npt.NDArray[np.uint8] | None = None
    depth: npt.NDArray[np.float32] | None = None
    skip: bool = False


TOKEN = Fill("token")
LEFT_OUT = Fill("left out", skip=True)


def fills(config: TrainConfig, frames: TrainingFrames) -> list[Fill]:
    """Give what may stand in for a missing modality with models of a recipe, of which validation chooses.

    That is the mask token where it is trained, else zeros after normalisation and the mean of the labelled training
    frames; and for either its branch may be left out. What is trained without a modality or its branch stays without.
    """
    if config.skip_missing:
        return [LEFT_OUT]
    if config.masking != "none":
        return [TOKEN, LEFT_OUT]
    positions = frames.labelled.tolist()
    samples = [frames.dataset[position] for position in positions]
    mean_rgb = np.mean([sample.rgb for sample in samples], 0).round().astype(np.uint8)
    metres = np.array([to_metres(sample.depth) for sample in samples])
    mean_depth = (metres.sum(0) / np.maximum(1, (metres > 0).sum(0))).astype(np.float32)
    zero_rgb = np.broadcast_to(np.round(np.array(RGB_MEAN) * 255).astype(np.uint8), mean_rgb.shape)
    middle = np.full(mean_depth.shape, sum(config.depth_range) / 2, np.float32)
    zeros = Fill("zeros", np.ascontiguousarray(zero_rgb), middle)
    return [zeros, Fill("mean", mean_rgb, mean_depth), LEFT_OUT]


def score(
    checkpoint: Path, whole: RgbdBagDataset, holes: RgbdBagDataset, fill: Fill = TOKEN
) -> dict[str, float]:
    """Score a model, in float32.

    Args:
        checkpoint: the model.
        whole, holes: the same frames, with whole depth and with holes in it.
        fill: stands in for what is missing.

    Returns:
        mIoU by condition, and ``robust``, the mean of the first three.
    """
    model = load_checkpoint(checkpoint)
    model.skip_missing = model.skip_missing or fill.skip
    predictor = Predictor(model, precision="fp32")
    conditions = ("both", "rgb_only", "depth_only", "holes")
    classes = len(predictor.labels.classes)
    counts = {name: np.zeros((classes, classes), np.int64) for name in conditions}

    def add(condition: str, sample: Sample, rgb: object, depth: object) -> None:
        prediction = predictor.predict(rgb, depth, with_confidence=False)  # type: ignore[arg-type]
        counts[condition] += confusion(sample.labels, prediction.labels, classes)

    for sample, holed in tqdm(
        zip(_all(whole), _all(holes), strict=True), total=len(whole), desc="score", mininterval=1
    ):
        add("both", sample, sample.rgb, sample.depth)
        add("rgb_only", sample, sample.rgb, fill.depth)
        add("depth_only", sample, fill.rgb, sample.depth)
        add("holes", holed, holed.rgb, holed.depth)
    scores = {name: float(miou(counts[name])) for name in conditions}
    return {**scores, "robust": sum(scores[name] for name in conditions[:3]) / 3}


def _all(dataset: RgbdBagDataset) -> Iterator[Sample]:
    return (dataset[position] for position in range(len(dataset)))
