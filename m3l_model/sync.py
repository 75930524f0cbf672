# SPDX-License-Identifier: Apache-2.0
"""Pairs colour and depth images by stamp, and goes on with colour alone when depth stops.

One accepted colour image in, exactly one `Frame` out, with depth or without, and the `Reason`:

    sync = RgbdSynchronizer(slop=0.02, max_wait=0.1, depth_timeout=0.5, queue_size=30)
    frames = sync.add_rgb(stamp_ns, msg, now_ns)  # likewise add_depth, poll
    wake_up_at = sync.next_deadline_ns()          # call poll(now_ns) then, or more often
    frames = sync.flush()                         # end of a bag: what still waits

The class knows no ROS, no threads and no clock; messages are opaque. Stamps are compared with stamps and `now_ns`
with `now_ns`: live, that is the ROS clock; offline, the log time of the message just read. The frames do not depend
on how often `poll` is called: what was due before a message arrived goes out without it. Not thread-safe: a caller
with threads holds one lock while it reads the clock and makes the call, or time seems to go back.

Waiting. A colour image waits until a depth image with the same or a later stamp has arrived, at most `max_wait`, and
takes the nearest depth within `slop` (inclusive, the earlier on a tie), which may have served a neighbour too.
Frames leave in stamp order: an image that is due takes along what is older, even if that came later.

Outage. No depth accepted for longer than `depth_timeout`, or none since the start: nothing waits, but depth within
`slop` that has arrived is still used. Any accepted depth ends it; a new epoch neither starts nor ends it.

New epoch. A stamp more than 1 s behind the newest of its stream, or `now_ns` going back, releases what waits and
forgets both streams. An image more than 10 s ahead of the newest is held. If its stream's next stamp lies at most 1 s
before and 10 s after, a new epoch starts with both (and with an image held of the other stream, if that agrees);
otherwise the held colour goes out alone, the held depth is dropped. Colour is held no longer than it may wait;
the next stamp still confirms the one that has left.

Order. Stamps rise strictly within an epoch, but for `no_stamp` and `far_future` frames, which stand outside it.

Anchor `either`. When no colour has come for longer than `depth_timeout`, and none waits, each depth image newer than
the last frame goes out alone as it arrives; what came before is not made up for. Any colour image but a repeated one
ends this, also one that is dropped because depth has overtaken it (else colour that trails depth never came back).
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from statistics import median_low
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from .errors import M3LError

_SECOND = 1_000_000_000
_JUMP_BACK = 1 * _SECOND
_JUMP_AHEAD = 10 * _SECOND
_SKEW_WINDOW = 31


class Reason(str, Enum):
    """Why a frame left the synchronizer as it did."""

    PAIRED = "paired"  # with the nearest depth within slop
    DEPTH_LOST = "depth_lost"  # without: an outage, or depth went on and none of it was within slop
    DEADLINE = "deadline"  # without: max_wait passed
    RESET = "reset"  # forced out by a new epoch, with the best depth so far, if any
    QUEUE_FULL = "queue_full"  # forced out by queue_size, with the best depth so far, if any
    NO_STAMP = "no_stamp"  # alone: the colour image's stamp is not positive
    FAR_FUTURE = "far_future"  # alone: its stamp leapt ahead, and the next one did not agree in time
    COLOUR_LOST = "colour_lost"  # depth only (anchor "either")

    def __str__(self) -> str:
        return self.value


class Frame(NamedTuple):
    """A colour image with its depth image, or either alone; the other is None."""

    stamp_ns: int  # of the colour image; of the depth image where colour is lost
    rgb: Any
    depth: Any
    depth_stamp_ns: int | None
    reason: Reason


@dataclass(frozen=True)
class SyncStatus:
    """A snapshot for diagnostics; counters run from construction.

    Always: rgb_accepted == sum(frames.values()) - frames[Reason.COLOUR_LOST] + waiting. A skew_ns beyond slop
    means that the streams' clocks or delays differ by about that much.
    """

    rgb_accepted: int
    rgb_dropped: int  # stamp seen before, or not newer than the last frame
    depth_accepted: int
    depth_no_stamp: int  # dropped: stamp not positive
    depth_duplicate: int  # dropped: stamp of an image still kept, the newest always is
    depth_far_future: int  # dropped: stamp leapt ahead, and the next one did not agree
    depth_forgotten: int  # accepted, but pushed out by queue_size while it could still have served
    resets: int  # new epochs
    frames: Mapping[Reason, int]  # every reason is a key
    waiting: int  # colour images not out yet
    outage: bool  # True from the start until the first depth
    skew_ns: int | None  # median of recent depth - colour, nearest stamps; None in an outage


class SyncParameterError(M3LError, ValueError):
    """A parameter of the synchronizer is out of its range."""


class _Image(NamedTuple):
    stamp_ns: int
    msg: Any
    arrived_ns: int


@dataclass
class _Stream:
    """The stamps that one stream has shown in this epoch."""

    newest_ns: int | None = None
    far_ns: int | None = None  # too far ahead to be believed before the next one agrees
    far: _Image | None = None  # its image, while held

    def starts_epoch(self, stamp_ns: int) -> bool:
        if self.far_ns is not None and _agrees(stamp_ns, self.far_ns):
            return True
        return self.newest_ns is not None and stamp_ns < self.newest_ns - _JUMP_BACK

    def is_far(self, stamp_ns: int) -> bool:
        return self.newest_ns is not None and stamp_ns > self.newest_ns + _JUMP_AHEAD


def _agrees(stamp_ns: int, far_ns: int) -> bool:
    return far_ns - _JUMP_BACK <= stamp_ns <= far_ns + _JUMP_AHEAD


class RgbdSynchronizer:
    """Pairs two streams of stamped messages; see the module's docstring for the policy.

    Args:
        slop: greatest difference of the stamps of a pair, seconds, >= 0.
        max_wait: longest time a colour image waits for its depth, seconds, >= 0.
        depth_timeout: time without depth after which an outage begins, seconds, > 0.
        queue_size: colour images that may wait, and depth images kept, >= 1.
        anchor: "rgb": frames are colour images; "either": depth images too while colour is lost.

    Raises:
        SyncParameterError: an argument is out of range.
    """

    def __init__(
        self,
        slop: float,
        max_wait: float,
        depth_timeout: float,
        queue_size: int,
        anchor: Literal["rgb", "either"] = "rgb",
    ) -> None:
        self._check_tolerances(slop, max_wait, depth_timeout)
        if not isinstance(queue_size, int) or queue_size < 1:
            raise SyncParameterError(f"queue_size must be an integer >= 1, not {queue_size!r}")
        if anchor not in ("rgb", "either"):
            raise SyncParameterError(f"anchor must be 'rgb' or 'either', not {anchor!r}")
        self._slop = round(slop * _SECOND)
        self._max_wait = round(max_wait * _SECOND)
        self._silence = round(depth_timeout * _SECOND) + 1  # the least time that is longer than the timeout
        self._queue_size = queue_size
        self._anchor = anchor

        self._now_ns: int | None = None
        self._outage_at = 0  # when the outage begins or began, in now_ns time
        self._rgb_silent_at = 0  # likewise the silence of colour
        self._last_ns: int | None = None  # stamp of the epoch's last frame
        self._rgb = _Stream()
        self._depth = _Stream()
        self._waiting: list[_Image] = []  # by stamp; arrived_ns never falls along it, see _queue_rgb
        self._depth_stamps: list[int] = []  # sorted
        self._depth_msgs: list[Any] = []
        self._skews: deque[int] = deque(maxlen=_SKEW_WINDOW)
        self._counts: Counter[str] = Counter()
        self._frames: Counter[Reason] = Counter()

    def set_tolerances(self, slop: float, max_wait: float, depth_timeout: float) -> None:
        """Change what the constructor was told, for the images that wait too; an outage goes on until there is depth.

        Raises:
            SyncParameterError: an argument is out of range; nothing is changed.
        """
        self._check_tolerances(slop, max_wait, depth_timeout)
        later = round(depth_timeout * _SECOND) + 1 - self._silence
        if not self._in_outage():
            self._outage_at += later
        self._rgb_silent_at += later
        self._slop = round(slop * _SECOND)
        self._max_wait = round(max_wait * _SECOND)
        self._silence += later

    def add_rgb(self, stamp_ns: int, msg: Any, now_ns: int) -> list[Frame]:
        """Take a colour image that arrived at now_ns; return the frames that are due."""
        return [
            *self._advance(now_ns),
            *self._take_rgb(_Image(stamp_ns, msg, now_ns)),
            *self._release(now_ns),
        ]

    def add_depth(self, stamp_ns: int, msg: Any, now_ns: int) -> list[Frame]:
        """Take a depth image that arrived at now_ns; return the frames that are due."""
        return [
            *self._advance(now_ns),
            *self._take_depth(_Image(stamp_ns, msg, now_ns)),
            *self._release(now_ns),
        ]

    def poll(self, now_ns: int) -> list[Frame]:
        """Return the frames that are due at now_ns."""
        return [*self._advance(now_ns), *self._release(now_ns)]

    def flush(self) -> list[Frame]:
        """Release all that waits as if its max_wait had passed: at the end of a bag, or when the clock stands still."""
        return [*self._emit_all(Reason.DEADLINE), *self._emit_far()]

    def next_deadline_ns(self) -> int | None:
        """The earliest now_ns at which poll() returns frames if nothing arrives before; None when nothing waits."""
        held = [image.arrived_ns for image in (*self._waiting[:1], self._rgb.far) if image is not None]
        return min(min(held) + self._max_wait, self._outage_at) if held else None

    @property
    def outage(self) -> bool:
        """Whether there is an outage, as of the last call."""
        return self._in_outage()

    def status(self) -> SyncStatus:
        """Counters and state as of the last call."""
        count = self._counts
        return SyncStatus(
            rgb_accepted=count["rgb_received"] - count["rgb_dropped"],
            rgb_dropped=count["rgb_dropped"],
            depth_accepted=count["depth_accepted"],
            depth_no_stamp=count["depth_no_stamp"],
            depth_duplicate=count["depth_duplicate"],
            depth_far_future=count["depth_far_future"],
            depth_forgotten=count["depth_forgotten"],
            resets=count["resets"],
            frames=MappingProxyType({reason: self._frames[reason] for reason in Reason}),
            waiting=len(self._waiting) + (self._rgb.far is not None),
            outage=self._in_outage(),
            skew_ns=median_low(self._skews) if self._skews and not self._in_outage() else None,
        )

    @staticmethod
    def _check_tolerances(slop: float, max_wait: float, depth_timeout: float) -> None:
        for name, seconds in (("slop", slop), ("max_wait", max_wait), ("depth_timeout", depth_timeout)):
            if not (math.isfinite(seconds) and seconds >= 0):
                raise SyncParameterError(f"{name} must be a finite number of seconds >= 0, not {seconds}")
        if depth_timeout == 0:
            raise SyncParameterError(
                "depth_timeout must be > 0 seconds: with 0 no image could wait for depth"
            )

    # Time

    def _in_outage(self) -> bool:
        return self._now_ns is None or self._outage_at <= self._now_ns

    def _advance(self, now_ns: int) -> list[Frame]:
        """Set the time, and emit what was due before it."""
        before, self._now_ns = self._now_ns, now_ns
        if before is None:
            self._outage_at, self._rgb_silent_at = now_ns, now_ns + self._silence
            return []
        if now_ns >= before:
            return self._release(now_ns - 1)
        self._outage_at = now_ns if self._outage_at <= before else now_ns + self._silence
        self._rgb_silent_at = now_ns if self._rgb_silent_at <= before else now_ns + self._silence
        return self._new_epoch(None)

    def _release(self, until_ns: int) -> list[Frame]:
        """Emit what is complete, fell due by until_ns, or is too much."""
        frames = []
        while self._waiting:
            head = self._waiting[0]
            if self._depth.newest_ns is not None and self._depth.newest_ns >= head.stamp_ns:
                reason = Reason.DEPTH_LOST
            elif head.arrived_ns + self._max_wait <= min(until_ns, self._outage_at):
                reason = Reason.DEADLINE
            elif self._outage_at <= until_ns:
                reason = Reason.DEPTH_LOST
            elif len(self._waiting) > self._queue_size:
                reason = Reason.QUEUE_FULL
            else:
                break
            frames.append(self._emit_oldest(reason))
        far = self._rgb.far
        if far is not None and min(far.arrived_ns + self._max_wait, self._outage_at) <= until_ns:
            frames += self._emit_far()
        return frames

    # Input

    def _take_rgb(self, image: _Image) -> list[Frame]:
        stamp_ns = image.stamp_ns
        self._counts["rgb_received"] += 1
        if stamp_ns in (self._rgb.newest_ns, self._rgb.far_ns):
            self._counts["rgb_dropped"] += 1
            return []
        self._rgb_silent_at = image.arrived_ns + self._silence
        if stamp_ns <= 0:
            return [self._frame(stamp_ns, image.msg, None, None, Reason.NO_STAMP)]
        if self._rgb.starts_epoch(stamp_ns):
            frames = self._new_epoch(stamp_ns)
        else:
            frames = self._emit_far()
            self._rgb.far_ns = None
        if self._rgb.is_far(stamp_ns):
            self._rgb.far_ns, self._rgb.far = stamp_ns, image
        else:
            self._queue_rgb(image)
        return frames

    def _take_depth(self, image: _Image) -> list[Frame]:
        stamp_ns = image.stamp_ns
        frames: list[Frame] = []
        if stamp_ns <= 0:
            self._counts["depth_no_stamp"] += 1
            return frames
        new_epoch = self._depth.starts_epoch(stamp_ns)
        if stamp_ns == self._depth.far_ns or (stamp_ns in self._depth_stamps and not new_epoch):
            self._counts["depth_duplicate"] += 1
            return frames
        if new_epoch:
            frames += self._new_epoch(stamp_ns)
        elif self._depth.far is not None:
            self._counts["depth_far_future"] += 1
            self._depth.far_ns = self._depth.far = None
        if self._depth.is_far(stamp_ns):
            self._depth.far_ns, self._depth.far = stamp_ns, image
            return frames
        self._queue_depth(image)
        colour_lost = not self._waiting and self._rgb_silent_at <= image.arrived_ns
        if self._anchor == "either" and colour_lost and self._is_newer(stamp_ns):
            self._close_at(stamp_ns)
            frames.append(self._frame(stamp_ns, None, image.msg, stamp_ns, Reason.COLOUR_LOST))
        return frames

    def _is_newer(self, stamp_ns: int) -> bool:
        return self._last_ns is None or stamp_ns > self._last_ns

    def _queue_rgb(self, image: _Image) -> None:
        stamp_ns = image.stamp_ns
        self._rgb.newest_ns = max(stamp_ns, self._rgb.newest_ns or stamp_ns)
        at = bisect_left(self._waiting, stamp_ns, key=lambda other: other.stamp_ns)
        later = self._waiting[at] if at < len(self._waiting) else None
        if not self._is_newer(stamp_ns) or (later and later.stamp_ns == stamp_ns):
            self._counts["rgb_dropped"] += 1
            return
        if later:  # which may not wait for this one beyond its own deadline
            image = image._replace(arrived_ns=min(image.arrived_ns, later.arrived_ns))
        self._waiting.insert(at, image)

    def _queue_depth(self, image: _Image) -> None:
        if self._in_outage():
            self._skews.clear()
        self._outage_at = image.arrived_ns + self._silence
        self._depth.newest_ns = max(image.stamp_ns, self._depth.newest_ns or image.stamp_ns)
        at = bisect_left(self._depth_stamps, image.stamp_ns)
        self._depth_stamps.insert(at, image.stamp_ns)
        self._depth_msgs.insert(at, image.msg)
        self._counts["depth_accepted"] += 1
        if len(self._depth_stamps) > self._queue_size:
            del self._depth_stamps[0], self._depth_msgs[0]
            self._counts["depth_forgotten"] += 1

    def _new_epoch(self, stamp_ns: int | None) -> list[Frame]:
        """Forget both streams, but for held images that agree with the epoch's first stamp."""
        self._counts["resets"] += 1
        frames = self._emit_all(Reason.RESET)
        rgb, depth = self._rgb, self._depth
        if stamp_ns is None or rgb.far_ns is None or not _agrees(stamp_ns, rgb.far_ns):
            frames += self._emit_far()
            rgb.far_ns = None
        self._rgb, self._depth = _Stream(), _Stream()
        self._depth_stamps.clear()
        self._depth_msgs.clear()
        self._last_ns = rgb.far_ns if rgb.far is None else None
        if rgb.far is not None:
            self._queue_rgb(rgb.far)
        if depth.far is not None:
            if stamp_ns is not None and _agrees(stamp_ns, depth.far.stamp_ns):
                self._queue_depth(depth.far)
            else:
                self._counts["depth_far_future"] += 1
        return frames

    # Output

    def _emit_all(self, reason: Reason) -> list[Frame]:
        return [self._emit_oldest(reason) for _ in range(len(self._waiting))]

    def _emit_far(self) -> list[Frame]:
        image, self._rgb.far = self._rgb.far, None
        if image is None:
            return []
        return [self._frame(image.stamp_ns, image.msg, None, None, Reason.FAR_FUTURE)]

    def _emit_oldest(self, reason: Reason) -> Frame:
        """Emit the oldest waiting image; the reason to go without depth is void if there is one."""
        stamp_ns, msg, _ = self._waiting.pop(0)
        stamps = self._depth_stamps
        nearest = self._nearest_depth(stamp_ns)
        if nearest is not None:
            # Where all depth lies ahead, the newest tells the skew: the oldest kept depends on queue_size.
            self._skews.append((stamps[nearest] if stamps[0] <= stamp_ns else stamps[-1]) - stamp_ns)
        depth, depth_stamp_ns = None, None
        if nearest is not None and abs(stamps[nearest] - stamp_ns) <= self._slop:
            depth, depth_stamp_ns = self._depth_msgs[nearest], stamps[nearest]
            if reason in (Reason.DEPTH_LOST, Reason.DEADLINE):
                reason = Reason.PAIRED
        self._close_at(stamp_ns)
        return self._frame(stamp_ns, msg, depth, depth_stamp_ns, reason)

    def _nearest_depth(self, stamp_ns: int) -> int | None:
        stamps = self._depth_stamps
        if not stamps:
            return None
        after = bisect_left(stamps, stamp_ns)
        before = max(after - 1, 0)
        if after == len(stamps) or stamp_ns - stamps[before] <= stamps[after] - stamp_ns:
            return before
        return after

    def _close_at(self, stamp_ns: int) -> None:
        """No later frame is older than stamp_ns: of the depth up to it, only the newest can serve again."""
        self._last_ns = stamp_ns
        useless = bisect_right(self._depth_stamps, stamp_ns) - 1
        if useless > 0:
            del self._depth_stamps[:useless], self._depth_msgs[:useless]

    def _frame(
        self, stamp_ns: int, rgb: Any, depth: Any, depth_stamp_ns: int | None, reason: Reason
    ) -> Frame:
        self._frames[reason] += 1
        return Frame(stamp_ns, rgb, depth, depth_stamp_ns, reason)
