# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.bag_writer import BagWriter
from m3l_model.bags import DEFAULT_TOPICS, BagFrames
from m3l_model.cli import main
from m3l_model.labels import LabelSet
from m3l_model.splits import PARTS, ROLES, BagSplits, Splits, SplitsError, TimeRange, split_bags

SECOND = 1_000_000_000
FRAMES, RATE = 120, 10
CLOCK_OFFSET_NS = 1_000 * SECOND


def write_bag(path: Path) -> Path:
    """12 s at 10 Hz, with labels in every third frame; stamps come from another clock than log times."""
    image = np.zeros((2, 3, 3), np.uint8)
    with BagWriter(path) as writer:
        for frame in range(FRAMES):
            stamp_ns = 50 * SECOND + frame * SECOND // RATE
            log_ns = stamp_ns + CLOCK_OFFSET_NS
            writer.write_rgb(DEFAULT_TOPICS.rgb, stamp_ns, "camera", image, log_ns)
            if frame % 3 == 0:
                writer.write_labels("/camera/labels", stamp_ns, "camera", image[..., 0], log_ns)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RgbdBagDataset:
    folder = tmp_path_factory.mktemp("bags")
    return RgbdBagDataset([write_bag(folder / name) for name in ("hall", "kitchen")], LabelSet.generic(2))


def seconds(*bounds: tuple[float, float | None]) -> tuple[TimeRange, ...]:
    return tuple(
        TimeRange(round(begin * SECOND), None if end is None else round(end * SECOND))
        for begin, end in bounds
    )


def in_ranges(ranges: tuple[TimeRange, ...], times: np.ndarray) -> np.ndarray:
    inside = np.zeros(len(times), bool)
    for begin, end in ranges:
        inside |= (times >= begin) & (True if end is None else times < end)
    return inside


RANGES = st.lists(
    st.tuples(st.integers(0, 11), st.integers(1, 4)).map(
        lambda pair: TimeRange(pair[0] * SECOND, min(pair[0] + pair[1], 12) * SECOND)
    ),
    max_size=3,
).map(tuple)


@settings(deadline=None)
@given(ranges=st.tuples(RANGES, RANGES, RANGES, RANGES), gap=st.integers(0, 2))
def test_no_second_has_two_roles_and_validation_keeps_the_gap(
    ranges: tuple[tuple[TimeRange, ...], ...], gap: int
) -> None:
    cells = np.arange(12)
    owners = np.stack(
        [in_ranges((extent,), cells * SECOND) for role in ranges for extent in role] or [cells < 0]
    )
    withheld = cells[in_ranges(ranges[3], cells * SECOND)]
    others = cells[in_ranges(sum(ranges[:3], ()), cells * SECOND)]
    distance = min((abs(int(a) - int(b)) - 1 for a in others for b in withheld), default=99)
    bag = BagSplits(Path("hall"), *ranges)
    if owners.sum(0).max() > 1 or distance < gap:
        with pytest.raises(SplitsError, match=r"^bag hall: "):
            Splits((bag,), gap * SECOND)
    else:
        Splits((bag,), gap * SECOND)


@settings(deadline=None)
@given(owner=st.lists(st.sampled_from([*ROLES, None]), min_size=12, max_size=12))
def test_each_sample_is_in_the_part_of_its_second_and_in_one_only(
    dataset: RgbdBagDataset, owner: list[str | None]
) -> None:
    ranges = {
        role: tuple(TimeRange(at * SECOND, (at + 1) * SECOND) for at in range(12) if owner[at] == role)
        for role in ROLES
    }
    splits = Splits((BagSplits(Path("kitchen"), **ranges), BagSplits(Path("hall"), ranges["training"])))
    chosen = {part: splits.select(dataset, part) for part in PARTS}
    every = np.concatenate(list(chosen.values()))
    assert len(every) == len(set(every.tolist()))
    times = np.arange(FRAMES) * SECOND // RATE
    has_labels = np.arange(FRAMES) % 3 == 0
    within = {role: in_ranges(ranges[role], times) for role in ROLES}
    expected = {
        "labelled": (within["training"] | within["labelled"]) & has_labels,
        "unlabelled": within["training"] & ~has_labels | within["unlabelled"],
        "validation": within["validation"],
    }
    for part in PARTS:
        in_kitchen = chosen[part][chosen[part] >= FRAMES] - FRAMES
        np.testing.assert_array_equal(in_kitchen, np.flatnonzero(expected[part]), err_msg=part)
    in_hall = chosen["labelled"][chosen["labelled"] < FRAMES]
    np.testing.assert_array_equal(in_hall, np.flatnonzero(within["training"] & has_labels))


@settings(deadline=None)
@given(
    duration_s=st.floats(0.5, 400),
    share=st.floats(0.01, 0.9),
    gap_s=st.floats(0, 3),
    block_s=st.floats(0.5, 30),
    seed=st.none() | st.integers(0, 99),
)
def test_blocks_gaps_and_training_account_for_every_moment(
    duration_s: float, share: float, gap_s: float, block_s: float, seed: int | None
) -> None:
    duration_ns = round(duration_s * SECOND)
    blocks = max(1, round(share * duration_s / block_s))
    left_s = (1 - share) * duration_s / blocks
    assume(abs(left_s - 2 * gap_s) > 1e-6 and share * duration_s > 0.01 * blocks)
    if left_s < 2 * gap_s:
        with pytest.raises(SplitsError, match="too short"):
            split_bags([(Path("hall"), duration_ns)], share, gap_s, block_s, seed)
        return
    splits = split_bags([(Path("hall"), duration_ns)], share, gap_s, block_s, seed)
    (bag,) = splits.bags
    times = np.linspace(0, duration_ns, 997).astype(np.int64)
    validation, training = in_ranges(bag.validation, times), in_ranges(bag.training, times)
    assert bag.training
    assert not bag.labelled + bag.unlabelled
    assert not (validation & training).any()
    near = np.zeros(len(times), bool)
    for begin, end in bag.validation:
        assert end is not None
        near |= (times >= begin - splits.gap_ns) & (times < end + splits.gap_ns)
    np.testing.assert_array_equal(training, ~near)
    total = sum((end or 0) - begin for begin, end in bag.validation)
    assert total == pytest.approx(share * duration_ns, abs=len(bag.validation) * 1e6 + 1)


