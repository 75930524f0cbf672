# SPDX-License-Identifier: Apache-2.0
"""The node as users run it: a process, spoken to over DDS; frames and masks are counted here, not by the node."""

from __future__ import annotations

import json
import signal

import numpy as np
import pytest
from rclpy.qos import ReliabilityPolicy
from sensor_msgs.msg import CameraInfo

from m3l_model.images import to_rgb
from m3l_model.labels import LabelSet
from m3l_model.predictor import Predictor
from m3l_model.shipped import DEFAULT_MODEL

PATIENT = [
    argument
    for name, value in {
        "overload": "queue",
        "input_depth": 50,
        "max_wait": 1.0,
        "depth_timeout": 3.0,
        "diagnostics_period": 0.1,
    }.items()
    for argument in ("-p", f"{name}:={value}")
]
"""Parameters with which a frame's fate does not depend on how fast this machine is."""

IN_TIME = 2.0
FRAME_ID = "camera_color_optical_frame"


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor.from_checkpoint(checkpoint, device="cpu")


def used(mask, predictor, rgb, depth):
    """What a mask was made from, told from its pixels: ``both`` or ``colour``."""
    pixels = np.asarray(mask.data).reshape(mask.height, mask.width)
    agreement = {
        "both": (pixels == predictor.predict(rgb, depth).labels).mean(),
        "colour": (pixels == predictor.predict(rgb, None).labels).mean(),
    }
    best = max(agreement, key=agreement.__getitem__)
    assert agreement[best] > 0.99 > min(agreement.values()), agreement
    return best


