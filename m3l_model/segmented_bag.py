# SPDX-License-Identifier: Apache-2.0
"""Writes what the offline pass makes of a bag into a new one: the topics that the node would publish."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

import cv2
import numpy as np
import numpy.typing as npt
from rosbags.typesys.stores import ros2_jazzy as ros

from m3l_model.bag_writer import DEFAULT_QOS, LATCHED_QOS, BagWriter
from m3l_model.bags import BagReader, RawMessage
from m3l_model.labels import LabelSet
from m3l_model.offline import OfflineFrame
from m3l_model.overlay import paint_over
from m3l_model.sync import Reason

MASK = "/segmentation/mask"
OVERLAY = "/segmentation/overlay"
DECISION = "/segmentation/decision"
CLASSES = "/segmentation/classes"
DIAGNOSTICS = "/diagnostics"

_SECOND = 1_000_000_000
_OK, _WARN = 0, 1
"""Levels of diagnostic_msgs/DiagnosticStatus."""


class SegmentedBag:
    """The new bag; a context manager, as ``BagWriter`` is, by which it is written.

    Masks, overlays and decisions have the header of their colour image and its log time; diagnostics come every second
    of log time.

    Args:
        out: the bag to write.
        labels: classes and colours of the masks.
        hardware_id: for the diagnostics: what segments.

    Raises:
        BagWriteError: the bag cannot be written.
    """

    def __init__(self, out: Path, labels: LabelSet, hardware_id: str) -> None:
        self._writer = BagWriter(out)
        self._labels = labels
        self._diagnostics = _Diagnostics(hardware_id)
        self._originals: Iterator[RawMessage] = iter(())
        self._next: RawMessage | None = None
        self._begun = False

    def __enter__(self) -> SegmentedBag:
        self._writer.__enter__()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.__exit__(exc_type, exc, traceback)

    def take_originals(self, bag: BagReader, report: Callable[[str], object]) -> None:
        """Write the messages of a bag too, each before the first frame that is later.

        Args:
            bag: open as long as this is.
            report: told of topics that are left out: of types unknown, and those that are written here.
        """
        taken = []
        for known in bag.connections:
            if known.topic in (MASK, OVERLAY, DECISION, CLASSES):
                report(f"leaving out {known.topic} of {bag.path}: the new one takes its place")
            elif not self._writer.knows(known.msgtype):
                report(f"leaving out {known.topic}: its type {known.msgtype} does not come with ROS 2 Jazzy")
            else:
                taken.append(known.topic)
        self._qos = {topic: bag.qos(topic) or DEFAULT_QOS for topic in taken}
        self._originals = bag.raw_messages(taken)
        self._next = next(self._originals, None)

    def add(self, frame: OfflineFrame) -> npt.NDArray[np.uint8] | None:
        """Write a frame, and the originals up to it; returns its (H, W, 3) overlay, None without a mask."""
        writer, log_ns = self._writer, frame.log_ns
        self._copy_until(log_ns)
        if not self._begun:
            self._begun = True
            classes = ros.std_msgs__msg__String(self._labels.to_json())
            writer.write_message(CLASSES, "std_msgs/msg/String", log_ns, classes, LATCHED_QOS)
        header = writer.header(frame.stamp_ns, frame.frame_id)
        decision = ros.sensor_msgs__msg__TimeReference(
            header, writer.header(frame.depth_stamp_ns or 0, "").stamp, str(frame.reason)
        )
        writer.write_message(DECISION, "sensor_msgs/msg/TimeReference", log_ns, decision)
        diagnostics = self._diagnostics.add(frame)
        if diagnostics is not None:
            array = ros.diagnostic_msgs__msg__DiagnosticArray(writer.header(log_ns, ""), [diagnostics])
            writer.write_message(DIAGNOSTICS, "diagnostic_msgs/msg/DiagnosticArray", log_ns, array)
        if frame.labels is None:
            return None
        overlay = paint_over(frame.seen.rgb, self._labels.colorize(frame.labels))
        writer.write_labels(MASK, frame.stamp_ns, frame.frame_id, frame.labels, log_ns)
        writer.write_rgb(OVERLAY, frame.stamp_ns, frame.frame_id, overlay, log_ns)
        return overlay

    def finish(self) -> None:
        """Write the originals that are left."""
        self._copy_until(None)

    def _copy_until(self, log_ns: int | None) -> None:
        while self._next is not None and (log_ns is None or self._next.log_ns <= log_ns):
            message = self._next
            self._writer.write_serialized(
                message.topic, message.msgtype, message.log_ns, message.data, self._qos[message.topic]
            )
            self._next = next(self._originals, None)


class _Diagnostics:
    """Counts frames, and reports once a second."""

    def __init__(self, hardware_id: str) -> None:
        self._hardware_id = hardware_id
        self._reported_ns: int | None = None
        self._reasons: Counter[Reason] = Counter()
        self._masks = 0
        self._recent: Counter[str] = Counter()

    def add(self, frame: OfflineFrame) -> ros.diagnostic_msgs__msg__DiagnosticStatus | None:
        self._reasons[frame.reason] += 1
        self._masks += frame.labels is not None
        self._recent.update(frame.used or ("nothing",))
        self._recent["frames"] += 1
        if self._reported_ns is not None and 0 <= frame.log_ns - self._reported_ns < _SECOND:
            return None
        self._reported_ns = frame.log_ns
        status = self._status()
        self._recent.clear()
        return status

    def _status(self) -> ros.diagnostic_msgs__msg__DiagnosticStatus:
        recent = self._recent
        level, message = _OK, "segmenting"
        if recent["nothing"]:
            level, message = _WARN, f"{recent['nothing']} colour images cannot be read"
        elif not recent["depth"]:
            level, message = _WARN, "no depth: segmenting colour alone"
        values = {
            "received": self._reasons.total(),
            "masks": self._masks,
            "pair ratio (%)": f"{100 * recent['depth'] / recent['frames']:.0f}",
            **{f"frames: {reason}": self._reasons[reason] for reason in Reason},
        }
        return ros.diagnostic_msgs__msg__DiagnosticStatus(
            level,
            "m3l segment: segmentation",
            message,
            self._hardware_id,
            [ros.diagnostic_msgs__msg__KeyValue(key, str(value)) for key, value in values.items()],
        )


def caption(overlay: npt.NDArray[np.uint8], frame: OfflineFrame) -> npt.NDArray[np.uint8]:
    """An overlay, (H, W, 3), with the reason written into it where the frame has no depth."""
    if "depth" in frame.used:
        return overlay
    scale = overlay.shape[0] / 480
    captioned = overlay.copy()
    for color, thickness in (((0, 0, 0), 4), ((255, 255, 255), 1)):
        cv2.putText(
            captioned,
            f"no depth: {frame.reason}",
            (round(12 * scale), round(468 * scale)),
            cv2.FONT_HERSHEY_SIMPLEX,
            0.7 * scale,
            color,
            max(1, round(thickness * scale)),
            cv2.LINE_AA,
        )
    return captioned
