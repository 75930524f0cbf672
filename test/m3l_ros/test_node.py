# SPDX-License-Identifier: Apache-2.0
"""The whole node in this process, over DDS, with a model that answers at once: what it does when things go wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from array import array

import numpy as np
import pytest
import torch
import yaml
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rcl_interfaces.srv import SetParameters
from rclpy.executors import MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

import m3l_ros.node
from m3l_model.errors import M3LError
from m3l_model.labels import LabelSet
from m3l_model.predictor import Prediction
from m3l_ros.inputs import camera_info_topic
from m3l_ros.node import SegmentationNode
from m3l_ros.outputs import image_message
from m3l_ros.qos import LATCHED_QOS
from m3l_ros.transport import PROFILE_VARIABLES
from m3l_ros.worker import PATIENCE

MS = 1_000_000
PERIOD = 33
RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT
YEAR = 365 * 86400 * 1000


class StandIn:
    """Its masks say whether depth was used: 1 or 0; its name says how many classes it has."""

    def __init__(self, checkpoint):
        self.labels = LabelSet.generic(int(checkpoint))
        self.device, self.precision = torch.device("cpu"), torch.float32

    def predict(self, rgb, depth, with_confidence=True):
        shape = (depth if rgb is None else rgb).shape[:2]
        used = depth is not None and bool(np.nan_to_num(depth).any())
        return Prediction(np.full(shape, used, np.uint8), None, ("rgb", "depth") if used else ("rgb",))


class Robot:
    """The node, and a camera; times are in ms."""

    def __init__(self, node, segmentation, wait_until):
        self.node, self.segmentation, self.wait_until = node, segmentation, wait_until
        self.masks: list[Image] = []
        self.classes: list[int] = []
        self.statuses: list[DiagnosticStatus] = []
        self.rgb = self.create_publisher("rgb")
        self.depth = self.create_publisher("depth")
        node.create_subscription(Image, "segmentation/mask", self.masks.append, 100)
        node.create_subscription(
            String, "segmentation/classes", lambda msg: self.classes.append(classes_in(msg)), LATCHED_QOS
        )
        node.create_subscription(DiagnosticArray, "/diagnostics", self.on_diagnostics, 10)

    def create_publisher(self, stream, reliability=RELIABLE):
        return self.node.create_publisher(
            Image, f"{stream}/image", QoSProfile(depth=100, reliability=reliability)
        )

    def on_diagnostics(self, message):
        self.statuses.append(message.status[0])

    def wait_until_connected(self):
        self.wait_until(lambda: self.rgb.get_subscription_count() == 1, "the subscription to colour")
        self.wait_until(lambda: self.depth.get_subscription_count() == 1, "the subscription to depth")
        self.wait_until(lambda: "mask" in self.value("subscribed outputs"), "the masks")

    def send_rgb(self, stamp, **fields):
        self.rgb.publish(rgb_message(stamp, **fields))

    def send_depth(self, stamp, **fields):
        self.depth.publish(depth_message(stamp, **fields))

    def begin(self, stamp=900):
        """Let the node know that there is depth: from then on colour waits for it."""
        self.send_depth(stamp)
        self.wait_until(lambda: self.value("outage") == "False", "depth to be known")

    def send(self, *stamps):
        for stamp in stamps:
            self.send_depth(stamp)
            self.send_rgb(stamp)

    def value(self, key):
        return (
            {pair.key: pair.value for pair in self.statuses[-1].values}.get(key, "") if self.statuses else ""
        )

    def wait_for(self, count):
        """Wait for so many masks; returns their stamps and whether depth was used."""
        self.wait_until(lambda: len(self.masks) >= count, f"{count} masks")
        self.wait_until(self.is_balanced, "the node's books")
        return [(stamp_ms(mask), bool(mask.data[0])) for mask in self.masks]

    def is_balanced(self):
        counted = sum(int(self.value(name) or -1) for name in ("masks", "depth-only masks"))
        return counted == len(self.masks) and self.value("pending") == "0"

    def wait_for_problem(self, text, level=DiagnosticStatus.WARN):
        """Wait until diagnostics say so, at this level."""

        def said():
            status = self.statuses[-1]
            return status.level == level and (text in status.message or text in self.value("other problems"))

        self.wait_until(said, f"diagnostics to say {text!r}; {self.statuses[-1].message!r}")

    def wait_until_well(self):
        self.wait_until(lambda: self.statuses[-1].message == "segmenting", "diagnostics to be content")
        assert self.statuses[-1].level == DiagnosticStatus.OK

    def clean_up(self):
        self.segmentation.trigger_deactivate()
        self.segmentation.trigger_cleanup()

    def set(self, name, value):
        return self.segmentation.set_parameters([Parameter(name, value=value)])[0]


def classes_in(message):
    return len(json.loads(message.data)["classes"])


def stamp_ms(message):
    return message.header.stamp.sec * 1000 + message.header.stamp.nanosec // MS


def rgb_message(stamp, size=(6, 8), **fields):
    return filled(image_message(Image().header, "rgb8", np.full((*size, 3), 7, np.uint8)), stamp, fields)


def depth_message(stamp, size=(6, 8), **fields):
    pixels = np.full(size, 1000 + stamp % 997, np.uint16)
    return filled(image_message(Image().header, "16UC1", pixels), stamp, fields)


def filled(message, stamp, fields):
    message.header.stamp.sec, rest = divmod(stamp, 1000)
    message.header.stamp.nanosec = rest * MS
    message.header.frame_id = "camera"
    for name, value in fields.items():
        setattr(message, name, value)
    return message


@pytest.fixture
def loaded(monkeypatch):
    """The parameters of each model loaded. A checkpoint is named by its number of classes; others cannot be read."""
    calls = []

    def load(parameters):
        calls.append(parameters)
        if parameters.checkpoint == "damaged":
            raise M3LError("damaged: weights are missing")
        return StandIn(parameters.checkpoint)

    def check(checkpoint, num_classes):
        if checkpoint == "missing":
            raise M3LError("missing: no such checkpoint file")

    monkeypatch.setattr(m3l_ros.node, "load_model", load)
    monkeypatch.setattr(m3l_ros.node, "check_model", check)
    return calls


@pytest.fixture
def observer(context):
    """A node whose callbacks run, one at a time, in a thread of their own.

    A multi-threaded executor offers a message again and again as long as another callback of its group is in hand; a
    thousand offers a second leave the node under test, in the same process, without Python for a second and more.
    """
    node = Node("observer", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    yield node
    executor.shutdown(timeout_sec=0)
    thread.join()
    node.destroy_node()


@pytest.fixture
def start(context, observer, wait_until, loaded):
    """Starts the node with parameters; returns a robot connected to it."""
    running = []

    def start(connect=True, **parameters):
        given = {
            "checkpoint": "5",
            "diagnostics_period": 0.1,
            "overload": "queue",
            "depth_timeout": 60.0,
            "input_depth": 100,
            **parameters,
        }
        segmentation = SegmentationNode(
            context=context,
            parameter_overrides=[Parameter(name, value=value) for name, value in given.items()],
        )
        executor = MultiThreadedExecutor(4, context=context)
        executor.add_node(segmentation)
        thread = threading.Thread(target=executor.spin, daemon=True)
        thread.start()
        running.append((segmentation, executor, thread))
        robot = Robot(observer, segmentation, wait_until)
        if connect:
            robot.wait_until_connected()
        return robot

    yield start
    for segmentation, executor, thread in running:
        segmentation.shut_down()
        executor.shutdown(timeout_sec=0)
        thread.join()
        segmentation.destroy_node()


# Depth


def test_depth_that_comes_late_is_used_from_then_on(start):
    robot = start()
    for stamp in (1000, 1100):
        robot.send_rgb(stamp)
    robot.wait_for(2)
    robot.wait_for_problem("no depth on /depth/image for")
    robot.begin(1199)
    robot.send(1300, 1400)
    assert robot.wait_for(4) == [(1000, False), (1100, False), (1300, True), (1400, True)]


def test_depth_that_starts_minutes_late_is_used_from_then_on(start):
    robot = start(use_sim_time=True, depth_timeout=0.5)
    simulator = Simulator(robot)
    for minute in range(6):
        simulator.set(1000 + 60_000 * minute)
        robot.send_rgb(1000 + PERIOD * minute)
        robot.wait_for(minute + 1)  # it has come before the clock goes on
    robot.wait_for_problem("no depth on /depth/image for 30")  # 300 s or 301
    robot.begin(2000)
    robot.send(2100)
    assert robot.wait_for(7) == [*((1000 + PERIOD * minute, False) for minute in range(6)), (2100, True)]


def test_lost_depth_images_cost_their_own_frames_alone_even_in_a_burst(start):
    robot = start(max_wait=1.0)
    robot.begin()
    stamps = [1000 + PERIOD * index for index in range(25)]
    for index, stamp in enumerate(stamps):
        if index % 3 != 1:
            robot.send_depth(stamp)
    for stamp in stamps:
        robot.send_rgb(stamp)
    assert robot.wait_for(25) == [(stamp, index % 3 != 1) for index, stamp in enumerate(stamps)]


def test_slow_depth_serves_the_frames_near_it_and_the_others_wait_no_longer_than_max_wait(start):
    robot = start(max_wait=0.05)
    robot.begin()
    stamps = [1000 + PERIOD * index for index in range(18)]
    for index, stamp in enumerate(stamps):
        if index % 6 == 0:
            robot.send_depth(stamp)
        robot.send_rgb(stamp)
        time.sleep(PERIOD / 1e3)
    masks = robot.wait_for(len(stamps))
    assert [stamp for stamp, _ in masks] == stamps
    assert [used for _, used in masks] == [index % 6 == 0 for index in range(18)]
    assert max(timing.wait for timing in robot.segmentation._pipeline.timings()) < 0.05 + 0.5
    robot.wait_for_problem("of the colour images found depth within slop")


@pytest.mark.parametrize("empty", ["zero", "nan"])
def test_depth_without_a_reading_counts_as_missing(start, empty):
    robot = start()
    robot.begin()
    pixels = np.zeros((6, 8), np.uint16) if empty == "zero" else np.full((6, 8), np.nan, np.float32)
    fields = {
        "encoding": "16UC1" if empty == "zero" else "32FC1",
        "step": pixels.strides[0],
        "data": array("B", pixels.tobytes()),
    }
    for stamp in (1000, 1100, 1200):
        robot.send_depth(stamp, **fields)
        robot.send_rgb(stamp)
    assert robot.wait_for(3) == [(1000, False), (1100, False), (1200, False)]
    robot.wait_for_problem("hold no reading, all zero or NaN, and count as missing")
    assert robot.value("depth images without a reading") == "3"


def test_frozen_depth_is_flagged_until_it_moves_again(start):
    robot = start(frozen_warn_after=0.2)
    frozen = depth_message(1000).data
    for index in range(10):
        robot.send_depth(1000 + PERIOD * index, data=frozen)
        robot.send_rgb(1000 + PERIOD * index)
        time.sleep(PERIOD / 1e3)
    robot.wait_for_problem("depth on /depth/image is frozen")
    robot.send(2000, 2033)
    robot.wait_until_well()


@pytest.mark.parametrize(
    ("skew", "remedy"), [(-300, "or set slop above 0.300"), (-5000, "synchronize the clocks")]
)
def test_offset_clock_is_named_with_the_slop_that_would_pair(start, skew, remedy):
    robot = start(max_wait=0.01)
    robot.begin(9900 + skew)
    for index in range(10):
        robot.send_depth(10_000 + PERIOD * index + skew)
        time.sleep(0.02)
        robot.send_rgb(10_000 + PERIOD * index)
        time.sleep(0.05)
    robot.wait_for(10)
    robot.wait_for_problem(f"depth stamps are {skew:+.1f} ms off colour's, beyond slop (0.02 s)")
    robot.wait_for_problem(remedy)
    if skew == -300:
        assert robot.set("slop", 0.31).successful
        robot.send_depth(10_500 + skew)
        robot.send_rgb(10_500)
        assert robot.wait_for(11)[-1] == (10_500, True)


def test_depth_alone_gives_masks_while_colour_is_lost_where_that_is_asked_for(start):
    robot = start(anchor="either", depth_timeout=0.1, stale_after=0.2)
    robot.send(1000)
    robot.wait_for(1)
    time.sleep(0.2)
    robot.send_depth(1500)
    robot.send_depth(1600)
    assert robot.wait_for(3)[1:] == [(1500, True), (1600, True)]
    robot.wait_for_problem("no colour image on /rgb/image", DiagnosticStatus.STALE)
    robot.send(1700)
    assert robot.wait_for(4)[-1][0] == 1700


# Images


def test_malformed_images_are_counted_and_dropped_and_the_node_goes_on(start):
    robot = start()
    robot.begin()
    sound = rgb_message(0).data
    malformed = [
        {"data": sound[:-1]},
        {"data": array("B")},
        {"data": sound + sound},
        {"height": 2**32 - 1},
        {"width": 2**32 - 1, "step": 3},
        {"step": 0},
        {"step": 2**32 - 1},
        {"height": 0},
        {"encoding": "bgra8"},
        {"encoding": "16UC1"},
        {"encoding": "rgb9"},
        {"encoding": ""},
    ]
    for index, fields in enumerate(malformed):
        robot.send_rgb(1000 + index, **fields)
    robot.send_depth(2000, data=array("B", b"short"))
    robot.send_rgb(2000)
    robot.send_depth(2100)
    robot.send_rgb(2100, data=sound[:5])
    robot.send(2200)
    assert robot.wait_for(2) == [(2000, False), (2200, True)]
    assert robot.value("dropped: cannot be read") == str(len(malformed) + 1)
    assert robot.value("depth images unreadable") == "1"
    robot.wait_for_problem("colour images were dropped")


def test_size_and_encoding_may_change_in_the_middle(start):
    robot = start()
    robot.begin()
    robot.send(1000)
    robot.send_depth(1100, size=(3, 4))
    robot.send_rgb(1100)
    robot.send_depth(1200)
    robot.send_rgb(1200, size=(24, 32))
    robot.send_depth(1300)
    robot.send_rgb(1300, encoding="mono8", width=24, step=24)
    robot.send_depth(1400)
    padded = np.zeros((6, 40), np.uint8)
    robot.send_rgb(1400, step=40, data=array("B", padded.tobytes()))
    masks = robot.wait_for(5)
    assert [used for _, used in masks] == [True] * 5
    sizes = [(mask.width, mask.height) for mask in robot.masks]
    assert sizes == [(8, 6), (8, 6), (32, 24), (24, 6), (8, 6)]


def test_images_of_two_publishers_are_sorted_out_and_the_second_publisher_named(start):
    robot = start(max_wait=0.5)
    twin = robot.create_publisher("rgb")
    robot.wait_until(lambda: twin.get_subscription_count() == 1, "the second publisher's subscription")
    robot.begin()
    for stamp in (1000, 1100, 1200):
        robot.send_depth(stamp)
        robot.send_rgb(stamp)
        twin.publish(rgb_message(stamp))
    robot.wait_for(3)
    robot.wait_until(lambda: robot.value("received") == "6", "both publishers' images")
    assert [stamp for stamp, _ in robot.wait_for(3)] == [1000, 1100, 1200]
    assert robot.value("dropped: old or repeated stamp") == "3"
    robot.wait_for_problem("2 publishers on /rgb/image")


def test_publisher_that_restarts_is_heard_again(start):
    robot = start()
    robot.send(1000)
    robot.wait_for(1)
    for stream in ("rgb", "depth"):
        robot.node.destroy_publisher(getattr(robot, stream))
        setattr(robot, stream, robot.create_publisher(stream))
    robot.wait_until_connected()
    robot.send(1100)
    assert robot.wait_for(2)[-1] == (1100, True)


def test_qos_that_does_not_match_is_reported_with_the_parameter_that_mends_it(start):
    robot = start(connect=False, input_qos="reliable")
    robot.wait_until(lambda: robot.value("state") == "active", "the node")
    assert robot.value("colour").endswith("reliable")
    publisher = robot.create_publisher("rgb", BEST_EFFORT)
    robot.wait_for_problem("nothing of it is received; set input_qos: auto")
    robot.node.destroy_publisher(publisher)
    robot.wait_until(lambda: "input_qos" not in robot.statuses[-1].message, "the end of the problem")


CAMERA = """
import time
from array import array
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

