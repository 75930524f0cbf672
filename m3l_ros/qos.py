# SPDX-License-Identifier: Apache-2.0
"""The quality of service of the node's topics, and how that of the inputs follows from what publishers offer."""

from __future__ import annotations

from collections.abc import Sequence

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

try:
    from rclpy.event_handler import (
        PublisherEventCallbacks,
        SubscriptionEventCallbacks,
        UnsupportedEventTypeError,
    )
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks, UnsupportedEventTypeError

NO_PUBLISHER_EVENTS = PublisherEventCallbacks(use_default_callbacks=False)
"""Each event is one more thing that rclpy's executor looks at whenever it wakes, a hundred times a second here."""

NO_SUBSCRIPTION_EVENTS = SubscriptionEventCallbacks(use_default_callbacks=False)
"""Likewise."""

MASK_QOS = QoSProfile(reliability=ReliabilityPolicy.RELIABLE, history=HistoryPolicy.KEEP_LAST, depth=5)
"""Of what the node publishes for every frame."""

ACCOUNT_QOS = QoSProfile(reliability=ReliabilityPolicy.RELIABLE, history=HistoryPolicy.KEEP_LAST, depth=100)
"""Of decisions and receipts, which are small and come many at a time."""

LATCHED_QOS = QoSProfile(
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
)
"""Of what late subscribers need too."""

CAMERA_INFO_QOS = QoSProfile(
    reliability=ReliabilityPolicy.BEST_EFFORT, history=HistoryPolicy.KEEP_LAST, depth=1
)
"""Matches every publisher; one that is lost comes again with the next image."""


__all__ = [
    "ACCOUNT_QOS",
    "CAMERA_INFO_QOS",
    "LATCHED_QOS",
    "MASK_QOS",
    "NO_PUBLISHER_EVENTS",
    "NO_SUBSCRIPTION_EVENTS",
    "SubscriptionEventCallbacks",
    "UnsupportedEventTypeError",
    "input_qos",
]


def input_qos(policy: str, depth: int, offered: Sequence[ReliabilityPolicy]) -> QoSProfile:
    """What to request of the publishers of an image topic.

    Args:
        policy: ``reliable``, ``best_effort``, or ``auto``: reliable where every publisher offers it, and while there is
            none; else best effort, which all of them match.
        depth: images kept until they are received.
        offered: the reliability that each publisher offers.
    """
    if policy == "auto":
        reliable = all(reliability == ReliabilityPolicy.RELIABLE for reliability in offered)
    else:
        reliable = policy == "reliable"
    return QoSProfile(
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        history=HistoryPolicy.KEEP_LAST,
        depth=depth,
    )
