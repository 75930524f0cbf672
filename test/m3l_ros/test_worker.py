# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3l_ros.worker import PATIENCE, FrameWorker


class Handler:
    """Handles a frame each time the test lets it."""

    def __init__(self):
        self.handled = []
        self.begun = threading.Semaphore(0)
        self.allowed = threading.Semaphore(0)

    def __call__(self, frame):
        self.begun.release()
        self.allowed.acquire()
        self.handled.append(frame)

    def allow(self, count):
        self.allowed.release(count)


class Clock:
    """Time that the test sets."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def handler():
    return Handler()


@pytest.fixture
def displaced():
    return []


def occupy(worker, handler):
    """Have the worker busy with frame 0."""
    worker.offer(0)
    handler.begun.acquire()


def test_newest_frame_replaces_the_one_that_waits(handler, displaced):
    clock = Clock()
    worker = FrameWorker(handler, displaced.append, capacity=None, clock=clock)
    occupy(worker, handler)
    for frame in (1, 2, 3):
        clock.now += 2 * PATIENCE
        worker.offer(frame)
        assert displaced == list(range(1, frame))
    handler.allow(2)
    handler.begun.acquire()
    assert worker.stop() == []
    assert handler.handled == [0, 3]


def test_frames_that_come_together_are_all_handled_where_that_is_fast(handler, displaced):
    clock = Clock()
    worker = FrameWorker(handler, displaced.append, capacity=None, clock=clock)
    occupy(worker, handler)
    for frame in (1, 2, 3):
        worker.offer(frame)
    handler.allow(1)
    handler.begun.acquire()
    clock.now += PATIENCE / 2
    handler.allow(1)
    handler.begun.acquire()
    handler.allow(2)
    handler.begun.acquire()
    worker.stop()
    assert (handler.handled, displaced) == ([0, 1, 2, 3], [])


def test_of_frames_that_come_together_the_newest_wins_where_handling_is_slow(handler, displaced):
    clock = Clock()
    worker = FrameWorker(handler, displaced.append, capacity=None, clock=clock)
    occupy(worker, handler)
    for frame in (1, 2, 3):
        worker.offer(frame)
    clock.now += 2 * PATIENCE
    handler.allow(2)
    handler.begun.acquire()
    worker.stop()
    assert (handler.handled, displaced) == ([0, 3], [1, 2])


def test_queue_refuses_what_it_has_no_place_for(handler, displaced):
    worker = FrameWorker(handler, displaced.append, capacity=2)
    occupy(worker, handler)
    for frame in (1, 2, 3):
        worker.offer(frame)
    assert displaced == [3]
    handler.allow(3)
    for _ in range(2):
        handler.begun.acquire()
    assert worker.stop() == []
    assert handler.handled == [0, 1, 2]


def test_stop_finishes_the_frame_in_hand_and_returns_the_others(handler, displaced):
    worker = FrameWorker(handler, displaced.append, capacity=5)
    occupy(worker, handler)
    for frame in (1, 2):
        worker.offer(frame)
    threading.Timer(0.01, handler.allow, (1,)).start()
    assert worker.stop() == [1, 2]
    assert handler.handled == [0]
    assert worker.stopping
    worker.offer(3)
    assert displaced == [3]


def test_stop_gives_up_on_a_frame_that_takes_too_long(handler, displaced):
    worker = FrameWorker(handler, displaced.append, capacity=None)
    occupy(worker, handler)
    assert worker.stop(timeout=0.01) == []
    assert handler.handled == []
    handler.allow(1)


def test_interlude_comes_between_two_frames(handler, displaced):
    worker = FrameWorker(handler, displaced.append, capacity=5)
    occupy(worker, handler)
    worker.offer(1)
    interlude = threading.Thread(
        target=worker.between_frames, args=(lambda: handler.handled.append("interlude"),)
    )
    interlude.start()
    handler.allow(2)
    interlude.join()
    handler.begun.acquire()
    worker.stop()
    assert handler.handled == [0, "interlude", 1]


def test_waiting_until_idle_outlasts_the_frame_in_hand_and_those_that_wait(handler, displaced):
    worker = FrameWorker(handler, displaced.append, capacity=5)
    worker.wait_until_idle()
    occupy(worker, handler)
    worker.offer(1)
    waiting = threading.Thread(target=worker.wait_until_idle)
    waiting.start()
    handler.allow(1)
    handler.begun.acquire()
    waiting.join(0.05)
    assert waiting.is_alive(), "frame 1 is in hand"
    handler.allow(1)
    waiting.join()
    assert handler.handled == [0, 1]
    worker.stop()
    worker.wait_until_idle()


def test_interlude_needs_no_frame(handler, displaced):
    worker = FrameWorker(handler, displaced.append, capacity=None)
    called = []
    worker.between_frames(lambda: called.append(True))
    assert called
    worker.stop()


@given(frames=st.integers(0, 60), capacity=st.none() | st.integers(1, 5))
def test_every_frame_is_handled_or_given_back_and_order_is_kept(frames, capacity):
    handled: list[int] = []
    displaced: list[int] = []
    ticks = itertools.count()
    worker = FrameWorker(handled.append, displaced.append, capacity, lambda: next(ticks) * PATIENCE / 4)
    for frame in range(frames):
        worker.offer(frame)
    left = worker.stop()
    assert sorted([*handled, *left, *displaced]) == list(range(frames))
    assert handled == sorted(handled)
