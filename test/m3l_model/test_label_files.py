# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import itertools
import json
import logging
import multiprocessing
import pickle
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as np_st
from PIL import Image

from m3l_model.frame_names import frame_file
from m3l_model.label_files import LabelFiles, open_label_files
from m3l_model.label_files.coco_masks import Polygons, RunLengths
from m3l_model.label_files.png import read_ids
from m3l_model.label_files.size import MAX_PIXELS
from m3l_model.labels import LabelError, LabelSet

SET = LabelSet(
    "rooms",
    ("floor", "Wall", "chair"),
    ((1, 1, 1), (2, 2, 2), (3, 3, 3)),
    id_map={1: 0, 2: 1, 3: 2, 0: 255},
)
WITH_BACKGROUND = LabelSet("two", ("Background", "wall"), ((9, 9, 9), (2, 2, 2)))
SHAPE = (2, 3)
IDS = np.array([[0, 1, 2], [3, 3, 1]], np.uint8)
CLASSES = [[255, 0, 1], [2, 2, 0]]

LABEL_MAP = """# label:color_rgb:parts:actions
background:0,0,0::
floor:10,20,30::
WALL:200,0,0:part,other:sit
unused:7,7,7::
"""
FLOOR, WALL, BLACK = (10, 20, 30), (200, 0, 0), (0, 0, 0)


def png(image: np.ndarray, palette: Sequence[int] | None = None, bits: int | None = None) -> bytes:
    picture = Image.fromarray(image)
    if palette is not None:
        picture = Image.frombytes("P", picture.size, image.tobytes())
        picture.putpalette(palette)
    file = io.BytesIO()
    picture.save(file, "PNG", **({} if bits is None else {"bits": bits}))
    return file.getvalue()


