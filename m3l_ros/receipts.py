# SPDX-License-Identifier: Apache-2.0
"""Says what the node has dealt with, so that `m3l replay --step` can publish one message after the other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.exceptions import InvalidHandle
from rclpy.node import Node
from sensor_msgs.msg import TimeReference
from std_msgs.msg import Header

from m3l_ros.qos import ACCOUNT_QOS, NO_PUBLISHER_EVENTS

RECEIPT = "segmentation/receipt"
CLOCK = "/clock"
_ANY_STEP = JumpThreshold(
    min_forward=Duration(nanoseconds=1), min_backward=Duration(nanoseconds=-1), on_clock_change=True
)


class Receipts:
    """Publishes a sensor_msgs/TimeReference for every image that arrives and every step of simulated time.

    It goes out when the frames that the image, or the time, has released are segmented, and carries the image's header
    (of a step of time: none), the node's time then, and the image's topic (of a step of time: /clock). Without a
    subscriber nothing is done.

    Args:
        node: gets the publisher; its clock is meant.
        group: that the images are received in; it waits, in the middle of a callback, while frames are segmented.
        settle: returns when no frame that is due is left unsegmented.
    """

    def __init__(self, node: Node, group: CallbackGroup, settle: Callable[[], None]) -> None:
        self._node = node
        self._clock = node.get_clock()
        self._settle = settle
        self._publisher = node.create_publisher(
            TimeReference, RECEIPT, ACCOUNT_QOS, event_callbacks=NO_PUBLISHER_EVENTS
        )
        self._time_set = node.create_guard_condition(self._on_time, group)
        self._jumps = self._clock.create_jump_callback(_ANY_STEP, post_callback=self._on_jump)

    def wanted(self) -> bool:
        """Whether somebody waits for them, and so moves the clock by hand."""
        return bool(self._publisher.get_subscription_count())

    def image(self, msg: Any, topic: str) -> None:
        """An image of that topic has been taken."""
        if self.wanted():
            self._give(msg.header, topic)

    def close(self) -> None:
        """Withdraw the topic."""
        self._jumps.unregister()
        self._node.destroy_guard_condition(self._time_set)
        self._node.destroy_publisher(self._publisher)

    def _on_jump(self, _: Any) -> None:
        """The clock, which is being set by another thread, must not be kept waiting."""
        with suppress(InvalidHandle):  # just closed
            if self.wanted():
                self._time_set.trigger()

    def _on_time(self) -> None:
        self._give(Header(), CLOCK)

    def _give(self, header: Header, source: str) -> None:
        self._settle()
        now = self._clock.now().to_msg()
        self._publisher.publish(TimeReference(header=header, time_ref=now, source=source))
