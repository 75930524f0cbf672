# SPDX-License-Identifier: Apache-2.0
"""Sees that there are labels, and that they fit their bags and their label set, before hours are spent on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset
from tqdm import tqdm

from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.data import worker_loader
from m3l_model.errors import M3LError
from m3l_model.label_files import LabelFiles
from m3l_model.label_files.stamped import shortened
from m3l_model.labels import LabelError, LabelSet


def require_labels_of(dataset: RgbdBagDataset, label_files: LabelFiles | None) -> None:
    """See that a data set has labels, and that the label files are of its bags.

    Raises:
        LabelError: says what was looked for.
    """
    bags = [bag.index for bag in dataset.bags]
    names = ", ".join(bag.name for bag in bags)
    if label_files is not None:
        known = label_files.bag_names
        if None not in known and not known & {bag.name for bag in bags}:
            listed = shortened(sorted(name for name in known if name is not None))
            raise LabelError(
                f"{label_files.path}: labels of {listed}, but the bags are {names}; a bag's labels lie in a folder of "
                "the bag's name"
            )
        if not any(
            np.isin(bag.frames["stamp_ns"], list(label_files.stamps(bag.index.name))).any()
            for bag in dataset.bags
        ):
            raise LabelError(
                f"{label_files.path}: no label has the stamp of a colour image of {names}; a label is named by the "
                "header stamp of its image, in nanoseconds, as m3l frames names it"
            )
    if not dataset.labelled.any():
        paths = ", ".join(str(bag.path) for bag in bags)
        raise LabelError(
            f"{paths}: no frame has labels: no topic of 8-bit images has label, seg or mask in its name, and no label "
            "files were given; name the topic with --label-topic or the files with --labels"
        )


def check_labels(
    dataset: RgbdBagDataset,
    positions: npt.NDArray[np.intp],
    label_set: LabelSet,
    label_files: LabelFiles | None,
    workers: int,
) -> npt.NDArray[np.int64]:
    """Read labels once, with a progress bar: all label files, and the labels of some samples.

    Args:
        dataset: of samples as they were recorded, with these labels.
        positions: (N,) labelled samples.
        label_set: of the labels.
        label_files: the label files of the data set.
        workers: processes that read the bags.

    Returns:
        (N, C) pixels of each class in each of these samples.

    Raises:
        LabelError: lists all ids outside the label set, with pixel counts, topics and stamps, or files.
        M3LError: a label cannot be read.
    """
    if label_files is not None:
        label_files.check()
    counts = np.zeros((len(positions), len(label_set.classes)), np.int64)
    unknown: dict[int, _Occurrence] = {}
    found = worker_loader(
        _LabelCounts(dataset, positions, label_set, label_files),
        workers,
        batch_size=None,
        collate_fn=_as_it_is,
    )
    progress = tqdm(found, desc="check labels", total=len(positions), unit="label", mininterval=1)
    for number, label in enumerate(progress):
        if isinstance(label, M3LError):
            raise label
        counts[number] = label.classes[: len(label_set.classes)]
        for value, pixels in label.unknown.items():
            occurrence = unknown.setdefault(value, _Occurrence())
            occurrence.pixels += pixels
            occurrence.stamps.setdefault(label.where, []).append(str(label.stamp_ns))
    if unknown:
        listed = ", ".join(f"{value} ({unknown[value]})" for value in sorted(unknown))
        raise LabelError(
            f"ids outside label set {label_set.name!r}: {listed}; choose the set these labels were made with, or add "
            "the ids to its YAML"
        )
    return counts


@dataclass
class _Occurrence:
    """Where an id occurs: its pixels, and the stamps of images by bag and topic."""

    pixels: int = 0
    stamps: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        places = "; ".join(f"{where} at {shortened(stamps)}" for where, stamps in self.stamps.items())
        return f"{self.pixels} pixels in {places}"


class _LabelCount(NamedTuple):
    """What one label holds.

    Attributes:
        where: its bag and topic.
        stamp_ns: of its frame.
        classes: (256,) pixels of each class id.
        unknown: pixels of each id outside the label set.
    """

    where: str
    stamp_ns: int
    classes: npt.NDArray[np.int64]
    unknown: dict[int, int]


class _LabelCounts(Dataset[Any]):
    """For each position what its label holds, or the error that reading it raises."""

    def __init__(
        self,
        dataset: RgbdBagDataset,
        positions: Sequence[int] | npt.NDArray[np.intp],
        label_set: LabelSet,
        label_files: LabelFiles | None,
    ) -> None:
        self._dataset = dataset
        self._positions = positions
        self._label_set = label_set
        self._filed = [
            label_files.stamps(bag.index.name) if label_files else frozenset() for bag in dataset.bags
        ]

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, item: int) -> _LabelCount | M3LError:
        try:
            return self._count(int(self._positions[item]))
        except M3LError as error:
            return error

    def _count(self, position: int) -> _LabelCount:
        number, frame_position = self._dataset.locate(position)
        bag = self._dataset.bags[number]
        stamp_ns = int(bag.frames["stamp_ns"][frame_position])
        where = f"{bag.index.path} {bag.topics.label}"
        nothing = np.zeros(256, np.int64)
        if stamp_ns not in self._filed[number]:
            recorded = bag.read(frame_position).labels
            assert recorded is not None
            unknown = self._label_set.count_unknown(recorded)
            if unknown:
                return _LabelCount(where, stamp_ns, nothing, unknown)
            labels = self._label_set.decode(recorded, where)
        else:
            labels = self._dataset[position].labels
        return _LabelCount(where, stamp_ns, np.bincount(labels.ravel(), minlength=256), {})


def _as_it_is(item: Any) -> Any:
    return item
