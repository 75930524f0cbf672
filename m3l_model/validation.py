# SPDX-License-Identifier: Apache-2.0
"""What a training run looks at now and then: its validation scores, and pictures of what the networks say."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import cv2
import numpy as np
import numpy.typing as npt
import torch

from m3l_model import metrics
from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.errors import M3LError
from m3l_model.evaluation import evaluate
from m3l_model.evaluation_plan import EvaluationPlan, plan_evaluation
from m3l_model.labels import LabelSet
from m3l_model.predictor import Predictor
from m3l_model.preprocessing import Preprocessing, resize_nearest, resize_rgb, to_metres
from m3l_model.recipe import TrainConfig
from m3l_model.scenarios import CLEAN, DEPTH_MISSING, ROBUST, chosen_scenarios
from m3l_model.segmenter import LinearFusionSegmenter

PANEL_HEIGHT = 120


class _Stopped(Exception):
    """A validation is to end."""


def plan_validation(
    config: TrainConfig, dataset: RgbdBagDataset, positions: npt.NDArray[np.intp]
) -> EvaluationPlan:
    """Plan what ``validate`` does: the scenarios of ``scenarios.ROBUST``, or, for a recipe of colour alone, that alone.

    Args:
        config: the recipe.
        dataset: frames as they were recorded, with labels.
        positions: (V,) of those to score.

    Raises:
        M3LError: there are none, none has depth although the recipe takes it, or a bag cannot be read.
    """
    scenarios = (DEPTH_MISSING,) if config.modalities == "rgb" else chosen_scenarios(ROBUST)
    try:
        return plan_evaluation(dataset, positions, scenarios)
    except M3LError as error:
        raise M3LError(f"validation: {error}") from error


def validate(
    model: LinearFusionSegmenter, plan: EvaluationPlan, stopped: Callable[[], bool]
) -> dict[str, float] | None:
    """Score a network that goes on being trained, in float32, at the images' own size.

    Args:
        model: the network; stays as it is.
        plan: of ``plan_validation``.
        stopped: asked before the first and after each frame whether to stop.

    Returns:
        The mIoU in each scenario, and, where these are ``scenarios.ROBUST``, their mean, ``robust``; None where it was
        stopped.
    """

    def after_frames(_: int) -> None:
        if stopped():
            raise _Stopped

    try:
        evaluation = evaluate(plan, {"model": _predictor(model)}, report=after_frames)
    except _Stopped:
        return None
    confusion = evaluation.counts.confusion[0].sum(1)
    names = tuple(scenario.name for scenario in plan.scenarios)
    scores = dict(zip(names, metrics.miou(confusion).tolist(), strict=True))
    return scores | ({"robust": float(np.mean(list(scores.values())))} if names == ROBUST else {})


def merit(config: TrainConfig, scores: Mapping[str, float]) -> float:
    """Give the mIoU by which the best model of a run is chosen.

    It is the robust one where modalities are masked; other recipes never train the token that stands for a missing one,
    and are judged by what they are trained on.

    Args:
        config: the recipe.
        scores: of ``validate``.
    """
    if config.masking != "none":
        return scores["robust"]
    return scores[DEPTH_MISSING.name if config.modalities == "rgb" else CLEAN.name]


def panels(
    student: LinearFusionSegmenter,
    teacher: LinearFusionSegmenter,
    dataset: RgbdBagDataset,
    positions: npt.NDArray[np.intp],
    labels: LabelSet,
) -> npt.NDArray[np.uint8]:
    """Draw a row for each frame: colour, depth, the teacher's labels, the student's without depth and without colour.

    Args:
        student, teacher: networks; stay as they are.
        dataset: frames as they were recorded.
        positions: of the frames to show.
        labels: gives the classes their colours.

    Returns:
        (H, W, 3) uint8; right of a row that is narrower than others, black.
    """
    taught, learnt = _predictor(teacher), _predictor(student)
    rows = []
    for position in positions.tolist():
        sample = dataset[position]
        depth = None if sample.missing[1] else sample.depth
        tiles = [sample.rgb, _depth_image(sample.depth)]
        for predictor, rgb, seen in (
            (taught, sample.rgb, depth),
            (learnt, sample.rgb, None),
            *([] if depth is None else [(learnt, None, depth)]),
        ):
            tiles.append(labels.colorize(predictor.predict(rgb, seen, with_confidence=False).labels))
        if depth is None:
            tiles.append(np.zeros_like(sample.rgb))
        rows.append(np.hstack([_tile(image, sample.rgb.shape[:2]) for image in tiles]))
    widest = max(row.shape[1] for row in rows)
    return np.vstack([np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0))) for row in rows])


@torch.no_grad()
def reconstruction_panels(
    network: LinearFusionSegmenter, dataset: RgbdBagDataset, positions: npt.NDArray[np.intp]
) -> npt.NDArray[np.uint8]:
    """Draw a row for each frame: colour, depth, and what the network tells of either from the other.

    Args:
        network: one that reconstructs; stays as it is.
        dataset: frames as they were recorded, which come out at one size for the network.
        positions: of the frames to show.

    Returns:
        (H, W, 3) uint8; depth in the network's encoding, its first channel, near bright.
    """
    own = copy.deepcopy(network).float().eval()
    assert own.metadata
    preprocessing, device = own.metadata.preprocessing, next(own.parameters()).device
    rows = []
    for position in positions.tolist():
        sample = dataset[position]
        size = preprocessing.input_size(*sample.rgb.shape[:2])
        rgb = torch.from_numpy(resize_rgb(sample.rgb, size)).to(device)[None]
        metres = torch.from_numpy(resize_nearest(to_metres(sample.depth), size)).to(device)[None]
        inputs = preprocessing.encode(rgb, metres)
        told = [
            own(inputs.rgb, inputs.depth, torch.tensor([missing]), inputs.depth_valid).fused[0].cpu()
            for missing in ((False, True), (True, False))
        ]
        depths = [_grey(x, preprocessing) for x in (inputs.depth[0, 0].cpu(), told[0][3])]
        tiles = (sample.rgb, *depths, preprocessing.decode_rgb(told[1][:3]))
        rows.append(np.hstack([_tile(image, sample.rgb.shape[:2]) for image in tiles]))
    return np.vstack(rows)


def _grey(encoded: torch.Tensor, preprocessing: Preprocessing) -> npt.NDArray[np.uint8]:
    low, high = (0.0, 1.0) if preprocessing.depth_encoding == "minmax" else (-2.0, 2.0)
    level = 255 - 200 * ((encoded - low) / (high - low)).clamp(0, 1)
    return np.repeat(level.to(torch.uint8).numpy()[:, :, None], 3, axis=2)


def _predictor(model: LinearFusionSegmenter) -> Predictor:
    device = next(model.parameters()).device
    own = copy.deepcopy(model).float().eval()
    return Predictor(own, str(device), "fp32")


def _depth_image(depth: npt.NDArray[np.uint16] | npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Grey levels, near bright, holes black."""
    metres = to_metres(depth)
    far = float(metres.max()) or 1.0
    grey = np.where(metres > 0, 255 - 200 * metres / far, 0)
    return np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)


def _tile(image: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    width = max(1, round(PANEL_HEIGHT * shape[1] / shape[0]))
    scaled = cv2.resize(image, (width, PANEL_HEIGHT), interpolation=cv2.INTER_NEAREST_EXACT)
    return np.asarray(scaled, np.uint8)
