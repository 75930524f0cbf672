# SPDX-License-Identifier: Apache-2.0
"""The bags of the NYUv2 protocol: training frames with real holes in their depth, validation and test with and without.

Depth of NYUv2 as it is at hand has been in-painted; the holes are those of 7-Scenes' red kitchen, a Kinect too.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.errors import M3LError
from m3l_model.import_images import write_images
from m3l_model.import_layouts import Choices, plan_layout
from m3l_model.labels import CHANNELS, LabelSet
from m3l_model.training_frames import TrainingFrames

LISTS = Path(__file__).resolve().parent / "nyuv2"
LABELS = LabelSet.load("nyu13")
_MASKS = 100
_NO_READING = (0, 65535)


def names(name: str) -> list[str]:
    """Read a committed list of frames."""
    return (LISTS / f"{name}.txt").read_text().split()


class NyuBags:
    """Makes each bag when it is first asked for.

    Args:
        data: folder with ``nyuv2`` and ``redkitchen``.
        work: where the bags are to lie.
    """

    def __init__(self, data: Path, work: Path) -> None:
        self._nyu = data / "nyuv2"
        self._kitchen = data / "redkitchen"
        self._work = work

    def training_frames(self, draw: int | None) -> TrainingFrames:
        """Give all 795 frames with their roles; with the labels of one draw, or, for None, of all usable frames."""
        every = (self._nyu / "train.txt").read_text().split()
        kept = set(names("validation"))
        bag = self._bag("train", every, lambda name: None if name in kept else _holes(name, range(_MASKS)))
        dataset = RgbdBagDataset([bag], LABELS)
        assert len(dataset) == len(every)
        usable = set(names("usable"))
        labelled = usable if draw is None else set(names(f"labelled_{draw}"))

        def positions(chosen: set[str]) -> npt.NDArray[np.intp]:
            return np.array([i for i, name in enumerate(every) if name in chosen], np.intp)

        return TrainingFrames(
            dataset, LABELS, None, positions(labelled), positions(usable - labelled), positions(kept)
        )

    def pretraining_frames(self) -> TrainingFrames:
        """Give the usable frames, to pretrain on without their labels."""
        frames = self.training_frames(None)
        return TrainingFrames(
            RgbdBagDataset(frames.dataset.bags),
            CHANNELS,
            None,
            frames.unlabelled,
            frames.labelled,
            frames.unlabelled,
        )

    def scored(self, part: str, holes: bool) -> RgbdBagDataset:
        """Give the frames of ``validation`` or ``test``, their depth whole or with holes not seen in training."""
        listed = names(part) if part == "validation" else (self._nyu / "test.txt").read_text().split()
        masks = range(_MASKS, 2 * _MASKS)
        mask = (lambda name: _holes(name, masks)) if holes else (lambda name: None)
        return RgbdBagDataset([self._bag(f"{part}_{'holes' if holes else 'whole'}", listed, mask)], LABELS)

    def _bag(self, name: str, frames: Sequence[str], mask: Callable[[str], _Hole | None]) -> Path:
        bag = self._work / name
        if bag.exists():
            return bag
        folder = self._work / f"{name}_images"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "depth").mkdir(parents=True)
        for kind in ("rgb", "label40"):
            (folder / kind).symlink_to((self._nyu / kind).resolve())
        for frame in frames:
            grey = _read(self._nyu / "depth" / f"{frame}.png")
            millimetres = np.round((grey.astype(np.float64) + 0.5) / 25.5 * 1000).astype(np.uint16)
            hole = mask(frame)
            if hole:
                millimetres[hole.of(self._kitchen)] = 0
            cv2.imwrite(str(folder / "depth" / f"{frame}.png"), millimetres)
        (folder / "list.txt").write_text("\n".join(frames) + "\n")
        plan = plan_layout(folder, "nyuv2", Choices(None, None, None, folder / "list.txt", None, None, None))
        write_images(plan.images(10.0, 1_000_000_000), self._work / f"{name}.part", plan.units)
        (self._work / f"{name}.part").rename(bag)
        shutil.rmtree(folder)
        return bag


class _Hole:
    """Where a frame of the kitchen has no reading, mirrored and moved."""

    def __init__(self, frame: int, flip: bool, shift: tuple[int, int]) -> None:
        self._frame = frame
        self._flip = flip
        self._shift = shift

    def of(self, kitchen: Path) -> npt.NDArray[np.bool_]:
        path = sorted(kitchen.glob("*.depth.png"))[self._frame]
        missing = np.isin(_read(path), _NO_READING)
        if self._flip:
            missing = missing[:, ::-1]
        rows, columns = self._shift
        moved = np.zeros_like(missing)
        height, width = missing.shape
        moved[max(0, rows) : height + min(0, rows), max(0, columns) : width + min(0, columns)] = missing[
            max(0, -rows) : height - max(0, rows), max(0, -columns) : width - max(0, columns)
        ]
        return moved


def _read(path: Path) -> npt.NDArray[Any]:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None:
        raise M3LError(f"{path}: no such image")
    return image


def _holes(name: str, frames: range) -> _Hole:
    draw = np.random.default_rng((int(name), frames.start))
    rows, columns = (int(x) for x in draw.integers(-60, 61, 2))
    return _Hole(int(draw.choice(frames)), bool(draw.integers(2)), (rows, columns))
