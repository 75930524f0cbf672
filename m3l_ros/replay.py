# SPDX-License-Identifier: Apache-2.0
"""Publishes a recorded bag as it was recorded: header stamps kept, depth withheld and faults put in when told to."""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from rosbags.interfaces import Qos
from rosgraph_msgs.msg import Clock

from m3l_model.bags import BagReader, RawMessage
from m3l_model.cdr import stamp_ns
from m3l_model.errors import M3LError
from m3l_ros.faults import FaultInjector, Stream
from m3l_ros.faulty_camera import FaultyCamera, Offer
from m3l_ros.lock_step import LockStep
from m3l_ros.stamps import to_time

_CLOCK = "/clock"
_TF_STATIC = "/tf_static"
_CLOCK_PERIOD = 0.01
_PROGRESS_PERIOD = 5.0
_POLL_PERIOD = 0.05
_ACKNOWLEDGE_TIMEOUT = 5.0
_LEAST_DEPTH = 50  # a reliable subscriber that is busy for a while still gets every image
_LATCHED_DEPTH = 100
_MEETING_TIMEOUT = 30.0


class ReplayError(M3LError):
    """A replay that cannot be done as asked."""


class Interval(NamedTuple):
    """Seconds from the bag's start: begin <= t < end."""

    begin: float
    end: float

    @classmethod
    def parse(cls, text: str) -> Interval:
        """Read ``10:20``; ``10:`` lasts to the end, ``:20`` from the start.

        Raises:
            ValueError: it is none of these.
        """
        begin, separator, end = text.partition(":")
        interval = cls(float(begin or 0), float(end or "inf"))
        if not separator or not 0 <= interval.begin < interval.end:
            raise ValueError(f"{text!r} is not BEGIN:END in seconds")
        return interval


@dataclass(frozen=True)
class ReplayOptions:
    """How to replay a bag.

    Attributes:
        rate: seconds of the bag per second.
        topics: what to publish; None: everything.
        drop_depth: when to withhold depth images.
        rgb_topic: of the colour images that must be listened to, or get faults; None: guessed.
        depth_topic: likewise of the depth images, and of those to withhold.
        clock: publish the bag's time on /clock.
        step: in lock-step with the segmentation node, whose receipt each image waits for, rather than at a rate.
        loop: start over at the end, until interrupted.
        delay: seconds to wait before the first message.
        wait_for_subscribers: seconds to wait at most for a subscriber of colour and of depth; None: do not wait, but
            in lock-step 30.
        faults: seed of the faults to put into colour and depth; None: none.
    """

    rate: float = 1.0
    topics: Sequence[str] | None = None
    drop_depth: Sequence[Interval] = ()
    rgb_topic: str | None = None
    depth_topic: str | None = None
    clock: bool = False
    step: bool = False
    loop: bool = False
    delay: float = 0.0
    wait_for_subscribers: float | None = None
    faults: int | None = None

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ReplayError(f"rate must be above 0, not {self.rate:g}")
        if self.step and self.rate != 1.0:
            raise ReplayError("--step goes at the node's pace; leave out --rate")
        if self.step and self.faults is not None:
            raise ReplayError(
                "--faults are faults in time, which --step does away with; leave out one of them"
            )


class ReplayCounts(NamedTuple):
    """What a replay did."""

    published: Mapping[str, int]
    """Messages of each topic."""
    withheld: int
    """Depth images."""
    faults: int = 0
    """Episodes of them."""