def claiming(width: int, height: int, kind: int = 0, depth: int = 8) -> bytes:
    """A PNG whose header is right and whose pixels are missing."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def write(folder: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def write_zip(path: Path, files: Mapping[str, bytes | str]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def refusal(path: Path, label_set: LabelSet = SET) -> str:
    with pytest.raises(LabelError) as error:
        open_label_files(path, label_set)
    assert "\n" not in str(error.value)
    return str(error.value)


def read_refusal(labels: LabelFiles, bag: str = "drive", stamp_ns: int = 5) -> str:
    with pytest.raises(LabelError) as error:
        labels.read(bag, stamp_ns, SHAPE)
    assert "\n" not in str(error.value)
    return str(error.value)


def check_refusal(labels: LabelFiles) -> str:
    with pytest.raises(LabelError) as error:
        labels.check()
    assert "\n" not in str(error.value)
    return str(error.value)


# PNG folders


def test_a_file_in_a_bags_folder_serves_that_bag_and_others_serve_all(tmp_path: Path) -> None:
    files = {"5.png": png(IDS), "drive/5.png": png(IDS[::-1].copy()), "a/b/other/7.png": png(IDS)}
    labels = open_label_files(write(tmp_path, files), SET)

    assert labels.stamps("drive") == {5}
    assert labels.stamps("other") == {5, 7}
    assert labels.stamps("third") == {5}
    assert labels.bag_names == {None, "drive", "other"}
    assert labels.read("drive", 5, SHAPE).tolist() == CLASSES[::-1]
    assert labels.read("third", 5, SHAPE).tolist() == CLASSES
    assert labels.read("other", 7, SHAPE).dtype == np.uint8
    assert read_refusal(labels, "drive", 7) == f"{tmp_path}: no labels of drive at 7"
    labels.check()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 4, 8]), st.data())
def test_indices_of_palettes_of_every_depth_are_ids_whatever_their_colours(
    bits: int, data: st.DataObject
) -> None:
    shape = data.draw(np_st.array_shapes(min_dims=2, max_dims=2, max_side=9))
    ids = data.draw(np_st.arrays(np.uint8, shape, elements=st.integers(0, 2**bits - 1)))
    palette = data.draw(st.binary(min_size=3 * 2**bits, max_size=3 * 2**bits))
    content = png(ids, list(palette), bits)

    assert (content[24], content[25]) == (bits, 3)
    assert np.array_equal(read_ids(content, None, "image"), ids)


@settings(deadline=None)
@given(np_st.arrays(np.uint8, np_st.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_grey_levels_are_ids(ids: np.ndarray) -> None:
    assert np.array_equal(read_ids(png(ids), None, "image"), ids)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (
            png(np.zeros((*SHAPE, 3), np.uint8)),
            "8-bit RGB; save labels as 8-bit grey PNG whose levels are ids",
        ),
        (png(np.zeros((*SHAPE, 4), np.uint8)), "8-bit RGB with alpha; save labels as"),
        (png(np.zeros((*SHAPE, 2), np.uint8)), "8-bit grey with alpha; save labels as"),
        (png(np.zeros(SHAPE, np.uint16)), "16-bit grey; save labels as"),
        (claiming(3, 2, depth=4), "4-bit grey; save labels as"),
        (b"\xff\xd8\xff\xe0 a photograph", "JPEG; labels do not survive its compression, save them as PNG"),
        (b"RIFF, a modern photograph", "WebP; labels do not survive its compression"),
        (b"", "not a PNG file, although labels must be PNG"),
        (png(IDS)[:-20], "a damaged PNG file: "),
        (claiming(3, 2), "a damaged PNG file: "),
        (claiming(3, 2, kind=5), "a damaged PNG file: its header is not one"),
        (claiming(60000, 60000), f"claims to be 60000x60000; 1 to {MAX_PIXELS} pixels are possible"),
        (claiming(2**31, 1), "claims to be 2147483648x1; 1 to"),
        (claiming(0, 2), "claims to be 0x2; 1 to"),
        (
            png(IDS.T.copy()),
            "is 2x3, but its colour image 3x2; labels must have the size of the colour image",
        ),
    ],
)
def test_a_file_that_holds_no_ids_is_named_with_the_way_out(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    labels = open_label_files(write(tmp_path, {"drive/5.png": content}), SET)

    message = read_refusal(labels)

    assert message.startswith(str(tmp_path / "drive" / "5.png"))
    assert complaint in message


@pytest.mark.parametrize("content", [png(IDS), png(IDS, range(48), 4)])
def test_a_damaged_file_gives_its_ids_or_an_error_of_ours(content: bytes) -> None:
    chance = random.Random(0)
    refused = 0
    for _ in range(500):
        data = bytearray(content)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        try:
            ids = read_ids(
                bytes(data[: chance.choice((len(data), chance.randrange(len(data))))]), None, "image"
            )
        except LabelError:
            refused += 1
        else:
            assert np.array_equal(ids, IDS)
    assert refused > 400


def test_unknown_ids_are_listed_by_a_read_and_all_together_by_the_check(tmp_path: Path) -> None:
    strange = png(np.array([[7, 7, 0], [41, 0, 0]], np.uint8))
    files = {f"drive/{stamp}.png": strange for stamp in (5, 6, 7, 8, 9)}
    files |= {"drive/1.png": png(IDS), "other/1.png": png(np.full(SHAPE, 8, np.uint8))}
    labels = open_label_files(write(tmp_path, files), SET)
    remedy = "choose the set these labels were made with, or add the ids to its YAML"

    assert read_refusal(labels) == (
        f"{tmp_path}: outside label set 'rooms': id 7 (2 pixels in drive/5.png), id 41 (1 pixels in drive/5.png); "
        f"{remedy}"
    )
    assert check_refusal(labels) == (
        f"{tmp_path}: outside label set 'rooms': "
        "id 7 (10 pixels in drive/5.png, drive/6.png, drive/7.png and 2 more), "
        "id 41 (5 pixels in drive/5.png, drive/6.png, drive/7.png and 2 more), "
        f"id 8 (6 pixels in other/1.png); {remedy}"
    )


def test_the_check_says_how_many_files_cannot_be_read(tmp_path: Path) -> None:
    files = {"1.png": png(IDS), "2.png": b"x", "3.png": claiming(60000, 60000), "4.png": png(IDS + 40)}
    labels = open_label_files(write(tmp_path, files), SET)

    message = check_refusal(labels)

    assert "outside label set 'rooms': id 40 (1 pixels in 4.png), " in message
    assert message.endswith(
        f"; 2 of 4 labels cannot be used: {tmp_path / '2.png'}: not a PNG file, although labels must be PNG "
        "(and 1 more like it)"
    )


def test_files_without_a_stamp_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files: dict[str, bytes | str] = {f"drive/frame_{index}.png": b"" for index in range(5)}
    files |= {"5.png": png(IDS), "manifest.json": "{}", ".hidden/6.png": b"", "._5.png": b""}

    with caplog.at_level(logging.WARNING):
        labels = open_label_files(write(tmp_path, files), SET)

    assert labels.stamps("drive") == {5}
    assert [record.getMessage() for record in caplog.records] == [
        f"{tmp_path}: left out, because not named <stamp_ns>.png or <bag>/<stamp_ns>.png: "
        "drive/frame_0.png, drive/frame_1.png, drive/frame_2.png and 2 more"
    ]


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({}, "no labels in it; labels are a folder of PNGs named <stamp_ns>.png"),
        ({"annotations.xml": "<annotations/>"}, "no labels in it; labels are"),
        ({"a.png": b""}, "<bag>/<stamp_ns>.png: found a.png; keep the names under which frames are exported"),
        ({"a.jpg": b""}, "<bag>/<stamp_ns>.png: found nothing at all; keep the names"),
        ({"5.jpg": b"", "6.png": b""}, "labels do not survive JPEG compression, save them as PNG: 5.jpg"),
        (
            {"color/drive/5.png": b"", "depth/drive/5.png": b""},
            "color/drive/5.png and depth/drive/5.png are labels of one frame; give a folder or file of labels alone",
        ),
    ],
)
def test_folders_that_are_no_labels_are_refused(
    tmp_path: Path, files: dict[str, bytes | str], complaint: str
) -> None:
    message = refusal(write(tmp_path, files))
    assert message.startswith(f"{tmp_path}: ")
    assert complaint in message


def test_other_files_are_refused_with_what_is_accepted(tmp_path: Path) -> None:
    write(tmp_path, {"text.txt": "x"})
    assert refusal(tmp_path / "absent").startswith(
        f"{tmp_path / 'absent'}: no such file or folder; labels are"
    )
    assert "neither a folder nor a file of a known kind; labels are" in refusal(tmp_path / "text.txt")


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    labels = open_label_files(write(tmp_path, {"drive/5.png": png(IDS)}), SET)
    (tmp_path / "drive" / "5.png").unlink()

    assert read_refusal(labels) == f"{tmp_path / 'drive' / '5.png'}: no such file"


# CVAT

MASK = np.array([[FLOOR, WALL, WALL], [BLACK, FLOOR, WALL]], np.uint8)
MASK_CLASSES = [[0, 1, 1], [255, 0, 1]]


def cvat(mask: bytes, label_map: str = LABEL_MAP, root: str = "") -> dict[str, bytes | str]:
    return {
        f"{root}labelmap.txt": label_map,
        f"{root}ImageSets/Segmentation/default.txt": "color/drive/5\n",
        f"{root}SegmentationClass/color/drive/5.png": mask,
        f"{root}SegmentationObject/color/drive/5.png": mask,
    }


@pytest.mark.parametrize("root", ["", "task/"])
def test_cvat_masks_are_read_from_the_zip_and_from_its_folder(tmp_path: Path, root: str) -> None:
    files = cvat(png(MASK), root=root)
    for path in (write_zip(tmp_path / "task.zip", files), write(tmp_path / "unpacked", files)):
        labels = open_label_files(path, SET)

        assert labels.stamps("drive") == {5}
        assert labels.read("drive", 5, SHAPE).tolist() == MASK_CLASSES
        labels.check()


def test_colours_of_palette_masks_count_and_their_indices_do_not(tmp_path: Path) -> None:
    indices = np.array([[2, 0, 0], [1, 2, 0]], np.uint8)
    labels = open_label_files(write_zip(tmp_path / "t.zip", cvat(png(indices, [*WALL, *BLACK, *FLOOR]))), SET)

    assert labels.read("drive", 5, SHAPE).tolist() == MASK_CLASSES


@pytest.mark.parametrize(
    "label_map", ["background:0,0,0::\nwall:200,0,0::", "wall:200,0,0::", "wall:200,0,0"]
)
def test_background_and_unlisted_black_are_the_class_background_where_there_is_one(
    tmp_path: Path, label_map: str
) -> None:
    mask = png(np.array([[WALL, BLACK, BLACK], [WALL, WALL, WALL]], np.uint8))
    path = write_zip(tmp_path / "task.zip", cvat(mask, label_map))

    assert open_label_files(path, WITH_BACKGROUND).read("drive", 5, SHAPE)[0].tolist() == [1, 0, 0]
    assert open_label_files(path, SET).read("drive", 5, SHAPE)[0].tolist() == [1, 255, 255]


def test_black_that_labelmap_lists_as_a_label_is_that_label(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "task.zip", cvat(png(MASK * 0), "chair:0,0,0::"))

    assert open_label_files(path, SET).read("drive", 5, SHAPE).tolist() == [[2] * 3] * 2


@pytest.mark.parametrize("palette", [False, True])
def test_strange_colours_and_names_are_listed(tmp_path: Path, palette: bool) -> None:
    lamp, darker_lamp, pink = (6, 6, 6), (5, 5, 5), (255, 0, 255)
    indices = np.array([[0, 1, 1], [3, 2, 2]], np.uint8)
    colors = [*FLOOR, *lamp, *pink, *darker_lamp]
    mask = png(indices, colors) if palette else png(np.array(colors, np.uint8).reshape(-1, 3)[indices])
    files = cvat(mask, LABEL_MAP + "lamp:5,5,5::\nlamp:6,6,6::\n")
    files["SegmentationClass/drive/6.png"] = mask
    path = write_zip(tmp_path / "task.zip", files)
    labels = open_label_files(path, SET)
    first = "SegmentationClass/color/drive/5.png"

    assert read_refusal(labels) == (
        f"{path}: outside label set 'rooms': label 'lamp' (3 pixels in {first}), "
        f"colour 255,0,255 that labelmap.txt does not list (2 pixels in {first}); "
        "rename the labels in CVAT, choose another label set, or add the classes to its YAML"
    )
    assert f"'lamp' (6 pixels in {first}, SegmentationClass/drive/6.png)" in check_refusal(labels)


def test_a_picture_is_no_mask(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (20, 20, 3), np.uint8)
    labels = open_label_files(write_zip(tmp_path / "t.zip", cvat(png(picture))), SET)

    assert "colours that labelmap.txt does not list, so a picture rather than a mask" in check_refusal(labels)


def test_grey_masks_are_refused(tmp_path: Path) -> None:
    labels = open_label_files(write_zip(tmp_path / "t.zip", cvat(png(IDS))), SET)

    assert "5.png: 8-bit grey; a mask has the colours of labelmap.txt, as 8-bit RGB or palette PNG" in (
        read_refusal(labels)
    )


@pytest.mark.parametrize(
    ("label_map", "complaint"),
    [
        ("floor", "labelmap.txt: line 1 is not name:red,green,blue:parts:actions: 'floor'"),
        ("# x\n\nfloor:1,2::", "line 3 is not name:red,green,blue"),
        ("floor:1,2,256::", "line 1 is not name:red,green,blue"),
        (
            "floor:1,2,3::\nwall:1,2,3::",
            "labels 'floor' and 'wall' have the same colour; give them different",
        ),
    ],
)
def test_a_wrong_label_map_is_named(tmp_path: Path, label_map: str, complaint: str) -> None:
    message = refusal(write_zip(tmp_path / "task.zip", cvat(png(MASK), label_map)))
    assert message.startswith(f"{tmp_path / 'task.zip'}/labelmap.txt: ")
    assert complaint in message


def test_names_in_a_label_map_may_hold_colons(tmp_path: Path) -> None:
    label_set = LabelSet("x", ("area:floor",), ((1, 2, 3),))
    path = write_zip(tmp_path / "t.zip", cvat(png(MASK * 0 + 9), "area:floor:9,9,9::"))

    assert open_label_files(path, label_set).read("drive", 5, SHAPE).max() == 0


def test_an_export_without_label_map_or_with_two_tasks_is_refused(tmp_path: Path) -> None:
    files = cvat(png(MASK))
    del files["labelmap.txt"]
    assert (
        "labelmap.txt: missing, so that the colours of SegmentationClass mean nothing; export the task"
        in (refusal(write(tmp_path / "a", files)))
    )
    both = cvat(png(MASK), root="a/") | cvat(png(MASK), root="b/")
    assert "more than one export in it: a/, b/; give one of them" in refusal(write(tmp_path / "b", both))


# Archives


@pytest.mark.parametrize("name", ["../5.png", "a/../../5.png", "/etc/5.png"])
def test_entries_that_point_outside_are_refused(tmp_path: Path, name: str) -> None:
    path = write_zip(tmp_path / "evil.zip", {name: png(IDS), "6.png": png(IDS)})

    assert refusal(path) == f"{path}: entry {name!r} points outside the archive; export it again"


def test_an_entry_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("5.png", png(IDS))
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("5.png", png(IDS))

    assert "entry '5.png' is there twice; export the archive again" in refusal(path)


def test_a_bomb_is_refused_without_unpacking_it(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "bomb.zip", cvat(png(MASK), " " * (2 << 20)))

    assert refusal(path).endswith("labelmap.txt: larger than 1 MiB, too large for what it should be")


def test_a_size_that_lies_gives_no_more_than_it_says(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "t.zip", {"5.png": png(IDS) + b"\0" * 100_000})
    data = path.read_bytes()
    length = struct.pack("<I", len(png(IDS)) + 100_000)
    assert data.count(length) == 2
    path.write_bytes(data.replace(length, struct.pack("<I", 50)))

    assert "cannot read the archive's entry: " in read_refusal(open_label_files(path, SET))


def test_encrypted_and_oddly_compressed_entries_are_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "secret.zip", {"5.png": png(IDS)})
    data = bytearray(path.read_bytes())
    data[6] |= 1
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert "5.png: encrypted; export it without a password" in read_refusal(open_label_files(path, SET))

    with zipfile.ZipFile(tmp_path / "xz.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("5.png", png(IDS))
    assert "only deflate and uncompressed entries" in read_refusal(open_label_files(tmp_path / "xz.zip", SET))


def test_a_damaged_archive_gives_its_labels_or_an_error_of_ours(tmp_path: Path) -> None:
    files = cvat(png(MASK)) | {"SegmentationClass/drive/6.png": png(np.zeros(SHAPE, np.uint8), FLOOR)}
    good = write_zip(tmp_path / "good.zip", files).read_bytes()
    chance = random.Random(0)
    path = tmp_path / "bad.zip"
    refused = 0
    for _ in range(300):
        data = bytearray(good)
        for _ in range(chance.choice((1, 2, 8))):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(data[: chance.randrange(len(data))] if chance.random() < 0.2 else data)
        try:
            labels = open_label_files(path, SET)
            found = [labels.read("drive", stamp_ns, SHAPE).tolist() for stamp_ns in labels.stamps("drive")]
        except LabelError:
            refused += 1
        else:
            assert all(each in (MASK_CLASSES, [[0] * 3] * 2) for each in found)
    assert refused > 100


# COCO


def coco(*annotations: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {
        "images": [
            {"id": 1, "file_name": "color/drive/5.png", "height": 2, "width": 3},
            {"id": 2, "file_name": "color/drive/6.png", "height": 2, "width": 3},
        ],
        "categories": [
            {"id": 1, "name": "FLOOR"},
            {"id": 2, "name": "wall"},
            {"id": 3, "name": "lamp"},
            {"id": 4, "name": "background"},
        ],
        "annotations": [
            {"id": 10 + index, "image_id": 1, **annotation} for index, annotation in enumerate(annotations)
        ],
        **changes,
    }


def rectangle(left: float, top: float, right: float, bottom: float) -> list[float]:
    return [left, top, right, top, right, bottom, left, bottom]


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed run lengths, the slow and obvious way."""
    counts, value = [0], False
    for pixel in mask.T.ravel().tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def write_coco(tmp_path: Path, content: dict[str, Any]) -> Path:
    return write(tmp_path, {"instances_default.json": json.dumps(content)}) / "instances_default.json"


