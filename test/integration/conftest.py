# SPDX-License-Identifier: Apache-2.0
"""Nodes in processes of their own, and in this one a robot that has a camera and listens, on a private ROS graph."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: pip install -e '.[ros]'")

from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import SetParameters
from rclpy.context import Context
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import String

from m3l_ros.isolation import isolated_environment

T = TypeVar("T")

PATIENCE = 240.0
WIDTH, HEIGHT = 64, 48
CLASSES = 5


class Robot:
    """A node of the test: publishes frames 0, 1, 2... 0.1 s apart and keeps what it hears.

    Args:
        context: of the test's ROS graph.
        namespace: of the node under test; its topics are listened to there.
        rgb_topic, depth_topic: where the camera publishes.
        compressed: publish JPEG, and PNG depth, under the names of image_transport.
        reliability: that the camera offers.
    """

    def __init__(
        self,
        context: Context,
        namespace: str = "",
        rgb_topic: str = "/rgb/image",
        depth_topic: str = "/depth/image",
        compressed: bool = False,
        reliability: ReliabilityPolicy = ReliabilityPolicy.RELIABLE,
    ) -> None:
        self.node = Node("robot", context=context)
        self.namespace = namespace
        self.compressed = compressed
        qos = QoSProfile(depth=50, reliability=reliability)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        image = CompressedImage if compressed else Image
        self.rgb = self.node.create_publisher(image, rgb_topic + "/compressed" * compressed, qos)
        self.depth = self.node.create_publisher(image, depth_topic + "/compressedDepth" * compressed, qos)
        self.rgb_info = self.node.create_publisher(CameraInfo, f"{namespace}/rgb/camera_info", qos)
        self.heard: dict[str, list[Any]] = {}
        self.diagnostics: dict[str, str] = {}
        self.verdict = ""
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self.listen("classes", String, latched)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def listen(self, output: str, message_type: type = Image, qos: QoSProfile | int = 50) -> list[Any]:
        """Subscribe to segmentation/OUTPUT; returns the list that its messages are put into."""
        heard = self.heard.setdefault(output, [])
        self.node.create_subscription(
            message_type, f"{self.namespace}/segmentation/{output}", heard.append, qos
        )
        return heard

    @property
    def masks(self) -> list[Any]:
        """The masks heard so far."""
        return self.heard["mask"]

    def publish(self, index: int, depth: bool = True, rgb: bool = True) -> None:
        """Publish a frame, depth first."""
        if depth:
            self.depth.publish(self.depth_message(index))
        if rgb:
            self.rgb.publish(self.rgb_message(index))

    def rgb_message(self, index: int, scale: int = 1) -> Any:
        pixels = frame_rgb(index).repeat(scale, axis=0).repeat(scale, axis=1)
        if self.compressed:
            bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
            msg = CompressedImage(
                format="rgb8; jpeg compressed bgr8", data=cv2.imencode(".jpg", bgr)[1].tobytes()
            )
        else:
            msg = image_message(pixels, "rgb8")
        return stamp(msg, index)

    def depth_message(self, index: int) -> Any:
        pixels = frame_depth(index)
        if self.compressed:
            png = bytes(12) + cv2.imencode(".png", pixels)[1].tobytes()
            msg = CompressedImage(format="16UC1; compressedDepth png", data=png)
        else:
            msg = image_message(pixels, "16UC1")
        return stamp(msg, index)

    def wait_until_ready(self, *outputs: str) -> None:
        """Wait until a node is active, subscribed to the camera, and connected with the listeners of its outputs."""
        for output in outputs:
            if output not in self.heard:
                self.listen(output, CameraInfo if output == "camera_info" else Image)
        self.wait_until(lambda: self.rgb.get_subscription_count() > 0, "a subscription to colour")
        self.wait_until(lambda: self.depth.get_subscription_count() > 0, "a subscription to depth")
        self.wait_until(
            lambda: set(outputs) <= set(self.diagnostics.get("subscribed outputs", "").split()),
            f"publishers of {outputs}",
        )

    def wait_for_depth(self, index: int) -> None:
        """Publish depth alone, and wait until the node knows that there is depth."""
        self.publish(index, rgb=False)
        self.wait_until(lambda: self.diagnostics.get("outage") == "False", "the end of the outage")

    def wait_for_masks(self, count: int) -> list[Any]:
        """Wait for so many masks, then for the node's word that none is to come; returns them all."""
        self.wait_until(lambda: len(self.masks) >= count, lambda: f"{count} masks; {len(self.masks)} came")
        self.wait_until(lambda: self.diagnostics.get("masks") == str(len(self.masks)), "the node's count")
        return list(self.masks)

    def wait_until(self, condition: Callable[[], T], what: str | Callable[[], str]) -> T:
        """Wait for a condition; fail, saying what was waited for, if it takes longer than even a slow machine would."""
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            if time.monotonic() > deadline:
                pytest.fail(
                    f"waited {PATIENCE:g} s in vain for {what if isinstance(what, str) else what()}; the node says: "
                    f"{self.verdict!r}, {self.diagnostics}"
                )
            time.sleep(0.01)
        return value

    def call(self, service: str, service_type: Any, request: Any) -> Any:
        """Call a service of the node under test."""
        client = self.node.create_client(service_type, f"{self.namespace}/segmentation_node/{service}")
        assert client.wait_for_service(PATIENCE), f"no service {service}"
        future = client.call_async(request)
        self.wait_until(future.done, f"an answer of {service}")
        self.node.destroy_client(client)
        return future.result()

    def change_state(self, transition: str) -> bool:
        """Ask for a lifecycle transition; returns whether it was done."""
        ids = {
            "configure": Transition.TRANSITION_CONFIGURE,
            "activate": Transition.TRANSITION_ACTIVATE,
            "deactivate": Transition.TRANSITION_DEACTIVATE,
            "cleanup": Transition.TRANSITION_CLEANUP,
            "shutdown": Transition.TRANSITION_UNCONFIGURED_SHUTDOWN,
        }
        request = ChangeState.Request(transition=Transition(id=ids[transition]))
        return bool(self.call("change_state", ChangeState, request).success)

    def state(self) -> str:
        """The node's lifecycle state."""
        return str(self.call("get_state", GetState, GetState.Request()).current_state.label)

    def set_parameter(self, name: str, value: Any) -> Any:
        """Set a parameter; returns the node's answer."""
        parameter = Parameter(name, value=value).to_parameter_msg()
        request = SetParameters.Request(parameters=[parameter])
        return self.call("set_parameters", SetParameters, request).results[0]

    def close(self) -> None:
        self._executor.shutdown()
        self._thread.join()
        self.node.destroy_node()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        if message.status[0].name != f"{self.namespace}/segmentation_node: segmentation".lstrip("/"):
            return
        self.verdict = message.status[0].message
        self.diagnostics = {pair.key: pair.value for pair in message.status[0].values}

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self._executor.spin()


