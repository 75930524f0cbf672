# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3l_model.bag_writer import BagWriteError
from m3l_model.bags import DEFAULT_TOPICS, BagReader, guess_topics, read_frames
from m3l_model.commands import import_images as command
from m3l_model.errors import M3LError
from m3l_model.import_images import ImageSize, guess_intrinsics, read_intrinsics, write_images
from m3l_model.import_plan import (
    DepthUnits,
    FrameFiles,
    ImportImagesError,
    ImportPlan,
    keep_labels,
    plan_import,
)
from m3l_model.sync import Reason

SECOND = 1_000_000_000
SIZE = (6, 8)


def import_images(out: Path, color: Path, depth: Path, *options: object) -> int:
    """Run the command as ``m3l import-images`` does."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    arguments = ["--out", out, "--color", color, "--depth", depth, *options]
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


def save(path: Path, image: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)
    return path


def color_image(index: int) -> np.ndarray:
    return np.full((*SIZE, 3), (index, 100, 200), np.uint8)


def depth_image(index: int) -> np.ndarray:
    depth = np.full(SIZE, 1000 + index, np.uint16)
    depth[0, :2] = 0, 65535
    return depth


def label_image(index: int) -> np.ndarray:
    return np.full(SIZE, index, np.uint8)


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """Twelve frames in three folders, named by number; frame 4 has no depth, 5 and 6 no labels."""
    for index in range(1, 13):
        save(tmp_path / "rgb" / f"{index:04}.png", color_image(index))
        if index != 4:
            save(tmp_path / "depth" / f"{index:04}.png", depth_image(index))
        if index not in (5, 6):
            save(tmp_path / "label40" / f"{index:04}.png", label_image(index))
    return tmp_path


def names(paths: Sequence[Path | None]) -> list[str | None]:
    return [None if path is None else path.name for path in paths]


# The command, from end to end


def test_three_folders_become_a_bag_of_paired_frames(
    folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = folders / "bag"
    options = ["--rate", "20", "--start-stamp", "2.5", "--frame-id", "eye", "--labels", folders / "label40"]

    code = import_images(out, folders / "rgb", folders / "depth", *options)

    assert code == 0
    frames = list(read_frames(out))
    assert guess_topics(out) == DEFAULT_TOPICS
    assert [frame.stamp_ns for frame in frames] == [2_500_000_000 + 50_000_000 * index for index in range(12)]
    for index, frame in enumerate(frames, start=1):
        np.testing.assert_array_equal(frame.rgb, color_image(index)[..., ::-1])
        depth = None if index == 4 else np.where(depth_image(index) == 65535, 0, depth_image(index))
        np.testing.assert_equal(frame.depth, depth)
        np.testing.assert_equal(frame.labels, None if index in (5, 6) else label_image(index))
        assert frame.frame_id == "eye"
        assert frame.reason == (Reason.DEPTH_LOST if index == 4 else Reason.PAIRED)
    said = capsys.readouterr()
    assert f"{out}: 12 frames, 0.6 s at 20 Hz; 11 with depth, 10 labelled" in said.out
    assert "colour images without depth, imported without: 1 (" in said.out
    assert "guessed" in said.out
    assert "33/33" in said.err


def test_the_files_of_stanford_2d_3d_s_meet_by_their_names(tmp_path: Path) -> None:
    """With the patterns of docs/published.md."""
    for area in ("area_1", "area_5a"):
        for frame in range(2):
            name = f"camera_{area}_office_1_frame_{frame}_domain"
            save(tmp_path / area / "data" / "rgb" / f"{name}_rgb.png", color_image(frame + 1))
            save(tmp_path / area / "data" / "depth" / f"{name}_depth.png", depth_image(frame + 1))
            save(tmp_path / area / "data" / "ids" / f"{name}_ids.png", label_image(frame + 1))
    pattern = {
        kind: tmp_path / "area_*" / "data" / kind / f"*_{kind}.png" for kind in ("rgb", "depth", "ids")
    }
    (tmp_path / "train.txt").write_text("camera_area_1_office_1_frame_1_domain\n")
    options = ["--labels", pattern["ids"], "--list", tmp_path / "train.txt"]
    assert import_images(tmp_path / "bag", pattern["rgb"], pattern["depth"], *options) == 0
    frames = list(read_frames(tmp_path / "bag"))
    assert [int(frame.labels[0, 0]) for frame in frames if frame.labels is not None] == [2]
    assert all(frame.depth is not None for frame in frames)


def test_units_list_intrinsics_and_label_budget(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(1, 13):
        save(folders / "depth8" / f"d{index}.png", np.full(SIZE, 100 + index, np.uint8))
    (folders / "list.txt").write_text("0002\n0003\n0007\n0009\n0099\n")
    (folders / "k.txt").write_text("500 0 4\n0 501 3\n0 0 1\n")

    import_images(
        folders / "bag",
        folders / "rgb" / "*.png",
        folders / "depth8",
        *["--labels", folders / "label40", "--labelled", "2", "--list", folders / "list.txt"],
        *["--depth-scale", "0.0392157", "--depth-offset", "0.5", "--invalid-depth", "103"],
        *["--intrinsics", folders / "k.txt"],
    )

    frames = list(read_frames(folders / "bag"))
    assert [int(frame.rgb[0, 0, 2]) for frame in frames] == [2, 3, 7, 9]
    millimetres = [int(frame.depth[0, 0]) for frame in frames if frame.depth is not None]
    assert millimetres == [round((value + 0.5) / 25.5 * 1000) if value else 0 for value in (102, 0, 107, 109)]
    assert [frame.labels is not None for frame in frames] == [False, True, False, True]
    with BagReader(folders / "bag") as reader:
        infos = [message.msg for message in reader.messages(["/camera/color/camera_info"])]
    assert infos[0].k.tolist() == [500, 0, 4, 0, 501, 3, 0, 0, 1]
    said = capsys.readouterr().out
    assert "labels left out as asked: 2" in said
    assert "listed names without an image: 1 (0099)" in said
    assert "guessed" not in said


def test_an_existing_bag_is_kept(folders: Path) -> None:
    (folders / "bag").mkdir()
    with pytest.raises(BagWriteError, match="bag exists already"):
        import_images(folders / "bag", folders / "rgb", folders / "depth")


def test_nothing_is_left_of_an_import_that_failed(folders: Path) -> None:
    (folders / "depth" / "0009.png").write_bytes(b"not a png")
    with pytest.raises(ImportImagesError, match=r"depth/0009\.png: not an image that can be read"):
        import_images(folders / "bag", folders / "rgb", folders / "depth")
    assert not (folders / "bag").exists()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--rate", "0"], "rate 0.0"),
        (["--rate", "nan"], "rate nan"),
        (["--start-stamp", "3e9"], "does not fit"),
        (["--list", "absent.txt"], "absent.txt: cannot read the list"),
        (["--intrinsics", "absent.txt"], "absent.txt: cannot read the intrinsics"),
        (["--labelled", "3"], "no labelled frames"),
        (["--label-every", "2"], "no labelled frames"),
    ],
)
def test_arguments_that_make_no_sense_are_errors(folders: Path, arguments: list[str], complaint: str) -> None:
    with pytest.raises(M3LError, match=complaint):
        import_images(folders / "bag", folders / "rgb", folders / "depth", *arguments)


# Matching


def test_one_folder_with_modalities_in_the_names(tmp_path: Path) -> None:
    for name in ("frame-000010", "frame-000002", "frame-000003"):
        save(tmp_path / f"{name}.color.jpg", color_image(0))
    for name in ("frame-000010", "frame-000002", "frame-000077"):
        save(tmp_path / f"{name}.depth.png", depth_image(0))

    plan = plan_import(str(tmp_path / "*.color.jpg"), str(tmp_path / "*.depth.png"))

    assert names([frame.color for frame in plan.frames]) == [
        "frame-000002.color.jpg",
        "frame-000003.color.jpg",
        "frame-000010.color.jpg",
    ]
    assert names([frame.depth for frame in plan.frames]) == [
        "frame-000002.depth.png",
        None,
        "frame-000010.depth.png",
    ]
    assert names(plan.depth_unused) == ["frame-000077.depth.png"]
    with pytest.raises(
        ImportImagesError, match=r"would be colour images of one frame; give a narrower pattern"
    ):
        plan_import(str(tmp_path), str(tmp_path))


@pytest.mark.parametrize(
    ("color", "depth"),
    [
        (["a_1.png", "b_1.png"], ["a_1.png", "b_1.png"]),  # by name: the number alone says too little
        (["color1.jpg", "color10.jpg", "color2.jpg"], ["depth1.png", "depth10.png", "depth2.png"]),
        (
            ["rgb_0001.png", "rgb_0002.png"],
            ["1_of_two_1.png", "1_of_two_2.png"],
        ),  # by number: no name is shared
        (["r-1-640x480.png", "r-2-640x480.png"], ["R_1_640X480.PNG", "R_2_640X480.PNG"]),
    ],
)
def test_names_or_else_numbers_are_compared(tmp_path: Path, color: list[str], depth: list[str]) -> None:
    for folder, files in (("c", color), ("d", depth)):
        (tmp_path / folder).mkdir()
        for file in files:
            (tmp_path / folder / file).touch()

    plan = plan_import(str(tmp_path / "c"), str(tmp_path / "d"))

    matched = {frame.color.name: frame.depth.name for frame in plan.frames if frame.color and frame.depth}
    assert matched == dict(zip(color, depth, strict=True))


@pytest.mark.parametrize("listed", [["0003", "0007"], ["7", "3", "3"], ["0003.png", "rgb_0007"]])
def test_a_list_names_frames_or_numbers(folders: Path, listed: list[str]) -> None:
    plan = plan_import(str(folders / "rgb"), str(folders / "depth"), names=listed)

    assert names([frame.color for frame in plan.frames]) == ["0003.png", "0007.png"]
    assert plan.depth_unused == ()


def test_what_cannot_be_matched_is_an_error(folders: Path) -> None:
    rgb, depth = str(folders / "rgb"), str(folders / "depth")
    (folders / "empty").mkdir()
    save(folders / "far" / "x900.png", depth_image(0))
    for arguments, complaint in (
        ((str(folders / "empty"), depth), "empty: no colour images found"),
        ((rgb, str(folders / "depth" / "*.jpg")), r"\*\.jpg: no depth images found"),
        ((rgb, str(folders / "far")), r"none of the 1 depth names meets a colour image's: .*x900\.png"),
        ((rgb, depth, str(folders / "far")), "none of the 1 label names"),
        ((rgb, depth, None, ["1000", "x"]), "none of the 2 listed names"),
    ):
        with pytest.raises(ImportImagesError, match=complaint):
            plan_import(*arguments)


@given(st.integers(1, 10))
def test_a_label_budget_is_spread_evenly(tmp_path_factory: pytest.TempPathFactory, budget: int) -> None:
    folder = tmp_path_factory.mktemp("spread")
    for index in range(12):
        for kind in ("c", "d", "l")[: 2 if index in (5, 6) else 3]:
            (folder / kind).mkdir(exist_ok=True)
            (folder / kind / f"{index}.png").touch()
    arguments = [str(folder / kind) for kind in ("c", "d", "l")]

    plan = keep_labels(plan_import(*arguments), labelled=budget)

    ranks = [
        index if index < 5 else index - 2
        for index, frame in enumerate(plan.frames)
        if frame.label is not None
    ]
    assert plan.labelled == len(ranks) == budget
    assert plan.labels_withheld == 10 - budget
    gaps = np.diff([-0.5, *ranks, 9.5])  # the ends count half
    assert gaps.max() <= 10 / budget + 1


def test_one_labelled_frame_in_so_many(folders: Path) -> None:
    whole = plan_import(*(str(folders / kind) for kind in ("rgb", "depth", "label40")))

    plan = keep_labels(whole, label_every=4)

    assert [frame.label and frame.label.stem for frame in plan.frames if frame.label] == [
        "0001",
        "0007",
        "0011",
    ]
    for budget in (0, -1, 11):
        with pytest.raises(ImportImagesError, match="1 to 10 are there"):
            keep_labels(whole, labelled=budget)
    with pytest.raises(ImportImagesError, match="at least 1"):
        keep_labels(whole, label_every=0)


# Images


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def palette_png(bit_depth: int, color_type: int) -> bytes:
    """An 8x6 PNG of the kinds that OpenCV does not write: with a palette (3) or of few bits (0)."""
    header = struct.pack(">IIBBBBB", 8, 6, bit_depth, color_type, 0, 0, 0)
    rows = zlib.compress((b"\0" + bytes(bit_depth)) * 6)
    palette = png_chunk(b"PLTE", bytes(range(9))) if color_type == 3 else b""
    chunks = png_chunk(b"IHDR", header) + palette + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("content", [palette_png(8, 3), palette_png(4, 0)], ids=["palette", "4 bits"])
def test_label_images_whose_ids_would_be_lost_are_refused(folders: Path, content: bytes) -> None:
    label = folders / "label40" / "0002.png"
    label.write_bytes(content)
    assert cv2.imread(str(label)) is not None

    with pytest.raises(ImportImagesError, match=r"label40/0002\.png: labels must have one channel of 8 bits"):
        import_images(folders / "bag", folders / "rgb", folders / "depth", "--labels", folders / "label40")


@pytest.mark.parametrize(
    ("file", "image", "complaint"),
    [
        ("label40/0003.jpg", label_image(3), "do not survive JPEG"),
        ("label40/0003.png", color_image(3), "labels must have one channel"),
        ("label40/0003.png", depth_image(3), "labels must have one channel"),
        ("label40/0003.png", label_image(3)[:4], r"is 8x4, but .*depth/0003\.png 8x6"),
        ("depth/0003.png", color_image(3), "depth must have one channel of 8 or 16 bits, not uint8 of shape"),
        ("depth/0003.png", depth_image(3)[:, :4], r"rgb/0003\.png is 8x6, but .*depth/0003\.png 4x6"),
    ],
)
def test_unfit_images_are_named(folders: Path, file: str, image: np.ndarray, complaint: str) -> None:
    (folders / file).with_suffix(".png").unlink()
    save(folders / file, image)

    with pytest.raises(ImportImagesError, match=f"{Path(file).name}.*{complaint}|{complaint}"):
        import_images(folders / "bag", folders / "rgb", folders / "depth", "--labels", folders / "label40")


@given(
    st.sampled_from([np.uint8, np.uint16]),
    st.floats(1e-5, 0.1),
    st.floats(-2, 2),
    st.sets(st.integers(0, 65535), max_size=3),
    st.integers(0, 65535),
)
def test_depth_units(dtype: type, scale: float, offset: float, invalid: set[int], value: int) -> None:
    value = min(value, int(np.iinfo(dtype).max))
    millimetres = (value + offset) * scale * 1000

    (converted,) = DepthUnits(scale, offset, tuple(invalid)).millimetres(np.array([[value]], dtype))[0]

    if value in invalid or not -0.5 <= millimetres <= 65534.5:
        assert converted == 0
    else:
        assert abs(int(converted) - millimetres) <= 0.5 + 1e-9


@given(st.integers(0, 65534))
def test_sun_depth_comes_back_from_its_rotation(millimetres: int) -> None:
    rotated = (millimetres << 3 | millimetres >> 13) & 0xFFFF

    (converted,) = DepthUnits(invalid=(0,), rotated=3).millimetres(np.array([[rotated]], np.uint16))[0]

    assert converted == millimetres
    if 0 < millimetres < 8192:
        assert rotated == 8 * millimetres


@pytest.mark.parametrize("size", [(8, 6), (4, 3), (16, 12), (3, 3), (20, 5)])
def test_a_size_crops_in_the_middle_and_scales_with_the_intrinsics(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """The pixel that looks along the optical axis still does: it is where the depth step lies."""
    k = np.array([[10, 0, 39.5], [0, 10, 29.5], [0, 0, 1.0]])
    depth = np.full((60, 80), 1000, np.uint16)
    depth[:, 40:] = 2000
    color = np.full((60, 80, 3), 7, np.uint8)
    files = FrameFiles(
        save(tmp_path / "c.png", color),
        save(tmp_path / "d.png", depth),
        save(tmp_path / "l.png", (depth // 1000).astype(np.uint8)),
        k,
    )

    write_images(ImportPlan((files,)).images(), tmp_path / "bag", DepthUnits(), size=ImageSize(*size))

    (frame,) = read_frames(tmp_path / "bag")
    width, height = size
    assert frame.depth is not None
    assert frame.labels is not None
    assert frame.rgb.shape == (height, width, 3)
    assert frame.depth.shape == frame.labels.shape == (height, width)
    np.testing.assert_array_equal(frame.labels, frame.depth // 1000)
    with BagReader(tmp_path / "bag") as reader:
        topics = [str(DEFAULT_TOPICS.rgb_info), str(DEFAULT_TOPICS.depth_info)]
        infos = [message.msg for message in reader.messages(topics)]
    for info in infos:
        assert (info.width, info.height) == size
        (fx, _, cx), (_, fy, cy), _ = info.k.reshape(3, 3)
        scale = max(width / 80, height / 60)
        assert fx == pytest.approx(10 * scale, rel=0.05)
        assert fy == pytest.approx(10 * scale, rel=0.05)
        assert cx == pytest.approx((width - 1) / 2, abs=0.5 * scale)
        assert cy == pytest.approx((height - 1) / 2, abs=0.5 * scale)
        step = np.flatnonzero(np.diff(frame.depth[0])) + 0.5
        assert abs(step[0] - cx) <= 0.5


def test_any_size_can_be_asked_for(folders: Path) -> None:
    import_images(folders / "bag", folders / "rgb", folders / "depth", "--size", "1x200")

    assert {frame.rgb.shape for frame in read_frames(folders / "bag")} == {(200, 1, 3)}


@pytest.mark.parametrize("size", ["640", "0x3", "axb", "-1x5", "640x480x3"])
def test_a_size_that_is_none_is_refused(folders: Path, size: str) -> None:
    with pytest.raises(M3LError, match=f"--size {size} is no size"):
        import_images(folders / "bag", folders / "rgb", folders / "depth", f"--size={size}")


def test_images_of_several_sizes_are_pointed_out(folders: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("rgb", "depth"):
        image = cv2.imread(str(folders / kind / "0003.png"), cv2.IMREAD_UNCHANGED)
        assert image is not None
        save(folders / kind / "0003.png", image[:3, :4])

    import_images(folders / "bag", folders / "rgb", folders / "depth")

    assert {frame.rgb.shape for frame in read_frames(folders / "bag")} == {(6, 8, 3), (3, 4, 3)}
    assert "image sizes: 8x6 (11), 4x3 (1); training takes images of one shape" in capsys.readouterr().out


def test_guessed_intrinsics_see_sixty_degrees() -> None:
    k = guess_intrinsics(640, 480)

    assert np.degrees(2 * np.arctan(320 / k[0, 0])) == pytest.approx(60)
    assert k[0, 0] == k[1, 1]
    assert (k[0, 2], k[1, 2]) == (319.5, 239.5)


@pytest.mark.parametrize(
    "text",
    ["1 2 3", "1 0 0\n0 1 0\n0 0 2", "0 0 0\n0 1 0\n0 0 1", "a b c", "1 2\n3", "nan 0 1\n0 1 1\n0 0 1"],
)
def test_intrinsics_of_another_form_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "k.txt").write_text(text)
    with pytest.raises(ImportImagesError, match=r"k\.txt"):
        read_intrinsics(tmp_path / "k.txt")


# Real data


@pytest.mark.data
def test_seven_scenes_frames(shared_data: Path, tmp_path: Path) -> None:
    kitchen = shared_data / "data" / "redkitchen"
    (tmp_path / "list.txt").write_text("".join(f"{index:06}\n" for index in range(5)))

    import_images(
        tmp_path / "bag",
        kitchen / "*.color.jpg",
        kitchen / "*.depth.png",
        *["--intrinsics", kitchen / "camera-intrinsics.txt", "--list", tmp_path / "list.txt"],
    )

    frames = list(read_frames(tmp_path / "bag"))
    assert len(frames) == 5
    for index, frame in enumerate(frames):
        bgr = cv2.imread(str(kitchen / f"frame-{index:06}.color.jpg"))
        depth = cv2.imread(str(kitchen / f"frame-{index:06}.depth.png"), cv2.IMREAD_UNCHANGED)
        assert bgr is not None
        assert depth is not None
        np.testing.assert_array_equal(frame.rgb, bgr[..., ::-1])
        np.testing.assert_equal(frame.depth, np.where(depth == 65535, 0, depth))
        assert frame.reason == Reason.PAIRED