LEFT = {"category_id": 1, "segmentation": [rectangle(0, 0, 2, 2)]}
RIGHT = {"category_id": 2, "segmentation": [rectangle(1, 0, 3, 2)]}


def test_the_later_annotation_paints_over_the_earlier_and_crowds_come_first(tmp_path: Path) -> None:
    def painted(*annotations: dict[str, Any]) -> list[list[int]]:
        return (
            open_label_files(write_coco(tmp_path, coco(*annotations)), SET).read("drive", 5, SHAPE).tolist()
        )

    assert painted(LEFT, RIGHT) == [[0, 1, 1]] * 2
    assert painted(RIGHT, LEFT) == [[0, 0, 1]] * 2
    assert painted(LEFT, {**RIGHT, "iscrowd": 1}) == [[0, 0, 1]] * 2
    assert painted(LEFT, {"category_id": 4, "segmentation": [rectangle(0, 0, 1, 1)]}) == [
        [255, 0, 255],
        [0, 0, 255],
    ]


def test_what_is_not_annotated_is_ignored_or_the_class_background(tmp_path: Path) -> None:
    path = write_coco(tmp_path, coco(RIGHT))

    assert open_label_files(path, SET).read("drive", 5, SHAPE).tolist() == [[255, 1, 1]] * 2
    assert open_label_files(path, WITH_BACKGROUND).read("drive", 5, SHAPE).tolist() == [[0, 1, 1]] * 2
    assert open_label_files(path, SET).stamps("drive") == {5}  # nobody annotated the image 6


