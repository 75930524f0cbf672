# SPDX-License-Identifier: Apache-2.0
"""The demo's live part: the node and the bag player as processes of their own, and an observer that counts."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import rclpy
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import Image

from m3l_model.bag_topics import Topics
from m3l_model.errors import M3LError
from m3l_model.images import to_labels
from m3l_ros.isolation import isolated_process
from m3l_ros.processes import run_process
from m3l_ros.stamps import to_ns

START_TIMEOUT = 90.0
SILENCE_TIMEOUT = 15.0
SURPLUS_TIME = 1.0
QOS = QoSProfile(reliability=ReliabilityPolicy.RELIABLE, history=HistoryPolicy.KEEP_LAST, depth=50)


@dataclass
class Observation:
    """What came over DDS, in order of arrival; times are of the steady clock, in seconds.

    Attributes:
        colour: arrival of each colour image by stamp.
        masks: (stamp, arrival, (H, W) uint8) of every mask.
    """

    colour: dict[int, float] = field(default_factory=dict)
    masks: list[tuple[int, float, npt.NDArray[np.uint8]]] = field(default_factory=list)

    def masks_of(self, stamps: set[int]) -> Counter[int]:
        """Count the masks of each of these stamps."""
        return Counter(stamp for stamp, _, _ in self.masks if stamp in stamps)


def run_live(
    checkpoint: Path, bag: Path, topics: Topics, drop_depth: tuple[float, float], frames: int, logs: Path
) -> Observation:
    """Start the node, replay the bag to it with depth switched off for a while, and watch from outside.

    Args:
        checkpoint: the model the node runs.
        bag: what is replayed, at its own rate.
        topics: of the bag.
        drop_depth: start and end of the outage in seconds from the bag's start.
        frames: colour images in the bag.
        logs: folder for what node and player print.

    Raises:
        M3LError: a process fails, or hangs; the message names its log.
    """
    assert topics.depth is not None
    node_command = [sys.executable, "-m", "m3l_ros.segmentation_node", "--ros-args"]
    for name, value in (("checkpoint", str(checkpoint)), ("overload", "queue"), ("input_depth", "50")):
        node_command += ["-p", f"{name}:={value}"]
    for name, topic in (("rgb/image", topics.rgb), ("depth/image", topics.depth)):
        node_command += ["-r", f"{name}:={topic}"]
    start, end = drop_depth
    replay_command = [sys.executable, "-m", "m3l_model", "replay", str(bag), "--drop-depth", f"{start}:{end}"]
    replay_command += ["--wait-for-subscribers", f"{START_TIMEOUT}", "--topics", topics.rgb, topics.depth]

    with (
        isolated_process(),
        _observe(topics.rgb) as (node, seen),
        run_process(node_command, logs / "node.log") as segmentation,
    ):
        _wait_until_active(node, segmentation, logs / "node.log")
        with run_process(replay_command, logs / "replay.log") as replay:
            _wait_for_masks(seen, frames, segmentation, replay, logs)
    return seen


@contextmanager
def _observe(rgb_topic: str) -> Iterator[tuple[Node, Observation]]:
    """Subscribe to colour and masks in a thread of its own.

    Depth is left to the node, so that the player, which waits for subscribers of both topics, waits for the node.
    """
    seen = Observation()

    def on_colour(msg: Image) -> None:
        seen.colour.setdefault(to_ns(msg.header.stamp), time.monotonic())

    def on_mask(msg: Image) -> None:
        seen.masks.append((to_ns(msg.header.stamp), time.monotonic(), to_labels(msg).copy()))

    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = Node("observer")
        node.create_subscription(Image, rgb_topic, on_colour, QOS)
        node.create_subscription(Image, "segmentation/mask", on_mask, QOS)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        thread = threading.Thread(target=_spin, args=(executor,), name="observer", daemon=True)
        thread.start()
        try:
            yield node, seen
        finally:
            executor.shutdown()
            thread.join()
            node.destroy_node()
    finally:
        rclpy.shutdown()


def _spin(executor: SingleThreadedExecutor) -> None:
    try:
        executor.spin()
    except ExternalShutdownException:
        return


def _wait_until_active(node: Node, process: subprocess.Popen[bytes], log: Path) -> None:
    client = node.create_client(GetState, "segmentation_node/get_state")
    deadline = time.monotonic() + START_TIMEOUT
    while time.monotonic() < deadline and process.poll() is None:
        if client.wait_for_service(0.5):
            future = client.call_async(GetState.Request())
            answered = threading.Event()
            future.add_done_callback(lambda _, answered=answered: answered.set())
            if answered.wait(2.0) and future.result().current_state.id == State.PRIMARY_STATE_ACTIVE:
                return
        time.sleep(0.1)
    raise M3LError(f"the node did not become active within {START_TIMEOUT:.0f} s; see {log}")


def _wait_for_masks(
    seen: Observation,
    frames: int,
    segmentation: subprocess.Popen[bytes],
    replay: subprocess.Popen[bytes],
    logs: Path,
) -> None:
    """Wait until the bag is over and each frame has its mask, or none comes any more; then for masks too many."""
    count, since = -1, time.monotonic()
    while replay.poll() is None or len({stamp for stamp, _, _ in list(seen.masks)}) < frames:
        if segmentation.poll() is not None:
            raise M3LError(f"the node ended during the replay; see {logs / 'node.log'}")
        if len(seen.masks) != count:
            count, since = len(seen.masks), time.monotonic()
        if time.monotonic() - since > (SILENCE_TIMEOUT if count else START_TIMEOUT):
            return
        time.sleep(0.1)
    time.sleep(SURPLUS_TIME)
