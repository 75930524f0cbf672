# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from m3l_model.bag_info import BagInfo, Outage, Spread, describe_bag
from m3l_model.bag_info_text import info_text
from m3l_model.bag_problems import training_problems
from m3l_model.bag_writer import BagWriter
from m3l_model.bags import Pairing, open_index
from m3l_model.cdr import COMPRESSED_IMAGE, IMAGE
from m3l_model.cli import main
from m3l_model.label_files import open_label_files
from m3l_model.labels import LabelSet

TYPESTORE = get_typestore(Stores.ROS2_JAZZY)
MS = 1_000_000
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
RGB, DEPTH, LABEL = "/camera/color/image_raw", "/camera/aligned_depth_to_color/image_raw", "/camera/labels"
RGB_INFO, DEPTH_INFO = "/camera/color/camera_info", "/camera/aligned_depth_to_color/camera_info"
FRAME_ID = "camera_color_optical_frame"
K = np.array([[60.0, 0, 16], [0, 60.0, 12], [0, 0, 1]])
FRAMES = 40


class Recording(NamedTuple):
    """What the camera of a test records at 10 Hz; the defaults are a recording nothing is wrong with."""

    rgb_stamp: Callable[[int], int] = lambda number: START + number * 100 * MS
    depth_delay_ns: int = 0
    depth_clock_ns: int = 0
    log_delay_ns: int = 5 * MS
    without_depth: range = range(0)
    depth: Callable[[int], np.ndarray | None] = lambda number: np.full((24, 32), 1500, np.uint16)
    depth_encoding: str = "16UC1"
    depth_frame_id: str = FRAME_ID
    depth_k: np.ndarray = K
    rgb_size: Callable[[int], tuple[int, int]] = lambda number: (24, 32)
    label_every: int = 4
    label_id: int = 1
    label_late_ns: int = 0


