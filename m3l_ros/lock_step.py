# SPDX-License-Identifier: Apache-2.0
"""Plays messages to a node one at a time: moves its clock, publishes, and waits for its receipt before going on."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.subscription import Subscription
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import TimeReference

from m3l_model.errors import M3LError
from m3l_ros.qos import ACCOUNT_QOS
from m3l_ros.receipts import CLOCK, RECEIPT
from m3l_ros.stamps import to_ns, to_time

_REPEAT_PERIOD = 0.2
_ANSWER_TIMEOUT = 60.0
_LONGEST_WAIT_NS = 1_000_000_000
"""Of an image for its depth: the largest max_wait that the node takes."""


class LockStepError(M3LError):
    """A node that does not answer as it should."""


class LockStep:
    """The node's receipts, and its clock.

    Args:
        node: gets the publisher of /clock and the subscription; what else it subscribes to is served while this waits,
            and nobody else may spin it.
        answer_timeout: longest time for a receipt, s: at least that of segmenting one frame.
    """

    def __init__(self, node: Node, answer_timeout: float = _ANSWER_TIMEOUT) -> None:
        self._node = node
        self._answer_timeout = answer_timeout
        self._now_ns: int | None = None
        self._receipts: list[tuple[str, int, int]] = []  # source, stamp, the node's time
        self._awaited: frozenset[str] = frozenset()
        self._clock = node.create_publisher(Clock, CLOCK, 10)
        self._receipt_topic = node.resolve_topic_name(RECEIPT)
        self._subscription: Subscription | None = node.create_subscription(
            TimeReference, RECEIPT, self._on_receipt, ACCOUNT_QOS
        )
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)

    def meet(self, publishers: Sequence[Publisher], start_ns: int, timeout: float) -> None:
        """Wait until a node answers, hears every one of these publishers, and has our time.

        Args:
            publishers: of the images whose receipts are to be waited for.
            start_ns: time of the first message; the node's clock is set to shortly before.
            timeout: longest time to wait, s.

        Raises:
            LockStepError: there is no such node, or more than one.
        """
        deadline = time.monotonic() + timeout
        self._wait_until(self._answering, deadline, lambda: self._who_is_missing(timeout))
        self._wait_until(
            lambda: len(self._answering()) == 1 and all(map(self._hears, publishers)),
            deadline,
            lambda: self._who_does_not_listen(publishers),
        )
        self._awaited = frozenset(each.topic_name for each in publishers)
        before_ns = max(start_ns - _LONGEST_WAIT_NS, 0)
        while not self._set_clock(before_ns, _REPEAT_PERIOD):
            if time.monotonic() > deadline:
                raise LockStepError(
                    f"the node {', '.join(self._answering())} does not take its time from /clock: start it with "
                    "--ros-args -p use_sim_time:=true"
                )
            before_ns += 1  # for a time that the node has already, it gives no receipt

    def advance(self, now_ns: int) -> None:
        """Set the node's clock, and wait until the node has dealt with what falls due by then.

        Raises:
            LockStepError: it does not answer.
        """
        if now_ns == self._now_ns:
            return
        deadline = time.monotonic() + self._answer_timeout
        while not self._set_clock(now_ns, _REPEAT_PERIOD):
            if time.monotonic() > deadline:
                raise LockStepError(self._silence(f"time {now_ns} ns on /clock"))

    def publish(self, publisher: Publisher, message: bytes, stamp_ns: int) -> None:
        """Publish a serialized message; if the node listens to its topic, wait until it has dealt with it.

        Args:
            publisher: of its topic.
            message: in CDR.
            stamp_ns: in its header; 0 where it has none.

        Raises:
            LockStepError: the node does not answer.
        """
        topic = publisher.topic_name
        self._receipts.clear()
        publisher.publish(message)
        if topic not in self._awaited:
            return
        deadline = time.monotonic() + self._answer_timeout
        self._wait_until(
            lambda: any(receipt[:2] == (topic, stamp_ns) for receipt in self._receipts),
            deadline,
            lambda: self._silence(f"the image of {topic} with stamp {stamp_ns} ns"),
        )

    def finish(self) -> None:
        """Let time go on until no image waits for its depth any more.

        Raises:
            LockStepError: the node does not answer.
        """
        if self._now_ns is not None:
            self.advance(self._now_ns + 2 * _LONGEST_WAIT_NS)

    def let_go(self) -> None:
        """Ask for receipts no more, after ``meet``: from then on the node works as it would on a robot."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None

    def tick(self, now_ns: int) -> None:
        """Set the node's clock, and do not wait."""
        self._clock.publish(Clock(clock=to_time(now_ns)))

    def spin_until(self, condition: Callable[[], object], timeout: float) -> bool:
        """Serve the node's subscriptions until the condition holds; whether it did in time."""
        deadline = time.monotonic() + timeout
        while not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            self._executor.spin_once(left)
        return True

    def close(self) -> None:
        """Leave the node."""
        self._executor.shutdown()
        self.let_go()
        self._node.destroy_publisher(self._clock)

    def _set_clock(self, now_ns: int, patience: float) -> bool:
        self._receipts.clear()
        self.tick(now_ns)
        if not self.spin_until(lambda: (CLOCK, 0, now_ns) in self._receipts, patience):
            return False
        self._now_ns = now_ns
        return True

    def _wait_until(
        self, condition: Callable[[], object], deadline: float, complaint: Callable[[], str]
    ) -> None:
        while not self.spin_until(condition, min(_REPEAT_PERIOD, deadline - time.monotonic())):
            if time.monotonic() >= deadline:
                raise LockStepError(complaint())

    def _on_receipt(self, msg: TimeReference) -> None:
        self._receipts.append((msg.source, to_ns(msg.header.stamp), to_ns(msg.time_ref)))

    def _answering(self) -> list[str]:
        """Full names of the nodes that give receipts."""
        publishers = self._node.get_publishers_info_by_topic(self._receipt_topic)
        return [_full_name(each) for each in publishers]

    def _hears(self, publisher: Publisher) -> bool:
        listeners = self._node.get_subscriptions_info_by_topic(publisher.topic_name)
        return publisher.get_subscription_count() > 0 and bool(
            {_full_name(each) for each in listeners} & set(self._answering())
        )

    def _who_is_missing(self, timeout: float) -> str:
        return (
            f"no node answered on {self._receipt_topic} within {timeout:g} s: is the segmentation node "
            "active, and in this namespace and ROS_DOMAIN_ID? (-r segmentation/receipt:=TOPIC names another)"
        )

    def _who_does_not_listen(self, publishers: Sequence[Publisher]) -> str:
        names = ", ".join(self._answering())
        if len(self._answering()) > 1:
            return f"several nodes answer on {self._receipt_topic}: {names}; step one at a time"
        topics = ", ".join(each.topic_name for each in publishers if not self._hears(each))
        return f"the node {names} does not listen to {topics}; remap the one to the other"

    def _silence(self, what: str) -> str:
        return (
            f"the node {', '.join(self._answering()) or 'is gone and'} gave no receipt of {what} within "
            f"{self._answer_timeout:g} s"
        )


def _full_name(endpoint: object) -> str:
    namespace = getattr(endpoint, "node_namespace", "")
    return f"{namespace.rstrip('/')}/{getattr(endpoint, 'node_name', '')}"