rclpy.init()
qos = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
publisher = rclpy.create_node("camera").create_publisher(Image, "rgb/image", qos)
image = Image(height=720, width=1280, step=3840, encoding="rgb8", data=array("B", bytes(720 * 3840)))
while True:
    image.header.stamp.sec += 1
    publisher.publish(image)
    time.sleep(0.03)
"""
"""Publishes images, best effort, that Fast DDS's default segment of shared memory is too small for."""


def test_images_lost_in_transport_are_told_with_the_profile_that_mends_it(start, environment):
    robot = start(connect=False)
    without_profile = {name: value for name, value in environment.items() if name not in PROFILE_VARIABLES}
    camera = subprocess.Popen([sys.executable, "-c", CAMERA], env=without_profile)
    try:
        robot.wait_until(lambda: robot.value("colour").endswith("best effort"), "the camera to be followed")
        robot.wait_for_problem(
            "were lost between publisher and node: give the publisher, and the node, the profile"
        )
        robot.wait_for_problem("config/fastdds_shm.xml of m3l_ros (FASTRTPS_DEFAULT_PROFILES_FILE or ")
        assert int(robot.value("colour images lost in transport")) > 0
    finally:
        camera.kill()
        camera.wait()


def test_registration_is_checked(start):
    robot = start()
    infos = {
        name: robot.node.create_publisher(CameraInfo, f"{name}/camera_info", 5) for name in ("rgb", "depth")
    }
    for name, publisher in infos.items():
        robot.wait_until(publisher.get_subscription_count, f"the subscription to {name}'s camera_info")
    k = [60.0, 0.0, 4.0, 0.0, 60.0, 3.0, 0.0, 0.0, 1.0]
    infos["rgb"].publish(CameraInfo(width=8, height=6, k=k))
    infos["depth"].publish(CameraInfo(width=8, height=6, k=[50.0, *k[1:]]))
    robot.send(1000)
    robot.wait_for_problem("depth is not registered to colour: its camera_info is not that of colour")


