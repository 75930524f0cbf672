# SPDX-License-Identifier: Apache-2.0
"""Turns the images of a sound RGB-D camera into those of a faulty one; what goes wrong, and when, follows from a seed.

    injector = FaultInjector(seed=7, report=print)
    deliveries = injector.add("rgb", message, at)  # seconds since the start, rising; likewise "depth"

Calm alternates with episodes of one fault each. The class knows no ROS and no clock: it says what to publish, when and
by which publisher.
"""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator
from enum import Enum
from typing import Any, Literal, NamedTuple, get_args

Stream = Literal["rgb", "depth"]

_CALM = (1.0, 6.0)
_YEAR = 365 * 86400
_LATE = 0.05
_SKEW = 0.3
_SLOW_EVERY = 6


class Fault(Enum):
    """What can go wrong, and how long it does, s."""

    STOP = ("the stream stops", 0.3, 6.0)
    DROP = ("half of the images are lost", 0.5, 3.0)
    BURST = ("images are held back and come all at once", 0.2, 0.8)
    DELAY = ("images come up to 0.2 s late", 0.5, 3.0)
    REORDER = ("every other image comes after its successor", 0.5, 2.0)
    TWIN = ("a second publisher sends every image again", 0.5, 2.0)
    RESTART = ("the publisher is replaced by another one", 0.1, 0.1)
    TRUNCATED = ("data end too early", 0.2, 1.0)
    ENCODING = ("the encoding is not what it should be", 0.2, 1.0)
    SIZE = ("images are half as large", 0.5, 2.0)
    NO_STAMP = ("stamps are zero", 0.2, 1.0)
    FAR_STAMP = ("one stamp lies a year ahead", 0.05, 0.05)
    PAUSE = ("both streams stop", 0.5, 4.0)
    JUMP = ("from now on the stamps of both streams are earlier, or a year later", 0.0, 0.0)
    EMPTY = ("depth holds no reading", 0.5, 3.0)
    FROZEN = ("the same depth image comes again and again", 0.5, 4.0)
    SKEW = (f"depth stamps are {_SKEW} s ahead", 0.5, 3.0)
    SLOW = (f"only one of {_SLOW_EVERY} depth images comes", 1.0, 4.0)

    def __init__(self, text: str, shortest: float, longest: float) -> None:
        self.text = text
        self.length = (shortest, longest)


_OF_BOTH = {Fault.PAUSE, Fault.JUMP}
_OF_DEPTH = {Fault.EMPTY, Fault.FROZEN, Fault.SKEW, Fault.SLOW}


class Episode(NamedTuple):
    """One fault, from ``begin`` to before ``end``, s since the start."""

    fault: Fault
    streams: tuple[Stream, ...]
    begin: float
    end: float

    def __str__(self) -> str:
        lasting = f" for {self.end - self.begin:.1f} s" if self.end > self.begin else ""
        return f"{self.begin:.1f} s: {' and '.join(self.streams)}: {self.fault.text}{lasting}"


class Delivery(NamedTuple):
    """An image to publish at ``due``."""

    due: float
    stream: Stream
    message: Any
    generation: int
    """Of the stream's publisher: a higher one replaces those before."""
    by_twin: bool
    """To be sent by the generation's second publisher."""
    fault: Fault | None
    """What is wrong with it; None: nothing."""


def episodes(seed: int) -> Iterator[Episode]:
    """Episodes without end. Every fault comes once, in random order, before any comes again."""
    rng = random.Random(seed)
    at = 0.0
    while True:
        for fault in rng.sample(list(Fault), len(Fault)):
            begin = at + rng.uniform(*_CALM)
            at = begin + rng.uniform(*fault.length)
            yield Episode(fault, _affected(fault, rng), begin, at)


def _affected(fault: Fault, rng: random.Random) -> tuple[Stream, ...]:
    both: tuple[Stream, ...] = get_args(Stream)
    if fault in _OF_BOTH:
        return both
    return ("depth",) if fault in _OF_DEPTH else (rng.choice(both),)