def test_a_seed_moves_the_blocks_and_gives_the_same_ones_again() -> None:
    made = [split_bags([(Path("hall"), 100 * SECOND)], 0.15, seed=seed) for seed in (None, 1, 1, 2)]
    assert made[1] == made[2]
    assert len({made[0], made[1], made[3]}) == 3


def test_a_saved_file_reads_back_the_same_from_beside_the_bags(
    dataset: RgbdBagDataset, tmp_path: Path
) -> None:
    paths = [bag.index.path for bag in dataset.bags]
    splits = Splits(
        (
            BagSplits(paths[0], unlabelled=seconds((0, None))),
            BagSplits(paths[1], seconds((0, 2)), seconds((9, None)), (), seconds((3, 8))),
        ),
        SECOND,
    )
    file = tmp_path / "splits.yaml"
    splits.save(file)
    loaded = Splits.load(file)
    assert loaded.gap_ns == splits.gap_ns
    for bag, other in zip(loaded.bags, splits.bags, strict=True):
        assert bag.path.resolve() == other.path
        assert [getattr(bag, role) for role in ROLES] == [getattr(other, role) for role in ROLES]
    text = file.read_text()
    assert text.startswith("# ")
    assert "unlabelled: all" in text
    assert not re.search(r"path: /", text)
    assert len(loaded.select(dataset, "validation")) == 50


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "bags: [{path: a, labelled: [{from: 1, to: 5}], validation: [{from: 3}]}]",
            "bag a: 3 to 5 s is in labelled and in validation",
        ),
        (
            "gap: 2\nbags: [{path: a, unlabelled: [{to: 5}], validation: [{from: 6}]}]",
            "validation 6 to the end comes within 1 s of unlabelled 0 to 5 s",
        ),
        ("bags: [{path: a, labelled: [{to: 5}], unlabelled: all}]", "0 to 5 s is in "),
        ("bags: [{path: a, unlabelled: [{to: 5}, {from: 4}]}]", "4 to 5 s is in unlabelled twice"),
        ("bags: [{path: x/a, validation: all}, {path: y/a}]", "two bags are called a ("),
        ("bags: [{path: a, validation: [{from: 5, to: 5}]}]", "validation 5 to 5 s is no range"),
        ("bags: [{path: a, validation: [{from: 1, until: 5}]}]", "unknown field until; expected from, to"),
        ("bags: [{path: a, validation: [{from: soon}]}]", "'soon' is not a number of seconds"),
        ("bags: [{path: a, validation: 5}]", "neither `all` nor a list"),
        ("bags: [{validation: all}]", "no field path"),
        ("bags: 3", "not a list"),
        ("- a", "has no fields"),
        ("gap: -1\nbags: []", "cannot be negative"),
        ("bags: [", "not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_by_name(tmp_path: Path, text: str, complaint: str) -> None:
    file = tmp_path / "splits.yaml"
    file.write_text(text)
    with pytest.raises(SplitsError, match=re.escape(complaint)) as caught:
        Splits.load(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("bags", "complaint"),
    [
        ((BagSplits(Path("hall")),), "not in the splits: bag kitchen; it has hall"),
        ((BagSplits(Path("hall")), BagSplits(Path("kitchn"))), "not in the data set: bag kitchn"),
        (
            (BagSplits(Path("hall"), validation=seconds((10, 14))), BagSplits(Path("kitchen"))),
            "bag hall: validation 10 to 14 s lies outside the bag, which lasts 11.9 s",
        ),
        (
            (BagSplits(Path("hall"), seconds((12, None))), BagSplits(Path("kitchen"))),
            "bag hall: training 12 to the end lies outside",
        ),
    ],
)
def test_splits_of_other_bags_are_refused(
    dataset: RgbdBagDataset, bags: tuple[BagSplits, ...], complaint: str
) -> None:
    with pytest.raises(SplitsError, match=re.escape(complaint)):
        Splits(bags).select(dataset, "labelled")


def test_the_command_writes_splits_and_counts_frames(
    dataset: RgbdBagDataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bags = [str(bag.index.path) for bag in dataset.bags]
    file = tmp_path / "splits.yaml"
    options = ["--validation", "0.2", "--gap", "0.5", "--block", "1", "--out", str(file)]
    assert main(["split", *bags, *options, "--label-set", "demo"]) == 0
    printed = capsys.readouterr().out
    splits = Splits.load(file)
    again = RgbdBagDataset([BagFrames.open(bag) for bag in bags], LabelSet.load("demo"))
    counts = {part: len(splits.select(again, part)) for part in PARTS}
    assert min(counts.values()) > 0
    assert ", ".join(f"{count} {part}" for part, count in counts.items()) in printed
    in_validation = int(again.labelled[splits.select(again, "validation")].sum())
    assert f"labelled frames in validation: {in_validation}\n" in printed
    assert main(["split", *bags, *options]) == 2
    assert "exists already" in capsys.readouterr().err