def frame_rgb(index: int) -> np.ndarray:
    """Colour of a frame: blocks that differ from frame to frame and survive JPEG."""
    blocks = np.random.default_rng(index).integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def frame_depth(index: int) -> np.ndarray:
    """Depth of a frame, in millimetres."""
    blocks = np.random.default_rng(1000 + index).integers(500, 9000, (HEIGHT // 8, WIDTH // 8), np.uint16)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def image_message(pixels: np.ndarray, encoding: str) -> Image:
    return Image(
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        step=pixels.strides[0],
        data=array("B", pixels.tobytes()),
    )


def stamp(msg: Any, index: int) -> Any:
    msg.header.stamp.sec, tenths = divmod(1000 * 10 + index, 10)
    msg.header.stamp.nanosec = tenths * 100_000_000
    msg.header.frame_id = "camera_color_optical_frame"
    return msg


class NodeProcess:
    """The segmentation node as a process, with ROS arguments.

    Args:
        environment: of the process.
        log: file for what it prints.
        arguments: after ``--ros-args``.
    """

    def __init__(self, environment: dict[str, str], log: Path, *arguments: str) -> None:
        self._log = log
        with log.open("w") as file:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "m3l_ros.segmentation_node", "--ros-args", *arguments],
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self, number: signal.Signals) -> tuple[int, float]:
        """Send a signal; returns the exit code and the seconds until it ended."""
        begin = time.monotonic()
        self._process.send_signal(number)
        return self._process.wait(PATIENCE), time.monotonic() - begin

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Environment of the test's processes, this one included: a ROS graph of their own."""
    with isolated_environment() as own:
        own["OMP_NUM_THREADS"] = "1"  # the images are small: threads would only get in each other's way
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        yield own


@pytest.fixture
def context(environment: dict[str, str]) -> Iterator[Context]:
    """ROS in this process."""
    context = Context()
    context.init(domain_id=int(environment["ROS_DOMAIN_ID"]))
    yield context
    context.try_shutdown()


@pytest.fixture
def start_robot(context: Context) -> Iterator[Callable[..., Robot]]:
    """Makes robots, with the arguments of `Robot`."""
    robots: list[Robot] = []

    def start(**arguments: Any) -> Robot:
        robots.append(Robot(context, **arguments))
        return robots[-1]

    yield start
    for robot in robots:
        robot.close()


@pytest.fixture
def start_node(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., NodeProcess]]:
    """Starts node processes, with ROS arguments; what they printed is shown where the test fails."""
    processes: list[NodeProcess] = []

    def start(*arguments: str) -> NodeProcess:
        processes.append(NodeProcess(environment, tmp_path / f"node{len(processes)}.log", *arguments))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        print(process.log)


@pytest.fixture
def start_replay(environment: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Starts `m3l replay` processes, with arguments; returns the process and the file of what it prints."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
        with (tmp_path / "replay.log").open("w") as log:
            command = [sys.executable, "-m", "m3l_model", "replay", *arguments]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
        return processes[-1], tmp_path / "replay.log"

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def images_of() -> Callable[[int], tuple[np.ndarray, np.ndarray]]:
    """Colour and depth of the robot's frames."""
    return lambda index: (frame_rgb(index), frame_depth(index))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model, untrained: its masks are arbitrary, but depend on colour and on depth."""
    import torch

    from m3l_model.checkpoint import save_checkpoint
    from m3l_model.segmenter import LinearFusionSegmenter

    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("checkpoint") / "random_b0.safetensors"
    save_checkpoint(path, LinearFusionSegmenter("mit_b0", num_classes=CLASSES))
    return path


@pytest.fixture(scope="session")
def class_names(checkpoint: Path) -> list[str]:
    """The classes of the model."""
    from m3l_model.checkpoint import load_checkpoint

    metadata = load_checkpoint(checkpoint).metadata
    assert metadata is not None
    return list(json.loads(metadata.labels.to_json())["classes"])
