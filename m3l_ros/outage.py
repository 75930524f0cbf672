# SPDX-License-Identifier: Apache-2.0
"""Follows outages of depth: how long the one in progress lasts, and what is to be logged, once each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum

_PAIRS = 2
"""Frames with depth, without an outage between, that show that depth is back and not merely slow."""


class Change(Enum):
    """What is to be logged of depth."""

    NEVER = "no depth yet: segmenting colour alone until it comes"
    LOST = "no depth: segmenting colour alone until it comes"
    BACK = "depth is back: segmenting colour and depth"


class OutageWatch:
    """Remembers whether depth was there.

    Args:
        clock: ROS time, s; it may go back, and is 0 until simulated time begins.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._since = 0.0
        self._pairs = 0
        self._told: bool | None = None

    def note(self, outage: bool, paired: bool = False) -> Change | None:
        """Take over what is now; returns what is to be logged, if anything.

        Depth that comes more seldom than ``depth_timeout`` ends an outage with every image and begins one after it:
        that it is lost is said once, and that it is back when two frames in a row have had theirs.

        Args:
            outage: whether there is one.
            paired: whether this is of a frame of colour and depth.
        """
        with self._lock:
            if not outage:
                self._since = 0.0
                self._pairs += paired
                if self._told is None:
                    self._told = False
                elif self._told and self._pairs >= _PAIRS:
                    self._told = False
                    return Change.BACK
                return None
            self._pairs = 0
            now = self._clock()
            if not 0 < self._since <= now:
                self._since = now
            before, self._told = self._told, True
            if before:
                return None
            return Change.NEVER if before is None else Change.LOST

    @property
    def length(self) -> float:
        """Of the outage in progress, s; 0 without one."""
        with self._lock:
            return max(self._clock() - self._since, 0.0) if self._since else 0.0
