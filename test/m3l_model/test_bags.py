# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from rosbags.interfaces import QosHistory, QosReliability
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from m3l_model.bag_topics import ImageTopic, TopicsError, choose_topics
from m3l_model.bag_writer import BagWriteError
from m3l_model.bags import (
    DEFAULT_TOPICS,
    BagError,
    BagFrame,
    BagReader,
    BagWriter,
    Pairing,
    Topics,
    guess_topics,
    read_frames,
)
from m3l_model.cdr import COMPRESSED_IMAGE, IMAGE, stamp_ns
from m3l_model.images import ImageFormatError
from m3l_model.sync import Reason, RgbdSynchronizer

MS = 1_000_000
SECOND = 1_000_000_000
FRAME_ID = "camera_color_optical_frame"
K = np.array([[60.0, 0, 4], [0, 61.0, 3], [0, 0, 1]])
RGB, DEPTH, LABEL = "/camera/color/image_raw", "/camera/aligned_depth_to_color/image_raw", "/camera/labels"


def rgb_image(seed: int, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def depth_image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 10_000, (6, 8), np.uint16)


def label_image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 13, (6, 8), np.uint8)


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    """20 frames at 10 Hz from 1 s on; depth is missing in frames 8 to 15, labels are there in every fifth."""
    path = tmp_path / "recorded"
    with BagWriter(path) as writer:
        for index in range(20):
            depth = None if 8 <= index < 16 else depth_image(index)
            labels = None if index % 5 else label_image(index)
            writer.write_frame(SECOND + index * 100 * MS, FRAME_ID, rgb_image(index), depth, labels, K)
    return path


# Writing and reading back


def test_a_written_bag_gives_back_its_messages(bag: Path) -> None:
    with BagReader(bag) as reader:
        (message, *_), infos = (
            list(reader.messages([RGB])),
            list(reader.messages([DEFAULT_TOPICS.rgb_info or ""])),
        )
        start_ns, end_ns = reader.start_ns, reader.end_ns
        counts = {connection.topic: connection.messages for connection in reader.connections}

    assert (start_ns, end_ns) == (SECOND, SECOND + 1900 * MS)
    assert counts[RGB] == len(infos) == 20
    assert counts[DEPTH] == 12
    assert message.log_ns == SECOND
    image = message.msg
    assert (image.header.stamp.sec, image.header.stamp.nanosec, image.header.frame_id) == (1, 0, FRAME_ID)
    assert (image.height, image.width, image.step, image.encoding) == (6, 8, 24, "rgb8")
    info = infos[-1].msg
    assert (info.header.stamp.sec, info.header.stamp.nanosec) == (2, 900 * MS)
    assert (info.width, info.height, info.distortion_model) == (8, 6, "plumb_bob")
    np.testing.assert_array_equal(info.k, K.ravel())
    np.testing.assert_array_equal(info.r, np.eye(3).ravel())
    np.testing.assert_array_equal(info.p.reshape(3, 4), np.hstack([K, np.zeros((3, 1))]))
    assert not info.d.any()


def test_log_order_and_serialized_messages(bag: Path) -> None:
    with BagReader(bag) as reader:
        raw = list(reader.raw_messages())
        again = [reader.deserialize(message).header.stamp for message in raw[:3]]
        stamps = [stamp_ns(message.data) for message in raw]

    assert len(raw) == 20 * 2 + 12 * 2 + 4
    assert [message.log_ns for message in raw] == sorted(message.log_ns for message in raw)
    assert stamps == [message.log_ns for message in raw]
    assert {(stamp.sec, stamp.nanosec) for stamp in again} == {(1, 0)}


def test_a_copy_of_serialized_messages_is_the_same_bag(bag: Path, tmp_path: Path) -> None:
    with BagReader(bag) as reader, BagWriter(tmp_path / "copy") as writer:
        for raw in reader.raw_messages():
            writer.write_serialized(raw.topic, raw.msgtype, raw.log_ns, raw.data)

    assert_same_frames(read_frames(tmp_path / "copy"), read_frames(bag))