class FaultInjector:
    """See the module's docstring.

    Args:
        seed: the same seed and the same images give the same deliveries.
        report: called with a line when an episode begins.
    """

    def __init__(self, seed: int, report: Callable[[str], None] = lambda line: None) -> None:
        self._episodes = episodes(seed)
        self._episode = next(self._episodes)
        self._rng = random.Random(seed + 1)
        self._report = report
        self._begun = False
        self._shift = 0
        self._count: Counter[Stream] = Counter()
        self._generation: Counter[Stream] = Counter()
        self._frozen: Any = None
        self.injected: Counter[Fault] = Counter()
        """Episodes that have begun."""

    def add(self, stream: Stream, message: Any, at: float) -> list[Delivery]:
        """Take an image of the sound camera; returns what the faulty one makes of it, in order of publication.

        Args:
            stream: which image it is.
            message: sensor_msgs/Image or CompressedImage; it is not changed.
            at: when the camera would publish it, s since the start.
        """
        self._advance(at)
        self._count[stream] += 1
        message = copy.copy(message)
        message.header = copy.deepcopy(message.header)
        message.header.stamp.sec += self._shift
        episode = self._episode
        if not (self._begun and at < episode.end and stream in episode.streams):
            return [Delivery(at, stream, message, self._generation[stream], False, None)]
        return self._spoil(episode, stream, message, at)

    def _advance(self, at: float) -> None:
        while self._begun and at >= self._episode.end:
            self._episode, self._begun = next(self._episodes), False
        if not self._begun and at >= self._episode.begin:
            self._begin(self._episode)
            self._advance(at)

    def _begin(self, episode: Episode) -> None:
        self._begun = True
        self.injected[episode.fault] += 1
        self._report(str(episode))
        self._frozen = None
        if episode.fault is Fault.JUMP:
            self._shift += self._rng.choice((-3, -60, _YEAR)) if self._shift <= _YEAR else -_YEAR
        elif episode.fault is Fault.RESTART:
            self._generation[episode.streams[0]] += 1

    def _spoil(self, episode: Episode, stream: Stream, message: Any, at: float) -> list[Delivery]:
        fault, due = episode.fault, at
        if fault in (Fault.STOP, Fault.PAUSE):
            return []
        if (fault is Fault.DROP and self._rng.random() < 0.5) or (
            fault is Fault.SLOW and self._count[stream] % _SLOW_EVERY
        ):
            return []
        if fault is Fault.BURST:
            due = episode.end
        elif fault is Fault.DELAY:
            due += self._rng.uniform(0.0, 0.2)
        elif fault is Fault.REORDER:
            due += _LATE * (self._count[stream] % 2)
        else:
            message = self._damage(fault, message)
        generation = self._generation[stream]
        twins = (False, True) if fault is Fault.TWIN else (False,)
        return [Delivery(due, stream, message, generation, by_twin, fault) for by_twin in twins]

    def _damage(self, fault: Fault, message: Any) -> Any:
        stamp = message.header.stamp
        if fault is Fault.TRUNCATED:
            message.data = message.data[: len(message.data) // 2]
        elif fault is Fault.ENCODING and hasattr(message, "encoding"):
            message.encoding = self._rng.choice(("rgb9", "", "mono16", "bgra8", "32FC1"))
        elif fault is Fault.SIZE and hasattr(message, "step"):
            message.height //= 2
            message.data = message.data[: message.height * message.step]
        elif fault is Fault.NO_STAMP:
            stamp.sec = stamp.nanosec = 0
        elif fault is Fault.FAR_STAMP:
            stamp.sec += _YEAR
        elif fault is Fault.SKEW:
            stamp.nanosec += round(_SKEW * 1e9)
            stamp.sec, stamp.nanosec = stamp.sec + stamp.nanosec // 10**9, stamp.nanosec % 10**9
        elif fault is Fault.EMPTY and hasattr(message, "encoding"):
            message.data = type(message.data)("B", bytes(len(message.data)))
        elif fault is Fault.FROZEN:
            self._frozen = self._frozen or message
            header, message = message.header, copy.copy(self._frozen)
            message.header = header
        return message