@pytest.mark.parametrize(
    ("remaps", "topic"),
    [
        ([], "/rgb/camera_info"),
        (["rgb/image:=/camera/color/image_raw"], "/camera/color/camera_info"),
        (["rgb/image:=/camera/color/image_raw", "rgb/camera_info:=/elsewhere"], "/elsewhere"),
    ],
)
def test_camera_infos_are_beside_the_images_unless_remapped(context, remaps, topic):
    arguments = [text for remap in remaps for text in ("-r", remap)]
    node = Node("camera_user", context=context, cli_args=["--ros-args", *arguments] if remaps else None)
    assert camera_info_topic(node, "rgb") == topic
    node.destroy_node()


# Clocks


class Simulator:
    """Publishes simulated time, ms."""

    def __init__(self, robot):
        self._robot = robot
        self._publisher = robot.node.create_publisher(Clock, "/clock", 10)
        robot.wait_until(self._publisher.get_subscription_count, "the subscription to the clock")

    def set(self, now):
        message = Clock()
        message.clock.sec, rest = divmod(now, 1000)
        message.clock.nanosec = rest * MS
        self._publisher.publish(message)
        clock = self._robot.segmentation.get_clock()
        self._robot.wait_until(lambda: clock.now().nanoseconds == now * MS, "the clock")


