# SPDX-License-Identifier: Apache-2.0
"""Small pictures of evaluated frames for the report: what the model saw, its masks and the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from m3l_model.evaluation_plan import EvaluationPlan
from m3l_model.image_faults import Depth, Rgb
from m3l_model.preprocessing import resize_nearest, to_metres

if TYPE_CHECKING:
    from m3l_model.evaluation import ReadFrame
    from m3l_model.predictor import Prediction

SIDE = 208
"""Longer side of a picture, in pixels."""
FARTHEST = 6.0
"""Distance in metres that is shown darkest."""
BUDGET_BYTES = 24 << 20
"""Of the pictures of one report: of longer bags, only some frames have some."""
DETAILED_FRAMES = 12
"""Frames, besides the worst, of which changed images are shown too."""

_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 72]
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 5]
_IMAGE_BYTES, _MASK_BYTES = 5000, 1500


class Kind(IntEnum):
    """What a picture shows: colour and depth as JPEG, truth and mask as PNG of class ids."""

    RGB = 0
    DEPTH = 1
    TRUTH = 2
    MASK = 3


class Picture(NamedTuple):
    """A picture of a frame.

    Attributes:
        bag, position: the frame.
        kind: what it shows.
        model: whose mask it is; -1 for the other kinds.
        scenarios: bit s is set where it is what is to be seen in scenario s.
        data: JPEG or PNG.
    """

    bag: int
    position: int
    kind: Kind
    model: int
    scenarios: int
    data: bytes


_INDEX = np.dtype(
    [
        ("bag", "<i4"),
        ("position", "<i4"),
        ("kind", "u1"),
        ("model", "i1"),
        ("scenarios", "<u8"),
        ("size", "<i8"),
    ]
)


def pack_pictures(pictures: Sequence[Picture]) -> tuple[npt.NDArray[np.void], npt.NDArray[np.uint8]]:
    """Turn pictures into two arrays without Python objects, for ``unpack_pictures``."""
    index = np.array([(*picture[:5], len(picture.data)) for picture in pictures], _INDEX)
    return index, np.frombuffer(b"".join(picture.data for picture in pictures), np.uint8)


def unpack_pictures(index: npt.NDArray[np.void], data: npt.NDArray[np.uint8]) -> list[Picture]:
    """The inverse of ``pack_pictures``."""
    ends = np.cumsum(index["size"])
    return [
        Picture(bag, position, Kind(kind), model, scenarios, data[end - size : end].tobytes())
        for (bag, position, kind, model, scenarios, size), end in zip(
            index.tolist(), ends.tolist(), strict=True
        )
    ]


class PictureMaker:
    """Makes the pictures of the frames that are to have some.

    Args:
        frames: (bag, position) of those; see ``choose_frames``.
        detailed: those that also have pictures of images that a scenario changes.
    """

    def __init__(self, frames: set[tuple[int, int]], detailed: set[tuple[int, int]]) -> None:
        self._frames = frames
        self._detailed = detailed

    def make(
        self,
        read: ReadFrame,
        predictions: Sequence[Mapping[Any, tuple[Prediction, float]]],
        plan: EvaluationPlan,
    ) -> tuple[Picture, ...]:
        """Make those of a frame, if any."""
        block = plan.blocks[read.block]
        frame = (block.bag, int(block.positions[read.place]))
        recorded = read.recorded
        if frame not in self._frames or recorded is None:
            return ()
        every = (1 << len(plan.scenarios)) - 1
        made = []
        if recorded.truth is not None:
            made.append(Picture(*frame, Kind.TRUTH, -1, every, _ids(recorded.truth)))
        shown = dict.fromkeys(read.inputs, 0)
        for number, key in enumerate(read.keys):
            if key is not None:
                shown[key] |= 1 << number
        rgb = 0
        depths: dict[int, tuple[Depth, int]] = {}
        for key, scenarios in shown.items():
            seen = read.inputs[key]
            changed = key[1] != ""
            if seen.rgb is recorded.frame.rgb:
                rgb |= scenarios
            elif seen.rgb is not None and frame in self._detailed:
                made.append(Picture(*frame, Kind.RGB, -1, scenarios, _rgb(seen.rgb)))
            if seen.depth is not None and (not changed or frame in self._detailed):
                _, before = depths.get(id(seen.depth), (seen.depth, 0))
                depths[id(seen.depth)] = (seen.depth, before | scenarios)
            for model, predicted in enumerate(predictions):
                made.append(Picture(*frame, Kind.MASK, model, scenarios, _ids(predicted[key][0].labels)))
        made.append(Picture(*frame, Kind.RGB, -1, rgb, _rgb(recorded.frame.rgb)))
        made += [
            Picture(*frame, Kind.DEPTH, -1, scenarios, _depth(depth)) for depth, scenarios in depths.values()
        ]
        return tuple(made)


def choose_frames(plan: EvaluationPlan, models: int) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
    """Choose frames of a plan, evenly spread, that are to have pictures, and those of them that have all.

    Args:
        plan: of the evaluation.
        models: how many masks there are of each input.
    """
    frames = [(block.bag, int(position)) for block in plan.blocks for position in block.positions]
    changing = sum(scenario.images is not None for scenario in plan.scenarios)
    streams = [number for number, scenario in enumerate(plan.scenarios) if scenario.images is None]
    distinct = [
        len(np.unique(block.decisions["depth"][streams, index]))
        for block in plan.blocks
        for index in range(len(block.positions))
    ]
    inputs = changing + float(np.mean(distinct))
    per_frame = 2 * _IMAGE_BYTES + _MASK_BYTES * (1 + inputs * models)
    details = DETAILED_FRAMES * changing * _IMAGE_BYTES
    count = max(DETAILED_FRAMES, int((BUDGET_BYTES - details) / per_frame))
    return set(_spread(frames, count)), set(_spread(frames, DETAILED_FRAMES))


def _spread(frames: list[tuple[int, int]], count: int) -> list[tuple[int, int]]:
    if len(frames) <= count:
        return frames
    return [frames[at] for at in np.linspace(0, len(frames) - 1, count).round().astype(int)]


def _ids(labels: npt.NDArray[np.uint8]) -> bytes:
    return _encode(".png", resize_nearest(labels, _size(labels.shape)), _PNG)


def _rgb(rgb: Rgb) -> bytes:
    height, width = _size(rgb.shape)
    half = (rgb.shape[1] // 2, rgb.shape[0] // 2)
    if half[0] >= width:  # halves first: several times as fast
        rgb = np.asarray(cv2.resize(rgb, half, interpolation=cv2.INTER_AREA), np.uint8)
    small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA)
    return _encode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR), _JPEG)


def _depth(depth: Depth) -> bytes:
    """Depth from near (warm) to far (cold); black where there is no reading."""
    height, width = _size(depth.shape)
    small: Any = cv2.resize(depth, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
    metres = to_metres(small)
    nearness = 255 - np.clip(metres * (255 / FARTHEST), 0, 255).astype(np.uint8)
    shown = cv2.applyColorMap(nearness, cv2.COLORMAP_TURBO)
    shown[metres == 0] = 0
    return _encode(".jpg", shown, _JPEG)


def _size(shape: tuple[int, ...]) -> tuple[int, int]:
    scale = min(1.0, SIDE / max(shape[:2]))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _encode(suffix: str, image: npt.NDArray[Any], options: list[int]) -> bytes:
    _, encoded = cv2.imencode(suffix, image, options)
    return encoded.tobytes()
