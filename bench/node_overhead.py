# SPDX-License-Identifier: Apache-2.0
"""What the segmentation node costs beside the model, and beside the node that one usually writes.

    PYTHONPATH=.../message_filters/src python bench/node_overhead.py --size 640x480 --blocks 8 --out overhead.json

Camera, both nodes and the listener are processes of their own. The camera publishes depth and then colour at 30 Hz to
one node for a block, then to the other, and so on. Reported are medians over blocks, and the median of the paired
ratios: latency from before the publication of a colour image to the receipt of its mask, less the model's time, and CPU
time per frame, split into transport and own code (see node_meter.py).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image

from m3l_ros.isolation import isolated_environment
from m3l_ros.transport import PROFILE_VARIABLES

HERE = Path(__file__).resolve().parent
NODES = {
    "ours": ("node_ours.py", "-p", "checkpoint:=none"),
    "usual": ("node_usual.py",),
    "usual_multi_threaded": ("node_usual.py", "-p", "multi_threaded:=true"),
}
START_TIMEOUT = 60.0
LAST_MASKS = 0.5


class Listener:
    """Notes when each mask came, by namespace and stamp."""

    def __init__(self) -> None:
        self._node = rclpy.create_node("listener")
        self.heard: dict[str, dict[int, int]] = {name: {} for name in NODES}
        for name in NODES:
            topic, on_mask = f"/{name}/segmentation/mask", partial(self._on_mask, name)
            self._node.create_subscription(Image, topic, on_mask, QoSProfile(depth=50))
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self._node)
        threading.Thread(target=self._spin, daemon=True).start()

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self._executor.spin()

    def _on_mask(self, name: str, mask: Any) -> None:
        at = time.monotonic_ns()
        self.heard[name][mask.header.stamp.sec * 10**9 + mask.header.stamp.nanosec] = at


class Process:
    """A program that answers each line with one of JSON.

    Args:
        command: its file and arguments.
        profile: whether it has the shared-memory profile, or Fast DDS as it comes.
    """

    def __init__(self, *command: str, profile: bool) -> None:
        self._process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=HERE,
            env=dict(os.environ) if profile else without_profile(os.environ),
        )

    def ask(self, line: str = "") -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def expect(self, line: str) -> None:
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != line:
            raise SystemExit("the camera did not start")

    def cpu_seconds(self) -> float:
        """CPU time of all its threads so far."""
        tasks = Path(f"/proc/{self._process.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def without_profile(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment, with Fast DDS as it comes, and named so that the nodes leave it at that."""
    kept = {name: value for name, value in environ.items() if name not in PROFILE_VARIABLES}
    return {**kept, "FASTDDS_BUILTIN_TRANSPORTS": "DEFAULT"}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--nodes", nargs="+", choices=list(NODES), default=list(NODES))
    parser.add_argument("--frames", type=int, default=150, help="of a block (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=6, help="for each node (default: %(default)s)")
    parser.add_argument("--best-effort", action="store_true", help="camera and nodes (default: reliable)")
    parser.add_argument(
        "--profile",
        choices=("all", "camera", "nodes", "none"),
        default="all",
        help="who has the shared-memory profile; the listener with all only (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with isolated_environment() as environment:
        os.environ.update(environment)
        report = measure(args)
    if args.out:
        args.out.write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the blocks; returns the figures."""
    qos = "best_effort" if args.best_effort else "reliable"
    arguments = ("--ros-args", "-p", f"input_qos:={qos}")
    nodes = {
        name: Process(
            program, *arguments, "-r", f"__ns:=/{name}", *extra, profile=args.profile in ("all", "nodes")
        )
        for name, (program, *extra) in NODES.items()
        if name in args.nodes
    }
    camera_arguments = [*nodes, "--size", args.size, *(["--best-effort"] if args.best_effort else [])]
    camera = Process("node_camera.py", *camera_arguments, profile=args.profile in ("all", "camera"))
    if args.profile != "all":
        for name in PROFILE_VARIABLES:
            os.environ.pop(name, None)
    rclpy.init()
    listener = Listener()
    try:
        camera.expect("ready")
        for name in nodes:
            camera.ask(f"{name} 60")
        blocks: dict[str, list[dict[str, float]]] = {name: [] for name in nodes}
        for _ in range(args.blocks):
            for name, node in nodes.items():
                blocks[name].append(_block(camera, node, listener.heard[name], name, args.frames))
    finally:
        for process in (camera, *nodes.values()):
            process.kill()
        rclpy.shutdown()
    medians = {
        name: {key: round(float(np.median([block[key] for block in of])), 3) for key in of[0]}
        for name, of in blocks.items()
    }
    report: dict[str, Any] = {"size": args.size, "qos": qos, "profile": args.profile, **medians}
    for name, of in blocks.items():
        if name != "ours" and "ours" in blocks:
            report[f"ours/{name}"] = {
                key: round(
                    float(np.median([a[key] / b[key] for a, b in zip(blocks["ours"], of, strict=True)])), 3
                )
                for key in ("cpu_ms", "own_ms", "transport_ms")
            }
    return report


def _block(camera: Process, node: Process, heard: dict[int, int], name: str, frames: int) -> dict[str, float]:
    before, cpu = node.ask(), node.cpu_seconds()
    published = camera.ask(f"{name} {frames}")
    time.sleep(LAST_MASKS)
    after, cpu = node.ask(), node.cpu_seconds() - cpu
    latencies = [(heard[stamp] - at) / 1e6 for stamp, at in published if stamp in heard]
    masks = max(len(latencies), 1)
    model = (after["model"] - before["model"]) * 1e3 / masks
    own = (after["own"] - before["own"]) * 1e3 / masks
    p50, p95 = np.percentile(latencies, [50, 95]) - model if latencies else (float("nan"),) * 2
    total = cpu * 1e3 / masks
    return {
        "masks": len(latencies) / frames,
        "p50_ms": float(p50),
        "p95_ms": float(p95),
        "model_ms": model,
        "cpu_ms": total,
        "own_ms": own,
        "transport_ms": total - own - model,
    }


if __name__ == "__main__":
    sys.exit(main())
