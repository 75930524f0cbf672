# SPDX-License-Identifier: Apache-2.0
"""Takes the node through its lifecycle again and again, and watches its memory, open files and threads.

    python bench/node_cycles.py --cycles 100 --out cycles.json

Each cycle asks for a configuration that fails (no such device, no such file, no checkpoint at all, in turn) and then
for one that does not; active, the node swaps its checkpoint for another, refuses one that is missing, and sets back one
that turns out to lack weights; then it is deactivated and cleaned up. Every tenth cycle has images segmented before and
after the swap. Exit code 0 says that every answer was as it should be and that nothing grew beyond the limits.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import node_usage
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import String

from m3l_ros.isolation import isolated_environment
from m3l_ros.qos import LATCHED_QOS

TIMEOUT = 240.0
WARM_UP = 0.3
"""Share of the cycles after which nothing may grow."""
MEMORY_LIMIT = 16.0
"""MiB that it may hold at the end more than then, all the same: what was freed is not all in one piece."""
MEMORY_SLOPE_LIMIT = 0.1
"""MiB a cycle, the median over all pairs of cycles, judged where there are fifty or more."""
GROWTH_LIMIT = 2
"""Open files, and threads."""

BUSY = "is being loaded"
"""The node says so while it still puts away the checkpoint before."""

CLASSES = (5, 6)
"""Of the first and the second checkpoint."""


class Checkpoints(NamedTuple):
    """Files of the node's parameter ``checkpoint``."""

    first: str
    second: str
    lacking: str
    """What its header says is right, but weights are missing."""
    unreadable: str
    missing: str


