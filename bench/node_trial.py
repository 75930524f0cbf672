# SPDX-License-Identifier: Apache-2.0
"""The node with a model stand-in in a process of its own, numbered images for it, and an ear for what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from m3l_ros.isolation import isolated_environment

WIDTH, HEIGHT = 640, 480
START_SEC = 1_700_000_000
_PATIENCE = 60.0
_HERE = Path(__file__).resolve().parent


class Mask(NamedTuple):
    """A mask that was received."""

    number: int
    """Of its image."""
    at: float
    """Steady time, s."""
    with_depth: bool


class Ear:
    """Hears masks and diagnostics."""

    def __init__(self, node: Any) -> None:
        self.masks: list[Mask] = []
        self.diagnostics: dict[str, str] = {}
        qos = QoSProfile(depth=200, reliability=ReliabilityPolicy.RELIABLE)
        node.create_subscription(Image, "segmentation/mask", self._on_mask, qos)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def _on_mask(self, mask: Any) -> None:
        at = time.monotonic()
        self.masks.append(Mask(int.from_bytes(bytes(mask.data[:4]), "little"), at, mask.data[4] != 0))

    def _on_diagnostics(self, message: Any) -> None:
        self.diagnostics = {pair.key: pair.value for pair in message.status[0].values}

    def count(self, name: str) -> int:
        """A counter of the diagnostics."""
        return int(self.diagnostics.get(name, -1))


class Scene:
    """Numbered images, noisy enough for depth not to look frozen.

    Args:
        rate: of the camera, Hz; stamps follow from numbers.
    """

    def __init__(self, rate: float) -> None:
        rng = np.random.default_rng(0)
        self._rate = rate
        self._rgb = rng.integers(0, 256, WIDTH * HEIGHT * 3, np.uint8).tobytes()
        self._depth = rng.integers(500, 5000, WIDTH * HEIGHT).astype("<u2").tobytes()

    def rgb(self, number: int) -> Any:
        return self._image("rgb8", 3, self._rgb, number)

    def depth(self, number: int) -> Any:
        return self._image("16UC1", 2, self._depth, number)

    def _image(self, encoding: str, pixel_bytes: int, pixels: bytes, number: int) -> Any:
        image = Image(height=HEIGHT, width=WIDTH, encoding=encoding, step=WIDTH * pixel_bytes)
        data = array("B", pixels)
        data[:4] = array("B", number.to_bytes(4, "little"))
        image.data = data
        image.header.frame_id = "camera"
        since_start = round(number * 1e9 / self._rate)
        image.header.stamp.sec = START_SEC + since_start // 10**9
        image.header.stamp.nanosec = since_start % 10**9
        return image


class Trial:
    """A node that runs, and who watches it."""

    def __init__(self, robot: Any, ear: Ear, process: subprocess.Popen[bytes]) -> None:
        self.robot = robot
        """For publishers of the images."""
        self.ear = ear
        self.process = process

    def await_matching(self, *publishers: Any) -> None:
        """Wait until the node hears the publishers, and its masks are heard."""
        wait(lambda: all(each.get_subscription_count() for each in publishers), "the node's subscriptions")
        wait(lambda: "mask" in self.ear.diagnostics.get("subscribed outputs", ""), "the node's masks")

    def settled(self, published: int) -> bool:
        """Wait until the node has done with all it got; whether it got all."""
        ear = self.ear
        with suppress(TimeoutError):
            wait(lambda: ear.count("received") == published and ear.count("pending") == 0, "the node")
            return True
        return False

    def end(self) -> tuple[int, float]:
        """End the node as a user does; returns its exit code and the seconds that it took."""
        begin = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(_PATIENCE), time.monotonic() - begin


@contextmanager
def trial(parameters: Mapping[str, object], log: Path, stand_in: Mapping[str, float]) -> Iterator[Trial]:
    """Run the node in a ROS graph of its own; killed at the end, if it still runs.

    Args:
        parameters: of the node.
        log: file for what it prints.
        stand_in: variables for `node_standin`.
    """
    command = [sys.executable, str(_HERE / "node_standin.py"), "--ros-args"]
    for name, value in {"checkpoint": "none", "diagnostics_period": 0.5, **parameters}.items():
        command += ["-p", f"{name}:={value}"]
    with isolated_environment() as environment:
        os.environ.update(environment)
        rclpy.init()
        robot = rclpy.create_node("robot")
        ear = Ear(robot)
        executor = SingleThreadedExecutor()
        executor.add_node(robot)
        listening = threading.Thread(target=_spin, args=(executor,), daemon=True)
        listening.start()
        with log.open("w") as output:
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **{name: str(value) for name, value in stand_in.items()}},
            )
        try:
            yield Trial(robot, ear, process)
        finally:
            process.kill()
            process.wait()
            executor.shutdown()
            listening.join()
            rclpy.shutdown()


def wait(condition: Callable[[], object], what: str) -> None:
    """Wait until it holds.

    Raises:
        TimeoutError: it did not within a minute.
    """
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_PATIENCE:g} s in vain for {what}")
        time.sleep(0.05)


def _spin(executor: SingleThreadedExecutor) -> None:
    with suppress(ExternalShutdownException):
        executor.spin()
