# SPDX-License-Identifier: Apache-2.0
"""What is logged of depth that goes and comes, and how long an outage is said to last."""

from __future__ import annotations

import pytest

from m3l_model.sync import RgbdSynchronizer
from m3l_ros.outage import Change, OutageWatch


class Clock:
    """ROS time, set by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_each_change_is_said_once():
    watch = OutageWatch(Clock())
    notes = [
        *[(True, None)] * 3,
        *[(False, 1), (False, 2), (False, 3)],
        *[(True, None)] * 2,
        *[(False, None), (False, 4), (False, 5)],
    ]
    said = [watch.note(outage, stamp) for outage, stamp in notes]
    assert [change for change in said if change] == [Change.NEVER, Change.BACK, Change.LOST, Change.BACK]


def test_depth_that_is_there_from_the_start_is_not_said_to_be_back():
    watch = OutageWatch(Clock())
    assert [watch.note(outage=False, depth_stamp=stamp) for stamp in range(3)] == [None] * 3
    assert watch.note(outage=True) is Change.LOST


@pytest.mark.parametrize(("colour_rate", "slop"), [(30, 0.02), (90, 0.02), (30, 0.05)])
def test_depth_slower_than_its_timeout_is_not_lost_and_back_with_every_image(colour_rate, slop):
    core = RgbdSynchronizer(slop=slop, max_wait=0.1, depth_timeout=0.5, queue_size=30)
    watch = OutageWatch(Clock())
    said = []
    for index in range(12 * colour_rate):
        now = 10**9 + index * 10**9 // colour_rate
        frames = core.add_depth(now, "depth", now) if index % colour_rate == 0 else []
        for frame in [*frames, *core.add_rgb(now, "rgb", now)]:
            said.append(watch.note(core.outage, frame.depth_stamp_ns))
    assert [change for change in said if change] == [Change.LOST]


def test_length_is_that_of_the_outage_in_progress():
    clock = Clock()
    watch = OutageWatch(clock)
    assert watch.length == 0
    watch.note(outage=True)
    clock.now += 3
    watch.note(outage=True)
    clock.now += 4
    assert watch.length == 7
    watch.note(outage=False)
    clock.now += 1
    assert watch.length == 0
    watch.note(outage=True)
    clock.now += 2
    assert watch.length == 2


def test_length_is_known_before_anything_is_to_be_logged():
    clock = Clock()
    watch = OutageWatch(clock)
    watch.follow(outage=True)
    clock.now += 3
    watch.follow(outage=True)
    assert watch.length == 3
    assert watch.note(outage=True) is Change.NEVER


def test_length_counts_from_the_begin_of_simulated_time_and_from_where_it_went_back_to():
    clock = Clock()
    watch = OutageWatch(clock)
    for now, length in ((0, 0), (1.7e9, 0), (1.7e9 + 5, 5), (1000, 0), (1002, 2)):
        clock.now = now
        watch.note(outage=True)
        assert watch.length == length
