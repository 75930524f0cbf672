# SPDX-License-Identifier: Apache-2.0
"""Replay of bags, to a listener in the same process; with a node of its own in test/integration."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message, serialize_message
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from m3l_model.bags import DEFAULT_TOPICS, BagReader, BagWriter
from m3l_ros.replay import BagPlayer, Interval, ReplayOptions

START_NS = 1_600_000_000 * 10**9
FRAMES = 10
K = np.eye(3)


@pytest.fixture(scope="module")
def bag(tmp_path_factory):
    """One second at 10 Hz."""
    path = tmp_path_factory.mktemp("bags") / "camera"
    with BagWriter(path) as writer:
        for index in range(FRAMES):
            rgb = np.full((6, 8, 3), index, np.uint8)
            depth = np.full((6, 8), 1000 + index, np.uint16)
            writer.write_frame(START_NS + index * 10**8, "camera", rgb, depth, None, K)
    return path


@pytest.fixture
def latched_bag(tmp_path):
    """A bag with what recorders find on every robot: /tf_static, best-effort and latched topics, types of others."""
    typestore = get_typestore(Stores.ROS2_JAZZY)
    path = tmp_path / "latched"
    text = typestore.serialize_cdr(typestore.types["std_msgs/msg/String"]("hello"), "std_msgs/msg/String")
    with Writer(path, version=8, storage_plugin=StoragePlugin.MCAP) as writer:
        for topic, msgtype, qos in (
            ("/map", "std_msgs/msg/String", recorded_qos(durability="TRANSIENT_LOCAL")),
            ("/tf_static", "std_msgs/msg/String", recorded_qos()),
            ("/fast", "std_msgs/msg/String", recorded_qos(reliability="BEST_EFFORT")),
            ("/other", "shape_msgs/msg/Plane", recorded_qos()),
            ("/clock", "rosgraph_msgs/msg/Clock", recorded_qos()),
        ):
            connection = writer.add_connection(
                topic, msgtype, typestore=typestore, offered_qos_profiles=[qos]
            )
            writer.write(connection, START_NS, text)
    return path


def recorded_qos(reliability="RELIABLE", durability="VOLATILE"):
    from rosbags.interfaces import Qos, QosDurability, QosHistory, QosLiveliness, QosReliability, QosTime

    forever = QosTime(9223372036, 854775807)
    return Qos(
        *(QosHistory.UNKNOWN, 0, QosReliability[reliability], QosDurability[durability], forever, forever),
        *(QosLiveliness.AUTOMATIC, forever, False),
    )


@pytest.fixture
def player_node(context):
    node = Node("player", context=context)
    yield node
    node.destroy_node()


@pytest.fixture
def listen(node):
    """Subscribe to a topic; returns the list that its messages are put into, serialized."""

    def start(topic, message_type=Image, qos=100):
        heard: list[bytes] = []
        node.create_subscription(message_type, topic, heard.append, qos, raw=True)
        return heard

    return start


def play(player_node, bag, **options):
    lines: list[str] = []
    player = BagPlayer(player_node, bag, ReplayOptions(**options), lines.append)
    return player.play(), lines


def recorded(bag, topic):
    with BagReader(bag) as reader:
        return [bytes(message.data) for message in reader.raw_messages([topic])]


def test_messages_come_as_they_were_recorded(bag, player_node, listen, wait_until):
    colour, depth = listen(DEFAULT_TOPICS.rgb), listen(DEFAULT_TOPICS.depth)
    info = listen(DEFAULT_TOPICS.rgb_info, CameraInfo)
    counts, _ = play(player_node, bag, rate=10.0, wait_for_subscribers=60.0)
    wait_until(lambda: len(colour) + len(depth) + len(info) == 3 * FRAMES, "every message")
    for heard, topic in ((colour, DEFAULT_TOPICS.rgb), (depth, DEFAULT_TOPICS.depth)):
        original = [deserialize_message(data, Image) for data in recorded(bag, topic)]
        assert [deserialize_message(data, Image) for data in heard] == original
    assert counts.published == dict.fromkeys(
        (DEFAULT_TOPICS.rgb, DEFAULT_TOPICS.depth, DEFAULT_TOPICS.rgb_info, DEFAULT_TOPICS.depth_info), FRAMES
    )
    assert counts.withheld == 0


def test_depth_is_withheld_and_nothing_else(bag, player_node, listen, wait_until):
    colour, depth = listen(DEFAULT_TOPICS.rgb), listen(DEFAULT_TOPICS.depth)
    drop_depth = (Interval(0.1, 0.3), Interval(0.75, math.inf))
    counts, lines = play(player_node, bag, rate=10.0, wait_for_subscribers=60.0, drop_depth=drop_depth)
    wait_until(lambda: len(colour) == FRAMES and len(depth) == FRAMES - 4, "the images")
    stamps = [deserialize_message(data, Image).header.stamp.nanosec // 10**8 for data in depth]
    assert stamps == [0, 3, 4, 5, 6, 7]
    assert counts.withheld == 4
    assert counts.published[DEFAULT_TOPICS.depth_info] == FRAMES
    assert "no /camera/aligned_depth_to_color/image_raw from 0.1 to 0.3 s" in "".join(lines)


def test_replay_keeps_the_pace(bag, player_node):
    begin = time.monotonic()
    play(player_node, bag, rate=3.0)
    assert time.monotonic() - begin >= 0.9 / 3


def test_only_topics_asked_for_are_published(bag, player_node):
    counts, _ = play(player_node, bag, rate=100.0, topics=[DEFAULT_TOPICS.depth])
    assert counts.published == {DEFAULT_TOPICS.depth: FRAMES}


def test_clock_runs_with_the_bag(bag, player_node, listen, wait_until):
    heard = listen("/clock", Clock, QoSProfile(depth=1000))
    player = BagPlayer(player_node, bag, ReplayOptions(clock=True), report=lambda line: None)
    wait_until(lambda: player_node.count_subscribers("/clock"), "the subscription")
    player.play()
    wait_until(lambda: len(heard) > 20, "the time")
    clock = [deserialize_message(data, Clock).clock for data in heard]
    times = [stamp.sec * 10**9 + stamp.nanosec for stamp in clock]
    assert times == sorted(times)
    assert START_NS <= times[0] <= times[-1] <= START_NS + 9 * 10**8


def test_latched_topics_reach_those_who_come_late(latched_bag, player_node, listen, wait_until):
    counts, _ = play(player_node, latched_bag, topics=["/tf_static", "/map"])
    assert counts.published == {"/tf_static": 1, "/map": 1}
    qos = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    for topic in ("/tf_static", "/map"):
        heard = listen(topic, String, qos)
        wait_until(lambda heard=heard: len(heard) == 1, topic)
        assert heard[0] == serialize_message(String(data="hello"))


def test_qos_is_offered_as_recorded(latched_bag, player_node, wait_until):
    BagPlayer(player_node, latched_bag, report=lambda line: None)

    def offered(topic):
        [publisher] = wait_until(lambda: player_node.get_publishers_info_by_topic(topic), topic)
        return publisher.qos_profile.reliability, publisher.qos_profile.durability

    assert offered("/fast") == (ReliabilityPolicy.BEST_EFFORT, DurabilityPolicy.VOLATILE)
    assert offered("/map") == (ReliabilityPolicy.RELIABLE, DurabilityPolicy.TRANSIENT_LOCAL)


def test_topic_of_an_unknown_type_is_left_out_with_a_line(latched_bag, player_node):
    counts, lines = play(player_node, latched_bag, rate=100.0, clock=True)
    assert set(counts.published) == {"/fast", "/map", "/tf_static"}, "/clock is the player's own"
    assert [line for line in lines if "shape_msgs/msg/Plane is not installed" in line]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"topics": ["/nothing"]}, "no topic /nothing; the bag has /camera"),
        ({"rate": 0.0}, "rate must be above 0"),
        (
            {"drop_depth": [Interval(0, 1)], "depth_topic": "/nothing"},
            "/nothing is not one of the image topics",
        ),
        (
            {"wait_for_subscribers": 0.0},
            "nobody subscribed to /camera/color/image_raw, /camera/aligned_depth",
        ),
        ({"step": True, "rate": 2.0}, "--step goes at the node's pace; leave out --rate"),
        ({"step": True, "faults": 1}, "leave out one of them"),
        ({"step": True, "wait_for_subscribers": 0.0}, "no node answered on /segmentation/receipt within 0 s"),
        ({"step": True, "rgb_topic": "/nothing"}, "/nothing is not one of the image topics"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line(bag, player_node, options, complaint):
    from m3l_model.errors import M3LError

    with pytest.raises(M3LError, match=complaint) as raised:
        play(player_node, bag, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "interval"), [("10:20", (10, 20)), ("0.5:1", (0.5, 1)), ("10:", (10, math.inf)), (":3", (0, 3))]
)
def test_interval_is_read(text, interval):
    assert Interval.parse(text) == interval


@pytest.mark.parametrize("text", ["", "10", "20:10", "-1:3", "a:b", "3:3"])
def test_other_text_is_no_interval(text):
    with pytest.raises(ValueError, match=r"is not BEGIN:END|could not convert"):
        Interval.parse(text)
