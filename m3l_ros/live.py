# SPDX-License-Identifier: Apache-2.0
"""Plays a bag to a live node under the scenarios of the evaluation, and compares what it answers with the offline pass.

In lock-step each message waits for the node's receipt of the one before, so that nothing depends on the machine's
speed; at a rate, the images come as a camera's do, by a clock of that rate.
"""

from __future__ import annotations

import os
import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import mkstemp
from types import TracebackType
from typing import NamedTuple

import numpy as np
import rclpy
import torch
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import Image, TimeReference

from m3l_model.agreement import Agreement, Answer, compare, digest
from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.bag_frames import BagFrames, Pairing
from m3l_model.errors import M3LError
from m3l_model.images import to_labels
from m3l_model.offline import run_offline
from m3l_model.predictor import PRECISIONS, Predictor
from m3l_model.scenarios import Scenario
from m3l_ros.availability import start_ros
from m3l_ros.isolation import isolated_process
from m3l_ros.live_images import LiveImages
from m3l_ros.lock_step import LockStep, LockStepError
from m3l_ros.outputs import DECISION
from m3l_ros.processes import run_process
from m3l_ros.qos import ACCOUNT_QOS
from m3l_ros.stamps import to_ns

_NODE = "segmentation_node"
_START_TIMEOUT = 120.0
_MASK_TIMEOUT = 60.0
_SURPLUS_TIME = 0.5
_CLOCK_PERIOD = 0.01
_AFTER_THE_END = 1.1
"""By then every image has waited long enough for its depth."""
_FORGET_TIME = 0.5
"""For the node to learn that nobody waits for its receipts any more."""
_RESTART = (
    Transition.TRANSITION_DEACTIVATE,
    Transition.TRANSITION_CLEANUP,
    Transition.TRANSITION_CONFIGURE,
    Transition.TRANSITION_ACTIVATE,
)
"""What gives the node another synchronizer."""


def check_live(
    dataset: RgbdBagDataset,
    predictor: Predictor,
    checkpoint: Path,
    scenarios: Sequence[Scenario],
    seed: int = 0,
    bag: int = 0,
    rate: float | None = None,
) -> Iterator[tuple[Scenario, Agreement]]:
    """Play a bag of a data set to a node under scenarios, on a ROS graph of its own; rclpy must not be initialized.

    Args:
        dataset: has the bag.
        predictor: of the offline pass.
        checkpoint: of the predictor, for the node.
        scenarios: one after another.
        seed: of the scenarios.
        bag: position of the bag in the data set.
        rate: seconds of the bag per second; None: in lock-step.

    Raises:
        M3LError: ROS is not there, or the node does not answer.
    """
    frames = dataset.bags[bag]
    parameters = _parameters(predictor, checkpoint, frames.pairing)
    with LiveNode(parameters) as node:
        for scenario in scenarios:
            begin = time.monotonic()
            offline = [
                Answer(
                    frame.stamp_ns,
                    frame.depth_stamp_ns,
                    str(frame.reason),
                    None if frame.labels is None else digest(frame.labels),
                )
                for frame in run_offline(dataset, predictor, scenario, seed, bag)
            ]
            if rate is not None:
                _check_rate(rate, len(offline) / (time.monotonic() - begin), frames)
            live = node.answer(LiveImages(frames, scenario, seed), offline, rate)
            yield scenario, compare(offline, live)


def _check_rate(rate: float, held: float, frames: BagFrames) -> None:
    """See that the node can keep up.

    Args:
        rate: seconds of the bag per second.
        held: frames per second that this machine segments.
        frames: of the bag.
    """
    seconds = np.ptp(frames.frames["log_ns"]) * 1e-9
    highest = held * seconds / len(frames)
    if rate > highest:
        raise M3LError(
            f"this machine segments {held:.1f} frames/s of {frames.index.path}, and so holds no rate above "
            f"{highest:.2g}; --live alone needs no rate"
        )


def _parameters(predictor: Predictor, checkpoint: Path, pairing: Pairing) -> dict[str, object]:
    """Those with which the node's masks can be the predictor's, byte by byte."""
    precisions = {dtype: name for name, dtype in PRECISIONS.items()}
    return {
        "checkpoint": checkpoint.resolve(),
        "device": predictor.device,
        "precision": precisions[predictor.precision],
        "num_threads": torch.get_num_threads(),
        "slop": pairing.slop,
        "max_wait": pairing.max_wait,
        "depth_timeout": pairing.depth_timeout,
        "queue_size": pairing.queue_size,
        "overload": "queue",
        "input_depth": 100,
        "use_sim_time": True,
    }


class Transports(NamedTuple):
    """Parameters rgb_transport and depth_transport."""

    rgb: str
    depth: str


