# SPDX-License-Identifier: Apache-2.0
"""Score a model on the labelled frames of a bag: with both modalities, and with either one missing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from m3l_model.bags import BagFrame, Topics, read_frames
from m3l_model.errors import M3LError
from m3l_model.metrics import ConfusionMatrix
from m3l_model.predictor import Predictor
from m3l_model.preprocessing import resize_nearest, to_metres

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


def labelled_frames(bag: Path, topics: Topics | None = None, every: int = 1) -> Iterable[BagFrame]:
    """Read a bag's labelled frames as the node would pair them, one in ``every``.

    Raises:
        M3LError: the bag has no labelled frame.
    """
    count = 0
    for frame in read_frames(bag, topics):
        if frame.labels is None:
            continue
        if count % every == 0:
            yield frame
        count += 1
    if not count:
        raise M3LError(
            f"{bag}: no labelled frames; name the label topic with --label-topic, or record labels"
        )


def evaluate(predictor: Predictor, frames: Iterable[BagFrame]) -> Scores:
    """Score a predictor on labelled frames, at the images' own size.

    Args:
        predictor: the model; its label set maps the ids in the label images to its classes.
        frames: frames with labels.

    Raises:
        M3LError: a label image holds ids that the model's label set does not know, or no frame has depth.
    """
    labels = predictor.labels
    matrices = {condition: ConfusionMatrix(len(labels.classes), labels.ignore_id) for condition in CONDITIONS}
    count = 0
    for frame in frames:
        assert frame.labels is not None
        truth = labels.decode(frame.labels, f"label image at {frame.stamp_ns}")
        depth = None
        if frame.depth is not None and (metres := to_metres(frame.depth)).any():
            depth = resize_nearest(metres, truth.shape)
        inputs = {"both": (frame.rgb, depth), "rgb_only": (frame.rgb, None), "depth_only": (None, depth)}
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
