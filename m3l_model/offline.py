# SPDX-License-Identifier: Apache-2.0
"""Runs a bag in virtual time through the node's synchronizer, preprocessing and Predictor: what the node would do.

Messages reach the synchronizer at their log times. A frame is then read, segmented and given as the node does it: a
depth image that is damaged or holds no reading is left out, a damaged colour image gets no mask.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.bag_frames import REASONS, BagFrame, BagFrames, camera_arrivals, pair_arrivals
from m3l_model.image_faults import Depth
from m3l_model.images import ImageFormatError, has_reading
from m3l_model.predictor import Predictor
from m3l_model.scenarios import CLEAN, Scenario, Seen
from m3l_model.sync import Reason

DECISION = np.dtype(
    [("stamp_ns", "<i8"), ("rgb", "<i4"), ("depth", "<i4"), ("depth_stamp_ns", "<i8"), ("reason", "u1")]
)
"""What the synchronizer decided on a colour image: its stamp; where it and its depth image stand in the index's
``messages``, -1 for none; the depth image's stamp, 0 for none; and the position in ``REASONS`` of the reason."""


class OfflineFrame(NamedTuple):
    """A colour image of a bag, and what the node makes of it.

    Attributes:
        stamp_ns: header stamp of the colour image.
        depth_stamp_ns: that of the depth image it is paired with, None where it goes without.
        reason: why the synchronizer lets it go as it is.
        labels: (H, W) uint8, the mask; None where there was nothing to segment.
        confidence: (H, W) float32, 0 to 1; None without labels, or where it was not asked for.
        used: the modalities that the model used.
        seen: the images that the model got.
        truth: (H, W) uint8 class ids, ``IGNORE_ID`` where unknown; None where nobody has labelled it.
        log_ns: log time of the colour image.
        frame_id: of the colour image; '' where it is damaged.
    """

    stamp_ns: int
    depth_stamp_ns: int | None
    reason: Reason
    labels: npt.NDArray[np.uint8] | None
    confidence: npt.NDArray[np.float32] | None
    used: tuple[str, ...]
    seen: Seen
    truth: npt.NDArray[np.uint8] | None
    log_ns: int
    frame_id: str


def run_offline(
    dataset: RgbdBagDataset,
    predictor: Predictor,
    scenario: Scenario = CLEAN,
    seed: int = 0,
    bag: int = 0,
    with_confidence: bool = False,
) -> Iterator[OfflineFrame]:
    """Run a bag under a scenario.

    Args:
        dataset: has the bag, and knows its labels.
        predictor: the model.
        scenario: what happens to the bag.
        seed: of the scenario.
        bag: position of the bag in the data set.
        with_confidence: give the confidence too.

    Yields:
        One frame for every colour image that the synchronizer accepts, in its order.

    Raises:
        BagError: the bag is damaged.
        LabelError: a label holds ids that the label set does not know.
    """
    frames = dataset.bags[bag]
    source = FrameSource(dataset, bag)
    for decision in decide(frames, scenario, seed):
        recorded = source.read(int(decision["rgb"]))
        seen = source.see(recorded, decision, scenario, seed)
        prediction = None
        if can_be_segmented(seen):
            prediction = predictor.predict(seen.rgb, seen.depth, with_confidence)
        yield OfflineFrame(
            int(decision["stamp_ns"]),
            int(decision["depth_stamp_ns"]) if decision["depth"] >= 0 else None,
            REASONS[decision["reason"]],
            prediction.labels if prediction else None,
            prediction.confidence if prediction else None,
            prediction.used if prediction else (),
            seen,
            recorded.truth if recorded else None,
            int(frames.index.messages["log_ns"][decision["rgb"]]),
            recorded.frame.frame_id if recorded else "",
        )


def decide(frames: BagFrames, scenario: Scenario = CLEAN, seed: int = 0) -> npt.NDArray[np.void]:
    """Give what the synchronizer decides on a bag under a scenario: (N,) of ``DECISION``, in its order."""
    arrivals = scenario.arrive(camera_arrivals(frames.index, frames.topics), seed)
    return np.array(
        [
            (
                frame.stamp_ns,
                frame.rgb,
                -1 if frame.depth is None else frame.depth,
                frame.depth_stamp_ns or 0,
                REASONS.index(frame.reason),
            )
            for frame in pair_arrivals(arrivals, frames.pairing)
        ],
        DECISION,
    )


class Recorded(NamedTuple):
    """A frame of a bag as recorded: the bag's frame, without its depth image, and its truth as in ``OfflineFrame``."""

    frame: BagFrame
    truth: npt.NDArray[np.uint8] | None


class FrameSource:
    """Reads the frames of one bag of a data set, each depth image with it that a scenario has it paired with."""

    def __init__(self, dataset: RgbdBagDataset, bag: int) -> None:
        self._dataset = dataset
        self._bag = bag
        self._frames = dataset.bags[bag]
        stamps = self._frames.frames["stamp_ns"]
        self.start_ns = int(stamps[0]) if len(stamps) else 0

    def read(self, row: int) -> Recorded | None:
        """Read a colour image by its row in the index, and its truth; None where the image is damaged.

        Raises:
            BagError, LabelError: as ``run_offline``.
        """
        try:
            frame = self._frames.read_without_depth(row)
        except ImageFormatError:
            return None
        return Recorded(frame, self._dataset.class_ids(self._bag, frame))

    def read_depth(self, row: int) -> Depth | None:
        """Read a depth image by its row in the index; None where row is -1, or the image is damaged.

        Raises:
            BagError: as ``run_offline``.
        """
        if row < 0:
            return None
        try:
            return self._frames.read_depth(row)
        except ImageFormatError:
            return None

    def see(self, recorded: Recorded | None, decision: np.void, scenario: Scenario, seed: int) -> Seen:
        """Give the images that the model gets of a frame under a scenario, by the decision on it there."""
        if recorded is None:
            return Seen(None, None)
        seen = Seen(recorded.frame.rgb, self.read_depth(int(decision["depth"])))
        stamps_ns = recorded.frame.stamp_ns, int(decision["depth_stamp_ns"])
        return scenario.see(seen, seed, stamps_ns, self.start_ns)


def can_be_segmented(seen: Seen) -> bool:
    """Whether there is anything to segment: colour, or a depth image with a reading."""
    return seen.rgb is not None or (seen.depth is not None and has_reading(seen.depth))
