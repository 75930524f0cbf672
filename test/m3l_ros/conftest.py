# SPDX-License-Identifier: Apache-2.0
"""ROS in the test's own process, on a graph that nobody else uses."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: pip install -e '.[ros]'")

from rclpy.context import Context
from rclpy.exceptions import InvalidHandle
from rclpy.executors import MultiThreadedExecutor
from rclpy.node import Node

from m3l_ros.isolation import isolated_environment

PATIENCE = 120.0


@pytest.fixture
def wait_until() -> Callable[[Callable[[], Any], str], Any]:
    """Wait for a condition; fail, saying what was waited for, if it takes longer than even a slow machine would."""

    def wait(condition: Callable[[], Any], what: str) -> Any:
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"waited {PATIENCE:g} s in vain for {what}")
            time.sleep(0.005)
        return value

    return wait


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Environment of a ROS graph of the test's own, which is this process's too."""
    with isolated_environment() as own:
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        yield own


@pytest.fixture
def context(environment: dict[str, str]) -> Iterator[Context]:
    """ROS in this process."""
    context = Context()
    context.init(domain_id=int(environment["ROS_DOMAIN_ID"]))
    yield context
    context.try_shutdown()


@pytest.fixture
def node(context: Context) -> Iterator[Node]:
    """A node whose callbacks run, in other threads, while the test does."""
    node = Node("test", context=context)
    executor = MultiThreadedExecutor(2, context=context)
    executor.add_node(node)

    ending = threading.Event()

    def spin() -> None:
        try:
            # With a timeout: a shutdown that comes while rclpy prepares to wait destroys what would end the wait.
            while not ending.is_set():
                executor.spin_once(timeout_sec=0.5)
        except (
            InvalidHandle
        ):  # a callback that ends while the executor is shut down finds its guard condition gone
            assert ending.is_set()

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    yield node
    ending.set()
    executor.shutdown()
    thread.join()
    node.destroy_node()
