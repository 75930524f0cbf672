# SPDX-License-Identifier: Apache-2.0
"""Follows outages of depth: how long the one in progress lasts, and what is to be logged, once each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from enum import Enum

_IMAGES = 2
"""Depth images, without an outage between, that show that depth is back and not merely slow."""


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
        self._images: set[int] = set()
        self._told: bool | None = None

    def follow(self, outage: bool) -> None:
        """Take over whether there is an outage now, for its length alone."""
        with self._lock:
            self._follow(outage)

    def note(self, outage: bool, depth_stamp: int | None = None) -> Change | None:
        """Take over what is now; returns what is to be logged, if anything.

        Depth that comes more seldom than ``depth_timeout`` ends an outage with every image and begins one after it:
        that it is lost is said once, and that it is back when two images in a row have been of use.

        Args:
            outage: whether there is one.
            depth_stamp: of the depth image that goes with a colour image, if this is of such a frame.
        """
        with self._lock:
            self._follow(outage)
            if not outage:
                if depth_stamp is not None and self._told:
                    self._images.add(depth_stamp)
                if self._told is None:
                    self._told = False
                elif self._told and len(self._images) >= _IMAGES:
                    self._told = False
                    return Change.BACK
                return None
            before, self._told = self._told, True
            if before:
                return None
            return Change.NEVER if before is None else Change.LOST

    def _follow(self, outage: bool) -> None:
        if not outage:
            self._since = 0.0
            return
        self._images.clear()
        now = self._clock()
        if not 0 < self._since <= now:
            self._since = now

    @property
    def length(self) -> float:
        """Of the outage in progress, s; 0 without one."""
        with self._lock:
            return max(self._clock() - self._since, 0.0) if self._since else 0.0
