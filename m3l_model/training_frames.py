# SPDX-License-Identifier: Apache-2.0
"""Which frames of which bags a training run takes, with their labels and without, and whether those labels serve."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import numpy.typing as npt
from torch.utils.data import Dataset
from tqdm import tqdm

from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.bag_storage import Allocate, new_memory
from m3l_model.bags import BagFrames
from m3l_model.data import NetworkFrame, ToNetworkSize
from m3l_model.errors import M3LError
from m3l_model.evaluation_plan import evaluated_positions
from m3l_model.label_check import check_labels, require_labels_of
from m3l_model.label_files import LabelFiles
from m3l_model.labels import CHANNELS, LabelSet
from m3l_model.preprocessing import Preprocessing
from m3l_model.shared_batches import LazySamples
from m3l_model.splits import Splits

_logger = logging.getLogger(__name__)

_COMPARED = 20
"""Images of two bags that are compared, about, to find a bag that is there twice."""


@dataclass(frozen=True)
class TrainingFrames:
    """The frames of a training run.

    Attributes:
        dataset: all frames of the bags, as they were recorded.
        label_set: of the labels.
        label_files: labels beside the bags; None where there are none.
        labelled: (L,) positions in the data set of the frames that are trained on with their labels.
        unlabelled: (U,) positions of those that are trained on without.
        validation: (V,) positions of labelled frames that are set apart for validation; none without splits.
    """

    dataset: RgbdBagDataset
    label_set: LabelSet
    label_files: LabelFiles | None
    labelled: npt.NDArray[np.intp]
    unlabelled: npt.NDArray[np.intp]
    validation: npt.NDArray[np.intp]

    @classmethod
    def select(
        cls,
        bags: Sequence[BagFrames],
        label_set: LabelSet,
        label_files: LabelFiles | None = None,
        splits: Splits | None = None,
    ) -> TrainingFrames:
        """Choose the frames.

        Args:
            bags: the bags, with the topics to read.
            label_set: of the label images and of the label files.
            label_files: labels beside the bags.
            splits: of exactly these bags; without them every frame that has labels is trained on with them, and every
                other without.

        Raises:
            M3LError: the label set has one class alone, no frame has labels, the label files are of other bags, or the
                splits do not fit the bags or leave nothing to train on or nothing to validate with.
        """
        if len(label_set.classes) < 2:
            raise M3LError(
                f"label set {label_set.name!r} has one class alone, which every pixel would be; add what is not "
                f"{label_set.classes[0]} as another class, such as other"
            )
        dataset = RgbdBagDataset(bags, label_set, label_files)
        require_labels_of(dataset, label_files)
        if splits is None:
            labelled, unlabelled = np.flatnonzero(dataset.labelled), np.flatnonzero(~dataset.labelled)
            return cls(dataset, label_set, label_files, labelled, unlabelled, np.empty(0, np.intp))
        labelled, unlabelled = splits.select(dataset, "labelled"), splits.select(dataset, "unlabelled")
        if not len(labelled):
            raise M3LError(
                f"the splits leave none of the {dataset.labelled.sum()} labelled frames to training; draw them anew "
                "with m3l split, or edit the file"
            )
        if not len(splits.select(dataset, "validation")):
            raise M3LError(
                "the splits set no frame apart for validation; draw them anew with m3l split, or train without "
                "--splits on all frames"
            )
        validation = evaluated_positions(dataset, splits)
        return cls(dataset, label_set, label_files, labelled, unlabelled, validation)

    @classmethod
    def without_labels(cls, bags: Sequence[BagFrames], splits: Splits | None = None) -> TrainingFrames:
        """Choose the frames of a run that reconstructs: all with depth, or with splits those that are trained on.

        Args:
            bags: the bags, with the topics to read; labels in them are not looked at.
            splits: of exactly these bags.

        Raises:
            M3LError: no frame has depth, or the splits do not fit the bags or leave nothing to train on.
        """
        dataset = RgbdBagDataset(bags)
        chosen = splits.select(dataset, "trained_on") if splits else np.arange(len(dataset))
        with_depth = np.concatenate([bag.frames["depth"] >= 0 for bag in bags])
        chosen = chosen[with_depth[chosen]]
        if not len(chosen):
            paths = ", ".join(str(bag.index.path) for bag in bags)
            among = "of those that the splits leave to training" if splits else "of the bags"
            raise M3LError(
                f"{paths}: no frame {among} has depth, of which and colour each is to tell the other"
            )
        nothing = np.empty(0, np.intp)
        return cls(dataset, CHANNELS, None, nothing, chosen, nothing)

    @property
    def example(self) -> int:
        """Position of a frame that is trained on; one with labels, where there are any."""
        return int((self.labelled if len(self.labelled) else self.unlabelled)[0])

    @property
    def trained_on(self) -> npt.NDArray[np.intp]:
        """Positions of all frames that are trained on, ascending."""
        return np.union1d(self.labelled, self.unlabelled)

    def digest(self) -> str:
        """Give a short text that is another for other frames, other roles of them or other meanings of label ids."""
        meanings = sorted((self.label_set.id_map or {}).items()), self.label_set.ignore_id
        facts = hashlib.sha256(repr(meanings).encode())
        for positions in (self.labelled, self.unlabelled, self.validation):
            facts.update(np.asarray(positions, np.int64).tobytes() + b";")
        for bag in self.dataset.bags:
            facts.update(np.ascontiguousarray(bag.frames["stamp_ns"]).tobytes() + b";")
        return facts.hexdigest()[:16]

    def check_overlap(self) -> None:
        """See that no frame that is trained on also validates, as the same image in another bag.

        Bags that were imported may share their stamps, so of each two bags some images of the same stamp are compared.
        Stamps that were made up need not be shared: every image that is trained on with labels is compared with every
        one that validates, with a progress bar.

        Raises:
            M3LError: names two bags with the same image.
        """
        bag_of = np.repeat(np.arange(len(self.dataset.bags)), [len(bag) for bag in self.dataset.bags])
        if not len(self.validation) or len(set(bag_of[np.union1d(self.trained_on, self.validation)])) == 1:
            return
        for position, other in self._same_stamp(bag_of):
            if np.array_equal(self.dataset[position].rgb, self.dataset[other].rgb):
                self._refuse_overlap(bag_of, position, other)
        read = tqdm(
            np.union1d(self.labelled, self.validation).tolist(), "compare images", unit="image", mininterval=1
        )
        contents = {position: self._content(position) for position in read}
        copies: dict[bytes, list[int]] = {}
        for other in self.validation.tolist():
            copies.setdefault(contents[other], []).append(other)
        for position in self.labelled.tolist():
            for other in copies.get(contents[position], ()):
                if bag_of[position] != bag_of[other] and np.ptp(self.dataset[position].rgb):
                    self._refuse_overlap(bag_of, position, other)

    def _same_stamp(self, bag_of: npt.NDArray[np.intp]) -> Iterator[tuple[int, int]]:
        """Give some positions of each pair of bags, trained on and validating, whose stamps are the same."""
        stamps = np.concatenate([bag.frames["stamp_ns"] for bag in self.dataset.bags]).tolist()
        validating: dict[int, list[int]] = {}
        for position in self.validation.tolist():
            validating.setdefault(stamps[position], []).append(position)
        pairs: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for position in self.trained_on.tolist():
            for other in validating.get(stamps[position], ()):
                pairs.setdefault((bag_of[position], bag_of[other]), []).append((position, other))
        for of_bags in pairs.values():
            yield from of_bags[:: max(1, len(of_bags) // _COMPARED)]

    def _content(self, position: int) -> bytes:
        return hashlib.blake2b(self.dataset[position].rgb.tobytes()).digest()

    def _refuse_overlap(self, bag_of: npt.NDArray[np.intp], position: int, other: int) -> NoReturn:
        bags = self.dataset.bags
        stamps = np.concatenate([bag.frames["stamp_ns"] for bag in bags])
        raise M3LError(
            f"training and validation overlap: {bags[bag_of[position]].index.path} and "
            f"{bags[bag_of[other]].index.path} hold the same image, at {stamps[position]} and {stamps[other]}; leave "
            "one of the bags out, or give their seconds one role with --splits"
        )

    def check_depth(self) -> None:
        """See that a frame that is trained on has depth; the first that is found, of any bag, ends the search.

        Raises:
            M3LError: none is paired with a depth image, or none of these holds a valid reading.
        """
        paired = np.concatenate([bag.frames["depth"] >= 0 for bag in self.dataset.bags])
        with_depth = self.trained_on[paired[self.trained_on]]
        shuffled = np.random.default_rng(0).permutation(with_depth).tolist()
        search = tqdm(shuffled, "look for depth", unit="image", delay=1)
        if any(not self.dataset[position].missing[1] for position in search):
            return
        finding = (
            f"none of the {len(shuffled)} depth images has a valid reading"
            if shuffled
            else f"none of the {len(self.trained_on)} frames that are trained on is paired with depth"
        )
        paths = ", ".join(str(bag.index.path) for bag in self.dataset.bags)
        raise M3LError(
            f"{paths}: {finding}; m3l info says why. For colour alone there is --config rgb_supervised, and "
            "rgb_mean_teacher"
        )

    def check_labels(self, workers: int, allow_unlabelled_classes: bool = False) -> None:
        """Read all labels once, those of validation too, with a progress bar.

        Args:
            workers: processes that read the bags.
            allow_unlabelled_classes: only warn of classes that never occur.

        Raises:
            M3LError: labels cannot be read, hold something outside the label set, or those that are trained on never
                show some class of it.
        """
        positions = np.concatenate((self.labelled, self.validation))
        counts = check_labels(self.dataset, positions, self.label_set, self.label_files, workers)
        pixels = counts[: len(self.labelled)].sum(0)
        never = [
            name for name, count in zip(self.label_set.classes, pixels.tolist(), strict=True) if not count
        ]
        if len(never) == len(self.label_set.classes):
            raise M3LError(
                f"the {len(self.labelled)} labelled frames show no class of label set {self.label_set.name!r}, only "
                "pixels without one; label some, or name the set they were made with"
            )
        if not never:
            return
        finding = f"the {len(self.labelled)} labelled frames never show {', '.join(never)}"
        if not allow_unlabelled_classes:
            raise M3LError(
                f"{finding} of label set {self.label_set.name!r}, which would not be learnt; label some, leave it out "
                "of the label set, or train the other classes with --allow-unlabelled-classes"
            )
        _logger.warning("%s; that will not be learnt", finding)

    def at_network_size(self, preprocessing: Preprocessing) -> NetworkFrames:
        """Give the frames as the network takes them, at the same positions.

        Raises:
            M3LError: bags that are trained on come out at different sizes, which is seen by one frame of each.
        """
        bags = self.dataset.bags
        transform = ToNetworkSize(preprocessing, self.dataset, self.example)
        frames = NetworkFrames(
            RgbdBagDataset(bags, self.label_set, self.label_files, transform),
            RgbdBagDataset(bags, transform=transform),
            frozenset(self.labelled.tolist()),
        )
        used = self.trained_on[::-1].tolist()
        for position in {self.dataset.locate(first)[0]: first for first in used}.values():
            frames.read(position)
        return frames


class NetworkFrames(Dataset[NetworkFrame]):
    """Data set of bags in which only chosen frames have labels, whatever was recorded.

    Args:
        with_labels, without_labels: data sets of the same bags.
        labelled: positions of the frames that come with labels.
    """

    def __init__(
        self, with_labels: RgbdBagDataset, without_labels: RgbdBagDataset, labelled: frozenset[int]
    ) -> None:
        self._with_labels = with_labels
        self._without_labels = without_labels
        self._labelled = labelled

    def __len__(self) -> int:
        return len(self._with_labels)

    def __getitem__(self, position: int) -> NetworkFrame:
        return self.read(position)

    def __getitems__(self, positions: Sequence[int]) -> LazySamples:
        """What a ``DataLoader`` makes a batch of."""
        return LazySamples(self, positions)

    def read(self, position: int, allocate: Allocate = new_memory) -> NetworkFrame:
        """Read one frame; see ``RgbdBagDataset.read``."""
        dataset = self._with_labels if position in self._labelled else self._without_labels
        frame: NetworkFrame = dataset.read(position, allocate)
        return frame
