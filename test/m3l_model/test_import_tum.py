# SPDX-License-Identifier: Apache-2.0
"""Recordings in the layout of the TUM RGB-D benchmark, from lists to the frames of a bag."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from m3l_model.bags import DEFAULT_TOPICS, BagReader, read_frames
from m3l_model.cdr import stamp_ns
from m3l_model.commands import import_images as command
from m3l_model.errors import M3LError
from m3l_model.import_plan import ImportImagesError
from m3l_model.import_tum import read_associations, read_tum_list
from m3l_model.sync import Reason

SIZE = (6, 8)
COLOR = ("1305031910.765238", "1305031910.797230", "1305031910.829190", "1305031910.865025")
DEPTH = ("1305031910.771502", "1305031910.803249", "1305031910.930000")
"""The first two belong to the first two colour images, 6 ms late; nothing is near the others."""


def import_folder(*arguments: object) -> int:
    """Run the command as ``m3l import-images`` does."""
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(argument) for argument in arguments]))


def save(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def write_list(path: Path, rows: Sequence[Sequence[str]]) -> None:
    path.write_text("# timestamp filename\n" + "".join(" ".join(row) + "\n" for row in rows))


def nanoseconds(stamp: str) -> int:
    return int(stamp.replace(".", "")) * 1000


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Four colour and three depth images; depth i is (i + 1) m."""
    folder = tmp_path / "rgbd_dataset_freiburg2_desk"
    for index, stamp in enumerate(COLOR):
        save(folder / "rgb" / f"{stamp}.png", np.full((*SIZE, 3), index, np.uint8))
    for index, stamp in enumerate(DEPTH):
        save(folder / "depth" / f"{stamp}.png", np.full(SIZE, 5000 * (index + 1), np.uint16))
    write_list(folder / "rgb.txt", [(stamp, f"rgb/{stamp}.png") for stamp in COLOR])
    write_list(folder / "depth.txt", [(stamp, f"depth/{stamp}.png") for stamp in DEPTH])
    return folder


