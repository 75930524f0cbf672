# SPDX-License-Identifier: Apache-2.0
"""`m3l segment`: what is in the new bag, and that a bag or video bears its name only when it is whole."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from mcap.reader import make_reader
from rosbags.interfaces import QosDurability
from rosbags.typesys.stores import ros2_jazzy as ros

from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.bag_writer import LATCHED_QOS
from m3l_model.bags import DEFAULT_TOPICS, BagMessage, BagReader, BagWriter
from m3l_model.cli import main
from m3l_model.labels import LabelSet
from m3l_model.offline import OfflineFrame, run_offline
from m3l_model.overlay import paint_over
from m3l_model.predictor import Predictor
from m3l_model.segmented_bag import CLASSES, DECISION, DIAGNOSTICS, MASK, OVERLAY
from m3l_model.video import VideoError, VideoWriter

START = 1_700_000_000_000_000_000
PERIOD = 100_000_000
LATENCY = 7_000_000
FRAMES = 24
SIZE = (48, 64)
K = np.eye(3)
LOST = range(10, FRAMES)
TF = "/tf_static"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from m3l_model.checkpoint import Metadata, save_checkpoint
    from m3l_model.preprocessing import Preprocessing
    from m3l_model.segmenter import LinearFusionSegmenter

    torch.manual_seed(0)
    labels = LabelSet.load("demo")
    model = LinearFusionSegmenter("mit_b0", len(labels.classes)).eval()
    model.metadata = Metadata(labels, Preprocessing(short_side=32))
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    save_checkpoint(path, model)
    return path


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A robot's bag: images, depth gone from 1.0 s on, transforms, diagnostics, masks of a node that ran along."""
    path = tmp_path_factory.mktemp("recorded") / "drive"
    write_bag(path)
    return path


def write_bag(path: Path) -> None:
    rng = np.random.default_rng(0)
    with BagWriter(path) as writer:
        tf = ros.tf2_msgs__msg__TFMessage([])
        writer.write_message(TF, "tf2_msgs/msg/TFMessage", START, tf, LATCHED_QOS)
        for index in range(FRAMES):
            at = START + index * PERIOD
            rgb = rng.integers(0, 255, (*SIZE, 3), np.uint8)
            depth = rng.integers(500, 5000, SIZE, np.uint16) if index not in LOST else None
            labels = np.zeros(SIZE, np.uint8)
            writer.write_frame(at, "camera", rgb, depth, labels, K, log_ns=at + LATENCY)
            writer.write_labels(MASK, at, "camera", labels, at + LATENCY)
        status = ros.diagnostic_msgs__msg__DiagnosticArray(writer.header(START, ""), [])
        writer.write_message(DIAGNOSTICS, "diagnostic_msgs/msg/DiagnosticArray", START + 10 * PERIOD, status)


def segment(checkpoint: Path, bag: Path, out: Path, *arguments: Any) -> int:
    command = [
        "segment",
        "--checkpoint",
        checkpoint,
        "--bag",
        bag,
        "--out",
        out,
        "--device",
        "cpu",
        *arguments,
    ]
    return main([str(argument) for argument in command])


def messages(bag: Path, topic: str) -> list[BagMessage]:
    with BagReader(bag) as reader:
        return list(reader.messages([topic]))


def offline(checkpoint: Path, bag: Path) -> list[OfflineFrame]:
    return list(run_offline(RgbdBagDataset([bag]), Predictor.from_checkpoint(checkpoint, "cpu")))


def stamp_ns(stamp: Any) -> int:
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory, checkpoint: Path, bag: Path) -> Path:
    out = tmp_path_factory.mktemp("segmented") / "drive_segmented"
    assert segment(checkpoint, bag, out) == 0
    return out


def test_masks_and_overlays_are_the_offline_pass_with_header_and_log_time_of_colour(
    segmented: Path, checkpoint: Path, bag: Path
) -> None:
    frames = offline(checkpoint, bag)
    masks, overlays = messages(segmented, MASK), messages(segmented, OVERLAY)
    assert len(masks) == len(overlays) == len(frames) == FRAMES
    labels = LabelSet.load("demo")
    for index, (frame, mask, overlay) in enumerate(zip(frames, masks, overlays, strict=True)):
        for message, encoding in ((mask, "mono8"), (overlay, "rgb8")):
            assert stamp_ns(message.msg.header.stamp) == START + index * PERIOD
            assert message.msg.header.frame_id == "camera"
            assert message.log_ns == START + index * PERIOD + LATENCY
            assert message.msg.encoding == encoding
        assert frame.labels is not None
        np.testing.assert_array_equal(mask.msg.data.reshape(SIZE), frame.labels)
        painted = paint_over(frame.seen.rgb, labels.colorize(frame.labels))
        np.testing.assert_array_equal(overlay.msg.data.reshape(*SIZE, 3), painted)