class Manager:
    """Asks for transitions and sets parameters, as a lifecycle manager and an operator do."""

    def __init__(self) -> None:
        self._node = rclpy.create_node("manager")
        self._change = self._node.create_client(ChangeState, "segmentation_node/change_state")
        self._set = self._node.create_client(SetParameters, "segmentation_node/set_parameters")
        self._get = self._node.create_client(GetParameters, "segmentation_node/get_parameters")
        self._rgb = self._node.create_publisher(Image, "rgb/image", 5)
        self._masks: list[Any] = []
        self._classes = 0
        self._node.create_subscription(Image, "segmentation/mask", self._masks.append, 5)
        self._node.create_subscription(String, "segmentation/classes", self._on_classes, LATCHED_QOS)
        for client in (self._change, self._set, self._get):
            if not client.wait_for_service(TIMEOUT):
                raise SystemExit("the node does not answer")

    def change(self, transition: int) -> bool:
        """Whether the transition was done."""
        request = ChangeState.Request(transition=Transition(id=transition))
        return bool(self._call(self._change, request).success)

    def set(self, name: str, value: str) -> str:
        """Set a parameter; returns why the node refuses the value, or an empty string."""
        request = SetParameters.Request(parameters=[Parameter(name, value=value).to_parameter_msg()])
        reason = BUSY

        def answered() -> bool:
            nonlocal reason
            reason = self._call(self._set, request).results[0].reason
            return BUSY not in reason

        self._wait(answered)
        return reason

    def has_checkpoint(self, checkpoint: str) -> bool:
        """Whether the parameter has that value, or gets it again."""

        def has() -> bool:
            values = self._call(self._get, GetParameters.Request(names=["checkpoint"])).values
            return bool(values[0].string_value == checkpoint)

        return self._wait(has)

    def has_classes(self, count: int) -> bool:
        """Whether the node publishes so many classes, at last."""
        return self._wait(lambda: self._classes == count)

    def segment(self, index: int) -> bool:
        """Whether an image gets its mask."""
        image = Image(height=48, width=64, encoding="rgb8", step=192, data=array("B", bytes(48 * 192)))
        image.header.stamp.sec = 1000 + index
        self._masks.clear()

        def masked() -> bool:
            # Again until the mask's reader and writer have found each other.
            image.header.stamp.nanosec += 1_000_000
            self._rgb.publish(image)
            rclpy.spin_once(self._node, timeout_sec=0.2)
            return bool(self._masks)

        return self._wait(lambda: self._rgb.get_subscription_count() > 0) and self._wait(masked)

    def _on_classes(self, message: Any) -> None:
        self._classes = len(json.loads(message.data)["classes"])

    def _wait(self, condition: Callable[[], bool]) -> bool:
        """Serve what comes until it holds; whether it did in time."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            if time.monotonic() > deadline:
                return False
            rclpy.spin_once(self._node, timeout_sec=0.05)
        return True

    def _call(self, client: Any, request: Any) -> Any:
        future = client.call_async(request)
        rclpy.spin_until_future_complete(self._node, future, timeout_sec=TIMEOUT)
        return future.result()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cycles", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path("cycles.json"))
    args = parser.parse_args()
    with isolated_environment() as environment, tempfile.TemporaryDirectory() as folder:
        os.environ.update(environment)
        report = cycle(args.cycles, _write_checkpoints(Path(folder)), args.out.with_suffix(".log"))
    args.out.write_text(json.dumps(report, indent=2))
    print(json.dumps({key: value for key, value in report.items() if key != "samples"}, indent=2))
    return 0 if report["passed"] else 1


def cycle(cycles: int, checkpoints: Checkpoints, log: Path) -> dict[str, Any]:
    """Run them; returns the account."""
    rclpy.init()
    command = [sys.executable, "-m", "m3l_ros.segmentation_node", "--ros-args", "-p", "autostart:=false"]
    command += ["-p", "num_threads:=1"]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    samples = []
    wrong: list[str] = []
    answers = 0
    try:
        manager = Manager()
        for index in range(cycles):
            for what, right in _steps(manager, checkpoints, index):
                answers += 1
                if not right:
                    wrong.append(f"cycle {index}: {what}")
            samples.append(node_usage.take(process.pid, index))
        process.send_signal(signal.SIGINT)
        exit_code: int | None = process.wait(TIMEOUT)
    finally:
        process.kill()
        rclpy.shutdown()
    growth = node_usage.growth(samples[int(WARM_UP * cycles) :])
    return {
        "passed": not wrong
        and exit_code == 0
        and growth.memory <= MEMORY_LIMIT
        and (cycles < 50 or growth.memory_slope <= MEMORY_SLOPE_LIMIT)
        and max(growth.files, growth.threads) <= GROWTH_LIMIT,
        "cycles": cycles,
        "answers": answers,
        "wrong": wrong,
        "first": samples[0]._asdict(),
        "last": samples[-1]._asdict(),
        "growth after the first three tenths, slopes per cycle": growth._asdict(),
        "limits": {
            "memory": MEMORY_LIMIT,
            "memory_slope": MEMORY_SLOPE_LIMIT,
            "files and threads": GROWTH_LIMIT,
        },
        "exit_code": exit_code,
        "samples": samples,
    }


def _steps(manager: Manager, checkpoints: Checkpoints, index: int) -> Iterator[tuple[str, bool]]:
    """What is asked of the node in one cycle, and whether it answers as it should."""
    first, second = checkpoints.first, checkpoints.second
    first_classes, second_classes = CLASSES
    segments = index % 10 == 0

    device, checkpoint = (("cuda:99", first), ("cpu", checkpoints.missing), ("cpu", checkpoints.unreadable))[
        index % 3
    ]
    yield "device", not manager.set("device", device)
    yield "checkpoint", not manager.set("checkpoint", checkpoint)
    yield f"configure on {device} with {checkpoint}", not manager.change(Transition.TRANSITION_CONFIGURE)

    yield "device", not manager.set("device", "cpu")
    yield "checkpoint", not manager.set("checkpoint", first)
    yield "configure", manager.change(Transition.TRANSITION_CONFIGURE)
    yield "activate", manager.change(Transition.TRANSITION_ACTIVATE)
    yield "classes of the first", manager.has_classes(first_classes)
    if segments:
        yield "mask of the first", manager.segment(2 * index)

    yield "swap", not manager.set("checkpoint", second)
    yield "classes of the second", manager.has_classes(second_classes)
    yield "missing checkpoint", checkpoints.missing in manager.set("checkpoint", checkpoints.missing)
    yield "lacking checkpoint", not manager.set("checkpoint", checkpoints.lacking)
    yield "lacking checkpoint set back", manager.has_checkpoint(second)
    if segments:
        yield "mask of the second", manager.segment(2 * index + 1)

    yield "deactivate", manager.change(Transition.TRANSITION_DEACTIVATE)
    yield "cleanup", manager.change(Transition.TRANSITION_CLEANUP)


def _write_checkpoints(folder: Path) -> Checkpoints:
    from safetensors import safe_open
    from safetensors.torch import save_file

    from m3l_model.checkpoint import save_checkpoint
    from m3l_model.segmenter import LinearFusionSegmenter

    paths = Checkpoints(*(str(folder / f"{name}.safetensors") for name in Checkpoints._fields))
    for path, classes in zip((paths.first, paths.second), CLASSES, strict=True):
        save_checkpoint(Path(path), LinearFusionSegmenter("mit_b0", num_classes=classes))
    with safe_open(paths.first, "pt") as whole:
        names = list(whole.keys())[1:]
        save_file({name: whole.get_tensor(name) for name in names}, paths.lacking, whole.metadata())
    Path(paths.unreadable).write_bytes(b"no model")
    return paths


if __name__ == "__main__":
    sys.exit(main())
