# SPDX-License-Identifier: Apache-2.0
"""Soak test of the node: a camera at 30 Hz with one fault after another, and an account of every image.

    python bench/node_soak.py --seconds 1800 --seed 1 --out soak.json

The node runs in a process of its own with a model that costs nothing. Images bear numbers, which the model copies into
the masks. Exit code 0 says that the colour images published are the masks received plus those that the node says it
skipped or dropped, that no image was masked twice or out of order, that memory and open files did not grow beyond the
limits below, and that the node ended in good order.

Memory is what the node holds alone, judged after the middleware has grown its queues to their full length: before the
first fault the model stalls, and so does all of Python, while as many images come as the queues hold. Shared memory is
Fast DDS's, whose size the profile fixes; it is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import node_usage
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from m3l_ros.faults import Fault, FaultInjector
from m3l_ros.faulty_camera import FaultyCamera, Offer
from m3l_ros.isolation import isolated_environment

RATE = 30.0
WIDTH, HEIGHT = 640, 480
START_SEC = 1_700_000_000
SAMPLE_PERIOD = 5.0
SETTLE = 60.0
INPUT_DEPTH = 100
STALL = 3.0
STALL_IMAGES = INPUT_DEPTH - 5
STALL_RATE = 40.0
MOST_BEHIND = 0.5  # what a busy machine may take; after more, the run goes on later rather than faster
EXIT_WITHIN = 2.0

MEMORY_LIMIT = 32.0
"""MiB that the node may hold at the end more than when a fifth of the run was over: what was freed is not all in one
piece, and a burst that finds no room takes more."""
MEMORY_SLOPE_LIMIT = 0.1
"""MiB/min by which it may grow in the second half of a run of ten minutes or more, as the median over all pairs of
samples: a leak moves it, one such burst does not."""
FILES_LIMIT, THREADS_LIMIT = 8, 2
"""Open files, and threads, that it may have more than when a fifth of the run was over."""

OUTSIDE_THE_ORDER = (Fault.NO_STAMP, Fault.FAR_STAMP)
"""Their images leave the node at once, before older ones that wait for depth."""

HERE = Path(__file__).resolve().parent


class Ear:
    """Hears masks and diagnostics."""

    def __init__(self, node: Any) -> None:
        self.numbers: list[int] = []
        self.diagnostics: dict[str, str] = {}
        self.verdicts: set[str] = set()
        qos = QoSProfile(depth=200, reliability=ReliabilityPolicy.RELIABLE)
        node.create_subscription(Image, "segmentation/mask", self._on_mask, qos)
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)

    def _on_mask(self, mask: Any) -> None:
        self.numbers.append(int.from_bytes(bytes(mask.data[:4]), "little"))

    def _on_diagnostics(self, message: Any) -> None:
        self.diagnostics = {pair.key: pair.value for pair in message.status[0].values}
        self.verdicts.add(message.status[0].message)

    def count(self, name: str) -> int:
        """A counter of the diagnostics."""
        return int(self.diagnostics.get(name, -1))


class Scene:
    """Numbered images, noisy enough for depth not to look frozen."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
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
        since_start = round(number * 1e9 / RATE)
        image.header.stamp.sec = START_SEC + since_start // 10**9
        image.header.stamp.nanosec = since_start % 10**9
        return image


class NumberingInjector(FaultInjector):
    """Remembers which numbers left the order on purpose."""

    def __init__(self, seed: int, report: Callable[[str], None]) -> None:
        super().__init__(seed, report)
        self.out_of_order: set[int] = set()

    def add(self, stream: Any, message: Any, at: float) -> list[Any]:
        deliveries = super().add(stream, message, at)
        if any(delivery.fault in OUTSIDE_THE_ORDER for delivery in deliveries):
            self.out_of_order.add(int.from_bytes(bytes(message.data[:4]), "little"))
        return deliveries


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("soak.json"))
    args = parser.parse_args()
    with isolated_environment() as environment:
        os.environ.update(environment)
        report = soak(args.seconds, args.seed, args.out.with_suffix(".log"))
    args.out.write_text(json.dumps(report, indent=2))
    print(json.dumps({key: value for key, value in report.items() if key != "samples"}, indent=2))
    return 0 if report["passed"] else 1


