# SPDX-License-Identifier: Apache-2.0
"""A camera for `bench/node_overhead.py`: for every line NAMESPACE IMAGES it publishes so many, and prints when."""

from __future__ import annotations

import argparse
import json
import sys
import time
from array import array

import numpy as np
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image


class Camera:
    """Publishes depth, then colour, at a rate, to each of several namespaces in turn."""

    def __init__(self, namespaces: list[str], width: int, height: int, rate: float, reliable: bool) -> None:
        self._node = rclpy.create_node("camera")
        self._period = 1 / rate
        qos = QoSProfile(
            depth=5, reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        )
        self._publishers = {
            namespace: [
                self._node.create_publisher(Image, f"/{namespace}/{topic}/image", qos)
                for topic in ("depth", "rgb")
            ]
            for namespace in namespaces
        }
        rng = np.random.default_rng(0)
        self._images = [
            Image(
                height=height,
                width=width,
                encoding=encoding,
                step=width * pixel,
                data=array("B", rng.integers(1, 255, height * width * pixel, np.uint8).tobytes()),
            )
            for encoding, pixel in (("16UC1", 2), ("rgb8", 3))
        ]
        self._index = 1

    def publish(self, namespace: str, count: int) -> list[tuple[int, int]]:
        """Returns the index, which is the stamp's second, and the steady time, ns, of each colour image."""
        depth, rgb = self._publishers[namespace]
        while not (depth.get_subscription_count() and rgb.get_subscription_count()):
            time.sleep(0.05)
        times = []
        due = time.monotonic()
        for _ in range(count):
            due += self._period
            time.sleep(max(due - time.monotonic(), 0.0))
            for image in self._images:
                image.header.stamp.sec, image.header.stamp.nanosec = divmod(self._stamp_ns(), 10**9)
                image.header.frame_id = "camera"
            self._images[0].data[0] = self._index % 256
            self._images[0].data[2] = self._index // 256 % 256
            depth.publish(self._images[0])
            at = time.monotonic_ns()
            rgb.publish(self._images[1])
            times.append((self._stamp_ns(), at))
            self._index += 1
        return times

    def _stamp_ns(self) -> int:
        return round(self._index * self._period * 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("namespaces", nargs="+")
    parser.add_argument("--size", default="640x480")
    parser.add_argument("--rate", type=float, default=30.0)
    parser.add_argument("--best-effort", action="store_true")
    args = parser.parse_args()
    rclpy.init()
    width, height = map(int, args.size.split("x"))
    camera = Camera(args.namespaces, width, height, args.rate, not args.best_effort)
    print("ready", flush=True)
    for line in sys.stdin:
        namespace, count = line.split()
        print(json.dumps(camera.publish(namespace, int(count))), flush=True)


if __name__ == "__main__":
    main()
