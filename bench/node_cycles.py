# SPDX-License-Identifier: Apache-2.0
"""Takes the node through its lifecycle again and again, and watches its memory, open files and threads.

    python bench/node_cycles.py --cycles 100 --out cycles.json

Each cycle asks for a configuration that fails, then for configure, activate, deactivate and cleanup; every tenth one
has an image segmented too. Exit code 0 says that every answer was as it should be and that nothing grew beyond the
limits.
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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image

from m3l_ros.isolation import isolated_environment

TIMEOUT = 240.0
WARM_UP = 0.3
"""Share of the cycles after which nothing may grow."""
MEMORY_LIMIT = 64.0
"""MiB by which it may vary all the same."""
MEMORY_SLOPE_LIMIT = 0.1
"""MiB a cycle, judged where there are fifty or more."""
GROWTH_LIMIT = 2
"""Open files, and threads."""


class Manager:
    """Asks for transitions, as a lifecycle manager does."""

    def __init__(self) -> None:
        self._node = rclpy.create_node("manager")
        self._change = self._node.create_client(ChangeState, "segmentation_node/change_state")
        self._set = self._node.create_client(SetParameters, "segmentation_node/set_parameters")
        self._rgb = self._node.create_publisher(Image, "rgb/image", 5)
        self.masks: list[Any] = []
        self._node.create_subscription(Image, "segmentation/mask", self.masks.append, 5)
        for client in (self._change, self._set):
            if not client.wait_for_service(TIMEOUT):
                raise SystemExit("the node does not answer")

    def change(self, transition: int) -> bool:
        """Whether the transition was done."""
        request = ChangeState.Request(transition=Transition(id=transition))
        return bool(self._call(self._change, request).success)

    def set_device(self, device: str) -> None:
        """Set the node's parameter."""
        request = SetParameters.Request(parameters=[Parameter("device", value=device).to_parameter_msg()])
        if not self._call(self._set, request).results[0].successful:
            raise SystemExit("the node refuses the device")

    def segment(self, index: int) -> bool:
        """Whether an image gets its mask."""
        image = Image(height=48, width=64, encoding="rgb8", step=192, data=array("B", bytes(48 * 192)))
        image.header.stamp.sec = 1000 + index
        self.wait(lambda: self._rgb.get_subscription_count() > 0)
        self.wait(lambda: self._node.count_publishers("segmentation/mask") > 0)
        before, deadline = len(self.masks), time.monotonic() + TIMEOUT
        while len(self.masks) == before and time.monotonic() < deadline:
            image.header.stamp.nanosec += (
                1_000_000  # again until the mask's reader and writer have found each other
            )
            self._rgb.publish(image)
            rclpy.spin_once(self._node, timeout_sec=0.2)
        return len(self.masks) > before

    def wait(self, condition: Callable[[], bool]) -> None:
        """Serve what comes until then."""
        deadline = time.monotonic() + TIMEOUT
        while not condition() and time.monotonic() < deadline:
            rclpy.spin_once(self._node, timeout_sec=0.05)

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
        report = cycle(args.cycles, _write_checkpoint(Path(folder)), args.out.with_suffix(".log"))
    args.out.write_text(json.dumps(report, indent=2))
    print(json.dumps({key: value for key, value in report.items() if key != "samples"}, indent=2))
    return 0 if report["passed"] else 1


def cycle(cycles: int, checkpoint: Path, log: Path) -> dict[str, Any]:
    """Run them; returns the account."""
    rclpy.init()
    command = [sys.executable, "-m", "m3l_ros.segmentation_node", "--ros-args", "-p", "autostart:=false"]
    command += ["-p", f"checkpoint:={checkpoint}", "-p", "num_threads:=1"]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    samples, answers = [], []
    try:
        manager = Manager()
        for index in range(cycles):
            manager.set_device("cuda:99")
            answers.append(not manager.change(Transition.TRANSITION_CONFIGURE))
            manager.set_device("cpu")
            answers.append(manager.change(Transition.TRANSITION_CONFIGURE))
            answers.append(manager.change(Transition.TRANSITION_ACTIVATE))
            if index % 10 == 0:
                answers.append(manager.segment(index))
            answers.append(manager.change(Transition.TRANSITION_DEACTIVATE))
            answers.append(manager.change(Transition.TRANSITION_CLEANUP))
            samples.append(_usage(process.pid))
        process.send_signal(signal.SIGINT)
        exit_code: int | None = process.wait(TIMEOUT)
    finally:
        process.kill()
        rclpy.shutdown()
    late = np.array(samples[int(WARM_UP * cycles) :])
    memory_slope = float(np.polyfit(np.arange(len(late)), late[:, 0], 1)[0])
    files, threads = (late[-1, 1:] - late[0, 1:]).tolist()
    return {
        "passed": all(answers)
        and exit_code == 0
        and float(np.ptp(late[:, 0])) <= MEMORY_LIMIT
        and (cycles < 50 or memory_slope <= MEMORY_SLOPE_LIMIT)
        and max(files, threads) <= GROWTH_LIMIT,
        "cycles": cycles,
        "answers": {"right": sum(answers), "wrong": len(answers) - sum(answers)},
        "memory_mib": {"first": samples[0][0], "last": samples[-1][0]},
        "memory_slope_mib_per_cycle": memory_slope,
        "files_growth": files,
        "threads_growth": threads,
        "exit_code": exit_code,
        "samples": samples,
    }


def _usage(pid: int) -> tuple[float, int, int]:
    """Memory, MiB, open files and threads."""
    proc = Path(f"/proc/{pid}")
    pages = int((proc / "statm").read_text().split()[1])
    mib = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    return mib, len(list((proc / "fd").iterdir())), len(list((proc / "task").iterdir()))


def _write_checkpoint(folder: Path) -> Path:
    from m3l_model.checkpoint import save_checkpoint
    from m3l_model.segmenter import LinearFusionSegmenter

    path = folder / "random.safetensors"
    save_checkpoint(path, LinearFusionSegmenter("mit_b0", num_classes=5))
    return path


if __name__ == "__main__":
    sys.exit(main())