def test_simulated_time_may_pause_jump_and_start_over(start):
    robot = start(use_sim_time=True)
    simulator = Simulator(robot)
    simulator.set(5000)
    robot.begin()
    robot.send(1000, 1033)
    robot.wait_for(2)
    # A pause: depth stays away, and no time passes that could tell so.
    robot.send_rgb(1066)
    assert robot.wait_for(3)[-1] == (1066, False)
    simulator.set(5100)
    robot.send(1100)
    robot.wait_for(4)
    simulator.set(5000 + YEAR)
    robot.send(1133 + YEAR, 1166 + YEAR)
    robot.wait_for(6)
    simulator.set(5000)
    robot.send(1000, 1033)
    masks = robot.wait_for(8)
    assert [stamp for stamp, _ in masks] == [
        *(1000, 1033, 1066, 1100, 1133 + YEAR, 1166 + YEAR, 1000, 1033),
    ]
    # The first frame after a jump of the clock may come before the depth that ends the outage it has made.
    assert [masks[index][1] for index in (0, 1, 2, 3, 5, 7)] == [True, True, False, True, True, True]
    robot.wait_until(lambda: int(robot.value("clock resets")) >= 2, "the resets to be counted")


@pytest.mark.parametrize("rate", [0.1, 10])
def test_simulated_time_may_run_slow_or_fast(start, rate):
    robot = start(use_sim_time=True, max_wait=0.1)
    simulator = Simulator(robot)
    simulator.set(900)
    robot.begin()
    stamps = [1000 + PERIOD * index for index in range(12)]
    for stamp in stamps:
        simulator.set(stamp)
        robot.send(stamp)
        time.sleep(PERIOD / 1e3 / rate if rate > 1 else 0.1)
    assert robot.wait_for(12) == [(stamp, True) for stamp in stamps]


