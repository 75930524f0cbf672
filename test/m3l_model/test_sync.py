# SPDX-License-Identifier: Apache-2.0
"""The synchronizer's policy, sentence by sentence, and its invariants for any traffic. Times are in ms unless named."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3l_model.errors import M3LError
from m3l_model.sync import Frame, Reason, RgbdSynchronizer

MS = 1_000_000
SLOP, MAX_WAIT, DEPTH_TIMEOUT = 20, 100, 500
HOUR = 3_600_000  # a stamp or a time far from the others


class Driver:
    """Speaks milliseconds, names each image by its stream and stamp, and keeps all frames."""

    def __init__(self, queue_size: int = 30, anchor: Any = "rgb", max_wait: float = MAX_WAIT) -> None:
        self.sync = RgbdSynchronizer(
            slop=SLOP / 1e3,
            max_wait=max_wait / 1e3,
            depth_timeout=DEPTH_TIMEOUT / 1e3,
            queue_size=queue_size,
            anchor=anchor,
        )
        self.frames: list[Frame] = []

    def rgb(self, stamp: float, now: float) -> list[tuple[float, float | None, str]]:
        return self._keep(self.sync.add_rgb(round(stamp * MS), f"rgb {stamp}", round(now * MS)))

    def depth(self, stamp: float, now: float) -> list[tuple[float, float | None, str]]:
        return self._keep(self.sync.add_depth(round(stamp * MS), f"depth {stamp}", round(now * MS)))

    def poll(self, now: float) -> list[tuple[float, float | None, str]]:
        return self._keep(self.sync.poll(round(now * MS)))

    def flush(self) -> list[tuple[float, float | None, str]]:
        return self._keep(self.sync.flush())

    def deadline(self) -> float | None:
        deadline_ns = self.sync.next_deadline_ns()
        return None if deadline_ns is None else deadline_ns / MS

    def _keep(self, frames: list[Frame]) -> list[tuple[float, float | None, str]]:
        self.frames += frames
        return [summary(frame) for frame in frames]


def summary(frame: Frame) -> tuple[float, float | None, str]:
    depth_stamp = None if frame.depth_stamp_ns is None else frame.depth_stamp_ns / MS
    return frame.stamp_ns / MS, depth_stamp, frame.reason.value


def with_depth(stamp: float = 1000, now: float = 0, **options: Any) -> Driver:
    """A synchronizer past its first depth, so that colour waits."""
    driver = Driver(**options)
    assert driver.depth(stamp, now) == []
    return driver


# Pairing


def test_frame_carries_the_messages_themselves():
    sync = RgbdSynchronizer(slop=0.02, max_wait=0.1, depth_timeout=0.5, queue_size=30)
    rgb, depth = object(), object()
    sync.add_depth(5 * MS, depth, 0)
    [frame] = sync.add_rgb(5 * MS, rgb, 0)
    assert frame.rgb is rgb
    assert frame.depth is depth
    assert (frame.stamp_ns, frame.depth_stamp_ns, frame.reason) == (5 * MS, 5 * MS, Reason.PAIRED)


def test_equal_stamps_pair_at_once_whichever_comes_first():
    driver = with_depth(1000)
    assert driver.rgb(1000, 1) == [(1000, 1000, "paired")]
    assert driver.rgb(1033, 33) == []
    assert driver.depth(1033, 40) == [(1033, 1033, "paired")]


def test_colour_waits_for_depth_at_or_after_its_stamp_and_takes_the_nearer():
    driver = with_depth(1000)
    assert driver.rgb(1015, 15) == []  # 1000 is within slop, but a nearer one can still come
    assert driver.depth(1012, 20) == []
    assert driver.depth(1022, 30) == [(1015, 1012, "paired")]


def test_depth_at_or_after_that_is_too_far_ends_the_wait_without_depth():
    driver = with_depth(1000)
    assert driver.rgb(1050, 50) == []
    assert driver.depth(1100, 60) == [(1050, None, "depth_lost")]


def test_slop_is_inclusive():
    driver = with_depth(1000)
    driver.rgb(1100, 10)
    assert driver.depth(1100 + SLOP, 20) == [(1100, 1100 + SLOP, "paired")]
    driver.rgb(1300, 30)
    assert driver.depth(1300 + SLOP + 1e-6, 40) == [(1300, None, "depth_lost")]


def test_tie_goes_to_the_earlier():
    driver = with_depth(1000)
    driver.rgb(1010, 10)
    assert driver.depth(1020, 20) == [(1010, 1000, "paired")]


def test_depth_serves_its_neighbours_too():
    driver = with_depth(1000)
    driver.rgb(1090, 10)
    driver.rgb(1100, 20)
    assert driver.depth(1105, 30) == [(1090, 1105, "paired"), (1100, 1105, "paired")]
    driver.rgb(1120, 40)
    assert driver.depth(1180, 50) == [(1120, 1105, "paired")]


def test_late_depth_of_an_earlier_stamp_is_used():
    driver = with_depth(1000)
    driver.rgb(1100, 10)
    assert driver.depth(1099, 20) == []
    assert driver.depth(1095, 21) == []
    assert driver.depth(1130, 30) == [(1100, 1099, "paired")]


def test_stamps_are_never_compared_with_now():
    driver = with_depth(stamp=HOUR, now=0)
    assert driver.rgb(HOUR, 1) == [(HOUR, HOUR, "paired")]
    driver = with_depth(stamp=5, now=HOUR)
    assert driver.rgb(5, HOUR + 1) == [(5, 5, "paired")]


# Waiting


def test_colour_waits_max_wait_and_not_longer():
    driver = with_depth(1000)
    driver.rgb(1050, 10)
    assert driver.deadline() == 10 + MAX_WAIT
    assert driver.poll(10 + MAX_WAIT - 1) == []
    assert driver.poll(10 + MAX_WAIT) == [(1050, None, "deadline")]
    assert driver.deadline() is None


def test_at_its_deadline_colour_takes_the_depth_that_is_there():
    driver = with_depth(1000)
    driver.rgb(1010, 10)
    assert driver.poll(10 + MAX_WAIT) == [(1010, 1000, "paired")]


def test_message_that_arrives_at_the_deadline_is_in_time_and_after_it_too_late():
    driver = with_depth(1000)
    driver.rgb(1050, 10)
    assert driver.depth(1050, 10 + MAX_WAIT) == [(1050, 1050, "paired")]
    driver.rgb(1150, 200)
    assert driver.depth(1150, 200 + MAX_WAIT + 1) == [(1150, None, "deadline")]


def test_max_wait_zero_never_waits():
    driver = with_depth(1000, max_wait=0)
    assert driver.rgb(1010, 10) == [(1010, 1000, "paired")]
    assert driver.rgb(1050, 50) == [(1050, None, "deadline")]


def test_any_call_releases_what_is_due():
    driver = with_depth(1000)
    driver.rgb(1050, 0)
    assert driver.rgb(1083, MAX_WAIT) == [(1050, None, "deadline")]
    assert driver.depth(1020, MAX_WAIT * 2) == [(1083, None, "deadline")]


# Order


def test_colour_that_arrives_out_of_order_leaves_in_order():
    driver = with_depth(1000)
    driver.rgb(1066, 10)
    driver.rgb(1033, 20)
    assert driver.depth(1066, 30) == [(1033, None, "depth_lost"), (1066, 1066, "paired")]


def test_image_that_is_due_takes_an_older_one_along_that_came_later():
    driver = with_depth(1000)
    driver.rgb(1080, 10)
    driver.rgb(1015, 60)
    assert driver.deadline() == 10 + MAX_WAIT
    assert driver.poll(10 + MAX_WAIT) == [(1015, 1000, "paired"), (1080, None, "deadline")]


def test_older_image_keeps_its_own_earlier_deadline():
    driver = with_depth(1000)
    driver.rgb(1050, 10)
    driver.rgb(1083, 43)
    assert driver.poll(10 + MAX_WAIT) == [(1050, None, "deadline")]
    assert driver.deadline() == 43 + MAX_WAIT


def test_colour_not_newer_than_the_last_frame_or_seen_before_is_dropped():
    driver = with_depth(1000)
    driver.rgb(1000, 1)
    assert driver.rgb(1000, 2) == []
    assert driver.rgb(990, 3) == []
    driver.rgb(1066, 4)
    driver.rgb(1033, 5)
    assert driver.rgb(1066, 6) == []
    assert driver.rgb(1033, 7) == []
    status = driver.sync.status()
    assert (status.rgb_accepted, status.rgb_dropped, status.waiting) == (3, 4, 2)


# Outage


def test_outage_holds_from_the_start_until_the_first_depth():
    driver = Driver()
    assert driver.sync.status().outage
    assert driver.rgb(1000, 7) == [(1000, None, "depth_lost")]
    driver.depth(1010, 20)
    assert not driver.sync.status().outage
    assert driver.rgb(1033, 33) == []


def test_outage_begins_after_more_than_depth_timeout_and_releases_what_waits():
    driver = with_depth(1000, now=0)
    driver.rgb(1010, DEPTH_TIMEOUT - 20)
    driver.rgb(1480, DEPTH_TIMEOUT - 10)
    assert driver.poll(DEPTH_TIMEOUT) == []
    assert driver.sync.next_deadline_ns() == DEPTH_TIMEOUT * MS + 1
    assert driver.poll(DEPTH_TIMEOUT + 1e-6) == [(1010, 1000, "paired"), (1480, None, "depth_lost")]
    assert driver.sync.status().outage


def test_outage_costs_no_latency():
    driver = with_depth(1000, now=0)
    for k in range(20):
        assert driver.rgb(2000 + 33 * k, 600 + 33 * k) == [(2000 + 33 * k, None, "depth_lost")]


def test_depth_that_has_arrived_serves_in_an_outage():
    driver = with_depth(1000, now=0)
    assert driver.rgb(1015, 700) == [(1015, 1000, "paired")]


@pytest.mark.parametrize("stamp", [1700, 1100, 800], ids=["matched", "unmatched", "older"])
def test_any_accepted_depth_ends_the_outage_and_later_colour_waits_again(stamp: float):
    driver = with_depth(1000, now=0)
    assert driver.rgb(1650, 650) == [(1650, None, "depth_lost")]
    assert driver.depth(stamp, 680) == []
    assert driver.rgb(1733, 683) == []
    assert driver.depth(1733, 720) == [(1733, 1733, "paired")]


@pytest.mark.parametrize("stamp", [0, 1000, HOUR], ids=["no stamp", "repeated", "far future"])
def test_depth_that_is_not_accepted_does_not_end_the_outage(stamp: float):
    driver = with_depth(1000, now=0)
    driver.depth(stamp, 600)
    assert driver.rgb(1650, 650) == [(1650, None, "depth_lost")]


def test_outage_that_nobody_polled_is_seen_when_depth_comes_back():
    driver = with_depth(1000, now=0)
    driver.rgb(1300, DEPTH_TIMEOUT - MAX_WAIT)
    driver.rgb(1480, DEPTH_TIMEOUT - 10)
    assert driver.depth(1480, 5000) == [(1300, None, "deadline"), (1480, None, "depth_lost")]
    assert not driver.sync.status().outage


def test_skewed_depth_is_no_outage_and_the_skew_is_named():
    for skew in (-3000, 60, 3000):
        driver = Driver(queue_size=10)
        for k in range(60):
            driver.depth(10_000 + 200 * k + skew, 200 * k)
            driver.rgb(10_000 + 200 * k, 200 * k + 1)
            driver.poll(200 * k + 1 + MAX_WAIT)
        status = driver.sync.status()
        assert not status.outage
        assert status.frames[Reason.PAIRED] == 0
        assert status.skew_ns is not None
        assert status.skew_ns / MS == pytest.approx(skew, abs=200 if abs(skew) > 200 else 0)


def test_outage_is_not_taken_for_skew():
    driver = Driver()
    for k in range(200):
        if not 50 <= k < 150:
            driver.depth(1000 + 10 * k, 10 * k)
        driver.rgb(1000 + 10 * k, 10 * k + 1)
        status = driver.sync.status()
        if status.outage:
            assert status.skew_ns is None
        elif k >= 150:
            assert status.skew_ns == 0
    assert driver.sync.status().frames[Reason.DEPTH_LOST] > 0


# Jumps


@pytest.mark.parametrize("stream", ["rgb", "depth"])
def test_jump_back_of_either_stream_starts_a_new_epoch(stream: str):
    driver = with_depth(5000)
    driver.rgb(5010, 10)
    driver.rgb(5050, 20)
    jump = driver.rgb if stream == "rgb" else driver.depth
    assert jump(100, 30) == [(5010, 5000, "reset"), (5050, None, "reset")]
    other = driver.depth if stream == "rgb" else driver.rgb
    assert other(100, 40) == [(100, 100, "paired")]
    assert driver.sync.status().resets == 1


def test_histories_are_cleared_by_a_jump_back():
    driver = with_depth(3000)
    driver.rgb(3000, 1)
    driver.depth(1995, 2)
    assert driver.rgb(3000, 3) == []  # a stamp seen before, but not in this epoch
    assert driver.flush() == [(3000, None, "deadline")]  # its depth is forgotten


def test_bag_that_loops_within_the_depth_kept_is_a_new_epoch_and_no_repetition():
    driver = Driver()
    for now in range(0, 6000, 100):
        driver.depth(1000 + now % 2000, now)
    status = driver.sync.status()
    assert (status.resets, status.depth_duplicate) == (2, 0)


def test_one_second_back_is_no_jump():
    driver = with_depth(5000)
    driver.rgb(5000, 1)
    assert driver.rgb(4000, 2) == []
    assert driver.depth(4000, 3) == []
    assert driver.sync.status().resets == 0
    assert driver.sync.status().rgb_dropped == 1


def test_jump_back_is_measured_from_the_newest_stamp():
    driver = with_depth(1000)
    driver.rgb(2000, 1)
    driver.rgb(1500, 2)
    assert driver.rgb(999, 3) == [(1500, None, "reset"), (2000, None, "reset")]


def test_now_going_back_starts_a_new_epoch():
    driver = with_depth(1000, now=5000)
    driver.rgb(1010, 5010)
    driver.rgb(1050, 5020)
    assert driver.poll(4000) == [(1010, 1000, "reset"), (1050, None, "reset")]
    assert driver.rgb(1000, 4001) == []  # depth is forgotten, but there is no outage
    assert driver.deadline() == 4001 + MAX_WAIT
    assert driver.poll(4000 + DEPTH_TIMEOUT - 1) == [(1000, None, "deadline")]
    assert not driver.sync.status().outage
    driver.poll(4000 + DEPTH_TIMEOUT + 1)
    assert driver.sync.status().outage


def test_now_going_back_does_not_end_an_outage():
    driver = Driver()
    driver.rgb(1000, 5000)
    assert driver.rgb(1033, 10) == [(1033, None, "depth_lost")]


def test_far_future_colour_goes_out_alone_when_the_next_one_disagrees():
    driver = with_depth(1000)
    driver.rgb(1000, 1)
    assert driver.rgb(HOUR, 33) == []
    assert driver.rgb(1066, 66) == [(HOUR, None, "far_future")]
    assert driver.depth(1066, 70) == [(1066, 1066, "paired")]


def test_far_future_colour_is_held_no_longer_than_max_wait():
    driver = with_depth(1000)
    driver.rgb(1000, 1)
    driver.rgb(HOUR, 33)
    assert driver.deadline() == 33 + MAX_WAIT
    assert driver.poll(33 + MAX_WAIT) == [(HOUR, None, "far_future")]
    assert driver.deadline() is None
    assert driver.rgb(HOUR + 200, 240) == []  # still confirms the stamp
    assert driver.depth(HOUR + 200, 241) == [(HOUR + 200, HOUR + 200, "paired")]


def test_far_future_colour_does_not_wait_in_an_outage():
    driver = Driver()
    driver.rgb(1000, 1)
    assert driver.rgb(HOUR, 33) == [(HOUR, None, "far_future")]
    assert driver.rgb(HOUR + 33, 66) == [(HOUR + 33, None, "depth_lost")]


@pytest.mark.parametrize(
    ("after", "agrees"), [(-1001, False), (-1000, True), (33, True), (10_000, True), (10_001, False)]
)
def test_next_stamp_agrees_from_one_second_before_to_ten_after(after: float, agrees: bool):
    driver = with_depth(1000)
    driver.rgb(1000, 1)
    driver.rgb(HOUR, 33)
    driver.rgb(HOUR + after, 66)
    assert driver.sync.status().resets == agrees
    assert driver.sync.status().frames[Reason.FAR_FUTURE] == (not agrees)


def test_repeated_far_future_stamp_confirms_nothing():
    driver = with_depth(1000)
    driver.rgb(1000, 1)
    for now in (10, 20):
        assert driver.rgb(HOUR, now) == []
        assert driver.depth(HOUR, now) == []
    status = driver.sync.status()
    assert (status.resets, status.rgb_dropped, status.depth_duplicate) == (0, 1, 1)


def test_far_future_stamp_is_forgotten_once_the_next_one_disagreed():
    driver = with_depth(1000)
    driver.rgb(1000, 1)
    driver.rgb(HOUR, 10)
    driver.rgb(1033, 33)
    driver.rgb(HOUR + 33, 66)
    assert driver.sync.status().resets == 0


def test_colour_before_a_far_future_frame_that_has_left_is_dropped():
    driver = Driver()
    driver.rgb(1000, 1)
    assert driver.rgb(HOUR, 33) == [(HOUR, None, "far_future")]
    assert driver.rgb(HOUR - 10, 66) == []
    assert driver.rgb(HOUR, 70) == []
    assert driver.rgb(HOUR + 33, 99) == [(HOUR + 33, None, "depth_lost")]


def test_new_epoch_forgets_a_far_future_frame_that_has_left():
    driver = Driver()
    driver.rgb(5000, 1)
    driver.rgb(HOUR, 33)
    assert driver.rgb(1000, 66) == [(1000, None, "depth_lost")]


def test_leap_ahead_of_both_streams_is_a_new_epoch_that_loses_no_pair():
    driver = with_depth(1000)
    driver.rgb(1010, 10)
    assert driver.rgb(HOUR, 33) == []
    assert driver.depth(HOUR, 34) == []
    assert driver.rgb(HOUR + 33, 66) == [(1010, 1000, "reset"), (HOUR, HOUR, "paired")]
    assert driver.depth(HOUR + 33, 67) == [(HOUR + 33, HOUR + 33, "paired")]
    assert driver.sync.status().resets == 1


def test_far_future_depth_is_dropped_unless_the_next_one_agrees():
    driver = with_depth(1000)
    driver.depth(HOUR, 10)
    assert driver.rgb(1033, 33) == []
    assert driver.depth(1033, 34) == [(1033, 1033, "paired")]
    status = driver.sync.status()
    assert (status.depth_far_future, status.depth_accepted, status.resets) == (1, 2, 0)
    driver.depth(HOUR, 60)
    driver.depth(HOUR + 33, 93)
    assert driver.rgb(HOUR, 94) == [(HOUR, HOUR, "paired")]
    assert driver.sync.status().resets == 1


def test_ten_seconds_ahead_is_no_leap():
    driver = with_depth(1000)
    driver.rgb(1000, 1)
    driver.rgb(11_000, 2)
    assert driver.depth(11_000, 3) == [(11_000, 11_000, "paired")]
    assert driver.sync.status().resets == 0


def test_leap_back_to_the_old_epoch_gives_up_a_held_image_of_the_other_stream():
    driver = with_depth(5000)
    driver.rgb(5000, 1)
    driver.depth(HOUR, 2)
    driver.rgb(100, 3)
    assert driver.sync.status().depth_far_future == 1
    assert driver.depth(100, 4) == [(100, 100, "paired")]


# Oddities


@pytest.mark.parametrize("stamp", [0, -5])
def test_colour_without_stamp_goes_out_alone_at_once(stamp: float):
    driver = with_depth(1000)
    driver.rgb(1033, 10)
    assert driver.rgb(stamp, 20) == [(stamp, None, "no_stamp")]
    assert driver.rgb(stamp, 30) == [(stamp, None, "no_stamp")]
    assert driver.depth(1033, 40) == [(1033, 1033, "paired")]


def test_depth_without_stamp_or_with_a_stamp_seen_before_is_dropped():
    driver = with_depth(1000)
    driver.depth(0, 1)
    driver.depth(1000, 2)
    status = driver.sync.status()
    assert (status.depth_no_stamp, status.depth_duplicate, status.depth_accepted) == (1, 1, 1)


def test_beyond_queue_size_the_oldest_colour_goes_out_at_once():
    driver = with_depth(1000, queue_size=2)
    driver.rgb(1015, 1)
    driver.rgb(1033, 2)
    assert driver.rgb(1066, 3) == [(1015, 1000, "queue_full")]
    assert driver.rgb(1099, 4) == [(1033, None, "queue_full")]
    assert driver.sync.status().waiting == 2


def test_beyond_queue_size_the_oldest_depth_is_forgotten():
    driver = Driver(queue_size=2)
    for stamp in (1000, 1033, 1066):
        driver.depth(stamp, stamp)
    assert driver.sync.status().depth_forgotten == 1
    assert driver.rgb(1000, 1067) == [(1000, None, "depth_lost")]
    assert driver.rgb(1033, 1068) == [(1033, 1033, "paired")]


def test_healthy_streams_forget_no_depth():
    driver = Driver(queue_size=2)
    for k in range(100):
        driver.depth(1000 + 33 * k, 33 * k)
        driver.rgb(1000 + 33 * k, 33 * k)
    status = driver.sync.status()
    assert status.depth_forgotten == 0
    assert status.frames[Reason.PAIRED] == 100


def test_tolerances_change_for_what_waits_too():
    driver = with_depth(1000)
    assert driver.rgb(1060, 10) == []
    driver.sync.set_tolerances(slop=0.06, max_wait=0.02, depth_timeout=10.0)
    assert driver.deadline() == 30
    assert driver.poll(30) == [(1060, 1000, "paired")]


def test_depth_timeout_changes_when_the_outage_in_sight_begins_and_ends_none():
    driver = with_depth(1000)
    driver.sync.set_tolerances(SLOP / 1e3, MAX_WAIT / 1e3, depth_timeout=1.0)
    driver.poll(900)
    assert not driver.sync.outage
    driver.poll(1001)
    assert driver.sync.outage
    driver.sync.set_tolerances(SLOP / 1e3, MAX_WAIT / 1e3, depth_timeout=3600.0)
    driver.poll(1002)
    assert driver.sync.outage
    driver.depth(2000, 1010)
    driver.poll(3_000_000)
    assert not driver.sync.outage


def test_tolerances_out_of_range_change_nothing():
    driver = with_depth(1000)
    with pytest.raises(M3LError, match="max_wait"):
        driver.sync.set_tolerances(slop=1.0, max_wait=-1.0, depth_timeout=1.0)
    driver.rgb(1060, 10)
    assert driver.poll(10 + MAX_WAIT) == [(1060, None, "deadline")]


def test_flush_releases_all_that_waits_at_the_end_of_a_bag():
    driver = with_depth(1000)
    driver.rgb(1010, 10)
    driver.rgb(1050, 20)
    driver.rgb(HOUR, 30)
    assert driver.flush() == [(1010, 1000, "paired"), (1050, None, "deadline"), (HOUR, None, "far_future")]
    assert driver.flush() == []
    assert driver.deadline() is None


# Anchor


def test_anchor_rgb_never_emits_depth_alone():
    driver = with_depth(1000)
    for k in range(100):
        assert driver.depth(1033 + 33 * k, 33 * k) == []


def test_anchor_either_emits_depth_while_colour_is_lost():
    driver = Driver(anchor="either")
    driver.depth(1000, 0)
    driver.rgb(1000, 0)
    assert driver.depth(1500, DEPTH_TIMEOUT) == []
    assert driver.depth(1533, DEPTH_TIMEOUT + 33) == [(1533, 1533, "colour_lost")]
    assert driver.frames[-1] == (1533 * MS, None, "depth 1533", 1533 * MS, Reason.COLOUR_LOST)
    assert driver.depth(1520, DEPTH_TIMEOUT + 40) == []  # older than the last frame
    assert driver.depth(1566, DEPTH_TIMEOUT + 66) == [(1566, 1566, "colour_lost")]


def test_anchor_either_starts_as_if_colour_had_just_been_heard():
    driver = with_depth(1000, now=0, anchor="either")
    assert driver.depth(1400, DEPTH_TIMEOUT - 100) == []
    assert driver.depth(1600, DEPTH_TIMEOUT + 100) == [(1600, 1600, "colour_lost")]


def test_anchor_either_colour_that_trails_depth_comes_back():
    driver = with_depth(1000, now=0, anchor="either")
    assert driver.depth(1600, 600) == [(1600, 1600, "colour_lost")]
    assert driver.rgb(1600, 605) == []  # overtaken, dropped, but heard
    assert driver.depth(1633, 633) == []
    assert driver.rgb(1633, 638) == [(1633, 1633, "paired")]
    assert driver.sync.status().rgb_dropped == 1


def test_anchor_either_repeated_colour_is_no_colour():
    driver = with_depth(1000, now=0, anchor="either")
    driver.rgb(1000, 1)
    for k in range(30):
        driver.rgb(1000, 30 * k)
    assert driver.depth(1900, 900) == [(1900, 1900, "colour_lost")]


def test_anchor_either_emits_no_depth_ahead_of_waiting_colour():
    driver = with_depth(1000, now=0, anchor="either", max_wait=1000)
    driver.rgb(1050, 10)
    driver.depth(1010, 300)
    assert driver.depth(1020, 600) == []
    assert driver.depth(1070, 650) == [(1050, 1070, "paired")]
    assert driver.depth(1103, 683) == [(1103, 1103, "colour_lost")]


def test_anchor_either_when_now_goes_back_silence_goes_on_or_is_timed_anew():
    driver = with_depth(1000, now=5000, anchor="either")
    assert driver.depth(1033, 100) == []
    assert driver.depth(1633, 100 + DEPTH_TIMEOUT + 1) == [(1633, 1633, "colour_lost")]
    assert driver.depth(1666, 50) == [(1666, 1666, "colour_lost")]


# Parameters and status


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("slop", -0.001),
        ("slop", math.nan),
        ("max_wait", math.inf),
        ("max_wait", -1),
        ("depth_timeout", 0),
        ("depth_timeout", -1),
        ("queue_size", 0),
        ("queue_size", 2.5),
        ("anchor", "depth"),
    ],
)
def test_bad_parameter_is_named(name: str, value: Any):
    good: dict[str, Any] = {
        "slop": 0.02,
        "max_wait": 0.1,
        "depth_timeout": 0.5,
        "queue_size": 30,
        "anchor": "rgb",
    }
    with pytest.raises(M3LError, match=rf"^{name} must be"):
        RgbdSynchronizer(**{**good, name: value})
    with pytest.raises(ValueError, match=name):
        RgbdSynchronizer(**{**good, name: value})


def test_reasons_are_the_documented_ones():
    assert ", ".join(map(str, Reason)) == (
        "paired, depth_lost, deadline, reset, queue_full, no_stamp, far_future, colour_lost"
    )


def test_status_is_a_snapshot():
    driver = with_depth(1000)
    before = driver.sync.status()
    driver.rgb(1000, 1)
    assert before.frames[Reason.PAIRED] == 0
    assert driver.sync.status().frames[Reason.PAIRED] == 1
    with pytest.raises(TypeError):
        before.frames[Reason.PAIRED] = 1  # type: ignore[index]


# Any traffic


class Event(NamedTuple):
    now: int
    stream: str
    stamp: int


@st.composite
def traffic(draw: st.DrawFn) -> list[Event]:
    """Two streams without leaps: uneven periods, gaps, latencies that put messages out of order, repeated colour."""
    events = []
    for stream, least in (("rgb", 0), ("depth", 1)):
        stamp = draw(st.integers(1000, 1300))
        for _ in range(draw(st.integers(0, 25))):
            events.append(Event(stamp + draw(st.integers(0, 150)), stream, stamp))
            stamp += draw(st.sampled_from([least, 5, 10, 20, 30, 33, 40, 100, 600]))
    return sorted(events, key=lambda event: event.now)


@st.composite
def anything(draw: st.DrawFn) -> list[Event]:
    """Calls with repeated, missing and leaping stamps, and a clock that may go back."""
    now, stamps, events = draw(st.integers(-HOUR, HOUR)), {"rgb": 5000, "depth": 5000}, []
    for _ in range(draw(st.integers(0, 40))):
        now += draw(st.sampled_from([0, 1, 10, 10, 33, 33, 100, 101, 501, 2000, -1, -3000]))
        stream = draw(st.sampled_from(["rgb", "depth", "poll"]))
        if stream != "poll":
            leaps = [0, 1, 10, 33, 33, 33, 33, 100, -10, -33, -1001, -3000, 10_000, 10_001, HOUR, -HOUR]
            stamps[stream] += draw(st.sampled_from(leaps))
        stamp = draw(st.sampled_from([0, *[stamps.get(stream, 0)] * 9]))
        events.append(Event(now, stream, stamp))
    return events


def feed(driver: Driver, event: Event) -> list[tuple[float, float | None, str]]:
    if event.stream == "poll":
        return driver.poll(event.now)
    return (driver.rgb if event.stream == "rgb" else driver.depth)(event.stamp, event.now)


def play(driver: Driver, events: list[Event]) -> list[tuple[float, Frame]]:
    """Feed the events, poll at every deadline between them and after; return when each frame left."""
    left: list[tuple[float, Frame]] = []

    def collect(now: float, count: int) -> None:
        left.extend((now, frame) for frame in driver.frames[len(driver.frames) - count :])

    def poll_before(now: float) -> None:
        while (deadline := driver.deadline()) is not None and deadline < now:
            count = len(driver.poll(deadline))
            assert count > 0, "a deadline at which nothing is due"
            collect(deadline, count)

    for event in events:
        poll_before(event.now)
        collect(event.now, len(feed(driver, event)))
    poll_before(math.inf)
    return left


def naive(events: list[Event]) -> list[tuple[int, tuple[float, float | None, str]]]:
    """The policy without leaps or limits, by looking at everything at every instant that matters; (when, frame)."""
    out: list[tuple[int, tuple[float, float | None, str]]] = []
    waiting: dict[int, int] = {}  # stamp: arrival
    depths: list[int] = []
    heard = -math.inf
    last = -1

    def release(now: int) -> None:
        nonlocal last
        for stamp in sorted(waiting):
            complete = any(depth >= stamp for depth in depths)
            outage = now - heard > DEPTH_TIMEOUT
            due = any(other >= stamp and now - waiting[other] >= MAX_WAIT for other in waiting)
            if not (complete or due or outage):
                return
            near = [depth for depth in depths if abs(depth - stamp) <= SLOP]
            best = min(near, key=lambda depth: (abs(depth - stamp), depth), default=None)
            reason = "paired" if near else "depth_lost" if complete or outage else "deadline"
            out.append((now, (stamp, best, reason)))
            last = stamp
            del waiting[stamp]

    for now in sorted({event.now + after for event in events for after in (0, MAX_WAIT, DEPTH_TIMEOUT + 1)}):
        if now - heard > DEPTH_TIMEOUT:  # since a moment before now
            release(now)
        for event in events:
            if event.now != now:
                continue
            if event.stream == "depth":
                depths.append(event.stamp)
                heard = now
            elif event.stamp > last:
                waiting.setdefault(event.stamp, now)
            release(now)
        release(now)
    return out


@settings(max_examples=150, deadline=None)
@given(traffic())
def test_one_frame_for_each_accepted_colour_image_in_stamp_order(events: list[Event]):
    driver = Driver()
    play(driver, events)
    stamps = [frame.stamp_ns for frame in driver.frames]
    assert stamps == sorted(set(stamps))
    assert all(frame.rgb == f"rgb {frame.stamp_ns // MS}" for frame in driver.frames)
    status = driver.sync.status()
    assert len(stamps) == status.rgb_accepted
    assert status.rgb_accepted + status.rgb_dropped == sum(event.stream == "rgb" for event in events)
    in_order = [event.stamp for event in events if event.stream == "rgb"]
    if in_order == sorted(set(in_order)):
        assert [stamp // MS for stamp in stamps] == in_order


@settings(max_examples=150, deadline=None)
@given(traffic())
def test_depth_is_the_nearest_within_slop_of_all_that_had_arrived(events: list[Event]):
    driver = Driver()
    arrived: set[int] = set()
    for event in events:
        while (deadline := driver.deadline()) is not None and deadline < event.now:
            check_nearest(driver.poll(deadline), arrived)
        if event.stream == "depth":
            arrived.add(event.stamp)
        check_nearest(feed(driver, event), arrived)
    check_nearest(driver.flush(), arrived)


def check_nearest(frames: list[tuple[float, float | None, str]], arrived: set[int]) -> None:
    for stamp, depth_stamp, reason in frames:
        near = [depth for depth in arrived if abs(depth - stamp) <= SLOP]
        assert depth_stamp == min(near, key=lambda depth: (abs(depth - stamp), depth), default=None)
        assert (reason == "paired") == bool(near)


@settings(max_examples=150, deadline=None)
@given(traffic())
def test_no_frame_waits_longer_than_max_wait_nor_at_all_in_an_outage(events: list[Event]):
    left = {frame.stamp_ns // MS: when for when, frame in play(Driver(), events)}
    heard = -math.inf
    for event in events:
        if event.stream == "depth":
            heard = event.now
        elif event.stamp in left:
            outage = event.now - heard > DEPTH_TIMEOUT
            assert left.pop(event.stamp) <= event.now + (0 if outage else MAX_WAIT)
    assert not left


@settings(max_examples=100, deadline=None)
@given(traffic())
def test_agrees_with_a_naive_model_in_frames_and_in_time(events: list[Event]):
    left = [(math.ceil(when), summary(frame)) for when, frame in play(Driver(), events)]
    assert left == naive(events)


@settings(max_examples=100, deadline=None)
@given(anything(), st.sampled_from(["rgb", "either"]), st.sampled_from([1, 2, 30]))
def test_frames_do_not_depend_on_polling(events: list[Event], anchor: str, queue_size: int):
    polled, unpolled = Driver(queue_size, anchor), Driver(queue_size, anchor)
    play(polled, events)
    for event in events:
        feed(unpolled, event)
    unpolled.poll(10 * HOUR)
    assert polled.frames == unpolled.frames


@settings(max_examples=200, deadline=None)
@given(anything(), st.sampled_from(["rgb", "either"]), st.integers(1, 4))
def test_invariants_hold_for_anything(events: list[Event], anchor: str, queue_size: int):
    driver = Driver(queue_size, anchor)
    last = -math.inf
    for event in events:
        before = driver.sync.status()
        frames = feed(driver, event)
        status = driver.sync.status()

        assert status.waiting <= queue_size + 1  # one may be held for its far future stamp
        assert len(driver.sync._depth_stamps) == len(driver.sync._depth_msgs) <= queue_size
        if status.outage:
            assert status.waiting == 0
        deadline = driver.deadline()
        assert (deadline is None) == (status.waiting == 0)
        assert deadline is None or event.now < deadline <= event.now + MAX_WAIT
        lost = status.frames[Reason.COLOUR_LOST]
        assert status.rgb_accepted == sum(status.frames.values()) - lost + status.waiting

        restarts = status.resets - before.resets
        assert 0 <= restarts <= 2
        for stamp, depth_stamp, reason in frames:
            if reason in ("no_stamp", "far_future"):
                assert depth_stamp is None
                continue
            assert depth_stamp is None or abs(depth_stamp - stamp) <= SLOP
            assert (reason == "colour_lost") <= (anchor == "either")
            restarts -= stamp <= last
            assert restarts >= 0, "stamps fall within an epoch"
            last = stamp
        if status.resets > before.resets:
            last = -math.inf
    driver.flush()
    status = driver.sync.status()
    assert status.waiting == 0
    assert status.rgb_accepted == sum(frame.rgb is not None for frame in driver.frames)
    assert status.rgb_accepted + status.rgb_dropped == sum(event.stream == "rgb" for event in events)