def test_coco_is_found_in_the_zip_and_in_its_folder(tmp_path: Path) -> None:
    other = coco({**RIGHT, "image_id": 2})
    files: dict[str, bytes | str] = {
        "annotations/instances_train.json": json.dumps(coco(LEFT)),
        "annotations/instances_val.json": json.dumps(other),
        "images/train/color/drive/5.png": png(MASK),
    }
    for path in (write_zip(tmp_path / "task.zip", files), write(tmp_path / "unpacked", files)):
        labels = open_label_files(path, SET)

        assert labels.stamps("drive") == {5, 6}
        assert labels.read("drive", 6, SHAPE).tolist() == [[255, 1, 1]] * 2
        labels.check()


MASKS = np_st.arrays(bool, np_st.array_shapes(min_dims=2, max_dims=2, max_side=24))


@pytest.fixture(scope="module")
def pycocotools_mask() -> ModuleType:
    """COCO's own masks."""
    return pytest.importorskip("pycocotools.mask", reason="needs pycocotools: pip install -e '.[test]'")


@settings(deadline=None)
@given(MASKS)
def test_run_lengths_give_the_mask_that_was_encoded(mask: np.ndarray) -> None:
    assert np.array_equal(RunLengths(encode(mask)["counts"]).draw(*mask.shape), mask)


