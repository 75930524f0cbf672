# SPDX-License-Identifier: Apache-2.0
"""What all kinds of label files share: they are found by bag and stamp, read one by one, and checked as a whole."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from m3l_model.frame_names import FrameName, parse_frame_file
from m3l_model.labels import LabelError, LabelSet

BACKGROUND = "background"
"""What annotation tools call pixels that nobody labelled."""

_FILES_NAMED = 3
_CHECK_THREADS = 2

_logger = logging.getLogger(__name__)

Member = TypeVar("Member")


class LoadedLabels(NamedTuple):
    """A label image.

    Attributes:
        labels: (H, W) uint8, class ids and ``ignore_id``; meaningless where there is something unknown.
        unknown: what it holds outside the label set, as words for errors, with pixel counts.
    """

    labels: npt.NDArray[np.uint8]
    unknown: Mapping[str, int]


class StampedLabels(ABC, Generic[Member]):
    """Label files that are indexed by frame; a ``LabelFiles``."""

    remedy: str
    """What to do about things outside the label set."""

    def __init__(self, path: Path, label_set: LabelSet) -> None:
        self.path = path
        self.label_set = label_set

    @property
    @abstractmethod
    def frames(self) -> Mapping[FrameName, Member]:
        """What holds each frame's labels."""

    @abstractmethod
    def load(self, member: Member, shape: tuple[int, int] | None) -> LoadedLabels:
        """Read labels, of this (H, W) where it is given. Raises ``LabelError`` where that is impossible."""

    @abstractmethod
    def name_of(self, member: Member) -> str:
        """Name it within ``path``."""

    @property
    def bag_names(self) -> frozenset[str | None]:
        return frozenset(frame.bag_name for frame in self.frames)

    def stamps(self, bag_name: str) -> frozenset[int]:
        return frozenset(frame.stamp_ns for frame in self.frames if frame.bag_name in (None, bag_name))

    def read(self, bag_name: str, stamp_ns: int, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
        frames = self.frames
        frame = FrameName(bag_name, stamp_ns)
        member = frames.get(frame, frames.get(frame._replace(bag_name=None)))
        if member is None:
            raise LabelError(f"{self.path}: no labels of {bag_name} at {stamp_ns}")
        labels, unknown = self.load(member, shape)
        if unknown:
            occurrences = {
                what: _Occurrence(count, [self.name_of(member)]) for what, count in unknown.items()
            }
            raise LabelError(f"{self.path}: {self._outside(occurrences)}")
        return labels

    def check(self) -> None:
        members = list(self.frames.values())
        occurrences: dict[str, _Occurrence] = {}
        unusable: list[str] = []
        with ThreadPoolExecutor(_CHECK_THREADS) as pool:
            found = pool.map(self._unknown, members)
            progress = tqdm(
                found, desc=f"check {self.path.name}", total=len(members), unit="label", mininterval=1
            )
            for member, unknown in zip(members, progress, strict=True):
                if isinstance(unknown, LabelError):
                    unusable.append(str(unknown))
                    continue
                for what, count in unknown.items():
                    occurrence = occurrences.setdefault(what, _Occurrence())
                    occurrence.pixels += count
                    occurrence.files.append(self.name_of(member))
        problems = [self._outside(occurrences)] if occurrences else []
        if unusable:
            more = f" (and {len(unusable) - 1} more like it)" if len(unusable) > 1 else ""
            problems.append(f"{len(unusable)} of {len(members)} labels cannot be used: {unusable[0]}{more}")
        if problems:
            raise LabelError(f"{self.path}: {'; '.join(problems)}")

    def _unknown(self, member: Member) -> Mapping[str, int] | LabelError:
        try:
            return self.load(member, None).unknown
        except LabelError as error:
            return error

    def _outside(self, occurrences: Mapping[str, _Occurrence]) -> str:
        listed = ", ".join(
            f"{what} ({occurrence.pixels} pixels in {shortened(occurrence.files)})"
            for what, occurrence in occurrences.items()
        )
        return f"outside label set {self.label_set.name!r}: {listed}; {self.remedy}"


@dataclass
class _Occurrence:
    pixels: int = 0
    files: list[str] = field(default_factory=list)


class ClassNames:
    """Finds classes by the names that people gave them in an annotation tool, in upper or lower case."""

    def __init__(self, label_set: LabelSet) -> None:
        self._ids: dict[str, int] = {}
        for index, name in enumerate(label_set.classes):
            self._ids.setdefault(name.casefold(), index)
        self._exact = {name: index for index, name in enumerate(label_set.classes)}
        self.background = self._ids.get(BACKGROUND, label_set.ignore_id)

    def find(self, name: str) -> int | None:
        """Give the class id, ``ignore_id`` for a background that is no class, or None."""
        name = name.strip()
        if name.casefold() == BACKGROUND:
            return self.background
        return self._exact.get(name, self._ids.get(name.casefold()))


def index_frames(path: Path, members: Iterable[tuple[str, Member]]) -> dict[FrameName, Member]:
    """Sort what holds labels by frame, according to its name; warn of names that are none of a frame.

    Args:
        path: names the whole in errors.
        members: each with the name of its image.

    Raises:
        LabelError: two are of one frame, or none is of any.
    """
    frames: dict[FrameName, Member] = {}
    names: dict[FrameName, str] = {}
    strange = []
    for name, member in members:
        frame = parse_frame_file(name)
        if frame is None:
            strange.append(name)
        elif frame in frames:
            raise LabelError(
                f"{path}: {names[frame]} and {name} are labels of one frame; give a folder or file of labels alone"
            )
        else:
            frames[frame], names[frame] = member, name
    if not frames:
        found = f"found {shortened(strange)}" if strange else "found nothing at all"
        raise LabelError(
            f"{path}: no label is named by its frame's stamp, <stamp_ns>.png or <bag>/<stamp_ns>.png: {found}; keep "
            "the names under which frames are exported"
        )
    if strange:
        _logger.warning(
            "%s: left out, because not named <stamp_ns>.png or <bag>/<stamp_ns>.png: %s",
            path,
            shortened(strange),
        )
    return frames


def shortened(names: Sequence[str]) -> str:
    """List the first few names, then how many more there are."""
    more = len(names) - _FILES_NAMED
    return ", ".join(names[:_FILES_NAMED]) + (f" and {more} more" if more > 0 else "")
