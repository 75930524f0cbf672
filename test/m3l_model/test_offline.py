# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.bag_frames import REASONS
from m3l_model.bag_writer import BagWriter
from m3l_model.checkpoint import Metadata
from m3l_model.labels import LabelSet
from m3l_model.offline import decide, run_offline
from m3l_model.predictor import Predictor
from m3l_model.preprocessing import Preprocessing
from m3l_model.scenarios import SCENARIOS
from m3l_model.segmenter import LinearFusionSegmenter
from m3l_model.sync import Reason

LABELS = LabelSet.load("demo")
BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}
START = 1_700_000_000_000_000_000
PERIOD = 33_333_333
FRAMES = 45
K = np.eye(3)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    model = LinearFusionSegmenter("mit_b0", len(LABELS.classes)).eval()
    model.metadata = Metadata(LABELS, Preprocessing(short_side=32))
    return Predictor(model, "cpu", "fp32")


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second and a half of a 30 Hz camera; every third frame has labels."""
    path = tmp_path_factory.mktemp("offline") / "drive"
    rng = np.random.default_rng(0)
    with BagWriter(path) as writer:
        for index in range(FRAMES):
            writer.write_frame(
                START + index * PERIOD,
                "camera",
                rng.integers(0, 255, (32, 48, 3), np.uint8),
                rng.integers(500, 5000, (32, 48), np.uint16),
                rng.integers(0, len(LABELS.classes), (32, 48), np.uint8) if index % 3 == 0 else None,
                K,
            )
    return path


@pytest.fixture(scope="module")
def dataset(bag: Path) -> RgbdBagDataset:
    return RgbdBagDataset([bag], LABELS)


def test_the_clean_pass_is_the_bag_as_the_predictor_sees_it(
    dataset: RgbdBagDataset, predictor: Predictor
) -> None:
    frames = list(run_offline(dataset, predictor))
    assert len(frames) == FRAMES
    for position, frame in enumerate(frames):
        recorded = dataset.bags[0][position]
        assert (frame.stamp_ns, frame.depth_stamp_ns) == (recorded.stamp_ns, recorded.stamp_ns)
        assert frame.reason is Reason.PAIRED
        assert frame.used == ("rgb", "depth")
        assert (frame.truth is not None) == (position % 3 == 0)
        expected = predictor.predict(recorded.rgb, recorded.depth, with_confidence=False)
        np.testing.assert_array_equal(frame.labels, expected.labels)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_every_colour_image_gets_one_frame_and_the_same_one_again(
    dataset: RgbdBagDataset, predictor: Predictor, scenario
) -> None:
    first, again = (list(run_offline(dataset, predictor, scenario, seed=3)) for _ in range(2))
    stamps = dataset.bags[0].frames["stamp_ns"]
    assert [frame.stamp_ns for frame in first] == stamps.tolist()
    for one, other in zip(first, again, strict=True):
        assert one.reason is other.reason
        np.testing.assert_array_equal(one.labels, other.labels)
        for image, same in zip(one.seen, other.seen, strict=True):
            np.testing.assert_array_equal(image, same)


def test_scenarios_do_to_depth_what_they_say(dataset: RgbdBagDataset) -> None:
    frames = dataset.bags[0]

    def depth_of(name: str) -> tuple[np.ndarray, list[Reason], np.ndarray]:
        decisions = decide(frames, BY_NAME[name], seed=1)
        offsets = decisions["depth_stamp_ns"] - decisions["stamp_ns"]
        return decisions["depth"] >= 0, [REASONS[reason] for reason in decisions["reason"]], offsets

    paired, reasons, _ = depth_of("depth_missing")
    assert not paired.any()
    assert set(reasons) == {Reason.DEPTH_LOST}
    paired, _, _ = depth_of("depth_decimated")
    assert paired.tolist() == [index % 3 == 0 for index in range(FRAMES)]
    paired, _, offsets = depth_of("depth_skewed")  # 50 ms ahead: the depth taken one or two frames before
    assert paired[2:].all()
    assert set(offsets[2:]) == {50_000_000 - PERIOD, 50_000_000 - 2 * PERIOD} & set(offsets[2:])
    paired, reasons, _ = depth_of("depth_delayed")  # longer than max_wait, but not always
    assert 0 < paired.sum() < FRAMES
    assert Reason.DEADLINE in reasons


def test_damaged_images_are_met_as_the_node_meets_them(
    tmp_path: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "damaged"
    rgb, depth = np.zeros((32, 48, 3), np.uint8), np.full((32, 48), 1000, np.uint16)
    with BagWriter(path) as writer:
        for index in range(4):
            writer.write_frame(START + index * PERIOD, "camera", rgb, depth, None, K)
    dataset = RgbdBagDataset([path], LABELS)
    frames = dataset.bags[0]
    damaged = {int(frames.frames["rgb"][1]), int(frames.frames["depth"][2])}
    read = frames._reader.read_image

    def read_damaged(message, allocate):
        image = read(message, allocate)
        row = int(np.flatnonzero(frames.index.messages == message)[0])
        return image._replace(step=1) if row in damaged else image

    monkeypatch.setattr(frames._reader, "read_image", read_damaged)
    found = list(run_offline(dataset, predictor))
    assert [frame.labels is not None for frame in found] == [True, False, True, True]
    assert [frame.used for frame in found] == [("rgb", "depth"), (), ("rgb",), ("rgb", "depth")]


def test_without_colour_a_frame_needs_a_reading_of_depth(tmp_path: Path, predictor: Predictor) -> None:
    path = tmp_path / "blind"
    rgb = np.zeros((32, 48, 3), np.uint8)
    with BagWriter(path) as writer:
        for index, millimetres in enumerate((1000, 0)):
            depth = np.full((32, 48), millimetres, np.uint16)
            writer.write_frame(START + index * PERIOD, "camera", rgb, depth, None, K)
    found = list(run_offline(RgbdBagDataset([path], LABELS), predictor, BY_NAME["rgb_missing"]))
    assert [frame.used for frame in found] == [("depth",), ()]
    assert found[1].labels is None
