# SPDX-License-Identifier: Apache-2.0
"""Real images, from files to masks: import-images makes a bag, replay publishes it, the node segments it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from m3l_model.bags import DEFAULT_TOPICS, read_frames

FRAMES = 12


@pytest.mark.data
def test_a_kinect_recording_becomes_a_bag_and_each_of_its_images_a_mask(
    shared_data, environment, start_node, start_robot, checkpoint, tmp_path
):
    folder, bag = shared_data / "data" / "redkitchen", tmp_path / "redkitchen"
    wanted = tmp_path / "frames.txt"
    wanted.write_text("\n".join(f"frame-{index:06}" for index in range(FRAMES)))
    run_m3l(
        environment,
        *("import-images", "--color", folder / "*.color.jpg", "--depth", folder / "*.depth.png"),
        *("--intrinsics", folder / "camera-intrinsics.txt", "--list", wanted, "--rate", "5", "--out", bag),
    )
    frames = list(read_frames(bag))
    assert len(frames) == FRAMES
    assert all(frame.depth is not None and (frame.depth > 0).mean() > 0.5 for frame in frames)

    robot = start_robot()
    start_node(
        *("-p", f"checkpoint:={checkpoint}", "-p", "overload:=queue", "-p", "input_depth:=50"),
        *("-r", f"rgb/image:={DEFAULT_TOPICS.rgb}", "-r", f"depth/image:={DEFAULT_TOPICS.depth}"),
    )
    robot.listen("mask")
    robot.wait_until(lambda: robot.diagnostics.get("subscribed outputs") == "mask", "the node to be active")
    run_m3l(environment, "replay", bag, "--wait-for-subscribers", "60")

    masks = robot.wait_for_masks(FRAMES)
    stamps = [mask.header.stamp.sec * 10**9 + mask.header.stamp.nanosec for mask in masks]
    assert stamps == [frame.stamp_ns for frame in frames]
    assert {(mask.height, mask.width, mask.encoding) for mask in masks} == {(480, 640, "mono8")}


def run_m3l(environment, *arguments):
    command = [sys.executable, "-m", "m3l_model", *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
