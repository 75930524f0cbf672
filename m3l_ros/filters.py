# SPDX-License-Identifier: Apache-2.0
"""The callback plumbing of ROS 2's message_filters, for where that package is not installed.

Same names, same arguments, same behaviour; none of its matching. Import these from ``m3l_ros.providers``, which prefers
the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class SimpleFilter:
    """Something with output: whoever is interested registers a callback."""

    def __init__(self) -> None:
        self.callbacks: dict[int, tuple[Callable[..., None], tuple[Any, ...]]] = {}

    def registerCallback(self, cb: Callable[..., None], *args: Any) -> int:
        """Have ``cb(*output, *args)`` called for every output of this filter; returns the connection's number."""
        connection = len(self.callbacks)
        self.callbacks[connection] = (cb, args)
        return connection

    def signalMessage(self, *msg: Any) -> None:
        """Hand an output to every registered callback, in the order of registration."""
        for callback, args in list(self.callbacks.values()):
            callback(*msg, *args)


class Subscriber(SimpleFilter):
    """A subscription as a filter: ``Subscriber(node, msg_type, topic, qos_profile=..., callback_group=...)``.

    Attributes:
        sub: the subscription, for ``node.destroy_subscription``.
    """

    def __init__(self, node: Any, msg_type: type, topic: str, **kwargs: Any) -> None:
        super().__init__()
        self.node = node
        self.topic = topic
        kwargs.setdefault("qos_profile", 10)
        self.sub = node.create_subscription(msg_type, topic, self.callback, **kwargs)

    def callback(self, msg: Any) -> None:
        """Receive one message."""
        self.signalMessage(msg)