def test_all_images_keep_their_own_stamps(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import_folder(desk, "--out", tmp_path / "bag")

    frames = list(read_frames(tmp_path / "bag"))
    assert [frame.stamp_ns for frame in frames] == [nanoseconds(stamp) for stamp in COLOR]
    assert [int(frame.rgb[0, 0, 0]) for frame in frames] == [0, 1, 2, 3]
    depths = [frame.depth is not None and int(frame.depth[0, 0]) for frame in frames]
    assert depths == [
        False,
        2000,
        False,
        False,
    ]  # as live, the first is not kept waiting: no depth has been seen yet
    assert [frame.reason is Reason.PAIRED for frame in frames] == [False, True, False, False]
    with BagReader(tmp_path / "bag") as reader:
        logged = [(raw.topic, raw.log_ns, stamp_ns(raw.data)) for raw in reader.raw_messages()]
        (first, *_) = [message.msg for message in reader.messages([DEFAULT_TOPICS.rgb])]
        (info, *_) = [m.msg for m in reader.messages([str(DEFAULT_TOPICS.rgb_info)])]
    assert all(log_ns == stamp for _, log_ns, stamp in logged)
    assert [log_ns for _, log_ns, _ in logged] == sorted(log_ns for _, log_ns, _ in logged)
    assert [stamp for topic, stamp, _ in logged if topic == DEFAULT_TOPICS.depth] == list(
        map(nanoseconds, DEPTH)
    )
    assert first.header.stamp.nanosec == 765_238_000
    assert info.k.tolist() == [520.9, 0, 325.1, 0, 521.0, 249.7, 0, 0, 1]
    said = capsys.readouterr().out
    assert "4 colour and 3 depth images, 0.2 s; 0 labelled" in said
    assert "layout: tum (recognised" in said
    assert "2 of 4 colour images have a depth image within 20 ms" in said
    assert "depth: metres = (16-bit value) * 0.0002" in said


@pytest.mark.parametrize("name", ["associations.txt", "associate.txt", "mine.txt"])
@pytest.mark.parametrize("depth_first", [False, True])
def test_with_associations_only_their_pairs_are_written(
    desk: Path, tmp_path: Path, name: str, depth_first: bool
) -> None:
    pairs = [(COLOR[0], f"rgb/{COLOR[0]}.png", DEPTH[0], f"depth/{DEPTH[0]}.png")]
    pairs.append((COLOR[3], f"rgb/{COLOR[3]}.png", DEPTH[2], f"depth/{DEPTH[2]}.png"))  # 65 ms apart
    write_list(desk / name, [(*pair[2:], *pair[:2]) if depth_first else pair for pair in pairs])

    import_folder(desk, *(["--list", name] if name == "mine.txt" else []), "--out", tmp_path / "bag")

    frames = list(read_frames(tmp_path / "bag"))
    assert [frame.stamp_ns for frame in frames] == [nanoseconds(COLOR[0]), nanoseconds(COLOR[3])]
    assert [frame.depth is not None and int(frame.depth[0, 0]) for frame in frames] == [1000, False]
    with BagReader(tmp_path / "bag") as reader:
        stamps = [stamp_ns(raw.data) for raw in reader.raw_messages([str(DEFAULT_TOPICS.depth)])]
    assert stamps == [nanoseconds(DEPTH[0]), nanoseconds(DEPTH[2])]


def test_labels_named_as_their_colour_images(desk: Path, tmp_path: Path) -> None:
    save(desk / "label" / f"{COLOR[1]}.png", np.full(SIZE, 9, np.uint8))

    import_folder(desk, "--out", tmp_path / "bag")

    labels = [frame.labels for frame in read_frames(tmp_path / "bag")]
    assert [label is not None and int(label[0, 0]) for label in labels] == [False, 9, False, False]


def test_numbers_of_frames_are_not_stamps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in ICL-NUIM's, whose associations put depth first."""
    folder = tmp_path / "living_room"
    for index in range(3):
        save(folder / "rgb" / f"{index}.png", np.full((*SIZE, 3), index, np.uint8))
        save(folder / "depth" / f"{index}.png", np.full(SIZE, 5000 + 5 * index, np.uint16))
    write_list(
        folder / "associations.txt", [(f"{i}", f"depth/{i}.png", f"{i}", f"rgb/{i}.png") for i in range(3)]
    )

    import_folder(folder, "--rate", "30", "--out", tmp_path / "bag")

    frames = list(read_frames(tmp_path / "bag"))
    assert [frame.stamp_ns for frame in frames] == [1_000_000_000, 1_033_333_333, 1_066_666_667]
    assert [frame.depth is not None and int(frame.depth[0, 0]) for frame in frames] == [1000, 1001, 1002]
    said = capsys.readouterr().out
    assert "3 frames, 0.1 s at 30 Hz; 3 with depth" in said
    assert "taken for numbers of frames" in said
    assert "camera matrix: guessed for 3 frames" in said


def test_images_that_are_listed_but_absent_are_left_out(
    desk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (desk / "depth" / f"{DEPTH[2]}.png").unlink()
    (desk / "rgb" / f"{COLOR[3]}.png").unlink()

    import_folder(desk, "--out", tmp_path / "bag")

    frames = list(read_frames(tmp_path / "bag"))
    assert [frame.depth is not None for frame in frames] == [False, True, False]
    assert (
        f"listed names without an image: 2 (rgb/{COLOR[3]}.png, depth/{DEPTH[2]}.png)"
        in capsys.readouterr().out
    )


ROW = f"{COLOR[0]} rgb/{COLOR[0]}.png"


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("depth.txt", None, r"depth\.txt: no such file; a recording of layout tum has rgb\.txt and"),
        ("rgb.txt", "# nothing\n", r"rgb\.txt lists no images"),
        ("rgb.txt", f"{ROW}\nnow rgb/2.png\n", r"rgb\.txt line 2: 'now' is no stamp in seconds"),
        ("rgb.txt", f"# c\n{ROW}\n{ROW}\n", r"rgb\.txt line 3: the stamp of .* is not after .*; sort"),
        ("rgb.txt", f"{ROW}\n1.5 rgb/2.png\n", r"rgb\.txt line 2: the stamp of rgb/2\.png is not after"),
        (
            "rgb.txt",
            f"{COLOR[0]}\n",
            r"rgb\.txt line 1: '1305031910\.765238' is not of the form 'stamp file'",
        ),
        ("rgb.txt", "1e400 rgb/1.png\n", "'1e400' is no stamp"),
        ("rgb.txt", "nan rgb/1.png\n", "'nan' is no stamp"),
        ("rgb.txt", "1305031910765238000 rgb/1.png\n", r"is no stamp in seconds \(0 to"),
        (
            "rgb.txt",
            "1.5 rgb/1.png\n",
            "none of the 1 colour images listed exists, such as rgb/1.png; unpack",
        ),
        ("associations.txt", "", r"associations\.txt lists no images; .* 'stamp rgb/file stamp depth/file'"),
        ("associations.txt", f"{ROW}\n", r"associations\.txt line 1: .* is not of the form"),
        ("associations.txt", f"{ROW} {ROW}\n", r"which images are of depth cannot be told"),
        ("associations.txt", f"{ROW} 1.5 depth/a.png\n{ROW} 1.6 depth/b.png\n", r"line 2: the stamp of rgb/"),
    ],
)
def test_bad_lists_are_one_clear_line(
    desk: Path, tmp_path: Path, file: str, text: str | None, complaint: str
) -> None:
    (desk / file).unlink() if text is None else (desk / file).write_text(text)

    with pytest.raises(ImportImagesError, match=complaint) as caught:
        import_folder(desk, "--out", tmp_path / "bag")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bag").exists()


