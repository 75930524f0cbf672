# SPDX-License-Identifier: Apache-2.0
"""`RgbdTimeSynchronizer`: a message filter that gives one frame for every colour image, with its depth or without."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType, ROSClock
from rclpy.node import Node

from m3l_model.sync import Frame, RgbdSynchronizer, SyncStatus
from m3l_ros.providers import SimpleFilter
from m3l_ros.stamps import to_ns

_CEILING_NS = 1_000_000_000
_SIMULATED_TICK_NS = 10_000_000
_SHORTEST_NS = 100_000
_IDLE_NS = 3_600_000_000_000


class RgbdTimeSynchronizer(SimpleFilter):
    """Feeds an `m3l_model.sync.RgbdSynchronizer` from two filters and hands its frames to the registered callbacks.

    Used as message_filters' synchronizers are, but it says so when one stream stops::

        rgb = Subscriber(node, Image, "rgb/image")
        depth = Subscriber(node, Image, "depth/image")
        synchronizer = RgbdTimeSynchronizer(node, RgbdSynchronizer(0.02, 0.1, 0.5, 30), rgb, depth)
        synchronizer.registerCallback(on_frame)  # on_frame(frame: m3l_model.sync.Frame, waited: float)

    ``waited`` are the seconds, of the steady clock, since the frame's image arrived. Frames are handed over in order,
    one at a time, and never under a lock. Time is the node's ROS clock. A steady timer polls while a colour image
    waits; none waits longer than 1 s of steady time, even where the ROS clock is paused, slow or absent.

    Simulated time stands still between two messages of /clock, and more images may come at the time that it shows:
    what falls due at that time goes out with the next image, or when time goes on.

    Args:
        node: gives the clock, the timer and the context.
        core: the policy; it must not be used elsewhere.
        rgb: filter whose output are messages with a header: the colour images.
        depth: likewise the depth images.
        callback_group: of the timer; the node's default group where it is None.
        clock_driven_by_hand: while this says so, a clock that stands still is meant to, and the limit of 1 s is void.
    """

    def __init__(
        self,
        node: Node,
        core: RgbdSynchronizer,
        rgb: SimpleFilter,
        depth: SimpleFilter,
        callback_group: CallbackGroup | None = None,
        clock_driven_by_hand: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__()
        self._node = node
        self._core = core
        self._clock = cast(ROSClock, node.get_clock())
        self._clock_driven_by_hand = clock_driven_by_hand
        self._lock = threading.Lock()
        self._delivered = threading.Condition(self._lock)
        self._due: deque[Frame] = deque()  # of _Arrived
        self._delivering = False
        self._closed = False
        self._armed = False
        self._last_ns = 0  # time of the latest image
        self._arrivals: deque[int] = (
            deque()
        )  # steady times of the colour images that wait, and of no later ones
        # It is never cancelled, only put off: rclpy raises, and blocks the callback group for good, where a timer is
        # cancelled between becoming ready and being called.
        self._timer = node.create_timer(
            _IDLE_NS / 1e9, self._on_timer, callback_group, Clock(clock_type=ClockType.STEADY_TIME)
        )
        rgb.registerCallback(self.add_rgb)
        depth.registerCallback(self.add_depth)

    def add_rgb(self, msg: Any) -> None:
        """Take a colour image; the rgb filter calls this."""
        with self._lock:
            if self._closed:
                return
            arrived = _Arrived(msg, time.monotonic_ns())
            self._arrivals.append(arrived.at_ns)
            self._due.extend(self._core.add_rgb(to_ns(msg.header.stamp), arrived, self._take_time()))
            self._arm()
        self._deliver()

    def add_depth(self, msg: Any) -> None:
        """Take a depth image; the depth filter calls this."""
        with self._lock:
            if self._closed:
                return
            arrived = _Arrived(msg, time.monotonic_ns())
            self._due.extend(self._core.add_depth(to_ns(msg.header.stamp), arrived, self._take_time()))
            self._arm()
        self._deliver()

    def set_tolerances(self, slop: float, max_wait: float, depth_timeout: float) -> None:
        """Change the policy's, for the images that wait too; see `RgbdSynchronizer.set_tolerances`."""
        with self._lock:
            self._core.set_tolerances(slop, max_wait, depth_timeout)
            self._arm()

    def status(self) -> SyncStatus:
        """Counters and state as of now, for diagnostics; hands over what has fallen due by now."""
        with self._lock:
            if not self._closed:
                self._poll()
            status = self._core.status()
        self._deliver()
        return status

    def settle(self) -> None:
        """Hand over what has fallen due by now, and wait until it is, whichever thread does so."""
        self.status()
        with self._delivered:
            self._delivered.wait_for(lambda: not (self._due or self._delivering))

    @property
    def outage(self) -> bool:
        """Whether there was no depth for longer than the policy's timeout, as of the latest image or poll."""
        return self._core.outage

    def close(self) -> list[Frame]:
        """Stop for good; returns the frames that nobody will get. What the filters still send is ignored."""
        self._node.destroy_timer(self._timer)
        with self._lock:
            self._closed = True
            left = [_unwrap(frame) for frame in (*self._due, *self._core.flush())]
            self._due.clear()
            return left

    def _on_timer(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._poll()
            if self._until_ceiling_ns() <= 0:
                self._due.extend(self._core.flush())
            self._arm()
        self._deliver()

    def _take_time(self) -> int:
        """The time at which an image arrives."""
        self._last_ns = self._clock.now().nanoseconds
        return self._last_ns

    def _poll(self) -> None:
        now_ns = self._clock.now().nanoseconds
        self._last_ns = min(self._last_ns, now_ns)
        if self._clock.ros_time_is_active and now_ns > self._last_ns:
            now_ns -= 1
        self._due.extend(self._core.poll(now_ns))

    def _arm(self) -> None:
        """Have the timer fire when the next frame falls due."""
        deadline_ns = self._core.next_deadline_ns()
        if deadline_ns is None:
            self._arrivals.clear()
            if self._armed:
                self._set_timer(_IDLE_NS)
            self._armed = False
            return
        wait_ns = deadline_ns - self._clock.now().nanoseconds
        if self._clock.ros_time_is_active and not 0 < wait_ns < _SIMULATED_TICK_NS:
            wait_ns = _SIMULATED_TICK_NS
        self._set_timer(max(min(wait_ns, self._until_ceiling_ns()), _SHORTEST_NS))
        self._armed = True

    def _set_timer(self, nanoseconds: int) -> None:
        self._timer.timer_period_ns = nanoseconds
        self._timer.reset()

    def _until_ceiling_ns(self) -> int:
        """Steady time that the oldest waiting colour image may still wait."""
        waiting = self._core.status().waiting
        while len(self._arrivals) > waiting:
            self._arrivals.popleft()
        if not self._arrivals or self._clock_driven_by_hand():
            return _CEILING_NS
        return self._arrivals[0] + _CEILING_NS - time.monotonic_ns()

    def _deliver(self) -> None:
        """Hand over what is due; whoever comes while another thread does so leaves it to that thread."""
        while True:
            with self._lock:
                if self._delivering or not self._due:
                    return
                self._delivering = True
                frame = self._due.popleft()
            arrived = frame.depth if frame.rgb is None else frame.rgb
            try:
                self.signalMessage(_unwrap(frame), (time.monotonic_ns() - arrived.at_ns) / 1e9)
            finally:
                with self._delivered:
                    self._delivering = False
                    self._delivered.notify_all()


class _Arrived(NamedTuple):
    """A message, and the steady time at which it came."""

    msg: Any
    at_ns: int


def _unwrap(frame: Frame) -> Frame:
    rgb, depth = (None if image is None else image.msg for image in (frame.rgb, frame.depth))
    return frame._replace(rgb=rgb, depth=depth)
