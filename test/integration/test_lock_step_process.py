# SPDX-License-Identifier: Apache-2.0
"""`m3l replay --step` and the node, as processes: what the node decides and segments is what the bag alone says."""

from __future__ import annotations

import numpy as np
import pytest
from sensor_msgs.msg import TimeReference

from m3l_model.bags import DEFAULT_TOPICS, BagWriter, read_frames
from m3l_model.predictor import Predictor

PATIENCE = 240.0
FRAMES = 30
START_NS = 1_700_000_000 * 10**9
PERIOD_NS = 10**8
K = np.eye(3)


@pytest.fixture(scope="module")
def bag(tmp_path_factory, images_of):
    """Three seconds at 10 Hz, as long as `max_wait`: whether depth came in time is decided by the nanosecond."""
    path = tmp_path_factory.mktemp("step") / "bag"
    with BagWriter(path) as writer:
        for index in range(FRAMES):
            rgb, depth = images_of(index)
            at = START_NS + index * PERIOD_NS
            writer.write_rgb(DEFAULT_TOPICS.rgb, at, "camera", rgb)
            if index % 4 == 1:
                writer.write_depth(DEFAULT_TOPICS.depth, at, "camera", depth, at + PERIOD_NS)
            elif index not in range(10, 20):
                writer.write_depth(DEFAULT_TOPICS.depth, at, "camera", depth, at + PERIOD_NS + 1)
    return path


def test_decisions_and_masks_are_those_of_the_offline_pass(
    start_node, start_robot, start_replay, checkpoint, bag
):
    robot = start_robot()
    start_node(
        *("-p", f"checkpoint:={checkpoint}", "-p", "use_sim_time:=true", "-p", "diagnostics_period:=0.1"),
        *("-r", f"rgb/image:={DEFAULT_TOPICS.rgb}", "-r", f"depth/image:={DEFAULT_TOPICS.depth}"),
    )
    robot.listen("mask")
    decisions = robot.listen("decision", TimeReference)
    robot.wait_until(lambda: robot.diagnostics.get("subscribed outputs") == "mask", "the node to be active")
    replay, log = start_replay(str(bag), "--step")
    assert replay.wait(PATIENCE) == 0, log.read_text()
    masks = robot.wait_for_masks(FRAMES)

    predictor = Predictor.from_checkpoint(checkpoint)
    expected = list(read_frames(bag))
    robot.wait_until(lambda: len(decisions) == FRAMES, "the decisions")
    decided = [(_ns(each.header.stamp), each.source, _ns(each.time_ref)) for each in decisions]
    assert [d[:2] for d in decided] == [(frame.stamp_ns, str(frame.reason)) for frame in expected]
    assert {reason for _, reason, _ in decided} == {"paired", "deadline", "depth_lost"}
    assert all((depth != 0) == (reason == "paired") for _, reason, depth in decided)
    for mask, frame in zip(masks, expected, strict=True):
        labels = predictor.predict(frame.rgb, frame.depth, with_confidence=False).labels
        np.testing.assert_array_equal(np.asarray(mask.data).reshape(labels.shape), labels)


def _ns(stamp):
    return stamp.sec * 10**9 + stamp.nanosec