def test_every_ros_2_since_humble_can_play_the_bag(bag: Path) -> None:
    information = yaml.safe_load((bag / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    with BagReader(bag) as reader:
        qos = reader.qos(RGB)

    assert information["version"] == 8
    assert information["storage_identifier"] == "mcap"
    assert information["message_count"] == 68
    for topic in information["topics_with_message_count"]:
        (profile,) = yaml.safe_load(topic["topic_metadata"]["offered_qos_profiles"])  # text within the YAML
        assert (profile["history"], profile["depth"], profile["reliability"]) == (1, 10, 1)
    assert qos is not None
    assert (qos.history, qos.reliability, qos.depth) == (QosHistory.KEEP_LAST, QosReliability.RELIABLE, 10)


def test_rclpy_reads_the_messages(bag: Path) -> None:
    serialization = pytest.importorskip("rclpy.serialization", reason="no rclpy on this machine")
    messages = pytest.importorskip("sensor_msgs.msg", reason="no ROS messages on this machine")
    with BagReader(bag) as reader:
        depth = next(reader.raw_messages([DEPTH]))
        info = next(reader.raw_messages(["/camera/color/camera_info"]))

    image = serialization.deserialize_message(bytes(depth.data), messages.Image)
    assert (image.header.frame_id, image.encoding, image.step) == (FRAME_ID, "16UC1", 16)
    np.testing.assert_array_equal(np.frombuffer(image.data, "<u2").reshape(6, 8), depth_image(0))
    np.testing.assert_array_equal(
        serialization.deserialize_message(bytes(info.data), messages.CameraInfo).k, K.ravel()
    )


def test_log_time_may_differ_from_the_stamp(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "late") as writer:
        writer.write_rgb(RGB, SECOND, FRAME_ID, rgb_image(0), log_ns=5 * SECOND)
    with BagReader(tmp_path / "late") as reader:
        (raw,) = reader.raw_messages()

    assert (raw.log_ns, stamp_ns(raw.data)) == (5 * SECOND, SECOND)


def test_an_empty_bag_has_no_time_and_no_camera(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "empty"):
        pass
    with BagReader(tmp_path / "empty") as reader:
        assert (reader.start_ns, reader.end_ns, list(reader.messages())) == (0, 0, [])
        with pytest.raises(BagError, match="image topics with messages: none"):
            reader.choose_topics()


def test_an_existing_folder_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(BagWriteError, match=r"there exists already"), BagWriter(tmp_path / "there"):
        pass
    with pytest.raises(BagWriteError, match=r"ROS 1"), BagWriter(tmp_path / "x.bag"):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(BagWriteError, match="file/bag: cannot write"), BagWriter(tmp_path / "file" / "bag"):
        pass


def test_an_unfinished_bag_is_removed(tmp_path: Path) -> None:
    def write_half() -> None:
        with BagWriter(tmp_path / "half") as writer:
            writer.write_rgb(RGB, SECOND, FRAME_ID, rgb_image(0))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_half()

    assert not (tmp_path / "half").exists()


def test_what_fits_no_message_is_refused(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        with pytest.raises(BagWriteError, match=r"/x: float64 pixels of shape \(6, 8\) are no 16UC1 image"):
            writer.write_depth("/x", SECOND, FRAME_ID, np.zeros((6, 8)))  # type: ignore[arg-type]
        with pytest.raises(BagWriteError, match="no rgb8 image"):
            writer.write_rgb("/x", SECOND, FRAME_ID, np.zeros((6, 8), np.uint8))
        with pytest.raises(BagWriteError, match="no mono8 image"):
            writer.write_labels("/x", SECOND, FRAME_ID, np.zeros((6, 8, 3), np.uint8))
        with pytest.raises(BagWriteError, match="stamp -1 ns"):
            writer.write_rgb("/x", -1, FRAME_ID, rgb_image(0))
        writer.write_rgb("/x", SECOND, FRAME_ID, rgb_image(0))
        with pytest.raises(
            BagWriteError, match=r"/x is of type sensor_msgs/msg/Image, not std_msgs/msg/String"
        ):
            writer.write_serialized("/x", "std_msgs/msg/String", SECOND, b"")
        with pytest.raises(BagWriteError, match="my_msgs/msg/Own"):
            writer.write_serialized("/y", "my_msgs/msg/Own", SECOND, b"")


def test_use_outside_of_with_is_said(tmp_path: Path) -> None:
    with pytest.raises(BagError, match="with statement"):
        _ = BagReader(tmp_path).connections
    with pytest.raises(BagWriteError, match="with statement"):
        BagWriter(tmp_path / "bag").write_rgb(RGB, SECOND, FRAME_ID, rgb_image(0))


# What is no bag


def test_what_is_no_bag_is_named_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "old one.bag").write_bytes(b"#ROSBAG V2.0\n")
    for path, complaint in (
        (tmp_path / "absent", "absent: no such bag"),
        (tmp_path / "folder", "no metadata.yaml, .mcap or .db3"),
        (
            tmp_path / "old one.bag",
            f"rosbags-convert --src '{tmp_path}/old one.bag' --dst '{tmp_path}/old one' --dst-storage mcap$",
        ),
        (tmp_path, "old one.bag is a ROS 1 bag"),
    ):
        with pytest.raises(BagError, match=complaint), BagReader(path):
            pass


def test_unknown_topics_are_named_beside_those_there_are(bag: Path) -> None:
    with (
        BagReader(bag) as reader,
        pytest.raises(BagError, match=r"no topic /nothing; the bag has .*/camera/labels"),
    ):
        list(reader.messages(["/nothing"]))
    with pytest.raises(BagError, match="no topic /nothing"):
        list(read_frames(bag, Topics(rgb="/nothing")))
    with pytest.raises(BagError, match=r"camera_info is of type sensor_msgs/msg/CameraInfo, not an image"):
        list(read_frames(bag, Topics(rgb=RGB, label="/camera/color/camera_info")))


@pytest.mark.parametrize(
    ("kept", "complaint"), [(0, "is empty"), (4, "begins neither"), (20, "damaged|cut off")]
)
def test_a_bag_without_a_beginning_is_an_error_that_names_it(bag: Path, kept: int, complaint: str) -> None:
    storage = bag / "recorded.mcap"
    storage.write_bytes(storage.read_bytes()[:kept])

    with pytest.raises(BagError, match=f"{storage}.*({complaint})"):
        list(read_frames(bag))


def test_a_bag_cut_off_in_recording_is_read_up_to_the_cut(
    bag: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole = list(read_frames(bag))
    storage = bag / "recorded.mcap"
    content = storage.read_bytes()
    for kept in (len(content) - 9, len(content) // 2, 4000):
        caplog.clear()
        storage.write_bytes(content[:kept])

        frames = list(read_frames(bag, Topics(rgb=RGB)))

        assert 0 < len(frames) <= len(whole)
        for frame, other in zip(frames, whole, strict=False):
            np.testing.assert_array_equal(frame.rgb, other.rgb)
        assert kept == len(content) - 9 or "was cut off" in caplog.text


def test_metadata_of_another_kind_is_done_without(bag: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = list(read_frames(bag))
    (bag / "metadata.yaml").write_text("[1, 2")

    assert_same_frames(read_frames(bag), whole)
    assert f"{bag / 'metadata.yaml'}: not used" in caplog.text


# Other storage


def rewrite(bag: Path, out: Path, storage: StoragePlugin, version: int = 9) -> Path:
    store = get_typestore(Stores.ROS2_JAZZY)
    with BagReader(bag) as reader, Writer(out, version=version, storage_plugin=storage) as writer:  # type: ignore[arg-type]
        connections = {
            connection.topic: writer.add_connection(connection.topic, connection.msgtype, typestore=store)
            for connection in reader.connections
        }
        for raw in reader.raw_messages():
            writer.write(connections[raw.topic], raw.log_ns, raw.data)
    return out


def assert_same_frames(frames: Iterable[BagFrame], others: Iterable[BagFrame]) -> None:
    for frame, other in zip(frames, others, strict=True):
        assert (frame.stamp_ns, frame.reason, frame.frame_id) == (
            other.stamp_ns,
            other.reason,
            other.frame_id,
        )
        np.testing.assert_array_equal(frame.rgb, other.rgb)
        np.testing.assert_equal(frame.depth, other.depth)
        np.testing.assert_equal(frame.labels, other.labels)


def test_sqlite_gives_the_same_frames(bag: Path, tmp_path: Path) -> None:
    other = rewrite(bag, tmp_path / "sqlite", StoragePlugin.SQLITE3)

    assert_same_frames(read_frames(other), read_frames(bag))
    with BagReader(other) as reader:
        assert reader.qos(RGB) is None


@pytest.mark.parametrize("storage", [StoragePlugin.SQLITE3, StoragePlugin.MCAP])
def test_metadata_is_not_needed(bag: Path, tmp_path: Path, storage: StoragePlugin) -> None:
    other = rewrite(bag, tmp_path / "bare", storage)
    (other / "metadata.yaml").unlink()

    assert_same_frames(read_frames(other), read_frames(bag))
    (file,) = other.iterdir()
    assert_same_frames(read_frames(file), read_frames(bag))


@pytest.mark.data
def test_a_ros_1_bag_is_read_after_the_conversion_that_the_error_names(
    shared_data: Path, tmp_path: Path
) -> None:
    (recorded,) = (shared_data / "data" / "realsense_ros1").glob("*.bag")
    ros1 = Path(shutil.copy(recorded, tmp_path))
    with pytest.raises(BagError, match="rosbags-convert") as error, BagReader(ros1):
        pass
    arguments = str(error.value).split("rosbags-convert ")[1].split()

    subprocess.run([sys.executable, "-m", "rosbags.convert", *arguments], check=True)

    (frame,) = read_frames(ros1.with_suffix(""))
    assert frame.rgb.shape == (480, 640, 3)


# Frames


def test_frames_carry_colour_depth_where_there_is_any_and_labels(bag: Path) -> None:
    frames = list(read_frames(bag))

    assert [frame.stamp_ns for frame in frames] == [SECOND + index * 100 * MS for index in range(20)]
    for index, frame in enumerate(frames):
        np.testing.assert_array_equal(frame.rgb, rgb_image(index))
        np.testing.assert_equal(frame.depth, None if 8 <= index < 16 else depth_image(index))
        np.testing.assert_equal(frame.labels, None if index % 5 else label_image(index))
        assert frame.frame_id == FRAME_ID
    lost = [frame.reason for frame in frames[8:16]]
    assert {frame.reason for frame in frames[:8] + frames[16:]} == {Reason.PAIRED}
    assert lost[0] == Reason.DEADLINE
    assert set(lost[5:]) == {Reason.DEPTH_LOST}


def test_a_bag_without_depth_gives_colour_alone(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_rgb("/image_raw", SECOND, FRAME_ID, rgb_image(0))

    (frame,) = read_frames(tmp_path / "bag")

    assert (frame.depth, frame.labels, frame.reason) == (None, None, Reason.DEPTH_LOST)


class Message(NamedTuple):
    """When a message was recorded and which stamp it has, in milliseconds."""

    topic: str
    stamp_ms: int
    log_ms: int


recordings = st.lists(
    st.builds(
        lambda topic, stamp_ms, delay_ms: Message(topic, stamp_ms, stamp_ms + delay_ms),
        st.sampled_from([RGB, DEPTH]),
        st.integers(1, 500),
        st.integers(0, 200),
    ),
    min_size=1,
    max_size=25,
).filter(lambda messages: any(message.topic == RGB for message in messages))


def write_recording(path: Path, messages: Sequence[Message]) -> None:
    with BagWriter(path) as writer:
        for message in sorted(messages, key=lambda message: message.log_ms):
            stamp_ns, log_ns = message.stamp_ms * MS, message.log_ms * MS
            if message.topic == RGB:
                writer.write_rgb(RGB, stamp_ns, FRAME_ID, rgb_image(message.stamp_ms), log_ns=log_ns)
            else:
                writer.write_depth(DEPTH, stamp_ns, FRAME_ID, depth_image(message.stamp_ms), log_ns=log_ns)


@settings(max_examples=25, deadline=None)
@given(recordings)
def test_frames_are_those_of_a_node_that_polls_all_the_time(
    tmp_path_factory: pytest.TempPathFactory, messages: list[Message]
) -> None:
    path = tmp_path_factory.mktemp("parity") / "bag"
    write_recording(path, messages)
    sync = RgbdSynchronizer(slop=0.02, max_wait=0.05, depth_timeout=0.1, queue_size=3)
    expected = []
    arriving = sorted(messages, key=lambda message: message.log_ms)
    for now_ms in range(arriving[0].log_ms, arriving[-1].log_ms + 200):
        while arriving and arriving[0].log_ms == now_ms:
            message = arriving.pop(0)
            add = sync.add_rgb if message.topic == RGB else sync.add_depth
            expected += add(message.stamp_ms * MS, message.stamp_ms, now_ms * MS)
        expected += sync.poll(now_ms * MS)

    topics = Topics(rgb=RGB, depth=DEPTH if any(message.topic == DEPTH for message in messages) else None)
    frames = list(
        read_frames(path, topics, Pairing(slop=0.02, max_wait=0.05, depth_timeout=0.1, queue_size=3))
    )

    assert [(frame.stamp_ns, frame.reason) for frame in frames] == [
        (frame.stamp_ns, frame.reason) for frame in expected
    ]
    for frame, wanted in zip(frames, expected, strict=True):
        np.testing.assert_array_equal(frame.rgb, rgb_image(wanted.rgb))
        np.testing.assert_equal(frame.depth, None if wanted.depth is None else depth_image(wanted.depth))


def test_labels_may_be_recorded_long_after_or_before_their_frame(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_labels(LABEL, 9 * SECOND, FRAME_ID, label_image(9), log_ns=SECOND)
        for second in range(1, 10):
            writer.write_rgb(RGB, second * SECOND, FRAME_ID, rgb_image(second))
        writer.write_labels(LABEL, 1 * SECOND, FRAME_ID, label_image(1), log_ns=20 * SECOND)
        writer.write_labels(LABEL, 1 * SECOND + 1, FRAME_ID, label_image(2), log_ns=21 * SECOND)

    frames = list(read_frames(tmp_path / "bag"))

    assert [frame.stamp_ns // SECOND for frame in frames] == list(range(1, 10))
    np.testing.assert_array_equal(frames[0].labels, label_image(1))
    np.testing.assert_array_equal(frames[8].labels, label_image(9))
    assert all(frame.labels is None for frame in frames[1:8])


def test_labels_that_fit_no_frame_are_an_error(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_rgb(RGB, SECOND, FRAME_ID, rgb_image(0))
        writer.write_labels(LABEL, SECOND + 1, FRAME_ID, label_image(0))

    with pytest.raises(
        BagError, match="none of the 1 images of /camera/labels has the stamp of an image of /camera/col"
    ):
        list(read_frames(tmp_path / "bag"))


def test_labels_of_another_size_are_an_error(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_rgb(RGB, SECOND, FRAME_ID, rgb_image(0, height=12))
        writer.write_labels(LABEL, SECOND, FRAME_ID, label_image(0))

    with pytest.raises(
        ImageFormatError, match=r"/camera/labels at 1000000000 has \(height, width\) \(6, 8\)"
    ):
        list(read_frames(tmp_path / "bag"))


def write_broken_image(writer: BagWriter, stamp_ns: int, log_ns: int) -> None:
    """An rgb8 image that claims another encoding than its bytes make."""
    store = get_typestore(Stores.ROS2_JAZZY)
    types = store.types
    image = types[IMAGE](
        types["std_msgs/msg/Header"](
            types["builtin_interfaces/msg/Time"](*divmod(stamp_ns, SECOND)), FRAME_ID
        ),
        6,
        8,
        "rgb8",
        0,
        24,
        np.zeros(3, np.uint8),
    )
    writer.write_serialized(RGB, IMAGE, log_ns, store.serialize_cdr(image, IMAGE))


def test_only_images_of_frames_are_decoded(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_rgb(RGB, SECOND, FRAME_ID, rgb_image(0))
        write_broken_image(writer, SECOND, log_ns=SECOND + MS)  # a stamp seen before: dropped

    (frame,) = read_frames(tmp_path / "bag")

    np.testing.assert_array_equal(frame.rgb, rgb_image(0))


def test_a_broken_image_is_named_by_bag_topic_and_stamp(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        write_broken_image(writer, SECOND, log_ns=SECOND)

    with pytest.raises(
        ImageFormatError, match=f"{tmp_path}/bag: {RGB} at {SECOND}: 8x6 rgb8: 3 bytes of data"
    ):
        list(read_frames(tmp_path / "bag"))


def test_a_message_too_short_for_a_stamp_is_named(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as writer:
        writer.write_serialized(RGB, IMAGE, SECOND, b"\0\1\0\0")

    with pytest.raises(BagError, match=f"a message of {RGB} at log time {SECOND} is damaged: it has 4 bytes"):
        list(read_frames(tmp_path / "bag", Topics(rgb=RGB)))


# Topics


def test_default_topics_are_found_again(bag: Path) -> None:
    assert guess_topics(bag) == DEFAULT_TOPICS


def test_topics_may_be_settled_one_by_one(bag: Path) -> None:
    assert guess_topics(bag, rgb=LABEL, depth=RGB) == Topics(
        rgb=LABEL, depth=RGB, label=None, rgb_info=None, depth_info=DEFAULT_TOPICS.rgb_info
    )
    with pytest.raises(
        BagError, match=r"recorded: /other is not one of the image topics; .*/camera/labels \(sensor_msgs"
    ):
        guess_topics(bag, label="/other")


def image_topic(
    topic: str,
    encoding: str,
    frame_id: str = "camera",
    size: tuple[int, int] = (640, 480),
    messages: int = 100,
) -> ImageTopic:
    compressed = ";" in encoding or encoding in ("jpeg", "png")
    depth = encoding.startswith(("16UC1", "mono16", "32FC1")) or "compressedDepth" in encoding
    return ImageTopic(
        topic=topic,
        msgtype=COMPRESSED_IMAGE if compressed else IMAGE,
        messages=messages,
        encoding=encoding,
        frame_id=frame_id,
        width=0 if compressed else size[0],
        height=0 if compressed else size[1],
        color=not depth,
        depth=depth,
    )


REALSENSE = [
    image_topic("/camera/infra1/image_rect_raw", "mono8", "infra1"),
    image_topic("/camera/depth/image_rect_raw", "16UC1", "depth"),
    image_topic("/camera/aligned_depth_to_color/image_raw", "16UC1", "color"),
    image_topic("/camera/color/image_raw", "rgb8", "color"),
    image_topic("/camera/color/image_raw/compressed", "rgb8; jpeg compressed bgr8", "color"),
]
KINECT_COMPRESSED = [
    image_topic("/camera/ir/image/compressed", "mono8; jpeg compressed mono8", "ir"),
    image_topic("/camera/rgb/image_color/compressed", "bgr8; jpeg compressed bgr8", "rgb"),
    image_topic("/camera/depth_registered/image/compressedDepth", "16UC1; compressedDepth png", "rgb"),
    image_topic("/camera/depth/image/compressedDepth", "16UC1; compressedDepth png", "depth"),
]
RECORDED_NODE = [
    image_topic("/front/image", "bgr8"),
    image_topic("/front/range", "32FC1"),
    image_topic("/segmentation/mask", "mono8"),
    image_topic("/segmentation/color", "rgb8"),
    image_topic("/segmentation/overlay", "rgb8"),
    image_topic("/segmentation/confidence", "32FC1"),
]
ANNOTATED = [
    image_topic("/kinect/gray", "mono8"),
    image_topic("/kinect/mask", "mono8"),
    image_topic("/kinect/semantic_labels", "8UC1"),
    image_topic("/kinect/depth_view", "rgb8"),
]


@pytest.mark.parametrize(
    ("images", "rgb", "depth", "label"),
    [
        (REALSENSE, "/camera/color/image_raw", "/camera/aligned_depth_to_color/image_raw", None),
        (REALSENSE[:2], "/camera/infra1/image_rect_raw", "/camera/depth/image_rect_raw", None),
        (
            KINECT_COMPRESSED,
            "/camera/rgb/image_color/compressed",
            "/camera/depth_registered/image/compressedDepth",
            None,
        ),
        (RECORDED_NODE, "/front/image", "/front/range", None),
        (ANNOTATED, "/kinect/gray", None, "/kinect/semantic_labels"),
        (ANNOTATED[:2], "/kinect/gray", None, "/kinect/mask"),
    ],
)
def test_cameras_are_told_from_other_images(
    images: list[ImageTopic], rgb: str, depth: str | None, label: str | None
) -> None:
    for order in (images, images[::-1]):
        topics = choose_topics(order, [])
        assert (topics.rgb, topics.depth, topics.label) == (rgb, depth, label)


def test_camera_infos_lie_beside_their_images() -> None:
    infos = ["/camera/rgb/camera_info", "/camera/depth/camera_info", "/other/camera_info"]

    topics = choose_topics(KINECT_COMPRESSED, infos, depth="/camera/depth/image/compressedDepth")

    assert (topics.rgb_info, topics.depth_info) == ("/camera/rgb/camera_info", "/camera/depth/camera_info")
    assert choose_topics(KINECT_COMPRESSED, infos).depth_info is None


def test_without_a_camera_all_images_are_listed() -> None:
    with pytest.raises(TopicsError, match=r"/segmentation/mask \(sensor_msgs/msg/Image, mono8\), .*32FC1"):
        choose_topics(RECORDED_NODE[1:], [])