@settings(deadline=None)
@given(MASKS)
def test_compressed_run_lengths_give_the_mask_that_pycocotools_encoded(
    pycocotools_mask: ModuleType, mask: np.ndarray
) -> None:
    counts = pycocotools_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()

    assert np.array_equal(RunLengths(counts).draw(*mask.shape), mask)


@settings(deadline=None)
@given(*[st.integers(-5, 9)] * 2, *[st.integers(1, 9)] * 2)
def test_rectangles_fill_the_pixels_between_their_edges(left: int, top: int, width: int, height: int) -> None:
    expected = np.zeros((9, 11), bool)
    expected[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)] = True

    mask = Polygons([rectangle(left, top, left + width, top + height)]).draw(9, 11)

    assert np.array_equal(mask, expected)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 64), st.floats(0, 48)), min_size=3, max_size=8))
def test_polygons_are_pycocotools_polygons_but_for_their_edges(
    pycocotools_mask: ModuleType, points: list[tuple[float, float]]
) -> None:
    flat = [value for point in points for value in point]
    expected = pycocotools_mask.decode(
        pycocotools_mask.merge(pycocotools_mask.frPyObjects([flat], 48, 64))
    ).astype(bool)
    edges = np.array([*points, points[0]])
    row, column = np.mgrid[:48, :64] + 0.5
    near = np.zeros((48, 64), bool)
    for (x, y), (next_x, next_y) in itertools.pairwise(edges):
        length = np.hypot(next_x - x, next_y - y)
        along = np.clip(((column - x) * (next_x - x) + (row - y) * (next_y - y)) / max(length**2, 1e-9), 0, 1)
        near |= np.hypot(column - x - along * (next_x - x), row - y - along * (next_y - y)) < 1.5

    difference = Polygons([flat]).draw(48, 64) != expected

    assert not np.any(difference & ~near)


