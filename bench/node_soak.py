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
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import node_usage
from node_trial import Scene, trial
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from m3l_ros.faults import Fault, FaultInjector
from m3l_ros.faulty_camera import FaultyCamera, Offer

RATE = 30.0
SAMPLE_PERIOD = 5.0
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
    report = soak(args.seconds, args.seed, args.out.with_suffix(".log"))
    args.out.write_text(json.dumps(report, indent=2))
    print(json.dumps({key: value for key, value in report.items() if key != "samples"}, indent=2))
    return 0 if report["passed"] else 1


def soak(seconds: float, seed: int, log: Path) -> dict[str, Any]:
    """Run it; returns the account."""
    with trial({"input_depth": INPUT_DEPTH}, log, {"STANDIN_STALL": STALL}) as node:
        qos = QoSProfile(depth=INPUT_DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        offers: Any = {"rgb": Offer("rgb/image", Image, qos), "depth": Offer("depth/image", Image, qos)}
        injector = NumberingInjector(seed, lambda line: print(line, flush=True))
        camera = FaultyCamera(node.robot, offers, injector)
        node.await_matching(camera.publisher("rgb"), camera.publisher("depth"))
        scene = Scene(RATE)
        _fill_queues(camera, scene)
        if not node.settled(STALL_IMAGES):
            raise SystemExit("the node does not go on after the stall")
        samples = _publish(camera, scene, node.process.pid, seconds)
        published = STALL_IMAGES + camera.published["rgb"]
        camera.close()
        settled = node.settled(published)
        exit_code, exit_seconds = node.end()
        ear = node.ear
    numbers = [mask.number for mask in ear.masks]
    in_order = [number for number in numbers if number not in injector.out_of_order]
    late, half = (node_usage.growth(samples[len(samples) // share :]) for share in (5, 2))
    checks = {
        "received all": ear.count("received") == published,
        "books balance": published == len(numbers) + ear.count("skipped") + ear.count("dropped"),
        "masks heard are the masks counted": len(numbers) == ear.count("masks"),
        "none twice": len(set(numbers)) == len(numbers),
        "none out of order": in_order == sorted(in_order),
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
        "masks": len(numbers),
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


if __name__ == "__main__":
    sys.exit(main())