def test_decisions_and_diagnostics_tell_of_the_outage(segmented: Path) -> None:
    decisions = messages(segmented, DECISION)
    assert [stamp_ns(each.msg.header.stamp) for each in decisions] == [
        START + index * PERIOD for index in range(FRAMES)
    ]
    for index, each in enumerate(decisions):
        lost = index in LOST
        assert (each.msg.source == "paired") == (not lost)
        assert stamp_ns(each.msg.time_ref) == (0 if lost else START + index * PERIOD)
    own = [each for each in messages(segmented, DIAGNOSTICS) if each.msg.status]
    assert [each.log_ns for each in own] == [START + LATENCY + second * 10**9 for second in range(3)]
    values = [{pair.key: pair.value for pair in each.msg.status[0].values} for each in own]
    assert [(each.msg.status[0].level, each.msg.status[0].message) for each in own] == [
        (0, "segmenting"),
        (0, "segmenting"),
        (1, "no depth: segmenting colour alone"),
    ]
    assert [each["pair ratio (%)"] for each in values] == ["100", "90", "0"]
    assert [each["masks"] for each in values] == ["1", "11", "21"]


def test_originals_are_there_as_they_were_but_for_masks_of_old(
    segmented: Path, bag: Path, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with BagReader(bag) as old, BagReader(segmented) as new:
        for known in old.connections:
            if known.topic == MASK:
                continue
            before = [(each.log_ns, bytes(each.data)) for each in old.raw_messages([known.topic])]
            after = [(each.log_ns, bytes(each.data)) for each in new.raw_messages([known.topic])]
            assert set(before) <= set(after), known.topic
            assert known.topic == DIAGNOSTICS or before == after
        qos = {topic: new.qos(topic) for topic in (TF, CLASSES, MASK)}
    assert {topic: each and each.durability for topic, each in qos.items()} == {
        TF: QosDurability.TRANSIENT_LOCAL,
        CLASSES: QosDurability.TRANSIENT_LOCAL,
        MASK: QosDurability.VOLATILE,
    }
    [classes] = messages(segmented, CLASSES)
    assert json.loads(classes.msg.data)["name"] == "demo"
    assert segment(checkpoint, bag, tmp_path / "again") == 0
    said = "".join(capsys.readouterr())
    assert f"leaving out {MASK} of {bag}: the new one takes its place" in said
    assert f"again: {FRAMES} masks of {FRAMES} colour images, {len(LOST)} of them without depth" in said


def test_the_new_bag_is_plain_mcap_in_the_order_of_its_log_times(segmented: Path) -> None:
    with (segmented / f"{segmented.name}.mcap").open("rb") as file:
        read = [
            (channel.topic, message.log_time)
            for _, channel, message in make_reader(file).iter_messages(log_time_order=False)
        ]
    times = [log_time for _, log_time in read]
    assert times == sorted(times)
    assert {MASK, OVERLAY, DECISION, CLASSES, DIAGNOSTICS, DEFAULT_TOPICS.rgb} <= {topic for topic, _ in read}


def test_alone_leaves_the_originals_out(tmp_path: Path, checkpoint: Path, bag: Path) -> None:
    assert segment(checkpoint, bag, tmp_path / "alone", "--alone") == 0
    with BagReader(tmp_path / "alone") as new:
        assert {known.topic for known in new.connections} == {MASK, OVERLAY, DECISION, CLASSES, DIAGNOSTICS}


def test_a_segmented_bag_can_be_segmented_again_and_trained_from(
    tmp_path: Path, checkpoint: Path, segmented: Path, bag: Path
) -> None:
    with BagReader(segmented) as new, BagReader(bag) as old:
        assert new.choose_topics() == old.choose_topics(), "nobody takes the masks for labels"
    assert segment(checkpoint, segmented, tmp_path / "again", "--alone") == 0
    for before, after in zip(messages(segmented, MASK), messages(tmp_path / "again", MASK), strict=True):
        assert bytes(before.msg.data) == bytes(after.msg.data)


def test_video_lasts_as_long_as_the_recording_and_shows_the_overlays(
    tmp_path: Path, checkpoint: Path, bag: Path, segmented: Path
) -> None:
    assert segment(checkpoint, bag, tmp_path / "out", "--alone", "--video", tmp_path / "out.mp4") == 0
    capture = cv2.VideoCapture(str(tmp_path / "out.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(10)
    shown = []
    while (read := capture.read())[0]:
        shown.append(cv2.cvtColor(read[1], cv2.COLOR_BGR2RGB))
    assert len(shown) == FRAMES
    paired = messages(segmented, OVERLAY)[5].msg.data.reshape(*SIZE, 3)
    difference = [np.abs(paired.astype(int) - other).mean() for other in shown]
    assert int(np.argmin(difference)) == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.mp4"]


def test_video_keeps_time_over_gaps_and_clocks_that_leap(tmp_path: Path) -> None:
    tenth = 100_000_000
    with VideoWriter(tmp_path / "v.mp4", tenth) as video:
        for at in (0, 1, 5, 6, 1000, 1001, 2, 3):  # four held for one, then leaps ahead and back
            video.add(np.full((31, 33, 3), 20 * (at % 10), np.uint8), at * tenth)
    capture = cv2.VideoCapture(str(tmp_path / "v.mp4"))
    assert capture.get(cv2.CAP_PROP_FRAME_COUNT) == 1 + 4 + 1 + 1 + 1 + 1 + 1 + 1


@pytest.mark.parametrize(
    ("name", "complaint"),
    [("out.avi", "give it a name in .mp4"), ("nowhere/out.mp4", "its folder does not exist")],
)
def test_a_video_that_cannot_be_is_refused_at_once(
    tmp_path: Path, checkpoint: Path, bag: Path, capsys: pytest.CaptureFixture[str], name: str, complaint: str
) -> None:
    assert segment(checkpoint, bag, tmp_path / "out", "--video", tmp_path / name) == 2
    assert complaint in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_opencv_without_mp4_is_told_in_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf:
        fourcc = staticmethod(cv2.VideoWriter.fourcc)

        def __init__(self, *_: object) -> None: ...

        def isOpened(self) -> bool:
            return False

    monkeypatch.setattr(cv2, "VideoWriter", Deaf)
    with (
        pytest.raises(VideoError, match=r"writes no MP4 here; leave out --video"),
        VideoWriter(tmp_path / "out.mp4", PERIOD) as video,
    ):
        video.add(np.zeros((8, 8, 3), np.uint8), 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_run_leaves_nothing_under_the_names_asked_for(
    tmp_path: Path, checkpoint: Path, bag: Path, number: signal.Signals
) -> None:
    out, video = tmp_path / "out", tmp_path / "out.mp4"
    process = subprocess.Popen(
        [
            *(sys.executable, "-c", SLOW, "segment", "--checkpoint", checkpoint, "--bag", bag),
            *("--out", out, "--video", video, "--device", "cpu"),
        ],
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.SIG_DFL
        ),  # ignored where the tests run in the background
    )
    unfinished = tmp_path / ".out.unfinished.mp4"
    deadline = time.monotonic() + 120
    while not unfinished.exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(60) == (130 if number == signal.SIGINT else -number)
    assert not out.exists()
    assert not video.exists()
    assert (list(tmp_path.iterdir()) == []) == (number == signal.SIGINT)
    assert segment(checkpoint, bag, out, "--alone") == 0
    assert not (tmp_path / ".out.unfinished").exists()


SLOW = """
import sys, time
from m3l_model import cli, offline
pass_at_once = offline.run_offline
def pass_slowly(*args):
    for frame in pass_at_once(*args):
        yield frame
        time.sleep(0.5)
offline.run_offline = pass_slowly
sys.exit(cli.main())
"""


def test_what_cannot_be_segmented_is_told_in_a_line(
    tmp_path: Path, checkpoint: Path, bag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "there").mkdir()
    assert segment(checkpoint, bag, tmp_path / "there") == 2
    assert "there exists already; remove it or choose another name" in capsys.readouterr().err
    with BagWriter(tmp_path / "empty") as writer:
        writer.write_depth("/depth", START, "camera", np.ones(SIZE, np.uint16))
    assert segment(checkpoint, tmp_path / "empty", tmp_path / "out") == 2
    assert "no topic looks like a colour camera's" in capsys.readouterr().err
