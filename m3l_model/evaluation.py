# SPDX-License-Identifier: Apache-2.0
"""Score a model on the labelled frames of a bag: with both modalities, and with either one missing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from m3l_model.bag_dataset import RgbdBagDataset, Sample
from m3l_model.errors import M3LError
from m3l_model.labels import IGNORE_ID
from m3l_model.metrics import ConfusionMatrix
from m3l_model.predictor import Predictor
from m3l_model.preprocessing import resize_nearest, to_metres
from m3l_model.splits import Splits

CONDITIONS = ("both", "rgb_only", "depth_only")


@dataclass(frozen=True)
class Scores:
    """Mean IoU under each condition.

    Attributes:
        both: colour and depth as recorded.
        rgb_only: depth withheld from every frame.
        depth_only: colour withheld from every frame that has depth.
        robust: mean of the three (the paper's robust mIoU).
        majority: of always answering the most frequent class.
        class_iou: per condition, the IoU of each class by name; None where a class does not occur.
        frames: labelled frames scored.
    """

    both: float
    rgb_only: float
    depth_only: float
    robust: float
    majority: float
    class_iou: dict[str, dict[str, float | None]]
    frames: int

    def to_dict(self) -> dict[str, Any]:
        """Give plain types for JSON."""
        return asdict(self)


def labelled_positions(dataset: RgbdBagDataset, splits: Splits | None = None) -> npt.NDArray[np.intp]:
    """Give the positions of the labelled samples of a data set, with splits of those in validation only.

    Raises:
        M3LError: there are none, or the splits do not fit the bags.
    """
    if splits is None:
        return np.flatnonzero(dataset.labelled)
    validation = splits.select(dataset, "validation")
    labelled = validation[dataset.labelled[validation]]
    if not len(labelled):
        raise M3LError(
            f"none of the {len(validation)} frames that the splits set apart for validation has labels; draw other "
            "seconds with m3l split --seed, or edit the file"
        )
    return labelled


def evaluate(predictor: Predictor, samples: Iterable[Sample]) -> Scores:
    """Score a predictor on labelled samples, at the images' own size.

    Args:
        predictor: the model.
        samples: labelled by the model's own label set.

    Raises:
        M3LError: no frame has depth, or a sample cannot be read.
    """
    labels = predictor.labels
    matrices = {condition: ConfusionMatrix(len(labels.classes), IGNORE_ID) for condition in CONDITIONS}
    count = 0
    for sample in samples:
        truth = sample.labels
        depth = None
        if not sample.missing[1]:
            depth = resize_nearest(to_metres(sample.depth), truth.shape)
        inputs = {"both": (sample.rgb, depth), "rgb_only": (sample.rgb, None), "depth_only": (None, depth)}
        for condition, (rgb, depth) in inputs.items():
            if rgb is None and depth is None:
                continue
            prediction = predictor.predict(rgb, depth, with_confidence=False)
            matrices[condition].add(truth, prediction.labels)
        count += 1
    if not count:
        raise M3LError("no frame was scored; ask for at least one")
    miou = {condition: matrix.miou() for condition, matrix in matrices.items()}
    if not math.isfinite(miou["depth_only"]):
        raise M3LError("no labelled frame has depth; name the depth topic with --depth-topic")
    return Scores(
        **miou,
        robust=sum(miou.values()) / len(miou),
        majority=matrices["both"].majority_miou(),
        class_iou={
            condition: {
                name: None if iou != iou else float(iou)
                for name, iou in zip(labels.classes, matrix.iou(), strict=True)
            }
            for condition, matrix in matrices.items()
        },
        frames=count,
    )


def score_table(scores: dict[str, Scores]) -> str:
    """Format the mean IoUs of named models as a text table, in percent."""
    columns = ("both", "rgb_only", "depth_only", "robust", "majority")
    width = max(len(name) for name in scores) + 2
    lines = [" " * width + "".join(f"{column:>12}" for column in columns)]
    for name, score in scores.items():
        lines.append(
            f"{name:<{width}}" + "".join(f"{100 * getattr(score, column):>12.1f}" for column in columns)
        )
    return "\n".join(lines)
