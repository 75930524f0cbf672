# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re

import numpy as np
import pytest

from m3l_model.bags import read_frames
from m3l_model.errors import M3LError
from m3l_model.labels import LabelSet
from m3l_ros.demo import CONDITIONS, Demo
from m3l_ros.demo_bags import Recording, held_out_recording, train_recording, write_recording
from m3l_ros.demo_report import LiveFrame, StripFrame, write_report

LABELS = LabelSet.load("demo")


def metrics(masks):
    scores = {
        **dict.fromkeys((*CONDITIONS, "robust", "majority"), 0.5),
        "class_iou": {condition: dict.fromkeys(LABELS.classes, 0.25) for condition in CONDITIONS},
        "frames": 3,
    }
    scores["class_iou"]["both"]["ball"] = None
    return {
        "command": "m3l demo",
        "seed": 4,
        "rate_hz": 10.0,
        "train": {"frames": 9, "labelled": 2, "steps": {"m3l": 20, "supervised": 30}},
        "held_out": {"frames": 3, "seconds_per_room": 3.0},
        "offline": {"m3l": scores, "supervised": scores},
        "live": {
            "colour_images": 3,
            "masks": masks,
            "without_mask": 3 - masks,
            "surplus": 0,
            "one_mask_each": masks == 3,
            "outage": {"start_s": 0.1, "end_s": 0.2, "colour_images": 1, "masks": min(masks, 1)},
            "latency_ms": {"p50": 20.0, "p95": 30.0} if masks else {"p50": None, "p95": None},
        },
        "versions": {"torch": "2"},
        "seconds": {"live": 4.0},
    }


LOG = [{"loss_supervised": 2.0 - 0.1 * step, "loss_pseudo": 0.1 * step} for step in range(20)]


@pytest.mark.parametrize("masks", [3, 0])
def test_the_report_stands_alone_and_tells_what_happened(tmp_path, masks):
    image = np.zeros((24, 32, 3), np.uint8)
    ids = np.zeros((24, 32), np.uint8)
    depths = [np.full((24, 32), 900, np.uint16), None, np.zeros((24, 32), np.uint16)]
    strip = [StripFrame(0.1 * i, image, depth, ids, ids) for i, depth in enumerate(depths[:masks])]
    live = [LiveFrame(0.1 * index, 0.5, 0.02) for index in range(masks)]
    logs = {"m3l": LOG, "supervised": LOG}
    write_report(tmp_path / "index.html", metrics(masks), live, strip, logs, LABELS)
    html = (tmp_path / "index.html").read_text()
    assert ("every image got exactly one mask" in html) == (masks == 3)
    assert ("3 images without a mask" in html) == (masks == 0)
    assert html.count("<svg") == 3
    assert len(re.findall("<img ", html)) == 4 * masks
    assert html.count("it was switched off") == (1 if masks else 0)
    sources = re.findall(r'(?:src|href)="([^"#][^"]*)"', html)
    assert all(source.startswith("data:image/") for source in sources), (
        "the report must open without a network"
    )


def test_training_and_held_out_rooms_never_meet():
    for seed in (0, 1, 7):
        rooms = [set(recording(seed).rooms) for recording in (train_recording, held_out_recording)]
        assert not rooms[0] & rooms[1]
        assert not rooms[0] & set(train_recording(seed + 1).rooms)


def test_a_recording_has_labels_where_it_says(tmp_path):
    recording = Recording(rooms=(3, 4), frames_per_room=3, labelled=2)
    write_recording(recording, tmp_path / "bag", workers=1)
    frames = list(read_frames(tmp_path / "bag"))
    assert len(frames) == recording.frames == 6
    assert [frame.labels is not None for frame in frames] == [False, True, False, False, True, False]
    assert all(frame.depth is not None for frame in frames)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        M3LError, match=r"file/demo: cannot be written \(Not a directory\); choose another --out"
    ):
        Demo(tmp_path / "file" / "demo", seed=0)


def test_a_demo_replaces_only_an_earlier_demo(tmp_path):
    out = tmp_path / "out"
    Demo(out, seed=0)
    (out / "index.html").write_text("earlier")
    Demo(out, seed=0)
    assert not (out / "index.html").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("precious")
    with pytest.raises(M3LError, match="choose another --out"):
        Demo(tmp_path / "mine", seed=0)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "precious"
