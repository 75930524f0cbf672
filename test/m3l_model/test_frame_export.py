# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_np

from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.bag_index import MessageReader
from m3l_model.bag_writer import BagWriter
from m3l_model.bags import DEFAULT_TOPICS, BagFrames, Pairing
from m3l_model.cli import main
from m3l_model.frame_export import (
    Choice,
    FrameExportError,
    choose_frames,
    depth_millimetres,
    export_frames,
    farthest_points,
)
from m3l_model.label_files import open_label_files
from m3l_model.labels import IGNORE_ID, LabelSet

SECOND = 1_000_000_000
START = 100 * SECOND
SET = LabelSet("two", ("wall", "chair"), ((10, 20, 30), (200, 100, 0)))
K = np.eye(3)


def view(kind: int, seed: int) -> np.ndarray:
    """An image of a few colours that differ by kind, with a little noise."""
    coarse = np.random.default_rng(kind).integers(0, 250, (3, 4, 3), np.uint8).repeat(16, 0).repeat(16, 1)
    return coarse + np.random.default_rng(1000 + seed).integers(0, 5, coarse.shape, np.uint8)


def write_bag(path: Path, kinds: list[int], without_depth: range = range(0)) -> Path:
    """Frames at 10 Hz of these kinds of view."""
    with BagWriter(path) as writer:
        for number, kind in enumerate(kinds):
            depth = None if number in without_depth else np.full((24, 32), 1000 + number, np.uint16)
            writer.write_frame(START + number * SECOND // 10, "camera", view(kind, number), depth, None, K)
    return path


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """6 s: view 0 for 2.5 s, views 1 and 2 for half a second each, view 0 again; no depth from 1.5 s to 2.5 s."""
    kinds = [0] * 25 + [1] * 5 + [2] * 5 + [0] * 25
    return write_bag(tmp_path_factory.mktemp("bags") / "drive", kinds, range(15, 25))


def names(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def read_png(path: Path) -> np.ndarray:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_UNCHANGED))


def test_exported_files_hold_what_the_manifest_says(drive: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(["frames", str(drive), "--out", str(out), "--every", "0.95", "--no-cache"]) == 0
    (entry,) = json.loads((out / "manifest.json").read_text())["bags"]
    assert (entry["bag"], entry["path"], entry["choice"]["every"]) == ("drive", str(drive), 0.95)
    assert entry["topics"]["rgb"] == DEFAULT_TOPICS.rgb
    assert [frame["stamp_ns"] for frame in entry["frames"]] == [START + step * SECOND for step in range(6)]
    bag = BagFrames.open(drive, cache=False)
    for frame, position in zip(entry["frames"], range(0, 60, 10), strict=True):
        recorded = bag[position]
        assert frame["color"] == f"color/drive/{frame['stamp_ns']}.png"
        color = read_png(out / frame["color"])
        np.testing.assert_array_equal(color[..., ::-1], recorded.rgb)
        assert (frame["size"], frame["frame_id"], frame["reason"]) == (
            [64, 48],
            "camera",
            str(recorded.reason),
        )
        if position == 20:
            assert recorded.depth is None
            assert (frame["depth"], frame["depth_stamp_ns"], frame["depth_size"]) == (None, None, None)
            continue
        assert (frame["depth_stamp_ns"], frame["depth_size"]) == (frame["stamp_ns"], [32, 24])
        depth = read_png(out / frame["depth"])
        assert depth.dtype == np.uint16
        np.testing.assert_array_equal(depth, recorded.depth)
    listed = {frame[role] for frame in entry["frames"] for role in ("color", "depth") if frame[role]}
    assert names(out) == listed | {"manifest.json"}


def test_a_number_of_frames_is_spread_over_the_views(drive: Path) -> None:
    bag = BagFrames.open(drive, cache=False)
    chosen = choose_frames(bag, Choice(count=3))
    assert sorted({(0, 1, 2)[(25 <= at < 30) + 2 * (30 <= at < 35)] for at in chosen}) == [0, 1, 2]
    np.testing.assert_array_equal(chosen, choose_frames(bag, Choice(count=3)))
    np.testing.assert_array_equal(choose_frames(bag, Choice(count=99)), np.arange(60))


def test_few_candidates_are_decoded_and_brightness_is_no_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lamp"
    with BagWriter(path) as writer:
        for number in range(100):
            scene = view(number == 66, 0) // 4 + (0, 190)[number % 2]  # lamp off, lamp on
            writer.write_rgb(DEFAULT_TOPICS.rgb, START + number, "camera", scene.astype(np.uint8))
    bag = BagFrames.open(path, cache=False)
    bag.frames = bag.frames[60:68]
    assert 6 in choose_frames(bag, Choice(count=2))
    bag = BagFrames.open(path, cache=False)
    monkeypatch.setattr("m3l_model.frame_export._MOST_CANDIDATES", 10)
    reads: list[np.void] = []
    original = MessageReader.read_image

    def counted(reader: MessageReader, message: np.void) -> Any:
        reads.append(message)
        return original(reader, message)

    monkeypatch.setattr(MessageReader, "read_image", counted)
    assert len(choose_frames(bag, Choice(count=8))) == 8
    assert len(reads) == 10


@settings(deadline=None)
@given(
    st_np.arrays(np.float32, st.tuples(st.integers(1, 12), st.just(3)), elements=st.integers(-9, 9)),
    st.data(),
)
def test_no_point_left_is_farther_than_those_chosen_are_apart(
    points: np.ndarray, data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, len(points)))
    chosen = farthest_points(points, count)
    assert len(set(chosen.tolist())) == count
    distances = np.linalg.norm(points[:, None] - points[None, chosen], axis=2)
    apart = min((distances[a, b] for b in range(count) for a in chosen[b + 1 :]), default=np.inf)
    assert distances.min(1).max() <= apart + 1e-5


