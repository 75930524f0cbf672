# SPDX-License-Identifier: Apache-2.0
"""Hands frames from the thread that receives to one that segments, and decides what gives way when that is slower."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar, cast

T = TypeVar("T")


class FrameWorker(Generic[T]):
    """A thread that handles one frame after another, in the order in which they were offered.

    Args:
        handle: called in the thread for every frame; it must not raise.
        capacity: frames that may wait while one is handled.
        newest_wins: a frame that finds no place takes that of the oldest waiting one; otherwise it is refused.
    """

    def __init__(self, handle: Callable[[T], None], capacity: int, newest_wins: bool) -> None:
        self._handle = handle
        self._capacity = capacity
        self._newest_wins = newest_wins
        self._frames: deque[T] = deque()
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

    def offer(self, frame: T) -> T | None:
        """Leave a frame to the thread; returns the frame that had to give way, if any: this one or an older one."""
        with self._condition:
            if self._stopping:
                return frame
            displaced = None
            if len(self._frames) >= self._capacity:
                if not self._newest_wins:
                    return frame
                displaced = self._frames.popleft()
            self._frames.append(frame)
            self._condition.notify_all()
            return displaced

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

    def stop(self, timeout: float | None = None) -> list[T]:
        """Let the frame in hand be finished and end the thread; returns the frames that were still waiting.

        Args:
            timeout: longest time to wait for the frame in hand, s; None: as long as it takes.
        """
        with self._condition:
            self._stopping = True
            left = list(self._frames)
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
                frame = None if interlude else self._frames.popleft()
                self._handling = interlude is None
            if interlude:
                interlude()
            else:
                self._handle(cast(T, frame))
            del frame  # not to be kept until the next one comes
