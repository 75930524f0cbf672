# SPDX-License-Identifier: Apache-2.0
"""Publishes a camera's images with faults: whoever listens meets what a robot meets in a month."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import QoSProfile

from m3l_ros.faults import Delivery, Fault, FaultInjector, Stream

_POLL_PERIOD = 0.01
_MATCH_TIMEOUT = 5.0
_ACKNOWLEDGE_TIMEOUT = 5.0


class Offer(NamedTuple):
    """How a stream is published."""

    topic: str
    message_type: type
    qos: QoSProfile


class FaultyCamera:
    """Publishes what an injector makes of images, by the publishers that it asks for.

    Args:
        node: gets the publishers; it need not be spun.
        offers: of the streams.
        injector: says what goes wrong.
    """

    def __init__(self, node: Node, offers: Mapping[Stream, Offer], injector: FaultInjector) -> None:
        self._node = node
        self._offers = offers
        self._injector = injector
        self._pending: list[tuple[float, int, Delivery]] = []
        self._added = 0
        self._publishers: dict[tuple[Stream, int, bool], Publisher] = {}
        self.published: Counter[Stream] = Counter()
        """Images that went out."""
        for stream in offers:
            self._publishers[stream, 0, False] = self._create(stream)

    def publisher(self, stream: Stream) -> Publisher:
        """A stream's publisher; another one after a fault has replaced it."""
        return next(each for (name, _, _), each in self._publishers.items() if name == stream)

    def add(self, stream: Stream, message: Any, at: float) -> None:
        """Take an image that the camera would publish ``at`` seconds after the start."""
        for delivery in self._injector.add(stream, message, at):
            self._added += 1
            heapq.heappush(self._pending, (delivery.due, self._added, delivery))

    def next_due(self) -> float | None:
        """When the next image is to be published."""
        return self._pending[0][0] if self._pending else None

    def deliver(self, until: float) -> None:
        """Publish what is due by then."""
        while self._pending and self._pending[0][0] <= until:
            delivery = heapq.heappop(self._pending)[2]
            self._publisher_for(delivery).publish(delivery.message)
            self.published[delivery.stream] += 1

    def _publisher_for(self, delivery: Delivery) -> Publisher:
        key = (delivery.stream, delivery.generation, delivery.by_twin)
        listeners = self.publisher(delivery.stream).get_subscription_count()
        if delivery.fault is not Fault.TWIN:
            for old in [old for old in self._publishers if old[0] == delivery.stream and old != key]:
                self._destroy(self._publishers.pop(old))
        if key not in self._publishers:
            self._publishers[key] = self._create(delivery.stream)
            self._await_listeners(self._publishers[key], listeners)
        return self._publishers[key]

    def _create(self, stream: Stream) -> Publisher:
        offer = self._offers[stream]
        return self._node.create_publisher(offer.message_type, offer.topic, offer.qos)

    def _destroy(self, publisher: Publisher) -> None:
        publisher.wait_for_all_acked(Duration(seconds=_ACKNOWLEDGE_TIMEOUT))
        self._node.destroy_publisher(publisher)

    def _await_listeners(self, publisher: Publisher, count: int) -> None:
        """Who listened to the old publisher has to find the new one, or would miss its first images."""
        deadline = time.monotonic() + _MATCH_TIMEOUT
        while publisher.get_subscription_count() < count and time.monotonic() < deadline:
            time.sleep(_POLL_PERIOD)

    def close(self) -> None:
        """Withdraw the publishers when all they have published has arrived."""
        while self._publishers:
            self._destroy(self._publishers.popitem()[1])