@settings(deadline=None)
@given(
    st_np.arrays(
        np.float32,
        (3, 4),
        elements=st.floats(width=32, allow_nan=True, allow_infinity=True) | st.floats(0, 70, width=32),
    )
)
def test_metres_become_millimetres_and_what_is_no_reading_0(metres: np.ndarray) -> None:
    millimetres = depth_millimetres(metres)
    assert millimetres.dtype == np.uint16
    for value, result in zip(metres.ravel().tolist(), millimetres.ravel().tolist(), strict=True):
        readable = 0 < value * 1000 < 65534.5
        assert result == (round(value * 1000) if readable else 0)


def test_the_same_command_completes_and_touches_nothing_else(drive: Path, tmp_path: Path) -> None:
    out, command = tmp_path / "out", ["frames", str(drive), "--count", "4", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    files = sorted(names(out))
    lost = next(file for file in files if file.startswith("color"))
    kept = lost.replace("color", "depth")
    content = (out / lost).read_bytes()
    (out / lost).unlink()
    (out / kept).write_bytes(b"changed by hand")
    mask = out / "masks" / "drive" / "1.png"
    mask.parent.mkdir(parents=True)
    mask.write_bytes(b"mask")
    assert main(command) == 0
    assert (out / lost).read_bytes() == content
    assert (out / kept).read_bytes() == b"changed by hand"
    assert mask.read_bytes() == b"mask"
    assert names(out) == {*files, "masks/drive/1.png"}


def test_frames_of_a_further_bag_join_those_there(drive: Path, tmp_path: Path) -> None:
    other = write_bag(tmp_path / "other", [0] * 3)
    for bag in (drive, other):
        assert main(["frames", str(bag), "--count", "2", "--out", str(tmp_path / "out")]) == 0
    entries = json.loads((tmp_path / "out" / "manifest.json").read_text())["bags"]
    assert [(entry["bag"], len(entry["frames"])) for entry in entries] == [("drive", 2), ("other", 2)]


def fill_foreign(out: Path) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("precious")


def fill_foreign_manifest(out: Path) -> None:
    out.mkdir()
    (out / "manifest.json").write_text('{"made_by": "m3l frames", "format": 1, "bags": [{"frames": [3]}]}')


@pytest.mark.parametrize("fill", [fill_foreign, fill_foreign_manifest])
def test_other_folders_are_not_touched(
    drive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], fill: Callable[[Path], None]
) -> None:
    out = tmp_path / "out"
    fill(out)
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    assert main(["frames", str(drive), "--count", "2", "--out", str(out)]) == 2
    assert "was not made by m3l frames" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in out.iterdir()} == before