def write_image(
    writer: BagWriter,
    topic: str,
    stamp_ns: int,
    frame_id: str,
    pixels: np.ndarray,
    encoding: str,
    log_ns: int,
) -> None:
    types = TYPESTORE.types
    seconds, nanoseconds = divmod(stamp_ns, SECOND)
    header = types["std_msgs/msg/Header"](
        types["builtin_interfaces/msg/Time"](seconds, nanoseconds), frame_id
    )
    fields: list[Any]
    if ";" in encoding or encoding == "jpeg":
        data = b"rvl" if "rvl" in encoding else cv2.imencode(".png", pixels)[1].tobytes()
        if "compressedDepth" in encoding:
            data = bytes(12) + data
        msgtype, fields = COMPRESSED_IMAGE, [header, encoding, np.frombuffer(data, np.uint8)]
    else:
        height, width = pixels.shape[:2]
        flat = pixels.view(np.uint8).ravel()
        msgtype, fields = IMAGE, [header, height, width, encoding, 0, flat.size // height, flat]
    writer.write_serialized(topic, msgtype, log_ns, TYPESTORE.serialize_cdr(types[msgtype](*fields), msgtype))


def record(path: Path, recording: Recording) -> Path:
    depth_topic = DEPTH + ("/compressedDepth" if ";" in recording.depth_encoding else "")
    with BagWriter(path) as writer:
        for number in range(FRAMES):
            stamp_ns = recording.rgb_stamp(number)
            log_ns = START + number * 100 * MS + recording.log_delay_ns
            height, width = recording.rgb_size(number)
            rgb = np.full((height, width, 3), number, np.uint8)
            depth_stamp_ns = stamp_ns + recording.depth_delay_ns + recording.depth_clock_ns
            pixels = recording.depth(number)
            if pixels is not None and number not in recording.without_depth:
                depth_log_ns = log_ns + recording.depth_delay_ns
                size = pixels.shape[1], pixels.shape[0]
                writer.write_camera_info(
                    DEPTH_INFO, stamp_ns, recording.depth_frame_id, *size, recording.depth_k, depth_log_ns
                )
                write_image(
                    writer,
                    depth_topic,
                    depth_stamp_ns,
                    recording.depth_frame_id,
                    pixels,
                    recording.depth_encoding,
                    depth_log_ns,
                )
            writer.write_camera_info(RGB_INFO, stamp_ns, FRAME_ID, width, height, K, log_ns)
            writer.write_rgb(RGB, stamp_ns, FRAME_ID, rgb, log_ns)
            if number % recording.label_every == 0:
                labels = np.full((height, width), recording.label_id, np.uint8)
                writer.write_labels(LABEL, stamp_ns + recording.label_late_ns, FRAME_ID, labels, log_ns)
    return path


def describe(path: Path, pairing: Pairing | None = None, **named: str) -> BagInfo:
    index = open_index(path, cache=False)
    return describe_bag(index, named, pairing or Pairing(), LabelSet.load("demo"), cache=False)


def test_a_good_recording_is_described_and_nothing_speaks_against_it(tmp_path: Path) -> None:
    bag = record(tmp_path / "good", Recording(without_depth=range(10, 20), depth_delay_ns=3 * MS))
    info = describe(bag, depth=DEPTH)
    assert (info.name, info.storage, info.no_camera) == ("good", "MCAP", None)
    assert info.files == {file.name: file.stat().st_size for file in bag.glob("*.mcap")}
    assert info.start_ns == START + 5 * MS
    assert info.duration_s == pytest.approx(3.903)
    rgb, depth = (next(topic for topic in info.topics if topic.topic == name) for name in (RGB, DEPTH))
    assert rgb.messages == FRAMES
    assert rgb.rate_hz == pytest.approx(10)
    assert (rgb.encoding, rgb.width, rgb.height, rgb.frame_id) == ("rgb8", 32, 24, FRAME_ID)
    assert (depth.messages, depth.encoding) == (30, "16UC1")
    chosen = {role: (topic.topic, topic.given) for role, topic in info.chosen.items()}
    assert chosen == {
        "rgb": (RGB, False),
        "depth": (DEPTH, True),
        "label": (LABEL, False),
        "rgb_info": (RGB_INFO, False),
        "depth_info": (DEPTH_INFO, False),
    }
    pairs = info.pairs
    assert pairs is not None
    assert (pairs.frames, pairs.dropped, pairs.with_depth) == (40, 0, 28)  # nothing waits in an outage
    assert sum(pairs.without_depth.values()) == 12
    assert pairs.longest_outage == Outage(0.9, 1.2, 11)
    assert pairs.depth_minus_rgb is not None
    assert pairs.depth_minus_rgb.median_s == pytest.approx(0.003)
    assert pairs.better_slop_s is None
    for role in ("rgb", "depth"):
        offset = info.stamps[role].log_minus_stamp
        assert offset is not None
        assert offset == Spread(0.005, 0.005, 0.005)
    (labels,) = info.labels
    assert (labels.source, labels.labels, labels.frames) == (LABEL, 10, 10)
    assert (info.samples["rgb"].images, info.samples["rgb"].unreadable) == (8, 0)
    assert training_problems(info) == []
    text = info_text(info, [])
    for part in (
        "MCAP, 1 file",
        "3.90 s from 2023-11-14",
        "10.0 Hz",
        "rgb8   32x24",
        "guessed",
        "given",
        "40 frames, 28 with depth within 20 ms",
        "12 without depth: ",
        "1.20 s from 0.90 s on (11 frames)",
        "+3.00 ms median",
        "0.0050 s (0.0050 to 0.0050)",
        "frames that have one: 10",
        "Nothing speaks against it.",
    ):
        assert part in text


def float_depth(value: float) -> Callable[[int], np.ndarray]:
    return lambda number: np.full((24, 32), value, np.float32)


@pytest.mark.parametrize(
    ("recording", "problems"),
    [
        (Recording(depth=lambda number: None), ["There is no depth topic"]),
        (
            Recording(depth_frame_id="camera_depth_optical_frame"),
            ["its frame_id is 'camera_depth_optical_frame'"],
        ),
        (Recording(depth_k=K * 1.2), ["its camera_info is not that of colour at another scale"]),
        (
            Recording(depth=lambda number: np.full((20, 32), 9, np.uint16), depth_k=np.zeros((3, 3))),
            ["its camera_info is not that of colour"],
        ),
        (
            Recording(depth_delay_ns=40 * MS),
            [
                "Depth stamps lie +40.0 ms (median) from those of colour, beyond the slop of 20 ms in part or all: "
                "--slop 0.04 would pair 39 of 40, instead of 0"
            ],
        ),
        (
            Recording(depth_clock_ns=7 * SECOND),
            [
                "No frame has depth although there is a depth topic",
                "its clock is +7.000 s from that of colour",
            ],
        ),
        (
            Recording(rgb_stamp=lambda number: 0 if number < 5 else START + number * 100 * MS),
            ["5 of 40 colour images have no header stamp", "5 of 40 depth images have no header stamp"],
        ),
        (
            Recording(rgb_stamp=lambda number: START + (number % 20) * 100 * MS),
            [
                "20 of 40 colour images repeat the stamp",
                "The stamps of colour go back 1 times, by up to 1.900 s: pairing starts anew",
            ],
        ),
        (Recording(label_every=10), ["Only 4 frames have labels; 8 or more are advisable"]),
        (Recording(label_late_ns=MS), ["None of the 10 labels of /camera/labels has the stamp of a frame"]),
        (Recording(label_id=77), ["Labels cannot be used: /camera/labels at 1700000000000000000", "77"]),
        (
            Recording(depth=lambda number: np.zeros((24, 32), np.uint16)),
            ["All of the 8 depth images looked at"],
        ),
        (
            Recording(rgb_size=lambda number: (24, 32) if number < 20 else (48, 64)),
            ["The colour images are of several sizes (32x24, 64x48)"],
        ),
        (
            Recording(depth=float_depth(1500), depth_encoding="32FC1"),
            ["half of the readings are beyond 1500: they seem to be millimetres"],
        ),
        (
            Recording(depth=lambda number: np.full((24, 32), 99, np.uint8), depth_encoding="mono8"),
            ["There is no depth topic", f"by its name it may be {DEPTH} (mono8)"],
        ),
        (
            Recording(depth_encoding="16UC1; compressedDepth rvl"),
            ["8 of the 8 depth images looked at cannot be decoded", "RVL is not supported, record it as png"],
        ),
    ],
)
def test_what_would_go_wrong_is_said(tmp_path: Path, recording: Recording, problems: list[str]) -> None:
    found = training_problems(describe(record(tmp_path / "bag", recording)))
    for problem in problems:
        assert any(problem in line for line in found), found


def test_a_wider_slop_pairs_what_was_promised(tmp_path: Path) -> None:
    bag = record(tmp_path / "late", Recording(depth_delay_ns=33 * MS, without_depth=range(20, 30)))
    narrow = describe(bag).pairs
    assert narrow is not None
    assert (narrow.with_depth, narrow.better_slop_s, narrow.better_slop_pairs) == (0, 0.033, 28)
    wide = describe(bag, Pairing(slop=0.033)).pairs
    assert wide is not None
    assert (wide.with_depth, wide.better_slop_s) == (28, None)


def test_sizes_tell_of_depth_that_is_not_registered_where_camera_infos_are_missing(tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    with BagWriter(bag) as writer:
        for stamp_ns in range(START, START + 10):
            writer.write_rgb(RGB, stamp_ns, FRAME_ID, np.zeros((24, 32, 3), np.uint8))
            writer.write_depth(DEPTH, stamp_ns, FRAME_ID, np.ones((20, 32), np.uint16))
    assert any("Depth of 32x20 is not colour of 32x24" in line for line in training_problems(describe(bag)))


def test_without_camera_infos_registration_is_said_to_be_unknown(tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    with BagWriter(bag) as writer:
        for stamp_ns in range(START, START + 10):
            writer.write_camera_info(RGB_INFO, stamp_ns, FRAME_ID, 32, 24, K)
            writer.write_rgb(RGB, stamp_ns, FRAME_ID, np.zeros((24, 32, 3), np.uint8))
            writer.write_depth(DEPTH, stamp_ns, FRAME_ID, np.ones((24, 32), np.uint16))
    problems = training_problems(describe(bag))
    assert any("no camera info beside depth; see that" in line for line in problems)


def test_sqlite_and_compressed_images_are_described_too(tmp_path: Path) -> None:
    bag = tmp_path / "bag"
    with BagWriter(bag) as writer:
        for number in range(3):
            stamp_ns = START + number * SECOND
            pixels = np.zeros((24, 32, 3), np.uint8)
            write_image(writer, f"{RGB}/compressed", stamp_ns, FRAME_ID, pixels, "jpeg", stamp_ns)
    copied = tmp_path / "sqlite"
    with Reader(bag) as reader, Writer(copied, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        for connection, log_ns, data in reader.messages():
            known = next((known for known in writer.connections if known.topic == connection.topic), None)
            known = known or writer.add_connection(connection.topic, connection.msgtype, typestore=TYPESTORE)
            writer.write(known, log_ns, data)
    info = describe(copied)
    assert info.storage == "SQLite"
    (topic,) = info.topics
    assert (topic.width, topic.height, topic.encoding, topic.rate_hz) == (32, 24, "jpeg", 1.0)


def test_a_recording_cut_off_and_one_without_a_camera_are_described(tmp_path: Path) -> None:
    bag = record(tmp_path / "cut", Recording())
    (file,) = bag.glob("*.mcap")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    info = describe(bag)
    assert info.pairs is not None
    assert 0 < info.pairs.frames < FRAMES
    assert any(line in problem for problem in training_problems(info) for line in [file.name])
    blind = tmp_path / "blind"
    with BagWriter(blind) as writer:
        writer.write_depth(DEPTH, START, FRAME_ID, np.ones((2, 2), np.uint16))
    info = describe(blind)
    assert info.pairs is None
    (problem,) = training_problems(info)
    assert problem.startswith("There is no colour to train on: no topic looks like a colour camera's")
    assert problem in info_text(info, [problem])


def test_the_command_counts_label_files_and_speaks_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = record(tmp_path / "drive", Recording())
    folder = tmp_path / "labels"
    folder.mkdir()
    for number in (3, 4, 999):
        stamp_ns = Recording().rgb_stamp(number)
        cv2.imwrite(str(folder / f"{stamp_ns}.png"), np.full((24, 32), 1, np.uint8))
    options = ["--labels", str(folder), "--label-set", "demo", "--no-cache"]
    assert main(["info", str(bag), str(bag), "--json", *options]) == 0
    content: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    assert content[0] == content[1]
    assert [(labels["labels"], labels["frames"]) for labels in content[0]["labels"]] == [(10, 10), (3, 2)]
    assert content[0]["labelled"] == 11  # frame 4 has both
    assert content[0]["in_training"] == []
    assert content[0]["pairs"]["with_depth"] == FRAMES
    cv2.imwrite(str(folder / f"{Recording().rgb_stamp(4)}.png"), np.full((24, 32), 99, np.uint8))
    assert main(["info", str(bag), *options]) == 0
    assert "Labels cannot be used" in capsys.readouterr().out
    assert len(open_label_files(folder, LabelSet.load("demo")).stamps("drive")) == 3


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["nowhere"], "nowhere: no such bag"),
        (["drive", "--depth-topic", "/lidar"], "no topic /lidar; the bag has "),
        (["drive", "--depth-topic", RGB_INFO], "not an image"),
        (["drive", "--labels", "x"], "--labels needs --label-set"),
    ],
)
def test_what_cannot_be_read_ends_with_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    record(Path("drive"), Recording())
    assert main(["info", *arguments]) == 2
    assert complaint in capsys.readouterr().err
