# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3l_model.labels import LabelError, LabelSet

TWO_CLASSES = """
name: two
ignore_id: 9
classes:
  - {name: floor, color: [1, 2, 3], ids: [4, 7]}
  - {name: wall, color: [250, 0, 9], ids: [1]}
ignore_ids: [0]
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "labels.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@st.composite
def label_sets(draw: st.DrawFn) -> LabelSet:
    count = draw(st.integers(1, 6))
    ignore_id = draw(st.integers(count, 255))
    meanings = st.integers(0, count - 1) | st.just(ignore_id)
    return LabelSet(
        name=draw(st.text()),
        classes=tuple(draw(st.lists(st.text(), min_size=count, max_size=count, unique=True))),
        colors=tuple(draw(st.tuples(*[st.integers(0, 255)] * 3)) for _ in range(count)),
        id_map=draw(st.none() | st.dictionaries(st.integers(0, 255), meanings)),
        ignore_id=ignore_id,
    )


def test_yaml_gives_names_colors_and_id_map(tmp_path: Path) -> None:
    labels = LabelSet.load(write(tmp_path, TWO_CLASSES))

    assert labels == LabelSet(
        "two", ("floor", "wall"), ((1, 2, 3), (250, 0, 9)), {4: 0, 7: 0, 1: 1, 0: 9}, ignore_id=9
    )
    ids = np.array([[4, 7, 1], [0, 9, 1]], np.uint8)
    assert labels.decode(ids, "image").tolist() == [[0, 0, 1], [9, 9, 1]]
    assert labels.colorize(np.array([[0, 1, 9]], np.uint8)).tolist() == [[[1, 2, 3], [250, 0, 9], [0, 0, 0]]]


def test_without_ids_label_images_hold_class_ids(tmp_path: Path) -> None:
    labels = LabelSet.load(
        write(tmp_path, "{name: x, classes: [{name: a, color: [0, 0, 1]}, {name: b, color: [0, 1, 0]}]}")
    )

    assert labels.id_map is None
    assert labels.decode(np.array([[0, 1, 255]], np.uint8), "image").tolist() == [[0, 1, 255]]


def test_ignore_ids_without_ids_are_added_to_the_class_ids(tmp_path: Path) -> None:
    labels = LabelSet.load(
        write(tmp_path, "{name: x, ignore_ids: [7], classes: [{name: a, color: [0, 0, 1]}]}")
    )

    assert labels.decode(np.array([[0, 7, 255]], np.uint8), "image").tolist() == [[0, 255, 255]]


def test_unknown_ids_are_listed_with_their_counts_and_the_image() -> None:
    ids = np.array([[0, 3, 3], [12, 1, 255]], np.uint8)

    with pytest.raises(LabelError, match=r"bag at 17: .*'generic': 3 \(2 pixels\), 12 \(1 pixels\)"):
        LabelSet.generic(2).decode(ids, "bag at 17")


@settings(max_examples=40)
@given(label_sets())
def test_json_keeps_everything(labels: LabelSet) -> None:
    assert LabelSet.from_json(labels.to_json()) == labels


@settings(max_examples=40)
@given(label_sets(), st.data())
def test_decode_gives_class_ids_or_ignore_id_and_only_those(labels: LabelSet, data: st.DataObject) -> None:
    in_images = range(len(labels.classes)) if labels.id_map is None else labels.id_map
    known = [*in_images, labels.ignore_id]
    ids = np.array(data.draw(st.lists(st.sampled_from(known), min_size=1)), np.uint8)[None]

    decoded = labels.decode(ids, "image")

    meaning = (
        labels.id_map if labels.id_map is not None else {index: index for index in range(len(labels.classes))}
    )
    assert decoded.tolist() == [[meaning.get(found, labels.ignore_id) for found in ids[0].tolist()]]


@pytest.mark.parametrize("count", [1, 13, 255])
def test_generic_colors_differ_and_stay(count: int) -> None:
    labels = LabelSet.generic(count)

    assert len(set(labels.colors)) == len(set(labels.classes)) == count
    assert LabelSet.generic(count) == labels
    assert (0, 0, 0) not in labels.colors


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"classes": 3}', LabelSet.generic(3).to_json().replace("id_map", "x")]
)
def test_json_of_something_else_is_refused(text: str) -> None:
    with pytest.raises(LabelError, match="not a label set in JSON"):
        LabelSet.from_json(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("classes: [", "not valid YAML"),
        ("", "not a label set"),
        ("name: x\nclasses: [1, 2]", "not a label set"),
        ("name: x\nclasses: [{name: a}]", "'color'"),
        ("name: x\nclasses: []", "0 classes"),
        ("name: x\nclasses: [{name: a, color: [1, 2]}]", "not a label set"),
        ("name: x\nclasses: [{name: a, color: [1, 2, 256]}]", "0 to 255"),
        (
            "name: x\nclasses: [{name: a, color: [1, 2, 3]}, {name: a, color: [1, 2, 4]}]",
            "names a class twice: a",
        ),
        (TWO_CLASSES.replace(", ids: [1]", ""), "'wall' has no ids"),
        (TWO_CLASSES.replace("ignore_ids: [0]", "ignore_ids: [4]"), "more than one meaning: 4"),
        (TWO_CLASSES.replace("ids: [1]", "ids: [256]"), "id 256"),
        (TWO_CLASSES.replace("ignore_id: 9", "ignore_id: 1"), "ignore_id 1"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(tmp_path: Path, text: str, complaint: str) -> None:
    path = write(tmp_path, text)

    with pytest.raises(LabelError, match=complaint) as error:
        LabelSet.load(path)

    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_absent_file_and_an_unknown_name_are_named(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match=r"absent\.yaml: no such label set file"):
        LabelSet.load(tmp_path / "absent.yaml")
    with pytest.raises(
        LabelError, match=r"'nyu14' is unknown: choose demo, nyu13, nyu40, stanford13, sunrgbd37,"
    ):
        LabelSet.load("nyu14")


@pytest.mark.parametrize(("name", "count"), [("nyu13", 13), ("nyu40", 40)])
def test_nyu_sets_cover_nyu40_ids_and_void_the_unlabelled_class(name: str, count: int) -> None:
    labels = LabelSet.load(name)

    assert len(labels.classes) == len(set(labels.colors)) == count
    assert labels.id_map is not None
    assert sorted(labels.id_map) == list(range(41))
    assert labels.id_map[0] == labels.id_map[40] == labels.ignore_id
    assert set(range(count)) - set(labels.id_map.values()) <= {39}  # otherprop keeps its place in nyu40


def test_sun_rgbd_has_the_first_classes_of_nyu40_and_voids_0() -> None:
    sun, nyu40 = LabelSet.load("sunrgbd37"), LabelSet.load("nyu40")

    assert len(sun.classes) == len(set(sun.colors)) == 37
    assert sun.id_map == {0: 255} | {index + 1: index for index in range(37)}
    differing = {
        ours: theirs for ours, theirs in zip(sun.classes, nyu40.classes, strict=False) if ours != theirs
    }
    assert differing == {"fridge": "refridgerator", "tv": "television"}
    assert sun.colors == nyu40.colors[:37]


def test_stanford_has_13_classes_in_alphabetical_order_and_voids_255() -> None:
    labels = LabelSet.load("stanford13")

    names = "ceiling floor wall beam column window door table chair sofa bookcase board clutter"
    assert labels.classes == tuple(sorted(names.split(" ")))
    assert len(set(labels.colors)) == 13
    assert labels.decode(np.array([[*range(13), 255]], np.uint8), "image").tolist() == [[*range(13), 255]]
    with pytest.raises(LabelError, match=r"'stanford13': 13 \(1 pixels\)"):
        labels.decode(np.array([[13]], np.uint8), "image")


@pytest.mark.data
def test_nyu_sets_follow_the_data_sets_own_table(shared_data: Path) -> None:
    table = json.loads((shared_data / "data" / "nyuv2" / "classes.json").read_text())
    nyu13, nyu40 = LabelSet.load("nyu13"), LabelSet.load("nyu40")
    assert nyu13.id_map is not None
    assert nyu40.id_map is not None

    assert list(nyu13.classes) == table["nyu13"][1:]
    assert list(nyu40.classes) == table["nyu40"][1:]
    for found in range(1, 40):
        assert nyu40.classes[nyu40.id_map[found]] == table["nyu40"][found]
        assert nyu13.classes[nyu13.id_map[found]] == table["nyu13"][table["nyu40_to_13"][found]]