def test_other_options_and_two_bags_of_one_name_are_refused(
    drive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["frames", str(drive), "--out", str(tmp_path / "out")]
    assert main([*command, "--count", "2"]) == 0
    assert main([*command, "--count", "3"]) == 2
    assert "bag drive with choice" in capsys.readouterr().err
    twin = shutil.copytree(drive, tmp_path / "twin" / "drive")
    assert main(["frames", str(drive), str(twin), "--count", "2", "--out", str(tmp_path / "twins")]) == 2
    assert "two bags are called drive" in capsys.readouterr().err


def test_images_that_cannot_be_read_are_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "odd"
    with BagWriter(path) as writer:
        for number in range(6):
            write = writer.write_depth if number == 2 else writer.write_rgb
            pixels = np.zeros((4, 4), np.uint16) if number == 2 else view(0, number)
            write("/camera/image_raw", START + number * SECOND, "camera", pixels)  # type: ignore[arg-type]
    for choice in (Choice(every=0.5), Choice(count=5)):
        out = tmp_path / str(choice)
        bag = BagFrames.open(path, cache=False)
        assert export_frames([bag], out, choice, Pairing()) == {"odd": 5}
        assert f"{START + 2 * SECOND}" in caplog.text
        caplog.clear()
    bag.frames = bag.frames[2:3]
    with pytest.raises(FrameExportError, match="none of the chosen frames"):
        export_frames([bag], tmp_path / "none", Choice(every=1), Pairing())


def mask_of(stamp_ns: int) -> np.ndarray:
    """(48, 64) class ids that differ from frame to frame, and some pixels of none."""
    mask = np.random.default_rng(stamp_ns % 2**32).integers(0, 2, (48, 64), np.uint8)
    mask[:3] = SET.ignore_id
    return mask


def put_in_bag_folder(frames: list[str], folder: Path) -> Path:
    for name in frames:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), mask_of(int(Path(name).stem)))
    return folder


def put_at_the_top(frames: list[str], folder: Path) -> Path:
    folder.mkdir()
    for name in frames:
        cv2.imwrite(str(folder / Path(name).name), mask_of(int(Path(name).stem)))
    return folder


def put_as_cvat_zip(frames: list[str], folder: Path) -> Path:
    folder.mkdir()
    label_map = [
        f"{name}:{','.join(map(str, color))}::" for name, color in zip(SET.classes, SET.colors, strict=True)
    ]
    with zipfile.ZipFile(folder / "task.zip", "w") as archive:
        archive.writestr(
            "labelmap.txt", "\n".join(["# label:color_rgb:parts:actions", "background:0,0,0::", *label_map])
        )
        for name in frames:
            colors = np.zeros((256, 3), np.uint8)
            colors[:2] = SET.colors
            painted = colors[mask_of(int(Path(name).stem))]
            archive.writestr(
                f"SegmentationClass/{name}", cv2.imencode(".png", painted[..., ::-1])[1].tobytes()
            )
    return folder / "task.zip"


@pytest.mark.parametrize("put", [put_in_bag_folder, put_at_the_top, put_as_cvat_zip])
def test_masks_under_the_exported_names_are_the_frames_labels(
    drive: Path, tmp_path: Path, put: Callable[[list[str], Path], Path]
) -> None:
    out = tmp_path / "out"
    bag = BagFrames.open(drive, cache=False)
    assert main(["frames", str(drive), "--out", str(out), "--count", "5"]) == 0
    exported = sorted(file.relative_to(out / "color").as_posix() for file in (out / "color").rglob("*.png"))
    labels = put(exported, tmp_path / "labels")
    dataset = RgbdBagDataset([bag], SET, open_label_files(labels, SET))
    stamps = [int(Path(name).stem) for name in exported]
    assert len(stamps) == 5
    np.testing.assert_array_equal(dataset.labelled, np.isin(bag.frames["stamp_ns"], stamps))
    for position in np.flatnonzero(dataset.labelled).tolist():
        sample = dataset[position]
        assert sample.labelled
        mask = mask_of(sample.stamp_ns)
        np.testing.assert_array_equal(sample.labels, np.where(mask == SET.ignore_id, IGNORE_ID, mask))