def test_overlapping_polygons_of_one_annotation_are_united() -> None:
    mask = Polygons([rectangle(0, 0, 2, 2), rectangle(1, 0, 3, 2)]).draw(2, 3)
    assert mask.all()


def test_run_lengths_of_a_file_are_painted(tmp_path: Path, pycocotools_mask: ModuleType) -> None:
    mask = np.array([[True, False, True], [False, False, True]])
    compressed = pycocotools_mask.encode(np.asfortranarray(mask, np.uint8))
    for segmentation in (encode(mask), {"size": [2, 3], "counts": compressed["counts"].decode()}):
        path = write_coco(tmp_path, coco({"category_id": 2, "segmentation": segmentation}))

        labels = open_label_files(path, SET)

        assert labels.read("drive", 5, SHAPE).tolist() == [[1, 255, 1], [255, 255, 1]]


def test_strange_categories_are_listed_with_their_pixels(tmp_path: Path) -> None:
    strange = {"category_id": 3, "segmentation": [rectangle(0, 0, 1, 2)]}
    path = write_coco(tmp_path, coco(LEFT, strange, strange, {**strange, "image_id": 2}))
    labels = open_label_files(path, SET)
    remedy = "rename the categories in the annotation tool, choose another label set, or add the classes to its YAML"

    assert read_refusal(labels) == (
        f"{path}: outside label set 'rooms': category 'lamp' (4 pixels in color/drive/5.png); {remedy}"
    )
    assert check_refusal(labels) == (
        f"{path}: outside label set 'rooms': category 'lamp' (6 pixels in color/drive/5.png, color/drive/6.png); "
        f"{remedy}"
    )


