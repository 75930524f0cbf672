# SPDX-License-Identifier: Apache-2.0
"""Tells the CPU time of a node's own code from that of rclpy and the middleware below it."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

from rclpy.node import Node
from rclpy.publisher import Publisher

_LOCAL = threading.local()


class Meter:
    """Adds up CPU time of threads, s, while they are in a node's own code.

    Own code is what subscriptions and timers call, and the threads that the node starts, but for publishing and the
    model. All the rest of the process is transport: executor, deserializing, serializing, the middleware's threads.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.own = 0.0
        self.model = 0.0

    def install(self) -> None:
        """Measure every node that is made from now on in this process."""
        create_subscription, create_timer, publish = (
            Node.create_subscription,
            Node.create_timer,
            Publisher.publish,
        )

        def metered_subscription(
            node: Any, msg_type: Any, topic: str, callback: Any, *args: Any, **kwargs: Any
        ) -> Any:
            return create_subscription(node, msg_type, topic, self.metered(callback), *args, **kwargs)

        def metered_timer(node: Any, period: float, callback: Any, *args: Any, **kwargs: Any) -> Any:
            return create_timer(node, period, self.metered(callback), *args, **kwargs)

        def metered_publish(publisher: Any, message: Any) -> None:
            with self.paused():
                publish(publisher, message)

        Node.create_subscription = metered_subscription  # type: ignore[method-assign, assignment]
        Node.create_timer = metered_timer  # type: ignore[method-assign, assignment]
        Publisher.publish = metered_publish  # type: ignore[method-assign, assignment]

    def metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose CPU time counts as own."""

        def run(*args: Any) -> Any:
            if getattr(_LOCAL, "inside", False):
                return function(*args)
            _LOCAL.inside = True
            begin = time.thread_time()
            try:
                return function(*args)
            finally:
                self._add(time.thread_time() - begin)
                _LOCAL.inside = False

        return run

    @contextmanager
    def paused(self) -> Any:
        """What is done meanwhile is not own code."""
        begin = time.thread_time()
        yield
        if getattr(_LOCAL, "inside", False):
            self._add(begin - time.thread_time())

    @contextmanager
    def modelling(self) -> Any:
        """Wall time of the model; its CPU time is not own code."""
        begin = time.perf_counter()
        with self.paused():
            yield
        with self._lock:
            self.model += time.perf_counter() - begin

    def _add(self, seconds: float) -> None:
        with self._lock:
            self.own += seconds

    def answer(self) -> None:
        """Print the sums, in a thread of their own, for every line that comes in."""

        def serve() -> None:
            for _ in sys.stdin:
                print(json.dumps({"own": self.own, "model": self.model}), flush=True)

        threading.Thread(target=serve, daemon=True).start()
