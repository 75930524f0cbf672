# SPDX-License-Identifier: Apache-2.0
"""The node that one usually writes, as well as it can be written, for `bench/node_overhead.py`.

message_filters' ApproximateTimeSynchronizer, all work in its callback: convert, infer, publish. Converter, QoS,
profile and model are ours; ``data`` is set by array.array. Its executor is the single-threaded one, which serves our
images too, or with ``-p multi_threaded:=true`` the multi-threaded one. message_filters must be on the path:
PYTHONPATH=.../message_filters/src where ROS is not installed.
"""

from __future__ import annotations

import os
from array import array
from typing import Any

import rclpy
from message_filters import ApproximateTimeSynchronizer, Subscriber
from node_meter import Meter
from node_standin import StandIn
from rclpy.executors import MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from m3l_model.images import to_depth
from m3l_ros.providers import to_rgb
from m3l_ros.qos import MASK_QOS
from m3l_ros.transport import fastdds_environment

SLOP, QUEUE_SIZE, INPUT_DEPTH, THREADS = 0.02, 30, 5, 4


class UsualNode(Node):
    """Publishes a mask for every pair of colour and depth."""

    def __init__(self, meter: Meter) -> None:
        super().__init__("usual_node")
        self._meter = meter
        self._model = StandIn(0.0)
        self._publisher = self.create_publisher(Image, "segmentation/mask", MASK_QOS)
        reliable = self.declare_parameter("input_qos", "reliable").value == "reliable"
        qos = QoSProfile(
            depth=INPUT_DEPTH,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        )
        filters = [Subscriber(self, Image, topic, qos_profile=qos) for topic in ("rgb/image", "depth/image")]
        self._synchronizer = ApproximateTimeSynchronizer(filters, QUEUE_SIZE, SLOP)
        self._synchronizer.registerCallback(self._on_pair)

    def _on_pair(self, rgb: Any, depth: Any) -> None:
        pixels, metres = to_rgb(rgb), to_depth(depth)
        with self._meter.modelling():
            labels = self._model.predict(pixels, metres, with_confidence=False).labels
        data = array("B")
        data.frombytes(labels.data)
        height, width = labels.shape
        self._publisher.publish(
            Image(header=rgb.header, height=height, width=width, encoding="mono8", step=width, data=data)
        )


def main() -> None:
    os.environ.update(fastdds_environment(os.environ))
    meter = Meter()
    meter.install()
    meter.answer()
    rclpy.init()
    node = UsualNode(meter)
    multi_threaded = node.declare_parameter("multi_threaded", False).value
    executor = MultiThreadedExecutor(THREADS) if multi_threaded else SingleThreadedExecutor()
    executor.add_node(node)
    executor.spin()


if __name__ == "__main__":
    main()