def with_segmentation(segmentation: Any) -> dict[str, Any]:
    return coco({"category_id": 1, "segmentation": segmentation})


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "not valid JSON: Expecting property name"),
        ("[" * 200_000, "not valid JSON: "),
        ("\xff\xfe".encode("latin-1"), "not valid JSON: "),
        (
            "[]",
            "not COCO instances, which have images, annotations and categories; export them as 'COCO 1.0'",
        ),
        ({"images": []}, "not COCO instances"),
        (coco(images=3), "images is not a list of objects"),
        (coco(annotations=[3]), "annotations is not a list of objects"),
        (
            coco(categories=[{"name": "floor"}]),
            "category at place 0: id is missing, or neither a number nor text",
        ),
        (coco(categories=[{"id": 1}]), "category 1: name is missing or not text"),
        (coco(categories=[{"id": 1, "name": "a"}] * 2), "category 1 is there twice"),
        (coco(images=[{"id": [1]}]), "image at place 0: id is missing"),
        (coco(images=[{"id": 1, "height": 2, "width": 3}]), "image 1: file_name is missing or not text"),
        (
            coco(images=[{"id": 1, "file_name": "5.png", "height": "2"}]),
            "image 1: height is missing or not a whole",
        ),
        (coco({"segmentation": []}), "annotation 10: category_id None is not among the categories"),
        (coco({**LEFT, "image_id": 99}), "annotation 10: image_id 99 is not among the images"),
        (coco({**LEFT, "image_id": {}}), "annotation 10: image_id None is not among the images"),
        (
            with_segmentation([]),
            "annotation 10: no segmentation, a box at most; draw a polygon or a mask instead",
        ),
        (with_segmentation("x"), "annotation 10: its segmentation is neither polygons nor run lengths"),
        (with_segmentation([1, 2, 3]), "annotation 10: a polygon is not a list of numbers"),
        (with_segmentation([[1, 2, float("nan"), 4, 5, 6]]), "a polygon is not a list of numbers"),
        (
            with_segmentation([[1, 2, 3, 4]]),
            "a polygon has 4 numbers; x and y of 3 points or more are needed",
        ),
        (with_segmentation([[1, 2, 3, 4, 5, 6, 7]]), "a polygon has 7 numbers"),
        (
            with_segmentation({"size": [3, 2], "counts": [6]}),
            "run lengths of size [3, 2], but the image has [2, 3]",
        ),
        (
            with_segmentation({"size": [2, 3], "counts": [-1, 7]}),
            "run lengths are not whole numbers from 0 on",
        ),
        (
            with_segmentation({"size": [2, 3], "counts": "0 "}),
            "annotation 10: compressed run lengths are damaged",
        ),
        (with_segmentation({"size": [2, 3], "counts": "o" * 9}), "compressed run lengths are damaged"),
        (with_segmentation({"size": [2, 3], "counts": "0o"}), "compressed run lengths end within a number"),
        (with_segmentation({"size": [2, 3], "counts": "O"}), "run lengths are not whole numbers from 0 on"),
        (with_segmentation({"size": [2, 3], "counts": 6}), "neither polygons nor run lengths"),
        (coco(), "no label is named by its frame's stamp"),
        (
            coco(LEFT, images=[{"id": 1, "file_name": "a.png", "height": 2, "width": 3}]),
            "<bag>/<stamp_ns>.png: found a.png; keep the names under which frames are exported",
        ),
        (
            coco(
                LEFT,
                {**LEFT, "image_id": 2},
                images=[
                    {"id": index, "file_name": f"{index}/drive/5.png", "height": 2, "width": 3}
                    for index in (1, 2)
                ],
            ),
            "1/drive/5.png and 2/drive/5.png are labels of one frame",
        ),
    ],
)
def test_malformed_coco_is_refused_in_one_line(tmp_path: Path, content: Any, complaint: str) -> None:
    path = tmp_path / "labels.json"
    path.write_bytes(content if isinstance(content, bytes) else str(content).encode())
    if isinstance(content, dict):
        path.write_text(json.dumps(content))

    message = refusal(path)

    assert message.startswith(f"{path}: ")
    assert complaint in message


