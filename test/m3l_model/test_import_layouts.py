# SPDX-License-Identifier: Apache-2.0
"""Data sets in the layouts of NYUv2 and SUN RGB-D, from folders to the frames of a bag."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np
import pytest

from m3l_model.bags import DEFAULT_TOPICS, BagReader, read_frames
from m3l_model.commands import import_images as command
from m3l_model.errors import M3LError
from m3l_model.import_layouts import LAYOUTS, recognise
from m3l_model.import_plan import ImportImagesError
from m3l_model.sync import Reason

SIZE = (6, 8)


def import_folder(*arguments: object) -> int:
    """Run the command as ``m3l import-images`` does."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def color_image(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full((*size, 3), index, np.uint8)


def label_image(index: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full(size, index, np.uint8)


def rotate(millimetres: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """SUN RGB-D's encoding of a depth image."""
    return np.full(size, (millimetres << 3 | millimetres >> 13) & 0xFFFF, np.uint16)


def depths(bag: Path) -> list[int | None]:
    """The millimetres of a pixel of each frame."""
    return [None if frame.depth is None else int(frame.depth[2, 2]) for frame in read_frames(bag)]


def colors(bag: Path) -> list[int]:
    return [int(frame.rgb[2, 2, 0]) for frame in read_frames(bag)]


def labels(bag: Path) -> list[int | None]:
    return [None if frame.labels is None else int(frame.labels[2, 2]) for frame in read_frames(bag)]


def test_every_layout_can_be_named() -> None:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert [parser.parse_args(["--layout", name, "--out", "bag"]).layout for name in LAYOUTS] == list(LAYOUTS)


# NYUv2


def make_nyu(folder: Path, depth: np.ndarray) -> Path:
    """Four frames; the third has no depth, the fourth no labels."""
    for index in (1, 2, 3, 4):
        save(folder / "rgb" / f"{index:04}.png", color_image(index))
        if index != 3:
            save(folder / "depth" / f"{index:04}.png", depth + depth.dtype.type(index))
        if index != 4:
            save(folder / "label40" / f"{index:04}.png", label_image(index))
            save(folder / "label13" / f"{index:04}.png", label_image(index + 9))
    (folder / "train.txt").write_text("0002\n0003\n0004\n")
    return folder


def test_nyuv2_of_eight_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_nyu(tmp_path / "nyu", np.full(SIZE, 100, np.uint8))

    import_folder(folder, "--out", tmp_path / "bag")

    assert depths(tmp_path / "bag") == [
        round((100 + i + 0.5) / 25.5 * 1000) if i != 3 else None for i in (1, 2, 3, 4)
    ]
    assert labels(tmp_path / "bag") == [1, 2, 3, None]
    said = capsys.readouterr().out
    assert "layout: nyuv2 (recognised" in said
    assert "depth: metres = (8-bit value +0.5) * 0.0392157" in said
    assert "colour images without depth, imported without: 1 (" in said


def test_nyuv2_of_sixteen_bits_its_list_and_other_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_nyu(tmp_path / "nyu", np.full(SIZE, 1500, np.uint16))

    import_folder(folder, "--list", "train.txt", "--labels", "label13", "--out", tmp_path / "bag")

    assert colors(tmp_path / "bag") == [2, 3, 4]
    assert depths(tmp_path / "bag") == [1502, None, 1504]
    assert labels(tmp_path / "bag") == [11, 12, None]
    assert "depth: metres = (16-bit value) * 0.001" in capsys.readouterr().out


def test_units_that_are_given_take_the_place_of_the_layouts(tmp_path: Path) -> None:
    folder = make_nyu(tmp_path / "nyu", np.full(SIZE, 100, np.uint8))

    import_folder(folder, "--depth-scale", "0.02", "--out", tmp_path / "scale")
    import_folder(folder, "--depth-offset", "1", "--invalid-depth", "104", "--out", tmp_path / "offset")

    assert depths(tmp_path / "scale") == [2020, 2040, None, 2080]
    assert depths(tmp_path / "offset") == [4000, 4039, None, 0]


def test_depth_of_two_kinds_is_refused(tmp_path: Path) -> None:
    folder = make_nyu(tmp_path / "nyu", np.full(SIZE, 100, np.uint8))
    save(folder / "depth" / "0002.png", np.full(SIZE, 1000, np.uint16))

    with pytest.raises(ImportImagesError, match=r"depth/0002\.png has 16 bits a pixel, but 8 are expected"):
        import_folder(folder, "--out", tmp_path / "bag")
    assert not (tmp_path / "bag").exists()


def test_folders_of_other_names_and_cases(tmp_path: Path) -> None:
    for name in ("RGB", "Depth", "labels_40"):
        save(tmp_path / "nyu" / name / "1.png", color_image(1) if name == "RGB" else label_image(1))

    import_folder(tmp_path / "nyu", "--out", tmp_path / "bag")

    assert labels(tmp_path / "bag") == [1]


# SUN RGB-D, a folder a frame


def make_sun_frame(
    folder: Path, index: int, size: tuple[int, int] = SIZE, depth: tuple[str, ...] = ("depth", "depth_bfx")
) -> None:
    save(folder / "image" / f"NYU{index}.jpg", color_image(index, size))
    for name in depth:
        save(folder / name / f"{index}.png", rotate(10_000 + index + 100 * (name == "depth"), size))
    (folder / "intrinsics.txt").write_text(f"{500 + index} 0 4 0 501 3 0 0 1\n")
    (folder / "seg.mat").touch()
    (folder / "fullres").mkdir()


@pytest.fixture
def sun(tmp_path: Path) -> Path:
    """Frames 1, 2 and 10 of one sensor and 20 of another, which has its own size and depth/ alone; 2 has no depth."""
    for index in (1, 2, 10):
        folder = tmp_path / "SUNRGBD" / "kv1" / "NYUdata" / f"NYU{index}"
        make_sun_frame(folder, index, depth=() if index == 2 else ("depth", "depth_bfx"))
    make_sun_frame(tmp_path / "SUNRGBD" / "kv2" / "align_kv2" / "x_20", 20, (12, 14), ("depth",))
    return tmp_path / "SUNRGBD"


def test_sun_rgbd_as_published(sun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np_label = label_image(7)
    (sun / "kv1" / "NYUdata" / "NYU1" / "label").mkdir()
    np.save(sun / "kv1" / "NYUdata" / "NYU1" / "label" / "label.npy", np_label)
    save(sun / "kv1" / "NYUdata" / "NYU10" / "label37" / "l.png", label_image(8))

    import_folder(sun, "--out", tmp_path / "bag")

    assert colors(tmp_path / "bag") == [1, 2, 10, 20]
    assert depths(tmp_path / "bag") == [10_001, None, 10_010, 10_120]
    assert labels(tmp_path / "bag") == [7, None, 8, None]
    assert [frame.rgb.shape[:2] for frame in read_frames(tmp_path / "bag")] == [SIZE, SIZE, SIZE, (12, 14)]
    with BagReader(tmp_path / "bag") as reader:
        infos = [m.msg for m in reader.messages([str(DEFAULT_TOPICS.rgb_info)])]
    assert [info.k[0] for info in infos] == [501, 502, 510, 520]
    assert [(info.width, info.height) for info in infos] == [(8, 6), (8, 6), (8, 6), (14, 12)]
    said = capsys.readouterr().out
    assert "layout: sunrgbd (recognised" in said
    assert "depth images from: depth_bfx/ (2), depth/ (1)" in said
    assert "its bits rotated back by 3" in said
    assert "image sizes: 8x6 (3), 14x12 (1); training takes images of one shape: give --size" in said
    assert "guessed" not in said


def test_sun_rgbd_in_one_size_with_raw_depth(
    sun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_folder(sun, "--size", "8x6", "--depth", "depth", "--out", tmp_path / "bag")

    assert depths(tmp_path / "bag") == [10_101, None, 10_110, 10_120]
    assert {frame.rgb.shape[:2] for frame in read_frames(tmp_path / "bag")} == {SIZE}
    assert "cropped and scaled to 8x6" in capsys.readouterr().out


def test_a_part_of_sun_rgbd_or_a_single_frame(sun: Path, tmp_path: Path) -> None:
    import_folder(sun / "kv1", "--out", tmp_path / "part")
    import_folder(sun / "kv2" / "align_kv2" / "x_20", "--out", tmp_path / "frame")

    assert colors(tmp_path / "part") == [1, 2, 10]
    assert colors(tmp_path / "frame") == [20]


def test_numbered_labels_follow_the_list(
    sun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in sunrgbd-meta-data, whose lists hold paths of images and whose labels are numbered in their order."""
    (tmp_path / "list.txt").write_text(
        "SUNRGBD/kv2/align_kv2/x_20/image/NYU20.jpg\n"
        "SUNRGBD/kv1/NYUdata/NYU77/image/NYU77.jpg\n"
        "SUNRGBD/kv1/NYUdata/NYU1/image/NYU1.jpg\n"
    )
    for number, (index, size) in enumerate(((20, (12, 14)), (77, SIZE), (1, SIZE)), start=9):
        save(tmp_path / "labels" / f"img-{number:06}.png", label_image(index, size))
    listed = ["--list", tmp_path / "list.txt"]

    import_folder(sun, *listed, "--labels", tmp_path / "labels", "--out", tmp_path / "bag")

    assert colors(tmp_path / "bag") == [20, 1]
    assert labels(tmp_path / "bag") == [20, 1]
    assert "listed names without an image: 1 (SUNRGBD/kv1/NYUdata/NYU77/" in capsys.readouterr().out
    with pytest.raises(ImportImagesError, match="only a list can tell"):
        import_folder(sun, "--labels", tmp_path / "labels", "--out", tmp_path / "other")
    (tmp_path / "labels" / "img-000009.png").unlink()
    with pytest.raises(ImportImagesError, match=r"holds 2 label images, but .* names 3 frames"):
        import_folder(sun, *listed, "--labels", tmp_path / "labels", "--out", tmp_path / "other")


@pytest.mark.parametrize(
    "depth", [rotate(2000), np.full(SIZE, 2001, np.uint16)], ids=["rotated", "millimetres"]
)
def test_sun_rgbd_prepared_for_segmentation(tmp_path: Path, depth: np.ndarray) -> None:
    for part in ("train", "test"):
        for index in (1, 2):
            save(tmp_path / "sun" / "image" / part / f"img-{index:06}.jpg", color_image(index))
            save(tmp_path / "sun" / "depth" / part / f"{index:08}.png", depth)
            save(tmp_path / "sun" / "label37" / part / f"img37labels-{index:06}.png", label_image(index))
    parts = ["--color", "image/train", "--depth", "depth/train", "--labels", "label37/train"]

    import_folder(tmp_path / "sun", *parts, "--out", tmp_path / "bag")

    assert recognise(tmp_path / "sun") == "sunrgbd"
    assert depths(tmp_path / "bag") == [2000 if depth[0, 0] != 2001 else 2001] * 2
    assert labels(tmp_path / "bag") == [1, 2]
    with pytest.raises(
        ImportImagesError, match=f"divided into test and train; choose one, as in {' '.join(parts)}"
    ):
        import_folder(tmp_path / "sun", "--out", tmp_path / "other")


# Bad input


def test_each_bad_folder_is_one_clear_line(sun: Path, tmp_path: Path) -> None:
    nyu = make_nyu(tmp_path / "sets" / "nyu", np.full(SIZE, 100, np.uint8))
    matlab = tmp_path / "mat" / "nyu_depth_v2_labeled.mat"
    matlab.parent.mkdir()
    matlab.touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "no_depth" / "rgb").mkdir(parents=True)
    frame = sun / "kv1" / "NYUdata" / "NYU1"
    (tmp_path / "dot.txt").write_text(".\n")
    for arguments, complaint in (
        ([tmp_path / "absent"], "absent: no such folder"),
        ([tmp_path / "absent.mat"], r"absent\.mat: no such folder"),
        (
            [matlab],
            r"labeled\.mat is a MATLAB file, .*; give a folder of images",
        ),
        ([matlab.parent], r"labeled\.mat is a MATLAB file"),
        ([tmp_path / "empty"], "empty: no layout recognised; nyuv2 has rgb/ and depth/"),
        (
            [tmp_path / "empty", "--layout", "sunrgbd"],
            "empty has no folder rgb, image, images or color; name it with",
        ),
        ([tmp_path / "empty", "--layout", "tum"], r"empty/rgb\.txt: no such file; a recording of layout tum"),
        (
            [tmp_path / "no_depth", "--layout", "nyuv2"],
            "no_depth has no folder depth, .* name it with --depth",
        ),
        ([nyu.parent], "sets: no layout recognised; its folder nyu looks like nyuv2: give .*nyu"),
        ([sun, "--depth", "depth9"], "--depth depth9: no frame of .*SUNRGBD has a folder of this name"),
        ([nyu, "--list", "val.txt"], r"val\.txt: cannot read the list of frames"),
        ([nyu, "--labels", "label99"], "label99: no label images found"),
        ([sun, "--color", "image"], "--color image: .* leave --color out"),
        ([sun, "--list", nyu / "train.txt"], r"train\.txt: none of its 3 names is a frame in .*SUNRGBD"),
        ([sun, "--list", tmp_path / "dot.txt"], r"dot\.txt: none of its 1 names"),
        ([], "name the folder of a data set, or the images with --color and --depth"),
        (["--layout", "tum"], "name the folder too"),
    ):
        with pytest.raises(M3LError, match=complaint) as caught:
            import_folder(*arguments, "--out", tmp_path / "bag")
        assert "\n" not in str(caught.value)
    (frame / "intrinsics.txt").write_text("500 0\n")
    with pytest.raises(ImportImagesError, match=r"NYU1/intrinsics\.txt: not a 3x3 camera matrix"):
        import_folder(sun, "--out", tmp_path / "bag")
    (frame / "intrinsics.txt").unlink()
    import_folder(sun, "--out", tmp_path / "guessed")
    (frame / "image" / "NYU1.jpg").unlink()
    with pytest.raises(ImportImagesError, match=r"NYU1/image holds no image"):
        import_folder(sun, "--out", tmp_path / "bag")
    save(sun / "kv1" / "NYUdata" / "NYU2" / "image" / "2b.png", color_image(2))
    save(frame / "image" / "NYU1.jpg", color_image(1))
    with pytest.raises(
        ImportImagesError, match=r"NYU2/image holds 2b\.png and NYU2\.jpg; one image is expected"
    ):
        import_folder(sun, "--out", tmp_path / "bag")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (np.zeros(SIZE, np.int64), "labels must have one channel of 8 bits"),
        (np.zeros((5, 8), np.uint8), "is 8x5, but"),
        (np.array([{}], object), "not an array that can be read"),
    ],
)
def test_label_arrays_that_do_not_fit_are_refused(
    sun: Path, tmp_path: Path, content: np.ndarray, complaint: str
) -> None:
    path = sun / "kv1" / "NYUdata" / "NYU1" / "label" / "label.npy"
    path.parent.mkdir()
    np.save(path, content)

    with pytest.raises(ImportImagesError, match=rf"label/label\.npy:? .*{complaint}|label\.npy {complaint}"):
        import_folder(sun, "--out", tmp_path / "bag")


# Real data


@pytest.mark.data
def test_nyu_frames(shared_data: Path, tmp_path: Path) -> None:
    nyu = shared_data / "data" / "nyuv2"
    listed = (nyu / "train.txt").read_text().split()[:4]
    (tmp_path / "list.txt").write_text("\n".join(listed))

    import_folder(nyu, "--labelled", "2", "--list", tmp_path / "list.txt", "--out", tmp_path / "bag")

    frames = list(read_frames(tmp_path / "bag"))
    assert [frame.labels is not None for frame in frames] == [False, True, False, True]
    for name, frame in zip(listed, frames, strict=True):
        levels = cv2.imread(str(nyu / "depth" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert levels is not None
        assert frame.depth is not None
        assert frame.reason is Reason.PAIRED
        assert np.abs(frame.depth - (levels + 0.5) / 25.5 * 1000)[levels > 0].max() <= 0.51
        if frame.labels is not None:
            label = cv2.imread(str(nyu / "label40" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
            np.testing.assert_array_equal(frame.labels, label)