# Outputs


def test_classes_are_known_before_activation_and_after_a_swap_meanwhile(start):
    robot = start(connect=False, autostart=False)
    robot.segmentation.trigger_configure()
    robot.wait_until(lambda: robot.classes == [5], "the classes")
    assert robot.set("checkpoint", "7").successful
    robot.wait_until(lambda: robot.classes == [5, 7], "the new classes")
    late = []
    robot.node.create_subscription(String, "segmentation/classes", late.append, LATCHED_QOS)
    robot.wait_until(lambda: late, "the classes for a late subscriber")
    assert [classes_in(message) for message in late] == [7]


def test_classes_are_label_info_too_where_vision_msgs_is_installed(start):
    vision = pytest.importorskip("vision_msgs.msg", reason="ROS 2's vision_msgs is not installed")
    robot = start(connect=False)
    heard = []
    robot.node.create_subscription(vision.LabelInfo, "segmentation/label_info", heard.append, LATCHED_QOS)
    robot.wait_until(lambda: heard, "the label info")
    assert robot.set("checkpoint", "2").successful
    robot.wait_until(lambda: len(heard) == 2, "the label info of the new checkpoint")
    for message, count in zip(heard, (5, 2), strict=True):
        names = LabelSet.generic(count).classes
        assert [(each.class_id, each.class_name) for each in message.class_map] == list(enumerate(names))