def stamp_ns(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def stamps_of(indices):
    return [(10_000 + index) * 10**8 for index in indices]


def exits_cleanly(node, number):
    code, seconds = node.end(number)
    assert code == 0, node.log
    assert seconds < IN_TIME
    assert "Traceback" not in node.log


def test_one_mask_per_frame_through_an_outage(
    start_node, start_robot, images_of, checkpoint, predictor, class_names
):
    robot = start_robot()
    node = start_node("-p", f"checkpoint:={checkpoint}", *PATIENT)
    robot.listen("camera_info", CameraInfo)
    robot.wait_until_ready("mask", "color", "overlay", "confidence", "camera_info")
    robot.wait_for_depth(-1)

    info = CameraInfo(width=64, height=48)
    info.k[0] = 50.0
    robot.rgb_info.publish(info)
    for index in range(6):
        robot.publish(index)
    robot.wait_for_masks(6)
    for index in range(6, 14):
        robot.publish(index, depth=False)
    robot.wait_until(lambda: robot.diagnostics.get("outage") == "True", "the outage")
    for index in range(14, 18):
        robot.publish(index, depth=False)
    robot.wait_for_masks(18)
    robot.wait_for_depth(17)
    for index in range(18, 24):
        robot.publish(index)
    masks = robot.wait_for_masks(24)

    assert [stamp_ns(mask) for mask in masks] == stamps_of(range(24))
    assert {mask.header.frame_id for mask in masks} == {FRAME_ID}
    assert {(mask.width, mask.height, mask.encoding, mask.step) for mask in masks} == {(64, 48, "mono8", 64)}
    sources = [used(mask, predictor, *images_of(index)) for index, mask in enumerate(masks)]
    assert sources == ["both"] * 6 + ["colour"] * 12 + ["both"] * 6

    labels = predictor.labels
    for name in ("color", "overlay", "confidence", "camera_info"):
        assert [stamp_ns(message) for message in robot.heard[name]] == stamps_of(range(24)), name
    for index, mask in enumerate(masks):
        ids = np.asarray(mask.data).reshape(48, 64)
        color = np.asarray(robot.heard["color"][index].data).reshape(48, 64, 3)
        np.testing.assert_array_equal(color, labels.colorize(ids))
        overlay = np.asarray(robot.heard["overlay"][index].data).reshape(48, 64, 3)
        half = (color.astype(float) + images_of(index)[0]) / 2
        assert np.abs(overlay - half).max() <= 1
        confidence = np.frombuffer(robot.heard["confidence"][index].data, np.float32)
        assert confidence.size == 48 * 64
        assert 0.2 <= confidence.min() <= confidence.max() <= 1.0
    assert {message.k[0] for message in robot.heard["camera_info"]} == {50.0}
    assert {message.header.frame_id for message in robot.heard["camera_info"]} == {FRAME_ID}
    assert json.loads(robot.heard["classes"][0].data)["classes"] == class_names

    outage, recovery, _ = node.log.partition("depth is back")
    assert recovery
    assert outage.count("no depth") == 1, "once, not for each of the frames"
    robot.wait_until(lambda: robot.diagnostics.get("received") == "24", "the books")
    assert robot.diagnostics["masks"] == "24"
    assert (robot.diagnostics["skipped"], robot.diagnostics["dropped"]) == ("0", "0")

    exits_cleanly(node, signal.SIGINT)


def test_node_that_was_told_nothing_runs_the_model_of_the_package(start_node, start_robot):
    robot = start_robot()
    node = start_node(*PATIENT)
    robot.wait_until_ready("mask")
    for index in range(3):
        robot.publish(index, depth=index != 1)
    masks = robot.wait_for_masks(3)

    assert [stamp_ns(mask) for mask in masks] == stamps_of(range(3))
    robot.wait_until(lambda: robot.heard["classes"], "the classes")
    assert json.loads(robot.heard["classes"][0].data)["classes"] == list(LabelSet.load("nyu13").classes)
    assert f"loaded {DEFAULT_MODEL}: 13 classes" in node.log

    exits_cleanly(node, signal.SIGTERM)


def test_compressed_images_in_a_namespace_by_one_remap(
    start_node, start_robot, images_of, checkpoint, predictor
):
    robot = start_robot(
        namespace="/front", rgb_topic="/cam/color", depth_topic="/front/depth/image", compressed=True
    )
    node = start_node(
        *("-p", f"checkpoint:={checkpoint}", *PATIENT),
        *("-p", "rgb_transport:=compressed", "-p", "depth_transport:=compressedDepth"),
        *("-r", "__ns:=/front", "-r", "rgb/image:=/cam/color"),
    )
    robot.wait_until_ready("mask")
    robot.wait_for_depth(-1)
    for index in range(4):
        robot.publish(index)
    for index in range(4, 6):
        robot.publish(index, depth=False)
    masks = robot.wait_for_masks(6)

    assert [stamp_ns(mask) for mask in masks] == stamps_of(range(6))
    for index, mask in enumerate(masks):
        rgb = to_rgb(robot.rgb_message(index))
        assert used(mask, predictor, rgb, images_of(index)[1]) == ("both" if index < 4 else "colour")

    exits_cleanly(node, signal.SIGTERM)


def test_failing_configure_leaves_a_node_that_works_once_mended(
    start_node, start_robot, checkpoint, tmp_path
):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\x09" + bytes(7) + b"{no model")
    robot = start_robot()
    node = start_node("-p", f"checkpoint:={damaged}")
    robot.wait_until(lambda: "cannot configure" in robot.verdict, "the reason in diagnostics")
    assert str(damaged) in robot.verdict
    assert node.log.count("cannot configure") == 1
    assert robot.diagnostics["state"] == "unconfigured"
    assert robot.state() == "unconfigured"
    assert robot.rgb.get_subscription_count() == 0

    assert not robot.change_state("configure")
    assert not robot.change_state("activate"), "a transition that there is not is refused, and harms nobody"
    refused = robot.set_parameter("overload", "oldest")
    assert (refused.successful, "newest, queue" in refused.reason) == (False, True)
    assert robot.set_parameter("checkpoint", str(checkpoint)).successful

    assert robot.change_state("configure")
    assert robot.state() == "inactive"
    for _ in range(2):
        assert robot.change_state("activate")
        robot.wait_until_ready("mask")
        robot.publish(len(robot.masks))
        robot.wait_for_masks(len(robot.masks) + 1)
        assert robot.change_state("deactivate")
        robot.wait_until(lambda: robot.rgb.get_subscription_count() == 0, "the end of the subscription")
    assert robot.change_state("cleanup")
    assert robot.set_parameter("device", "cuda:99").successful
    assert not robot.change_state("configure")
    assert robot.state() == "unconfigured"
    robot.wait_until(lambda: "cuda:99" in robot.verdict, "the reason in diagnostics")

    exits_cleanly(node, signal.SIGTERM)


def test_lifecycle_manager_brings_it_up_pauses_resets_and_shuts_it_down(start_node, start_robot, checkpoint):
    """What nav2_lifecycle_manager asks of a node, with bond_timeout 0: a transition, and the state that it led to."""
    robot = start_robot()
    node = start_node("-p", f"checkpoint:={checkpoint}", "-p", "autostart:=false", *PATIENT)
    startup = (("configure", "inactive"), ("activate", "active"))
    pause_and_resume = (("deactivate", "inactive"), ("activate", "active"))
    reset = (("deactivate", "inactive"), ("cleanup", "unconfigured"))
    for transition, state in (*startup, *pause_and_resume, *reset, *startup):
        assert robot.change_state(transition)
        assert robot.state() == state
    robot.wait_until_ready("mask")
    robot.publish(0)
    robot.wait_for_masks(1)
    for transition, state in (*reset, ("shutdown", "finalized")):
        assert robot.change_state(transition)
        assert robot.state() == state
    exits_cleanly(node, signal.SIGINT)


def test_best_effort_camera_is_followed_and_a_signal_interrupts_inference(
    start_node, start_robot, checkpoint
):
    """The publishers come after the subscription, which was reliable by then."""
    node = start_node("-p", f"checkpoint:={checkpoint}", *PATIENT)
    listener = start_robot(rgb_topic="/elsewhere/rgb", depth_topic="/elsewhere/depth")
    listener.wait_until(lambda: listener.diagnostics.get("state") == "active", "the node to be active")
    assert "reliable" in listener.diagnostics["colour"]

    robot = start_robot(reliability=ReliabilityPolicy.BEST_EFFORT)
    robot.wait_until_ready("mask")
    robot.wait_until(lambda: "best effort" in robot.diagnostics["colour"], "the change in diagnostics")
    robot.publish(0)
    robot.wait_for_masks(1)

    robot.rgb.publish(robot.rgb_message(1, scale=30))
    robot.wait_until(lambda: robot.diagnostics["pending"] == "1", "an inference that takes its time")
    exits_cleanly(node, signal.SIGINT)