@pytest.mark.parametrize(
    ("segmentation", "complaint"),
    [
        ([rectangle(0, 0, 1e6, 1)], "annotation 10: a polygon reaches far out of the image of 3x2"),
        ({"size": [2, 3], "counts": [1, 2]}, "annotation 10: run lengths add up to 3, not to 3x2"),
        ({"size": [2, 3], "counts": "04"}, "annotation 10: run lengths add up to 4, not to 3x2"),
    ],
)
def test_masks_that_do_not_fit_are_named(tmp_path: Path, segmentation: Any, complaint: str) -> None:
    path = write_coco(tmp_path, with_segmentation(segmentation))
    labels = open_label_files(path, SET)

    assert f"{path}: color/drive/5.png: {complaint}" in read_refusal(labels)
    assert complaint in check_refusal(labels)


def test_coco_images_of_absurd_or_of_another_size_are_refused(tmp_path: Path) -> None:
    image = {"id": 1, "file_name": "drive/5.png", "height": 60000, "width": 60000}
    labels = open_label_files(write_coco(tmp_path, coco(LEFT, images=[image])), SET)
    assert "drive/5.png: claims to be 60000x60000; 1 to" in check_refusal(labels)

    labels = open_label_files(
        write_coco(tmp_path, coco(LEFT, images=[{**image, "height": 3, "width": 2}])), SET
    )
    assert "drive/5.png is 2x3, but its colour image 3x2; labels must have the size" in read_refusal(labels)


# Processes


@pytest.fixture(params=["folder", "cvat", "coco"])
def every_kind(request: pytest.FixtureRequest, tmp_path: Path) -> LabelFiles:
    """Label files of each kind, with labels of the bag drive at 5."""
    if request.param == "folder":
        return open_label_files(write(tmp_path, {frame_file("drive", 5): png(IDS)}), SET)
    if request.param == "cvat":
        return open_label_files(write_zip(tmp_path / "t.zip", cvat(png(MASK))), SET)
    return open_label_files(write_coco(tmp_path, coco(LEFT, RIGHT)), SET)


@pytest.mark.parametrize("start", ["spawn", "fork"])
def test_labels_are_read_in_other_processes(every_kind: LabelFiles, start: str) -> None:
    expected = every_kind.read("drive", 5, SHAPE)

    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(start)) as pool:
        futures = [pool.submit(every_kind.read, "drive", 5, SHAPE) for _ in range(20)]
        assert all(np.array_equal(future.result(), expected) for future in futures)


def test_pickled_label_files_keep_everything_and_stay_small(every_kind: LabelFiles) -> None:
    expected = every_kind.read("drive", 5, SHAPE)

    pickled = pickle.dumps(every_kind)
    copy = pickle.loads(pickled)

    assert len(pickled) < 2000
    assert copy.path == every_kind.path
    assert copy.bag_names == every_kind.bag_names
    assert copy.stamps("drive") == {5}
    assert np.array_equal(copy.read("drive", 5, SHAPE), expected)


def test_the_check_of_many_labels_shows_its_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, {frame_file("drive", stamp_ns): png(IDS) for stamp_ns in range(40)})

    open_label_files(tmp_path, SET).check()

    assert re.search(rf"check {re.escape(tmp_path.name)}: 100%.*40/40", capsys.readouterr().err)
