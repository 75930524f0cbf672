# SPDX-License-Identifier: Apache-2.0
"""From frames to published masks: converts, segments and publishes in a thread of its own, and keeps the books."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, NamedTuple

from rclpy.impl.rcutils_logger import RcutilsLogger
from sensor_msgs.msg import CameraInfo

from m3l_model.images import ImageFormatError, has_reading, to_depth
from m3l_model.sync import Frame
from m3l_ros.outputs import CONFIDENCE, Outputs
from m3l_ros.parameters import NodeParameters
from m3l_ros.providers import to_rgb
from m3l_ros.worker import FrameWorker

if TYPE_CHECKING:
    from m3l_model.predictor import Predictor

_TIMINGS_KEPT = 300
_LOG_EVERY = 5.0


class Outcome(Enum):
    """What becomes of a colour image that left the synchronizer: exactly one of these."""

    MASKED = "masked"
    OVERLOAD = "skipped: a newer one took its place"
    UNSUBSCRIBED = "skipped: nobody subscribed to any output"
    UNREADABLE = "dropped: cannot be read"
    FAILED = "dropped: the model failed"
    QUEUE_FULL = "dropped: the queue was full"
    INACTIVE = "dropped: the node was deactivated before its turn"


_SKIPPED = (Outcome.OVERLOAD, Outcome.UNSUBSCRIBED)
_DROPPED = (Outcome.UNREADABLE, Outcome.FAILED, Outcome.QUEUE_FULL, Outcome.INACTIVE)


@dataclass(frozen=True)
class Tally:
    """The books, counted since the node was configured; ``outcomes`` are those of frames with colour."""

    outcomes: Mapping[Outcome, int]
    depth_only_masks: int  # of frames without colour
    depth_only_dropped: int  # frames without colour that could not be segmented
    depth_unreadable: int  # depth images that could not be read, and counted as missing
    depth_empty: int  # likewise those that held no reading: all zero or NaN
    depth_used: int  # segmented with its depth image

    @property
    def masks(self) -> int:
        """Colour images that were segmented."""
        return self.outcomes[Outcome.MASKED]

    @property
    def skipped(self) -> int:
        """Colour images that were not segmented because something better was to be done."""
        return sum(self.outcomes[outcome] for outcome in _SKIPPED)

    @property
    def dropped(self) -> int:
        """Colour images that could not be segmented."""
        return sum(self.outcomes[outcome] for outcome in _DROPPED)


class Timing(NamedTuple):
    """Where the time of one frame went, s."""

    wait: float  # for its depth, and for the frame before
    conversion: float
    inference: float
    publication: float


class _Job(NamedTuple):
    frame: Frame
    camera_info: CameraInfo | None
    arrived: float  # steady time, s


class Pipeline:
    """Segments the frames it is given, while it is started.

    Args:
        predictor: the model; only the pipeline's thread uses it.
        outputs: where masks go.
        parameters: say what gives way under overload.
        logger: of the node.
    """

    def __init__(
        self, predictor: Predictor, outputs: Outputs, parameters: NodeParameters, logger: RcutilsLogger
    ) -> None:
        self.predictor = predictor
        self.outputs = outputs
        self._capacity = None if parameters.overload == "newest" else parameters.overload_queue_size
        self._logger = logger
        self._worker: FrameWorker[_Job] | None = None
        self._lock = threading.Lock()
        self._outcomes: Counter[Outcome] = Counter()
        self._depth_only: Counter[str] = Counter()
        self._depth: Counter[str] = Counter()
        self._timings: deque[Timing] = deque(maxlen=_TIMINGS_KEPT)

    def start(self) -> None:
        """Begin to take frames."""
        self._worker = FrameWorker(self._handle, self._give_way, self._capacity)

    def swap(self, predictor: Predictor) -> None:
        """Go on with another model after the frame in hand; the classes are published before its first mask."""

        def use() -> None:
            self.predictor = predictor
            self.outputs.use_labels(predictor.labels)

        if self._worker is None or self._worker.stopping:
            use()
        else:
            self._worker.between_frames(use)

    def submit(self, frame: Frame, camera_info: CameraInfo | None, waited: float = 0.0) -> None:
        """Leave a frame to the pipeline's thread.

        Args:
            frame: with colour, depth or both.
            camera_info: of colour; None where none has come.
            waited: time since its image arrived, s.
        """
        job = _Job(frame, camera_info, time.monotonic() - waited)
        if self._worker is None:
            self.discard([frame])
        else:
            self._worker.offer(job)

    def wait_until_idle(self) -> None:
        """Wait until no frame is left that was submitted and is neither segmented nor skipped nor dropped."""
        if self._worker is not None:
            self._worker.wait_until_idle()

    def discard(self, frames: list[Frame]) -> None:
        """Count frames that nobody will segment, because the node is no longer active."""
        for frame in frames:
            self._count(frame, Outcome.INACTIVE)

    def stop(self, timeout: float | None = None) -> None:
        """Finish the frame in hand, for at most ``timeout`` seconds, and discard those that wait."""
        if self._worker is not None:
            self.discard([job.frame for job in self._worker.stop(timeout)])

    def tally(self) -> Tally:
        """The books as they stand."""
        with self._lock:
            return Tally(
                {outcome: self._outcomes[outcome] for outcome in Outcome},
                depth_only_masks=self._depth_only["masks"],
                depth_only_dropped=self._depth_only["dropped"],
                depth_unreadable=self._depth["unreadable"],
                depth_empty=self._depth["empty"],
                depth_used=self._depth["used"],
            )

    def timings(self) -> list[Timing]:
        """Of the latest frames."""
        with self._lock:
            return list(self._timings)

    def _give_way(self, job: _Job) -> None:
        """Count a frame that will not be segmented."""
        if self._worker is None or self._worker.stopping:
            self.discard([job.frame])
        elif self._capacity is None:
            self._count(job.frame, Outcome.OVERLOAD)
        else:
            self._count(job.frame, Outcome.QUEUE_FULL)
            self._logger.warning(
                f"{self._capacity} frames are waiting and a further one was dropped: the model is too slow for "
                "overload: queue; use overload: newest, or raise overload_queue_size",
                throttle_duration_sec=_LOG_EVERY,
            )

    def _handle(self, job: _Job) -> None:
        outcome = Outcome.FAILED
        try:
            outcome = self._segment(job)
        except ImageFormatError as error:
            outcome = Outcome.UNREADABLE
            self._logger.error(f"dropped an image: {error}", throttle_duration_sec=_LOG_EVERY)
        except Exception as error:  # whatever one frame does, the next one is segmented
            self._logger.error(
                f"dropped an image: {type(error).__name__}: {_line(error)}", throttle_duration_sec=_LOG_EVERY
            )
        self._count(job.frame, outcome)

    def _segment(self, job: _Job) -> Outcome:
        """Convert, infer, publish."""
        wanted = self.outputs.wanted()
        if not wanted:
            return Outcome.UNSUBSCRIBED
        frame = job.frame
        begin = time.monotonic()
        rgb = None if frame.rgb is None else to_rgb(frame.rgb)
        depth = None if frame.depth is None else self._read_depth(frame)
        if rgb is None and (depth is None or not has_reading(depth)):
            self._count_depth("empty")
            return Outcome.UNREADABLE
        converted = time.monotonic()
        prediction = self.predictor.predict(rgb, depth, with_confidence=CONFIDENCE in wanted)
        inferred = time.monotonic()
        header = (frame.depth if frame.rgb is None else frame.rgb).header
        self.outputs.publish(wanted, header, prediction, rgb, job.camera_info)
        timing = Timing(
            begin - job.arrived, converted - begin, inferred - converted, time.monotonic() - inferred
        )
        with self._lock:
            self._timings.append(timing)
        if depth is not None:
            self._count_depth("used" if "depth" in prediction.used else "empty")
        return Outcome.MASKED

    def _read_depth(self, frame: Frame) -> Any:
        """The depth image; None where it is damaged but colour can do without it."""
        try:
            return to_depth(frame.depth)
        except ImageFormatError as error:
            self._count_depth("unreadable")
            if frame.rgb is None:
                raise
            self._logger.error(f"segmenting without depth: {error}", throttle_duration_sec=_LOG_EVERY)
            return None

    def _count(self, frame: Frame, outcome: Outcome) -> None:
        with self._lock:
            if frame.rgb is not None:
                self._outcomes[outcome] += 1
            elif outcome is Outcome.MASKED:
                self._depth_only["masks"] += 1
            elif outcome in _DROPPED:
                self._depth_only["dropped"] += 1

    def _count_depth(self, fate: str) -> None:
        with self._lock:
            self._depth[fate] += 1


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