def test_layouts_show_topics_that_there_are_with_types_that_they_can_show(start, repository):
    robot = start(connect=False)
    robot.wait_until(lambda: robot.value("state") == "active", "the node")
    published = {
        name: kind
        for name, [kind] in robot.segmentation.get_publisher_names_and_types_by_node("segmentation_node", "/")
    }
    rviz = yaml.safe_load((repository / "config" / "segmentation.rviz").read_text())
    displays = rviz["Visualization Manager"]["Displays"]
    assert {display["Class"] for display in displays} == {"rviz_default_plugins/Image"}
    assert {display["Name"] for display in displays if display["Enabled"]} < set(rviz["Window Geometry"])
    images = [display["Topic"]["Value"] for display in displays]

    foxglove = json.loads((repository / "config" / "segmentation_foxglove.json").read_text())
    panels = foxglove["configById"]
    images += [panel["imageMode"]["imageTopic"] for panel in panels.values() if "imageMode" in panel]
    others = {
        "/" + (panel.get("topicToRender") or panel["topicPath"].partition(".")[0]).lstrip("/")
        for panel in panels.values()
        if "imageMode" not in panel
    }
    assert {published[topic] for topic in images} == {"sensor_msgs/msg/Image"}
    assert {topic: published[topic] for topic in others} == {
        "/diagnostics": "diagnostic_msgs/msg/DiagnosticArray",
        "/segmentation/classes": "std_msgs/msg/String",
    }
    assert sorted(leaves(foxglove["layout"])) == sorted(panels)


def leaves(layout):
    return [layout] if isinstance(layout, str) else leaves(layout["first"]) + leaves(layout["second"])


# Parameters


def test_another_checkpoint_is_swapped_in_while_images_come(start):
    robot = start()
    robot.begin()
    robot.send(1000)
    robot.wait_for(1)
    assert robot.set("checkpoint", "7").successful
    robot.wait_until(lambda: robot.classes == [5, 7], "the new classes")
    robot.send(1100)
    assert robot.wait_for(2) == [(1000, True), (1100, True)]
    robot.wait_until(lambda: robot.value("checkpoint") == "7", "the new checkpoint in diagnostics")
    assert robot.value("classes") == "7"


