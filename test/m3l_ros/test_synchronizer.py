# SPDX-License-Identifier: Apache-2.0
"""The synchronizer's ROS face; its policy is tested in test/m3l_model/test_sync.py."""

from __future__ import annotations

import threading
import time

import pytest
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import ClockType
from rclpy.parameter import Parameter
from rclpy.time import Time
from sensor_msgs.msg import Image

from m3l_model.sync import Frame, Reason, RgbdSynchronizer
from m3l_ros.providers import SimpleFilter
from m3l_ros.synchronizer import RgbdTimeSynchronizer

EXECUTOR_THREADS = 2
"""Of the fixture node's executor."""


class Bench:
    """A synchronizer with its two inputs."""

    def __init__(self, node, by_hand=False, **core):
        policy = {"slop": 0.02, "max_wait": 0.1, "depth_timeout": 3600.0, "queue_size": 1000, **core}
        self.rgb, self.depth = SimpleFilter(), SimpleFilter()
        self.synchronizer = RgbdTimeSynchronizer(
            *(node, RgbdSynchronizer(**policy), self.rgb, self.depth, MutuallyExclusiveCallbackGroup()),
            clock_driven_by_hand=lambda: by_hand,
        )
        self.frames: list[Frame] = []
        self.waits: list[float] = []
        self.synchronizer.registerCallback(self.keep)

    def keep(self, frame, waited):
        self.frames.append(frame)
        self.waits.append(waited)

    def send_rgb(self, milliseconds):
        self.rgb.signalMessage(image(milliseconds))

    def send_depth(self, milliseconds):
        self.depth.signalMessage(image(milliseconds))


def image(milliseconds):
    message = Image()
    message.header.stamp.sec, rest = divmod(milliseconds, 1000)
    message.header.stamp.nanosec = rest * 1_000_000
    return message


@pytest.fixture
def make_bench(node):
    benches = []

    def make(**arguments):
        benches.append(Bench(node, **arguments))
        return benches[-1]

    yield make
    for bench in benches:
        bench.synchronizer.close()


def test_equal_stamps_pair_at_once(make_bench):
    bench = make_bench()
    bench.send_depth(1000)
    bench.send_rgb(1000)
    [frame] = bench.frames
    assert (frame.stamp_ns, frame.reason) == (10**9, Reason.PAIRED)
    assert frame.rgb.header.stamp.sec == frame.depth.header.stamp.sec == 1


def test_frame_goes_out_by_the_timer_when_nothing_more_arrives(make_bench, wait_until):
    bench = make_bench()
    bench.send_depth(1000)
    bench.send_rgb(1500)
    bench.send_rgb(1600)
    wait_until(lambda: len(bench.frames) == 2, "the timer")
    assert [frame.reason for frame in bench.frames] == [Reason.DEADLINE, Reason.DEADLINE]


def test_frame_tells_how_long_its_image_waited(make_bench, wait_until):
    bench = make_bench(max_wait=0.05)
    bench.send_depth(1000)
    bench.send_rgb(1000)
    bench.send_rgb(1500)
    wait_until(lambda: len(bench.frames) == 2, "the timer")
    at_once, after_a_wait = bench.waits
    assert 0 <= at_once < 0.04
    assert 0.05 <= after_a_wait < 5


def test_tolerances_change_for_what_waits_too(make_bench, wait_until):
    bench = make_bench(max_wait=1.0)
    bench.send_depth(1000)
    bench.send_rgb(1500)
    assert not bench.frames
    bench.synchronizer.set_tolerances(slop=0.6, max_wait=0.0, depth_timeout=3600.0)
    wait_until(lambda: bench.frames, "the timer")
    assert bench.frames[0].reason is Reason.PAIRED, "depth is 0.5 s off"


def test_timer_rests_when_nothing_waits(make_bench, node):
    bench = make_bench()
    bench.send_depth(1000)
    bench.send_rgb(1000)
    [timer] = node.timers
    assert timer.time_until_next_call() > 1000 * 10**9
    bench.send_rgb(1500)
    assert timer.time_until_next_call() < 10**9
    bench.send_depth(1500)
    assert timer.time_until_next_call() > 1000 * 10**9


def test_timer_goes_on_after_a_frame_paired_while_it_was_due(make_bench, node, wait_until):
    """rclpy blocks the callback group of a timer that is cancelled between becoming due and being called."""
    bench = make_bench(max_wait=0.001)
    bench.send_depth(1000)
    [timer] = node.timers
    busy = threading.Event()
    for _ in range(EXECUTOR_THREADS):
        node.executor.create_task(busy.wait)
    bench.send_rgb(1500)
    wait_until(lambda: timer.time_until_next_call() < -50_000_000, "the timer to be due for long")
    bench.send_depth(1500)
    busy.set()
    for _ in range(EXECUTOR_THREADS):
        after_the_timer = node.executor.create_task(lambda: None)
        wait_until(after_the_timer.done, "the executor")
    bench.send_rgb(2000)
    wait_until(lambda: len(bench.frames) == 2, "the timer")
    assert [frame.reason for frame in bench.frames] == [Reason.DEADLINE, Reason.DEADLINE]