def test_images_of_another_kind_are_named(desk: Path, tmp_path: Path) -> None:
    save(desk / "depth" / f"{DEPTH[2]}.png", np.full((3, 4), 5000, np.uint16))
    with pytest.raises(
        ImportImagesError, match=rf"depth/{DEPTH[2]}\.png is 4x3, but .*rgb/{COLOR[0]}\.png 8x6"
    ):
        import_folder(desk, "--out", tmp_path / "bag")
    save(desk / "depth" / f"{DEPTH[2]}.png", np.full(SIZE, 50, np.uint8))
    with pytest.raises(
        ImportImagesError, match=rf"depth/{DEPTH[2]}\.png has 8 bits a pixel, but 16 are expected"
    ):
        import_folder(desk, "--out", tmp_path / "bag")
    assert not (tmp_path / "bag").exists()


@pytest.mark.parametrize("option", [["--rate", "30"], ["--start-stamp", "1"]])
def test_recorded_stamps_are_not_replaced(desk: Path, tmp_path: Path, option: list[str]) -> None:
    with pytest.raises(M3LError, match="has stamps of its own, which are kept"):
        import_folder(desk, *option, "--out", tmp_path / "bag")


@pytest.mark.parametrize("option", ["--color", "--depth"])
def test_images_are_those_of_the_lists(desk: Path, tmp_path: Path, option: str) -> None:
    with pytest.raises(ImportImagesError, match=f"{option} rgb: the images of .* are those of its lists"):
        import_folder(desk, option, "rgb", "--out", tmp_path / "bag")


def test_far_apart_pairs_keep_their_depth(desk: Path, tmp_path: Path) -> None:
    """Depth comes after its colour image, and after so long a gap that a colour image waits for none."""
    rows = []
    for second in range(3):
        color, depth = f"{second + 1}.000000", f"{second + 1}.015000"
        save(desk / "rgb" / f"{color}.png", np.full((*SIZE, 3), 1, np.uint8))
        save(desk / "depth" / f"{depth}.png", np.full(SIZE, 5000 + second * 5, np.uint16))
        rows.append((color, f"rgb/{color}.png", depth, f"depth/{depth}.png"))
    write_list(desk / "associations.txt", rows)

    import_folder(desk, "--out", tmp_path / "bag")

    frames = list(read_frames(tmp_path / "bag"))
    assert [frame.depth is not None and int(frame.depth[0, 0]) for frame in frames] == [1000, 1001, 1002]
    assert [frame.stamp_ns for frame in frames] == [1_000_000_000, 2_000_000_000, 3_000_000_000]
    with BagReader(tmp_path / "bag") as reader:
        logged = [raw.log_ns for raw in reader.raw_messages()]
    assert logged == [second * 1_000_000_000 + 15_000_000 for second in (1, 2, 3) for _ in range(4)]


# Any list

stamp_sets = st.sets(st.integers(0, 2**31 * 10**6 - 1), min_size=1, max_size=6).map(sorted)


def seconds(microseconds: int) -> str:
    return f"{microseconds // 10**6}.{microseconds % 10**6:06}"


@given(
    stamp_sets,
    st.lists(st.sampled_from(["# comment", "", "   "]), max_size=3),
    st.sampled_from([" ", "\t", ", "]),
)
def test_lists_are_read_to_the_microsecond(
    tmp_path_factory: pytest.TempPathFactory, stamps: list[int], noise: list[str], separator: str
) -> None:
    path = tmp_path_factory.mktemp("list") / "rgb.txt"
    path.write_text("\n".join([*noise, *(f"{seconds(stamp)}{separator}rgb/{stamp}.png" for stamp in stamps)]))

    images, numbered = read_tum_list(path)

    assert [tuple(image) for image in images] == [(stamp * 1000, f"rgb/{stamp}.png") for stamp in stamps]
    assert not numbered


@given(stamp_sets, st.integers(-20_000, 20_000), st.booleans())
def test_associations_are_read_whichever_column_is_first(
    tmp_path_factory: pytest.TempPathFactory, stamps: list[int], delay: int, depth_first: bool
) -> None:
    path = tmp_path_factory.mktemp("list") / "associations.txt"
    late = [min(max(stamp + delay, 0), 2**31 * 10**6 - 1) for stamp in stamps]
    rows = [
        (f"{seconds(color)} rgb/{color}.png", f"{seconds(depth)} depth/{depth}.png")
        for color, depth in zip(stamps, late, strict=True)
    ]
    path.write_text("\n".join(" ".join(row[::-1] if depth_first else row) for row in rows))

    color, depth = read_associations(path)

    assert [image.stamp_ns for image in color.images] == [stamp * 1000 for stamp in stamps]
    assert [image.stamp_ns for image in depth.images] == [stamp * 1000 for stamp in late]
    assert all(image.name.startswith("depth/") for image in depth.images)
