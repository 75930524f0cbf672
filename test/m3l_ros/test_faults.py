# SPDX-License-Identifier: Apache-2.0
"""The fault injector: what it makes of a sound camera, without ROS's graph."""

from __future__ import annotations

import copy
import itertools
from array import array

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sensor_msgs.msg import CompressedImage, Image

from m3l_ros.faults import Fault, FaultInjector, episodes

RATE = 30.0
YEAR = 365 * 86400


def camera(seconds, compressed=False):
    """Stream, message and time of each image; all messages differ."""
    for index in range(round(seconds * RATE)):
        for stream in ("depth", "rgb"):
            data = array("B", [index % 251] * 48)
            if compressed:
                message = CompressedImage(format="jpeg", data=data)
            else:
                message = Image(height=4, width=6, step=12, encoding="16UC1", data=data)
            stamp_ns = round(index * 1e9 / RATE)
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(10**12 + stamp_ns, 10**9)
            yield stream, message, index / RATE


def deliveries(seed, seconds, compressed=False):
    injector = FaultInjector(seed)
    return injector, [delivery for image in camera(seconds, compressed) for delivery in injector.add(*image)]


def first(seed, fault):
    return next(episode for episode in episodes(seed) if episode.fault is fault)


def test_every_fault_comes_before_any_comes_again():
    rounds = list(itertools.islice(episodes(3), 2 * len(Fault)))
    for faults in (rounds[: len(Fault)], rounds[len(Fault) :]):
        assert {episode.fault for episode in faults} == set(Fault)


@given(st.integers(0, 10**6))
def test_episodes_follow_one_another_with_calm_between(seed):
    for before, after in itertools.pairwise(itertools.islice(episodes(seed), 40)):
        assert before.begin <= before.end
        assert after.begin - before.end >= 1.0


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 10**6), st.booleans())
def test_same_seed_gives_the_same_faults_and_leaves_the_camera_s_messages_alone(seed, compressed):
    images = list(camera(60.0, compressed))
    originals = copy.deepcopy(images)
    injectors = [FaultInjector(seed), FaultInjector(seed)]
    results = [[injector.add(*image) for image in images] for injector in injectors]
    assert results[0] == results[1]
    assert images == originals
    assert all(delivery.due >= at for (*_, at), of in zip(images, results[0], strict=True) for delivery in of)


def test_outside_of_episodes_images_pass_unchanged():
    _, before = deliveries(1, episodes(1).__next__().begin - 0.1)
    sent = [message for _, message, _ in camera(episodes(1).__next__().begin - 0.1)]
    assert [delivery.message for delivery in before] == sent
    assert {delivery.fault for delivery in before} == {None}


@pytest.mark.parametrize(
    "fault", [fault for fault in Fault if fault not in (Fault.STOP, Fault.PAUSE, Fault.JUMP)]
)
def test_fault_shows_in_what_is_delivered(fault):
    seed = next(seed for seed in itertools.count() if first(seed, fault).begin < 20)
    episode = first(seed, fault)
    injector, all_deliveries = deliveries(seed, episode.end + 1)
    affected = [delivery for delivery in all_deliveries if delivery.fault is fault]
    due = round((episode.end - episode.begin) * RATE)
    assert injector.injected[fault] == 1
    assert {delivery.stream for delivery in affected} <= set(episode.streams)
    messages = [delivery.message for delivery in affected]
    shows = {
        Fault.DROP: lambda: 0 < len(affected) < due,
        Fault.SLOW: lambda: len(affected) <= due / 6 + 1,
        Fault.BURST: lambda: {delivery.due for delivery in affected} == {episode.end},
        Fault.DELAY: lambda: all(delivery.due < episode.end + 0.2 for delivery in affected),
        Fault.REORDER: lambda: sorted(affected, key=lambda each: each.due) != affected,
        Fault.TWIN: lambda: sum(delivery.by_twin for delivery in affected) == len(affected) / 2,
        Fault.RESTART: lambda: {delivery.generation for delivery in affected} == {1},
        Fault.TRUNCATED: lambda: all(len(message.data) == 24 for message in messages),
        Fault.ENCODING: lambda: all(message.encoding != "16UC1" for message in messages),
        Fault.SIZE: lambda: all((message.height, len(message.data)) == (2, 24) for message in messages),
        Fault.NO_STAMP: lambda: all(message.header.stamp.sec == 0 for message in messages),
        Fault.FAR_STAMP: lambda: all(message.header.stamp.sec >= 1000 + YEAR for message in messages),
        Fault.EMPTY: lambda: not any(any(message.data) for message in messages),
        Fault.FROZEN: lambda: len({bytes(message.data) for message in messages}) == 1,
        Fault.SKEW: lambda: all(0 <= message.header.stamp.nanosec < 10**9 for message in messages),
    }
    assert affected
    assert shows[fault]()


@pytest.mark.parametrize("fault", [Fault.STOP, Fault.PAUSE])
def test_stopped_streams_deliver_nothing(fault):
    seed = next(seed for seed in itertools.count() if first(seed, fault).begin < 20)
    episode = first(seed, fault)
    _, all_deliveries = deliveries(seed, episode.end + 1)
    silent = [each for each in all_deliveries if episode.begin <= each.due < episode.end]
    assert not {each.stream for each in silent} & set(episode.streams)


def test_jump_moves_all_stamps_to_come_by_the_same():
    seed = next(seed for seed in itertools.count() if first(seed, Fault.JUMP).begin < 20)
    episode = first(seed, Fault.JUMP)
    _, after = deliveries(seed, episode.end + 0.9)
    sound = {round(at * RATE): message.header.stamp.sec for _, message, at in camera(episode.end + 0.9)}
    late = [each for each in after if each.due >= episode.begin and each.fault is None]
    shifts = {each.message.header.stamp.sec - sound[round(each.due * RATE)] for each in late}
    assert len(shifts) == 1
    assert shifts <= {-3, -60, YEAR}
