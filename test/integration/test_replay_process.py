# SPDX-License-Identifier: Apache-2.0
"""Three processes, as in the demo: `m3l replay` publishes a bag, the node segments it, and this one counts."""

from __future__ import annotations

import signal
import time

import numpy as np
import pytest

from m3l_model.bags import DEFAULT_TOPICS, BagWriter

PATIENCE = 240.0
FRAMES = 20
START_NS = 1_700_000_000 * 10**9
PERIOD_NS = 10**8
K = [[50.0, 0.0, 32.0], [0.0, 50.0, 24.0], [0.0, 0.0, 1.0]]


@pytest.fixture(scope="module")
def bag(tmp_path_factory, images_of):
    """Two seconds at 10 Hz."""
    path = tmp_path_factory.mktemp("replay") / "bag"
    with BagWriter(path) as writer:
        for index in range(FRAMES):
            rgb, depth = images_of(index)
            stamp_ns = START_NS + index * PERIOD_NS
            writer.write_frame(stamp_ns, "camera", rgb, depth, np.zeros(depth.shape, np.uint8), K)
    return path


def test_every_frame_of_a_bag_gets_its_mask_while_depth_drops_out(
    start_node, start_robot, start_replay, checkpoint, bag
):
    robot = start_robot()
    node = start_node(
        *("-p", f"checkpoint:={checkpoint}", "-p", "overload:=queue", "-p", "input_depth:=50"),
        *("-p", "use_sim_time:=true"),
        *("-r", f"rgb/image:={DEFAULT_TOPICS.rgb}", "-r", f"depth/image:={DEFAULT_TOPICS.depth}"),
    )
    robot.listen("mask")
    robot.wait_until(lambda: robot.diagnostics.get("subscribed outputs") == "mask", "the node to be active")

    replay, log = start_replay(
        str(bag), "--clock", "--drop-depth", "0.7:1.35", "--wait-for-subscribers", "60"
    )
    assert replay.wait(PATIENCE) == 0, log.read_text()

    masks = robot.wait_for_masks(FRAMES)
    stamps = [mask.header.stamp.sec * 10**9 + mask.header.stamp.nanosec for mask in masks]
    assert stamps == [START_NS + index * PERIOD_NS for index in range(FRAMES)]
    assert {mask.header.frame_id for mask in masks} == {"camera"}
    robot.wait_until(lambda: robot.diagnostics.get("received") == str(FRAMES), "the books")
    unpaired = FRAMES - int(robot.diagnostics["frames: paired"])
    assert unpaired >= 7, "the node had no depth for the frames at 0.7 to 1.3 s"
    published = (
        f"published {FRAMES * 5 - 7} messages, 7 depth images withheld"  # 3 images and 2 infos a frame
    )
    assert published in log.read_text()
    assert node.alive


def test_replay_ends_quietly_when_interrupted(start_replay, bag):
    replay, log = start_replay(str(bag), "--loop", "--rate", "20")
    while "start over" not in log.read_text():
        assert replay.poll() is None, log.read_text()
        time.sleep(0.02)
    replay.send_signal(signal.SIGINT)
    assert replay.wait(PATIENCE) == 0
    assert "Traceback" not in log.read_text()


def test_replay_says_who_is_missing(start_replay, bag):
    replay, log = start_replay(
        str(bag), "--wait-for-subscribers", "0.1", "--ros-args", "-r", f"{DEFAULT_TOPICS.rgb}:=/here"
    )
    assert replay.wait(PATIENCE) == 2
    last = log.read_text().splitlines()[-1]
    assert last.startswith("m3l replay: error: nobody subscribed to /here, ")
