# SPDX-License-Identifier: Apache-2.0
"""What is logged of depth that goes and comes, and how long an outage is said to last."""

from __future__ import annotations

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
        *[(True, False)] * 3,
        *[(False, True)] * 3,
        *[(True, False)] * 2,
        *[(False, False), (False, True), (False, True)],
    ]
    said = [watch.note(outage, paired) for outage, paired in notes]
    assert [change for change in said if change] == [Change.NEVER, Change.BACK, Change.LOST, Change.BACK]


def test_depth_that_is_there_from_the_start_is_not_said_to_be_back():
    watch = OutageWatch(Clock())
    assert [watch.note(outage=False, paired=True) for _ in range(3)] == [None] * 3
    assert watch.note(outage=True) is Change.LOST


def test_depth_slower_than_its_timeout_is_not_lost_and_back_with_every_image():
    watch = OutageWatch(Clock())
    said = [
        watch.note(outage, paired) for _ in range(20) for outage, paired in ((False, True), (True, False))
    ]
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


def test_length_counts_from_the_begin_of_simulated_time_and_from_where_it_went_back_to():
    clock = Clock()
    watch = OutageWatch(clock)
    for now, length in ((0, 0), (1.7e9, 0), (1.7e9 + 5, 5), (1000, 0), (1002, 2)):
        clock.now = now
        watch.note(outage=True)
        assert watch.length == length
