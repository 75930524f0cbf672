# SPDX-License-Identifier: Apache-2.0
"""Receipts and who waits for them, in one process; with the segmentation node in test_lock_step_process.py."""

from __future__ import annotations

import threading

import pytest
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from m3l_ros.lock_step import LockStep, LockStepError
from m3l_ros.receipts import Receipts
from m3l_ros.stamps import to_time

START_NS = 1_700_000_000 * 10**9
TOPIC = "/rgb/image"
PATIENCE = 60.0


@pytest.fixture
def player(context):
    node = Node("player", context=context)
    yield node
    node.destroy_node()


@pytest.fixture
def lock_step(player):
    each = LockStep(player, answer_timeout=PATIENCE)
    yield each
    each.close()


@pytest.fixture
def publisher(player):
    return player.create_publisher(Image, TOPIC, 10)


class Answering:
    """What answers: takes images of a topic, and says when it is done with each, which the test may put off."""

    def __init__(self, node):
        group = MutuallyExclusiveCallbackGroup()
        self.clock = node.get_clock()
        self.go_on = threading.Event()
        self.go_on.set()
        self.settled: list[int] = []
        self.receipts = Receipts(node, group, self.settle)
        node.create_subscription(Image, TOPIC, self.take, 10, callback_group=group)

    def take(self, msg):
        self.receipts.image(msg, TOPIC)

    def settle(self):
        assert self.go_on.wait(PATIENCE)
        self.settled.append(self.clock.now().nanoseconds)


@pytest.fixture
def answering(node):
    node.set_parameters([Parameter("use_sim_time", value=True)])
    each = Answering(node)
    yield each
    each.receipts.close()


def image(stamp_ns):
    return bytes(serialize_message(Image(header=Header(stamp=to_time(stamp_ns)))))


def test_each_message_waits_until_the_one_before_is_dealt_with_at_its_time(answering, lock_step, publisher):
    lock_step.meet([publisher], START_NS, PATIENCE)
    for step in range(3):
        lock_step.advance(START_NS + step)
        lock_step.publish(publisher, image(step), step)
        assert answering.settled[-2:] == [START_NS + step] * 2, "the time, then the image"
    answering.go_on.clear()
    publishing = threading.Thread(target=lock_step.publish, args=(publisher, image(7), 7))
    publishing.start()
    publishing.join(0.3)
    assert publishing.is_alive(), "there is no receipt yet"
    answering.go_on.set()
    publishing.join()


def test_time_can_go_back_and_stand_still(answering, lock_step, publisher):
    lock_step.meet([publisher], START_NS, PATIENCE)
    lock_step.advance(START_NS)
    lock_step.advance(START_NS)
    lock_step.advance(START_NS - 10**9)
    assert answering.settled[-2:] == [START_NS, START_NS - 10**9]


def test_a_node_is_met_again_at_the_time_that_it_has(answering, player, publisher):
    for _ in range(2):
        lock_step = LockStep(player, PATIENCE)
        lock_step.meet([publisher], START_NS, PATIENCE)
        lock_step.close()


def test_without_a_listener_nothing_waits(answering, publisher, wait_until):
    wait_until(publisher.get_subscription_count, "the subscription")
    answering.go_on.clear()
    publisher.publish(image(1))
    answering.receipts.image(Image(), TOPIC)
    assert not answering.settled


def test_other_topics_need_no_receipt(answering, lock_step, publisher, player):
    lock_step.meet([publisher], START_NS, PATIENCE)
    other = player.create_publisher(Image, "/other", 10)
    lock_step.publish(other, image(1), 1)


def test_who_never_answers_is_named(answering, player, publisher):
    impatient = LockStep(player, answer_timeout=0.3)
    impatient.meet([publisher], START_NS, PATIENCE)
    answering.go_on.clear()
    with pytest.raises(LockStepError, match=f"/test gave no receipt of the image of {TOPIC} with stamp 1 ns"):
        impatient.publish(publisher, image(1), 1)
    with pytest.raises(
        LockStepError, match=f"/test gave no receipt of time {START_NS} ns on /clock within 0.3 s"
    ):
        impatient.advance(START_NS)
    answering.go_on.set()
    impatient.close()


def test_nobody_answers(lock_step, publisher):
    with pytest.raises(LockStepError, match="no node answered on /segmentation/receipt within "):
        lock_step.meet([publisher], START_NS, 0.3)


def test_a_node_that_listens_to_other_topics_is_named(answering, lock_step, player):
    other = player.create_publisher(Image, "/elsewhere", 10)
    with pytest.raises(LockStepError, match="the node /test does not listen to /elsewhere; remap"):
        lock_step.meet([other], START_NS, 1.0)


def test_a_node_with_the_time_of_the_day_is_told_of_use_sim_time(answering, node, lock_step, publisher):
    node.set_parameters([Parameter("use_sim_time", value=False)])
    with pytest.raises(LockStepError, match="-p use_sim_time:=true"):
        lock_step.meet([publisher], START_NS, 1.0)


def test_two_nodes_are_not_stepped_at_once(answering, context, lock_step, publisher):
    other = Node("other", context=context)
    receipts = Receipts(other, MutuallyExclusiveCallbackGroup(), lambda: None)
    with pytest.raises(LockStepError, match="several nodes answer on /segmentation/receipt: "):
        lock_step.meet([publisher], START_NS, 1.0)
    receipts.close()
    other.destroy_node()
