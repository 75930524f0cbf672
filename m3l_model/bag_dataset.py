# SPDX-License-Identifier: Apache-2.0
"""Recorded bags as a PyTorch data set: every colour image a sample, read at random from the bags themselves.

    dataset = RgbdBagDataset(["bag_1", "bag_2"], LabelSet.load("nyu40"))
    loader = DataLoader(dataset, batch_size=8, shuffle=True, num_workers=2)

Workers open the bags' files by themselves; what a data set holds in memory is the bags' indices only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset

from m3l_model.bag_frames import BagFrame, BagFrames
from m3l_model.bag_storage import Allocate, new_memory
from m3l_model.images import has_reading
from m3l_model.labels import IGNORE_ID, LabelSet
from m3l_model.shared_batches import LazySamples

if TYPE_CHECKING:
    from m3l_model.label_files import LabelFiles


class Sample(NamedTuple):
    """A colour image with what belongs to it, at the size at which it was recorded.

    Samples of one size and one kind of depth can be collated by a ``DataLoader`` as they are; others need a transform.

    Attributes:
        rgb: (H, W, 3) uint8 RGB.
        depth: (H', W') uint16 millimetres or float32 metres; zeros where it is missing.
        labels: (H, W) uint8 class ids, ``IGNORE_ID`` where unknown; read-only where not ``labelled``.
        missing: (2,) bool, [rgb, depth] missing: not recorded, or depth without any reading.
        labelled: whether somebody has labelled the frame.
        stamp_ns: header stamp of the colour image.
        bag: position of its bag in ``RgbdBagDataset.bags``.
    """

    rgb: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.uint16] | npt.NDArray[np.float32]
    labels: npt.NDArray[np.uint8]
    missing: npt.NDArray[np.bool_]
    labelled: bool
    stamp_ns: int
    bag: int


class RgbdBagDataset(Dataset[Any]):
    """Map-style data set of the frames of one or many bags, one bag after the other.

    Args:
        bags: rosbag2 folders or files, or, to choose topics or pairing, ``BagFrames``.
        label_set: gives the ids in the bags' label images their classes; without one no frame is labelled.
        label_files: labels that lie beside the bags; they go before label images in a bag.
        transform: applied to each ``Sample`` where it is read, in a worker; what it returns is the item.
        cache: as for ``open_index``.

    Attributes:
        bags: the bags' frames.
        labelled: (N,) bool, samples that somebody has labelled.

    Raises:
        BagError: a bag cannot be read.
        LabelError: on reading a sample: its labels hold ids that the label set does not know.
    """

    def __init__(
        self,
        bags: Sequence[str | Path | BagFrames],
        label_set: LabelSet | None = None,
        label_files: LabelFiles | None = None,
        transform: Callable[[Sample], Any] | None = None,
        cache: bool = True,
    ) -> None:
        self.bags = tuple(
            bag if isinstance(bag, BagFrames) else BagFrames.open(bag, cache=cache) for bag in bags
        )
        self._label_set = label_set
        self._label_files = label_files
        self._transform = transform
        self._ends = list(accumulate(map(len, self.bags)))
        self._filed = tuple(
            label_files.stamps(bag.index.name) if label_files else frozenset() for bag in self.bags
        )
        self.labelled = np.concatenate([np.empty(0, bool), *map(self._labelled, range(len(self.bags)))])

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, position: int) -> Any:
        """Read one sample; see ``read``."""
        return self.read(position)

    def read(self, position: int, allocate: Allocate = new_memory) -> Any:
        """Read one sample, its pixels into memory from ``allocate`` where they can be used as they are stored.

        Raises:
            IndexError: there are fewer samples.
            M3LError: the bag or a label file is damaged there.
        """
        bag, frame_position = self.locate(position)
        frames = self.bags[bag]
        frame = frames.read(frame_position, allocate if self._transform is None else new_memory)
        depth = _no_depth(frames, frame.rgb.shape[:2]) if frame.depth is None else frame.depth
        labels = self.class_ids(bag, frame)
        sample = Sample(
            frame.rgb,
            depth,
            _no_labels(frame.rgb.shape[:2]) if labels is None else labels,
            np.array([False, frame.depth is None or not has_reading(depth)]),
            labels is not None,
            frame.stamp_ns,
            bag,
        )
        return sample if self._transform is None else self._transform(sample)

    def __getitems__(self, positions: Sequence[int]) -> LazySamples:
        """What a ``DataLoader`` makes a batch of."""
        return LazySamples(self, positions)

    def locate(self, position: int) -> tuple[int, int]:
        """The bag of a sample, and which of its frames it is.

        Raises:
            IndexError: there are fewer samples.
        """
        if not -len(self) <= position < len(self):
            raise IndexError(f"sample {position} of {len(self)}")
        position %= len(self)
        bag = bisect_right(self._ends, position)
        return bag, position - (self._ends[bag - 1] if bag else 0)

    def _labelled(self, bag: int) -> npt.NDArray[np.bool_]:
        frames = self.bags[bag].frames
        in_topic = (frames["label"] >= 0) & (self._label_set is not None)
        return in_topic | np.isin(frames["stamp_ns"], list(self._filed[bag]))

    def class_ids(self, bag: int, frame: BagFrame) -> npt.NDArray[np.uint8] | None:
        """Class ids of a frame of a bag, as in ``Sample.labels``; None where nobody has labelled it.

        Raises:
            M3LError: a label holds ids that the label set does not know, or cannot be read.
        """
        index = self.bags[bag].index
        if self._label_set is None:
            return None
        if self._label_files is not None and frame.stamp_ns in self._filed[bag]:
            ids = self._label_files.read(index.name, frame.stamp_ns, frame.rgb.shape[:2])
        elif frame.labels is not None:
            ids = self._label_set.decode(frame.labels, f"{index.path} at {frame.stamp_ns}")
        else:
            return None
        ignored = self._label_set.ignore_id
        return ids if ignored == IGNORE_ID else np.where(ids == ignored, np.uint8(IGNORE_ID), ids)


@lru_cache(maxsize=4)
def _no_labels(shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Labels of a frame that has none, read-only as all such frames share them."""
    labels = np.full(shape, IGNORE_ID, np.uint8)
    labels.flags.writeable = False
    return labels


def _no_depth(frames: BagFrames, shape: tuple[int, ...]) -> npt.NDArray[np.uint16] | npt.NDArray[np.float32]:
    """Zeros of the type, and where it is known the size, of the bag's depth; else of the colour image's size."""
    if frames.topics.depth is None:
        return np.zeros(shape, np.uint16)
    image = frames.index.image_topic(frames.topics.depth)
    size = (image.height, image.width) if image.height else shape
    return np.zeros(size, np.float32) if "32FC1" in image.encoding else np.zeros(size, np.uint16)