def test_bad_checkpoint_is_refused_or_set_back_and_the_old_one_goes_on(start):
    robot = start()
    refused = robot.set("checkpoint", "missing")
    assert (refused.successful, refused.reason) == (False, "missing: no such checkpoint file")
    assert robot.set("checkpoint", "").reason.startswith("parameter checkpoint: a configured node needs one")
    assert robot.set("checkpoint", "damaged").successful, "its header is sound"
    robot.wait_for_problem("damaged was refused: damaged: weights are missing")
    robot.wait_until(lambda: robot.segmentation.get_parameter("checkpoint").value == "5", "the old value")
    robot.begin()
    robot.send(1000)
    assert robot.wait_for(1) == [(1000, True)]
    assert robot.set("checkpoint", "6").successful
    robot.wait_until(lambda: robot.classes == [5, 6], "the new classes")
    robot.wait_until(lambda: "damaged" not in robot.statuses[-1].message, "the end of the problem")


def test_setting_a_checkpoint_is_answered_whatever_becomes_of_it(start, monkeypatch):
    robot = start()

    def check(checkpoint, num_classes):
        raise OSError("no disk")

    monkeypatch.setattr(m3l_ros.node, "check_model", check)
    refused = robot.set("checkpoint", "6")
    assert (refused.successful, refused.reason) == (False, "OSError: no disk")


def test_second_checkpoint_has_to_wait_for_the_first(start, monkeypatch):
    robot = start()
    go_on = threading.Event()

    def load(parameters):
        go_on.wait()
        return StandIn(parameters.checkpoint)

    monkeypatch.setattr(m3l_ros.node, "load_model", load)
    assert robot.set("checkpoint", "6").successful
    assert "another checkpoint is being loaded" in robot.set("checkpoint", "7").reason
    robot.send(1000)
    robot.wait_for(1)
    go_on.set()
    robot.wait_until(lambda: robot.classes == [5, 6], "the new classes")


def test_model_that_comes_after_cleanup_is_thrown_away(start, monkeypatch):
    robot = start()
    go_on = threading.Event()

    def load(parameters):
        go_on.wait()
        return StandIn(parameters.checkpoint)

    monkeypatch.setattr(m3l_ros.node, "load_model", load)
    assert robot.set("checkpoint", "6").successful
    robot.clean_up()
    go_on.set()
    robot.segmentation._swap.join()
    robot.wait_until(lambda: robot.value("state") == "unconfigured", "the state")
    robot.segmentation.trigger_configure()
    robot.wait_until(lambda: robot.classes[-1] == 6, "the classes of the checkpoint that was set")


def test_checkpoint_that_fails_after_cleanup_is_set_back_too(start, monkeypatch):
    robot = start()
    go_on = threading.Event()

    def load(parameters):
        if parameters.checkpoint == "6":
            go_on.wait()
            raise M3LError("6: weights are missing")
        return StandIn(parameters.checkpoint)

    monkeypatch.setattr(m3l_ros.node, "load_model", load)
    assert robot.set("checkpoint", "6").successful
    robot.clean_up()
    go_on.set()
    robot.segmentation._swap.join()
    assert robot.segmentation.get_parameter("checkpoint").value == "5"
    robot.segmentation.trigger_configure()
    robot.wait_until(lambda: robot.value("state") == "inactive", "the old checkpoint to be used")


def test_parameters_act_at_once_or_are_refused_with_the_way_out(start):
    robot = start()
    assert robot.set("outputs", ["color"]).successful
    robot.wait_until(lambda: robot.value("subscribed outputs") == "", "the mask to be withdrawn")
    robot.send(1000)
    robot.wait_until(lambda: robot.value("skipped: nobody subscribed to any output") == "1", "the books")
    assert robot.set("outputs", ["mask"]).successful
    robot.begin(1050)
    robot.send(1100)
    assert robot.wait_for(1) == [(1100, True)]
    assert "it is active: deactivate and clean it up" in robot.set("input_qos", "reliable").reason
    assert "read-only" in robot.set("autostart", False).reason
    assert robot.set("max_wait", 2.0).reason
    assert robot.segmentation.get_parameter("input_qos").value == "auto"
    robot.clean_up()
    assert robot.set("input_qos", "reliable").successful


