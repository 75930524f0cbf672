# SPDX-License-Identifier: Apache-2.0
"""What the live node is played: the images that the offline pass sees, as messages."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: pip install -e '.[ros]'")

from rclpy.serialization import deserialize_message
from rosbags.typesys.stores import ros2_jazzy as ros
from sensor_msgs.msg import CompressedImage, Image

from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.bag_frames import camera_arrivals
from m3l_model.bags import DEFAULT_TOPICS, BagFrames, BagReader, BagWriter
from m3l_model.images import to_depth, to_rgb
from m3l_model.offline import FrameSource, decide
from m3l_model.scenarios import SCENARIOS
from m3l_ros.live_images import LiveImages
from m3l_ros.stamps import to_ns

SCENARIO = {scenario.name: scenario for scenario in SCENARIOS}
START = 1_700_000_000 * 10**9
PERIOD = 50_000_000
FRAMES = 8
SIZE = (32, 48)
SEED = 3


def images(index):
    rng = np.random.default_rng(index)
    return rng.integers(0, 255, (*SIZE, 3), np.uint8), rng.integers(500, 5000, SIZE, np.uint16)


@pytest.fixture(scope="module")
def frames(tmp_path_factory):
    path = tmp_path_factory.mktemp("live") / "raw"
    with BagWriter(path) as writer:
        for index in range(FRAMES):
            rgb, depth = images(index)
            at = START + index * PERIOD
            writer.write_depth(DEFAULT_TOPICS.depth, at + 2_000_000, "camera", depth, at + 4_000_000)
            writer.write_rgb(DEFAULT_TOPICS.rgb, at, "camera", rgb, at + 6_000_000)
    return BagFrames.open(path)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory):
    path = tmp_path_factory.mktemp("live") / "compressed"
    topics = "/camera/color/image_raw/compressed", "/camera/depth/image_raw/compressedDepth"
    with BagWriter(path) as writer:
        for index in range(FRAMES):
            rgb, depth = images(index)
            at = START + index * PERIOD
            encoded = (
                ("rgb8; jpeg compressed bgr8", cv2.imencode(".jpg", rgb)[1]),
                ("16UC1; compressedDepth png", np.r_[np.zeros(12, np.uint8), cv2.imencode(".png", depth)[1]]),
            )
            for topic, (form, data) in zip(topics, encoded, strict=True):
                message = ros.sensor_msgs__msg__CompressedImage(writer.header(at, "camera"), form, data)
                writer.write_message(topic, "sensor_msgs/msg/CompressedImage", at, message)
    return BagFrames.open(path)


@pytest.mark.parametrize("name", ["clean", "depth_bursts_50", "depth_decimated", "depth_delayed"])
def test_messages_are_the_recorded_ones_that_arrive_in_their_order(frames, name):
    scenario = SCENARIO[name]
    arrivals = scenario.arrive(camera_arrivals(frames.index, frames.topics), SEED)
    played = list(LiveImages(frames, scenario, SEED))
    assert [(each.rgb, each.stamp_ns, each.now_ns) for each in played] == [
        (bool(rgb), stamp, log) for _, rgb, stamp, log in arrivals.tolist()
    ]
    with BagReader(frames.index.path) as bag:
        recorded = {bytes(each.data) for each in bag.raw_messages([frames.topics.rgb, frames.topics.depth])}
    assert {each.message for each in played} <= recorded


def test_a_skewed_clock_changes_stamps_and_nothing_else(frames):
    clean, skewed = (list(LiveImages(frames, SCENARIO[name], SEED)) for name in ("clean", "depth_skewed"))
    for before, after in zip(clean, skewed, strict=True):
        first, second = (deserialize_message(each.message, Image) for each in (before, after))
        assert to_ns(second.header.stamp) == after.stamp_ns
        assert after.stamp_ns - before.stamp_ns == (0 if before.rgb else 50_000_000)
        first.header.stamp = second.header.stamp
        assert first == second


@pytest.mark.parametrize("name", ["both_holes", "both_noise", "depth_quantised", "rgb_dark"])
def test_faulty_images_are_those_that_the_offline_pass_sees(frames, name):
    scenario = SCENARIO[name]
    dataset = RgbdBagDataset([frames])
    source = FrameSource(dataset, 0)
    rgbs, depths = (
        {each.stamp_ns: each for each in LiveImages(frames, scenario, SEED) if each.rgb == rgb}
        for rgb in (True, False)
    )
    for decision in decide(frames, scenario, SEED):
        seen = source.see(source.read(int(decision["rgb"])), decision, scenario, SEED)
        rgb = to_rgb(deserialize_message(rgbs[int(decision["stamp_ns"])].message, Image))
        np.testing.assert_array_equal(rgb, seen.rgb)
        if seen.depth is not None:
            depth = to_depth(deserialize_message(depths[int(decision["depth_stamp_ns"])].message, Image))
            np.testing.assert_array_equal(depth, seen.depth)
    assert (decide(frames, scenario, SEED)["depth"] >= 0).sum() > FRAMES / 2


def test_compressed_images_stay_so_until_a_scenario_changes_them(compressed):
    recorded = LiveImages(compressed, SCENARIO["clean"], SEED)
    assert (recorded.rgb_transport, recorded.depth_transport) == ("compressed", "compressedDepth")
    assert recorded.message_types == (CompressedImage, CompressedImage)
    assert {deserialize_message(each.message, CompressedImage).format for each in recorded} == {
        "rgb8; jpeg compressed bgr8",
        "16UC1; compressedDepth png",
    }
    dark = LiveImages(compressed, SCENARIO["rgb_dark"], SEED)
    assert (dark.rgb_transport, dark.depth_transport) == ("raw", "raw")
    assert dark.message_types == (Image, Image)
    assert {deserialize_message(each.message, Image).encoding for each in dark} == {"rgb8", "16UC1"}


def test_an_image_that_cannot_be_read_reaches_the_node_as_one(compressed):
    index = compressed.index
    swapped = replace(compressed.topics, rgb=compressed.topics.depth, depth=compressed.topics.rgb)
    dark = list(LiveImages(BagFrames(index, swapped), SCENARIO["rgb_dark"], SEED))
    assert len(dark) == 2 * FRAMES
    assert {len(deserialize_message(each.message, Image).data) for each in dark} == {0}
    assert {to_ns(deserialize_message(each.message, Image).header.stamp) for each in dark} == {
        each.stamp_ns for each in dark
    }