def soak(seconds: float, seed: int, log: Path) -> dict[str, Any]:
    """Run it; returns the account."""
    rclpy.init()
    robot = rclpy.create_node("soak")
    ear = Ear(robot)
    executor = SingleThreadedExecutor()
    executor.add_node(robot)
    listening = threading.Thread(target=_spin, args=(executor,), daemon=True)
    listening.start()
    command = [sys.executable, str(HERE / "node_standin.py"), "--ros-args"]
    for name, value in (("checkpoint", "none"), ("input_depth", INPUT_DEPTH), ("diagnostics_period", 0.5)):
        command += ["-p", f"{name}:={value}"]
    environment = {**os.environ, "STANDIN_STALL": str(STALL)}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
    try:
        qos = QoSProfile(depth=INPUT_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        offers: Any = {"rgb": Offer("rgb/image", Image, qos), "depth": Offer("depth/image", Image, qos)}
        injector = NumberingInjector(seed, lambda line: print(line, flush=True))
        camera = FaultyCamera(robot, offers, injector)
        _wait(lambda: camera.publisher("rgb").get_subscription_count() > 0, "the node to subscribe")
        _wait(lambda: "mask" in ear.diagnostics.get("subscribed outputs", ""), "the node's masks")
        scene = Scene()
        _fill_queues(camera, scene)
        if not _settled(ear, STALL_IMAGES):
            raise SystemExit("the node does not go on after the stall")
        samples = _publish(camera, scene, process.pid, seconds)
        published = STALL_IMAGES + camera.published["rgb"]
        camera.close()
        settled = _settled(ear, published)
        begin = time.monotonic()
        process.send_signal(signal.SIGINT)
        exit_code: int | None = process.wait(30)
        exit_seconds = time.monotonic() - begin
    finally:
        process.kill()
        executor.shutdown()
        listening.join()
        rclpy.shutdown()
    numbers = [number for number in ear.numbers if number not in injector.out_of_order]
    late, half = (node_usage.growth(samples[len(samples) // share :]) for share in (5, 2))
    checks = {
        "received all": ear.count("received") == published,
        "books balance": published == len(ear.numbers) + ear.count("skipped") + ear.count("dropped"),
        "masks heard are the masks counted": len(ear.numbers) == ear.count("masks"),
        "none twice": len(set(ear.numbers)) == len(ear.numbers),
        "none out of order": numbers == sorted(numbers),
        "memory": late.memory <= MEMORY_LIMIT and (seconds < 600 or half.memory_slope <= MEMORY_SLOPE_LIMIT),
        "open files": late.files <= FILES_LIMIT,
        "threads": late.threads <= THREADS_LIMIT,
        "clean exit": exit_code == 0 and exit_seconds < EXIT_WITHIN and "Traceback" not in log.read_text(),
        "every fault injected": seconds < 120 or set(injector.injected) == set(Fault),
    }
    return {
        "passed": settled and all(checks.values()),
        "checks": checks,
        "seconds": seconds,
        "seed": seed,
        "published": published,
        "masks": len(ear.numbers),
        "skipped": ear.count("skipped"),
        "dropped": ear.count("dropped"),
        "faults": {fault.name: count for fault, count in injector.injected.items()},
        "exit": {"code": exit_code, "seconds": round(exit_seconds, 2)},
        "growth since a fifth of the run": late._asdict(),
        "growth of the second half, slopes per min": half._asdict(),
        "at the end": samples[-1]._asdict(),
        "limits": {
            "memory": MEMORY_LIMIT,
            "memory_slope": MEMORY_SLOPE_LIMIT,
            "files": FILES_LIMIT,
            "threads": THREADS_LIMIT,
        },
        "diagnostics": ear.diagnostics,
        "samples": samples,
    }


def _fill_queues(camera: FaultyCamera, scene: Scene) -> None:
    """Publish sound images while the node stalls."""
    for number in range(STALL_IMAGES):
        camera.publisher("depth").publish(scene.depth(number))
        camera.publisher("rgb").publish(scene.rgb(number))
        time.sleep(1 / STALL_RATE)


def _publish(camera: FaultyCamera, scene: Scene, pid: int, seconds: float) -> list[node_usage.Sample]:
    samples = []
    begin = time.monotonic()
    sampled = -SAMPLE_PERIOD
    for index in range(round(seconds * RATE)):
        at, number = index / RATE, STALL_IMAGES + index
        begin = max(begin, time.monotonic() - at - MOST_BEHIND)
        while (due := camera.next_due()) is not None and due <= at:
            time.sleep(max(begin + due - time.monotonic(), 0.0))
            camera.deliver(due)
        time.sleep(max(begin + at - time.monotonic(), 0.0))
        camera.add("depth", scene.depth(number), at)
        camera.add("rgb", scene.rgb(number), at)
        camera.deliver(at)
        if at - sampled >= SAMPLE_PERIOD:
            sampled = at
            samples.append(node_usage.take(pid, at / 60))
    camera.deliver(float("inf"))
    return samples


def _settled(ear: Ear, published: int) -> bool:
    """Wait until the node has done with all it got."""
    deadline = time.monotonic() + SETTLE
    while time.monotonic() < deadline:
        if ear.count("received") == published and ear.count("pending") == 0:
            return True
        time.sleep(0.1)
    return False


def _wait(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + SETTLE
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"waited {SETTLE:g} s in vain for {what}")
        time.sleep(0.05)


def _spin(executor: SingleThreadedExecutor) -> None:
    with suppress(ExternalShutdownException):
        executor.spin()


if __name__ == "__main__":
    sys.exit(main())
