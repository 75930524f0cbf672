# SPDX-License-Identifier: Apache-2.0
"""Hands frames from the thread that receives to one that segments, and decides what gives way when that is slower."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

_T = TypeVar("_T")

PATIENCE = 1 / 60
"""Seconds that a frame may wait before it gives way to newer ones, where the newest wins.

It is for frames that come together, those that waited for the same depth image: a model that keeps up with the camera
segments them all, and one that does not still takes a frame that is the newest but for half a period at 30 Hz.
"""


@dataclass(frozen=True)
class _Waiting(Generic[_T]):
    frame: _T
    since: float


class FrameWorker(Generic[_T]):
    """A thread that handles one frame after another, in the order in which they were offered.

    Args:
        handle: called in the thread for every frame; it must not raise.
        give_way: called, in this thread or that of the offer, with every frame that will not be handled, but for those
            that ``stop`` returns; it must not raise.
        capacity: frames that may wait while one is handled; further ones give way. None: frames that have waited for
            longer than ``PATIENCE`` give way to newer ones.
        clock: steady time, s.
    """

    def __init__(
        self,
        handle: Callable[[_T], None],
        give_way: Callable[[_T], None],
        capacity: int | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._handle = handle
        self._give_way = give_way
        self._capacity = capacity
        self._clock = clock
        self._frames: deque[_Waiting[_T]] = deque()
        self._interludes: deque[Callable[[], None]] = deque()
        self._condition = threading.Condition()
        self._handling = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="segmentation", daemon=True)
        self._thread.start()

    @property
    def stopping(self) -> bool:
        """Whether ``stop`` was called: what is offered from then on is refused."""
        return self._stopping

    def offer(self, frame: _T) -> None:
        """Leave a frame to the thread."""
        with self._condition:
            if self._stopping or (self._capacity is not None and len(self._frames) >= self._capacity):
                displaced = [frame]
            else:
                displaced = self._take_outdated(but=0)
                self._frames.append(_Waiting(frame, self._clock()))
                self._condition.notify_all()
        self._dispose(displaced)

    def between_frames(self, action: Callable[[], None]) -> None:
        """Have the thread call ``action`` before it takes the next frame, and wait until it has.

        It must not raise, and not be asked for while or after the worker is stopped.
        """
        done = threading.Event()

        def interlude() -> None:
            action()
            done.set()

        with self._condition:
            self._interludes.append(interlude)
            self._condition.notify_all()
        done.wait()

    def wait_until_idle(self) -> None:
        """Wait until every frame that was accepted is handled, or the worker is stopped."""
        with self._condition:
            self._condition.wait_for(lambda: self._stopping or not (self._frames or self._handling))

    def stop(self, timeout: float | None = None) -> list[_T]:
        """Let the frame in hand be finished and end the thread; returns the frames that were still waiting.

        Args:
            timeout: longest time to wait for the frame in hand, s; None: as long as it takes.
        """
        with self._condition:
            self._stopping = True
            left = [waiting.frame for waiting in self._frames]
            self._frames.clear()
            self._condition.notify_all()
        self._thread.join(timeout)
        return left

    def _run(self) -> None:
        while True:
            with self._condition:
                self._handling = False
                self._condition.notify_all()
                self._condition.wait_for(lambda: self._frames or self._interludes or self._stopping)
                if self._stopping:
                    return
                interlude = self._interludes.popleft() if self._interludes else None
                frames = [] if interlude else [*self._take_outdated(but=1), self._frames.popleft().frame]
                self._handling = interlude is None
            if interlude:
                interlude()
                continue
            self._dispose(frames[:-1])
            self._handle(frames[-1])
            del frames  # not to be kept until the next one comes

    def _dispose(self, frames: list[_T]) -> None:
        for frame in frames:
            self._give_way(frame)

    def _take_outdated(self, but: int) -> list[_T]:
        """Take away, where the newest wins, all but so many of the frames that have waited too long."""
        outdated: list[_T] = []
        latest = self._clock() - PATIENCE
        while self._capacity is None and len(self._frames) > but and self._frames[0].since < latest:
            outdated.append(self._frames.popleft().frame)
        return outdated