def test_parameters_are_refused_while_the_node_changes_its_state(start, monkeypatch):
    robot = start(connect=False, autostart=False)
    go_on, begun = threading.Event(), threading.Event()

    def load(parameters):
        begun.set()
        go_on.wait()
        return StandIn(parameters.checkpoint)

    monkeypatch.setattr(m3l_ros.node, "load_model", load)
    configuring = threading.Thread(target=robot.segmentation.trigger_configure)
    configuring.start()
    begun.wait()
    robot.wait_until(lambda: robot.value("state") == "configuring", "diagnostics while a model is loaded")
    assert "is changing its state; try again" in robot.set("slop", 0.1).reason
    go_on.set()
    configuring.join()
    assert robot.set("slop", 0.1).successful


def test_slow_inference_keeps_nobody_else_waiting(start, monkeypatch):
    robot = start(overload="newest")
    model = robot.segmentation._pipeline.predictor
    predict, begun, go_on = model.predict, threading.Event(), threading.Event()

    def slow(*args, **kwargs):
        begun.set()
        go_on.wait()
        return predict(*args, **kwargs)

    monkeypatch.setattr(model, "predict", slow)
    robot.send_rgb(1000)
    begun.wait()
    try:
        for stamp in (1100, 1200, 1300):
            robot.send_rgb(stamp)
            time.sleep(4 * PATIENCE)
        robot.wait_until(
            lambda: robot.value("skipped: a newer one took its place") == "2", "images and diagnostics"
        )
        client = robot.node.create_client(SetParameters, "segmentation_node/set_parameters")
        robot.wait_until(client.service_is_ready, "the parameters' service")
        parameter = Parameter("slop", value=0.05).to_parameter_msg()
        answer = client.call_async(SetParameters.Request(parameters=[parameter]))
        robot.wait_until(answer.done, "the parameters")
        assert answer.result().results[0].successful
    finally:
        go_on.set()
    assert [stamp for stamp, _ in robot.wait_for(2)] == [1000, 1300]


def test_thresholds_decide_on_the_level(start):
    robot = start(outage_warn_after=3600.0)
    robot.send_rgb(1000)
    robot.wait_for(1)
    robot.wait_until_well()
    assert robot.set("outage_error_after", 0.1).successful
    assert robot.set("outage_warn_after", 0.0).successful
    robot.wait_for_problem("no depth on /depth/image", DiagnosticStatus.ERROR)
    assert robot.set("stale_after", 0.1).successful
    robot.wait_for_problem("no colour image on /rgb/image", DiagnosticStatus.ERROR)


@pytest.mark.parametrize(
    ("error", "complaint"),
    [
        (
            M3LError("model.safetensors: no such checkpoint file"),
            "model.safetensors: no such checkpoint file",
        ),
        (RuntimeError("anything\nelse"), "RuntimeError: anything else"),
    ],
)
def test_configuration_that_fails_leaves_the_node_unconfigured_and_alive(
    start, monkeypatch, error, complaint
):
    robot = start(connect=False, autostart=False)

    def load(parameters):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(m3l_ros.node, "load_model", load)
        robot.segmentation.trigger_configure()
    robot.wait_until(lambda: robot.statuses, "diagnostics")
    robot.wait_for_problem(f"cannot configure: {complaint}", DiagnosticStatus.ERROR)
    assert robot.value("state") == "unconfigured"
    robot.segmentation.trigger_configure()
    robot.segmentation.trigger_activate()
    robot.wait_until_connected()
    robot.send(1000)
    robot.wait_for(1)


def test_transition_that_breaks_frees_everything_and_leaves_a_node_to_be_configured(start, monkeypatch):
    robot = start()
    robot.wait_until(lambda: robot.value("state") == "active", "the node")
    stop = robot.segmentation._pipeline.stop

    def break_once(timeout=None):
        monkeypatch.setattr(robot.segmentation._pipeline, "stop", stop)
        raise RuntimeError("anything")

    monkeypatch.setattr(robot.segmentation._pipeline, "stop", break_once)
    robot.segmentation.trigger_deactivate()
    robot.wait_until(lambda: robot.value("state") == "unconfigured", "the state")
    robot.wait_until(lambda: robot.rgb.get_subscription_count() == 0, "the end of the subscription")
    robot.segmentation.trigger_configure()
    robot.segmentation.trigger_activate()
    robot.wait_until_connected()
    robot.send(1000)
    robot.wait_for(1)