def test_no_frame_waits_long_for_a_clock_that_stands(make_bench, node, wait_until):
    """Simulated time without anybody who publishes it."""
    node.set_parameters([Parameter("use_sim_time", value=True)])
    wait_until(lambda: node.get_clock().ros_time_is_active, "simulated time")
    bench = make_bench(max_wait=1.0)
    bench.send_depth(1000)
    begin = time.monotonic()
    for milliseconds in (1500, 1533, 1566):
        bench.send_rgb(milliseconds)
    assert not bench.frames
    wait_until(lambda: len(bench.frames) == 3, "the frames")
    assert time.monotonic() - begin >= 1.0
    assert node.get_clock().now().nanoseconds == 0
    bench.send_depth(2000)
    bench.send_rgb(2000)
    assert [frame.reason for frame in bench.frames] == [Reason.DEADLINE] * 3 + [Reason.PAIRED]


@pytest.fixture
def set_time(node, wait_until):
    """Moves the node's simulated time, in nanoseconds, with nobody on /clock."""
    node.set_parameters([Parameter("use_sim_time", value=True)])
    wait_until(lambda: node.get_clock().ros_time_is_active, "simulated time")
    return lambda now_ns: node.get_clock().set_ros_time_override(
        Time(nanoseconds=now_ns, clock_type=ClockType.ROS_TIME)
    )


def test_what_falls_due_at_a_simulated_time_is_left_to_images_that_come_at_it(make_bench, set_time):
    start_ns, wait_ns = 10**18, 10**8
    bench = make_bench(by_hand=True)
    set_time(start_ns)
    bench.send_depth(1000)
    bench.send_rgb(1500)
    set_time(start_ns + wait_ns)
    bench.synchronizer.settle()
    assert not bench.frames
    bench.send_depth(1500)
    bench.send_rgb(2000)
    set_time(start_ns + 2 * wait_ns)
    bench.synchronizer.settle()
    set_time(start_ns + 2 * wait_ns + 1)
    bench.synchronizer.settle()
    assert [frame.reason for frame in bench.frames] == [Reason.PAIRED, Reason.DEADLINE]


def test_time_that_goes_back_lets_the_next_instant_be_shared_too(make_bench, set_time):
    start_ns, wait_ns = 10**18, 10**8
    bench = make_bench(by_hand=True)
    set_time(start_ns + 5 * wait_ns)
    bench.send_depth(1000)
    set_time(start_ns)
    bench.send_depth(1100)
    bench.send_rgb(1500)
    set_time(start_ns + wait_ns)
    bench.synchronizer.settle()
    bench.send_depth(1500)
    assert [frame.reason for frame in bench.frames] == [Reason.PAIRED]


def test_a_clock_that_is_driven_by_hand_may_stand(make_bench, set_time):
    bench = make_bench(by_hand=True)
    set_time(10**18)
    bench.send_depth(1000)
    bench.send_rgb(1500)
    time.sleep(1.2)
    bench.synchronizer.settle()
    assert not bench.frames


def test_settling_waits_for_frames_that_another_thread_hands_over(make_bench):
    bench = make_bench()
    entered, go_on = threading.Event(), threading.Event()
    bench.synchronizer.registerCallback(lambda *_: (entered.set(), go_on.wait(10)))
    bench.send_depth(1000)
    handing_over = threading.Thread(target=bench.send_rgb, args=(1000,))
    handing_over.start()
    entered.wait(10)
    settling = threading.Thread(target=bench.synchronizer.settle)
    settling.start()
    settling.join(0.1)
    assert settling.is_alive()
    go_on.set()
    settling.join()
    handing_over.join()


def test_callbacks_run_under_no_lock_and_one_at_a_time(make_bench):
    """A callback that comes back, from whatever thread, neither hangs nor is called within itself."""
    bench = make_bench()
    depth, deepest = 0, 0

    def come_back(frame, _):
        nonlocal depth, deepest
        depth += 1
        deepest = max(deepest, depth)
        if len(bench.frames) < 5:
            next_stamp = frame.stamp_ns // 1_000_000 + 100
            other = threading.Thread(
                target=lambda: (bench.send_depth(next_stamp), bench.send_rgb(next_stamp))
            )
            other.start()
            other.join()
            bench.synchronizer.status()
        depth -= 1

    bench.synchronizer.registerCallback(come_back)
    bench.send_depth(1000)
    bench.send_rgb(1000)
    assert [frame.stamp_ns // 1_000_000 for frame in bench.frames] == [1000, 1100, 1200, 1300, 1400]
    assert deepest == 1


def test_frames_keep_their_order_when_threads_compete(make_bench, wait_until):
    bench = make_bench(max_wait=1.0)
    stamps = range(1000, 1000 + 10 * 300, 10)
    bench.send_depth(999)
    threads = [
        threading.Thread(target=lambda send=send: [send(stamp) for stamp in stamps])
        for send in (bench.send_rgb, bench.send_depth)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(bench.frames) == len(stamps), "every frame")
    assert [frame.stamp_ns // 1_000_000 for frame in bench.frames] == list(stamps)


def test_close_returns_what_waits_and_ignores_what_comes(make_bench):
    bench = make_bench()
    bench.send_depth(1000)
    bench.send_rgb(1500)
    left = bench.synchronizer.close()
    assert [frame.stamp_ns for frame in left] == [1_500_000_000]
    bench.send_rgb(1600)
    bench.send_depth(1600)
    assert not bench.frames
    status = bench.synchronizer.status()
    assert (status.rgb_accepted, status.waiting) == (1, 0)