class BagPlayer:
    """Publishes a bag's messages, serialized as they were recorded, at the times at which they were recorded.

    Each topic is offered with the reliability and durability it was recorded with, /tf_static always as transient
    local. Topics whose message type is not installed are left out with a line each.

    Args:
        node: gets the publishers; it need not be spun.
        path: the bag.
        options: how to replay it.
        report: called with lines for people.

    Raises:
        M3LError: the bag cannot be read or lacks a topic that is asked for.
    """

    def __init__(
        self,
        node: Node,
        path: str | Path,
        options: ReplayOptions | None = None,
        report: Callable[[str], None] = print,
    ) -> None:
        self._node = node
        self._path = Path(path)
        self._options = options or ReplayOptions()
        self._report = report
        self._published: Counter[str] = Counter()
        self._withheld = 0
        self._camera_offers: dict[Stream, Offer] = {}
        with BagReader(self._path) as bag:
            self._start_ns = bag.start_ns
            self._duration = (bag.end_ns - bag.start_ns) / 1e9
            self._depth_topic = self._choose_depth_topic(bag)
            self._camera_topics = self._choose_camera_topics(bag)
            self._publishers = dict(self._create_publishers(bag))
            self._awaited = self._awaited_topics(bag)
        self._injector = FaultInjector(self._options.faults or 0, report)
        self._camera = (
            FaultyCamera(node, self._camera_offers, self._injector) if self._camera_topics else None
        )
        self._lock_step = LockStep(node) if self._options.step else None
        timed_clock = self._options.clock and not self._options.step
        self._clock = node.create_publisher(Clock, _CLOCK, 10) if timed_clock else None

    def play(self) -> ReplayCounts:
        """Publish the bag, once or until interrupted; returns what was published.

        Raises:
            M3LError: nobody subscribed in time, or the bag is damaged.
            KeyboardInterrupt: as usual; ``counts`` tells how far it came.
        """
        options = self._options
        if self._lock_step is not None:
            self._meet_node(self._lock_step)
        elif options.wait_for_subscribers is not None:
            self._wait_for_subscribers(options.wait_for_subscribers)
        time.sleep(options.delay)
        pace = "in lock-step" if options.step else f"at rate {options.rate:g}"
        self._report(
            f"{self._path}: {len(self._publishers)} topics, {self._duration:.1f} s {pace}"
            + "".join(
                f"; no {self._depth_topic} from {begin:g} to {min(end, self._duration):g} s"
                for begin, end in options.drop_depth
            )
        )
        rounds = 0
        while True:
            self._play_once(rounds * self._duration)
            rounds += 1
            if not options.loop:
                break
            self._report("start over")
        self._wait_until_acknowledged()
        return self.counts()

    def counts(self) -> ReplayCounts:
        """What was published so far."""
        published = dict(self._published)
        if self._camera is not None:
            published |= {
                topic: self._camera.published[stream] for topic, stream in self._camera_topics.items()
            }
        return ReplayCounts(published, self._withheld, self._injector.injected.total())

    def _play_once(self, played: float) -> None:
        begin = time.monotonic()
        reported = begin
        with BagReader(self._path) as bag:
            for message in bag.raw_messages([*self._publishers, *self._camera_topics]):
                offset = (message.log_ns - self._start_ns) / 1e9
                if self._lock_step is not None:
                    self._lock_step.advance(message.log_ns)
                else:
                    self._deliver_until(begin, played, offset)
                    self._sleep_until(begin, offset)
                if time.monotonic() >= reported + _PROGRESS_PERIOD:
                    reported = time.monotonic()
                    self._report(f"{offset:.1f} / {self._duration:.1f} s, {self._published.total()} messages")
                if self._is_withheld(message, offset):
                    self._withheld += 1
                elif self._camera is not None and message.topic in self._camera_topics:
                    stream = self._camera_topics[message.topic]
                    image = deserialize_message(bytes(message.data), _message_class(message.msgtype))
                    self._camera.add(stream, image, played + offset)
                    self._camera.deliver(played + offset)
                else:
                    self._publish(message)
                    self._published[message.topic] += 1
        if self._lock_step is not None:
            self._lock_step.finish()

    def _publish(self, message: RawMessage) -> None:
        publisher = self._publishers[message.topic]
        if self._lock_step is None:
            publisher.publish(bytes(message.data))
        else:
            stamp = stamp_ns(message.data) if message.topic in self._awaited else 0
            self._lock_step.publish(publisher, bytes(message.data), stamp)

    def _deliver_until(self, begin: float, played: float, offset: float) -> None:
        """Publish the delayed images that fall due by ``offset``, each in its time."""
        while self._camera is not None and (due := self._camera.next_due()) is not None:
            if due > played + offset:
                return
            self._sleep_until(begin, due - played)
            self._camera.deliver(due)

    def _sleep_until(self, begin: float, offset: float) -> None:
        """Wait for the moment of the bag that is ``offset`` seconds after its start, publishing its time meanwhile."""
        rate = self._options.rate
        due = begin + offset / rate
        while True:
            now = time.monotonic()
            if self._clock is not None:
                self._publish_clock(min(now - begin, offset / rate) * rate)
            if now >= due:
                return
            time.sleep(due - now if self._clock is None else min(due - now, _CLOCK_PERIOD))

    def _publish_clock(self, offset: float) -> None:
        assert self._clock is not None
        self._clock.publish(Clock(clock=to_time(self._start_ns + round(offset * 1e9))))

    def _is_withheld(self, message: RawMessage, offset: float) -> bool:
        topic = self._depth_topic
        if topic is None or not (message.topic == topic or message.topic.startswith(f"{topic}/")):
            return False
        return any(begin <= offset < end for begin, end in self._options.drop_depth)

    def _choose_depth_topic(self, bag: BagReader) -> str | None:
        if not self._options.drop_depth:
            return None
        topic = bag.choose_topics(self._options.rgb_topic, self._options.depth_topic).depth
        if topic is None:
            raise ReplayError(f"{self._path}: no topic looks like depth; name it with --depth-topic")
        return topic

    def _choose_camera_topics(self, bag: BagReader) -> dict[str, Stream]:
        """The topics whose images pass through the injector."""
        if self._options.faults is None:
            return {}
        topics = bag.choose_topics(self._options.rgb_topic, self._options.depth_topic)
        wanted = self._options.topics
        chosen: dict[str, Stream] = {topics.rgb: "rgb"}
        if topics.depth is not None:
            chosen[topics.depth] = "depth"
        return {topic: stream for topic, stream in chosen.items() if wanted is None or topic in wanted}

    def _awaited_topics(self, bag: BagReader) -> list[str]:
        if self._options.wait_for_subscribers is None and not self._options.step:
            return []
        topics = bag.choose_topics(self._options.rgb_topic, self._options.depth_topic)
        published = (*self._publishers, *self._camera_topics)
        return [topic for topic in (topics.rgb, topics.depth) if topic in published and topic]

    def _publisher(self, topic: str) -> Publisher:
        if self._camera is not None and topic in self._camera_topics:
            return self._camera.publisher(self._camera_topics[topic])
        return self._publishers[topic]

    def _create_publishers(self, bag: BagReader) -> Iterator[tuple[str, Publisher]]:
        recorded = {connection.topic: connection.msgtype for connection in bag.connections}
        wanted = self._options.topics or sorted(recorded)
        missing = [topic for topic in wanted if topic not in recorded]
        if missing:
            raise ReplayError(
                f"{self._path}: no topic {', '.join(missing)}; the bag has {', '.join(sorted(recorded))}"
            )
        for topic in wanted:
            if topic == _CLOCK and (self._options.clock or self._options.step):
                continue
            message_class = _message_class(recorded[topic])
            if message_class is None:
                self._report(f"leaving out {topic}: its type {recorded[topic]} is not installed")
                continue
            qos = _offered_qos(topic, bag.qos(topic))
            if self._options.step:
                qos.reliability = ReliabilityPolicy.RELIABLE
            if topic in self._camera_topics:
                self._camera_offers[self._camera_topics[topic]] = Offer(topic, message_class, qos)
            else:
                yield topic, self._node.create_publisher(message_class, topic, qos)

    def _meet_node(self, lock_step: LockStep) -> None:
        timeout = self._options.wait_for_subscribers
        self._report("waiting for the segmentation node")
        lock_step.meet(
            [self._publishers[topic] for topic in self._awaited],
            self._start_ns,
            _MEETING_TIMEOUT if timeout is None else timeout,
        )

    def _wait_for_subscribers(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        self._report(f"waiting for subscribers of {', '.join(self._awaited)}")
        while alone := [
            topic for topic in self._awaited if self._publisher(topic).get_subscription_count() == 0
        ]:
            if time.monotonic() >= deadline:
                names = ", ".join(self._publisher(topic).topic_name for topic in alone)
                raise ReplayError(
                    f"nobody subscribed to {names} within {timeout:g} s; is the node active, and remapped to it?"
                )
            time.sleep(_POLL_PERIOD)

    def _wait_until_acknowledged(self) -> None:
        if self._camera is not None:
            self._camera.deliver(float("inf"))
            self._camera.close()
        deadline = time.monotonic() + _ACKNOWLEDGE_TIMEOUT
        for topic, publisher in self._publishers.items():
            left = max(deadline - time.monotonic(), 0.0)
            if not publisher.wait_for_all_acked(Duration(seconds=left)):
                self._report(f"{topic}: a subscriber did not acknowledge the last messages")


def _message_class(msgtype: str) -> Any:
    """The class of a type such as sensor_msgs/msg/Image; None where it is not installed."""
    package, _, name = msgtype.split("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), name)
    except (ImportError, AttributeError):
        return None


def _offered_qos(topic: str, recorded: Qos | None) -> QoSProfile:
    """Reliability and durability as recorded; bags seldom know the history, which discovery does not carry."""
    best_effort = recorded is not None and recorded.reliability.name == "BEST_EFFORT"
    latched = topic == _TF_STATIC or (recorded is not None and recorded.durability.name == "TRANSIENT_LOCAL")
    depth = max(recorded.depth if recorded else 0, _LATCHED_DEPTH if latched else _LEAST_DEPTH)
    return QoSProfile(
        reliability=ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
    )