class LiveNode:
    """A segmentation node in a process of its own, and here a robot that plays to it and keeps its answers.

    Args:
        parameters: of the node.
    """

    def __init__(self, parameters: dict[str, object]) -> None:
        self._parameters = parameters
        self._stack = ExitStack()
        self._process_stack = ExitStack()
        self._transports: Transports | None = None
        descriptor, log = mkstemp(prefix="m3l_live_node_", suffix=".log")
        os.close(descriptor)
        self._log = Path(log)
        self._decisions: list[TimeReference] = []
        self._masks: list[tuple[int, bytes]] = []

    def __enter__(self) -> LiveNode:
        with ExitStack() as stack:
            stack.enter_context(isolated_process())
            start_ros([])
            stack.callback(rclpy.shutdown)
            self._robot: Node = rclpy.create_node("m3l_live")
            stack.callback(self._robot.destroy_node)
            self._robot.create_subscription(Image, "segmentation/mask", self._on_mask, ACCOUNT_QOS)
            self._robot.create_subscription(TimeReference, DECISION, self._decisions.append, ACCOUNT_QOS)
            stack.push(self._process_stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()
        if not isinstance(exc, LockStepError):
            self._log.unlink()

    def answer(self, images: LiveImages, expected: Sequence[Answer], rate: float | None) -> list[Answer]:
        """Play images to a node that has seen none, and give its answers in its order.

        Args:
            images: to be played.
            expected: the answers to wait for; others may come in their place.
            rate: seconds of virtual time per second; None: in lock-step.

        Raises:
            M3LError: the node does not start, or does not answer.
        """
        self._decisions.clear()
        self._masks.clear()
        try:
            with closing(LockStep(self._robot)) as lock_step:
                self._have_fresh_node(images, lock_step)
                if rate is None:
                    self._play_in_step(images, lock_step)
                else:
                    self._play_in_time(images, lock_step, rate)
                self._await(expected, lock_step)
        except LockStepError as error:
            raise LockStepError(f"{error}; the node's log: {self._log}") from None
        masks: dict[int, deque[bytes]] = defaultdict(deque)
        for stamp_ns, mask in self._masks:
            masks[stamp_ns].append(mask)
        return [_answer(decision, masks[to_ns(decision.header.stamp)]) for decision in self._decisions]

    def _play_in_step(self, images: LiveImages, lock_step: LockStep) -> None:
        for image in images:
            lock_step.advance(image.now_ns)
            lock_step.publish(self._publishers[image.rgb], image.message, image.stamp_ns)
        lock_step.finish()

    def _play_in_time(self, images: LiveImages, lock_step: LockStep, rate: float) -> None:
        lock_step.let_go()
        lock_step.spin_until(lambda: False, _FORGET_TIME)
        begin, start_ns, now_ns = time.monotonic(), images.start_ns, images.start_ns

        def run_clock(until_ns: int) -> None:
            while (passed := round((time.monotonic() - begin) * rate * 1e9)) < until_ns - start_ns:
                lock_step.tick(start_ns + passed)
                left = (until_ns - start_ns - passed) / rate / 1e9
                lock_step.spin_until(lambda: False, min(left, _CLOCK_PERIOD))
            lock_step.tick(until_ns)

        for image in images:
            now_ns = image.now_ns
            run_clock(now_ns)
            self._publishers[image.rgb].publish(image.message)
        run_clock(now_ns + round(_AFTER_THE_END * 1e9))

    def _await(self, expected: Sequence[Answer], lock_step: LockStep) -> None:
        """Wait for the answers that are on their way, and then for those that are too many."""
        masks = sum(answer.mask is not None for answer in expected)
        lock_step.spin_until(
            lambda: len(self._decisions) >= len(expected) and len(self._masks) >= masks, _MASK_TIMEOUT
        )
        lock_step.spin_until(lambda: False, _SURPLUS_TIME)

    def _have_fresh_node(self, images: LiveImages, lock_step: LockStep) -> None:
        transports = Transports(images.rgb_transport, images.depth_transport)
        if transports == self._transports:
            self._restart(lock_step)
        else:
            self._process_stack.close()
            self._start_process(transports, images)
        lock_step.meet(list(self._publishers.values()), images.start_ns, _START_TIMEOUT)

    def _start_process(self, transports: Transports, images: LiveImages) -> None:
        self._transports = transports
        command = [sys.executable, "-m", "m3l_ros.segmentation_node", "--ros-args"]
        transport_parameters = {"rgb_transport": transports.rgb, "depth_transport": transports.depth}
        for name, value in {**self._parameters, **transport_parameters}.items():
            command += ["-p", f"{name}:={str(value).lower() if isinstance(value, bool) else value}"]
        self._process_stack.enter_context(run_process(command, self._log))
        self._publishers: dict[bool, Publisher] = {}
        for rgb, message_type in zip((True, False), images.message_types, strict=True):
            transport = transports.rgb if rgb else transports.depth
            topic = f"{'rgb' if rgb else 'depth'}/image" + ("" if transport == "raw" else f"/{transport}")
            self._publishers[rgb] = self._robot.create_publisher(message_type, topic, ACCOUNT_QOS)
            self._process_stack.callback(self._robot.destroy_publisher, self._publishers[rgb])

    def _restart(self, lock_step: LockStep) -> None:
        """Give the node another synchronizer."""
        client = self._robot.create_client(ChangeState, f"{_NODE}/change_state")
        publishers = self._publishers.values()
        lock_step.spin_until(client.service_is_ready, _START_TIMEOUT)
        for transition in _RESTART:
            future = client.call_async(ChangeState.Request(transition=Transition(id=transition)))
            if not lock_step.spin_until(future.done, _START_TIMEOUT) or not future.result().success:
                raise LockStepError("the node cannot be started anew")
            if transition == _RESTART[0]:
                # Until the old subscriptions are forgotten, they would be taken for the new ones.
                lock_step.spin_until(
                    lambda: not any(publisher.get_subscription_count() for publisher in publishers),
                    _START_TIMEOUT,
                )
        self._robot.destroy_client(client)

    def _on_mask(self, msg: Image) -> None:
        self._masks.append((to_ns(msg.header.stamp), digest(to_labels(msg))))


def _answer(decision: TimeReference, masks: deque[bytes]) -> Answer:
    return Answer(
        to_ns(decision.header.stamp),
        to_ns(decision.time_ref) or None,
        decision.source,
        masks.popleft() if masks else None,
    )
