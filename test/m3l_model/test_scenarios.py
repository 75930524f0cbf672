# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3l_model import image_faults, stream_faults
from m3l_model.bag_frames import ARRIVAL
from m3l_model.errors import M3LError
from m3l_model.preprocessing import to_metres
from m3l_model.scenarios import ROBUST, SCENARIOS, Seen, chosen_scenarios

SECOND = 1_000_000_000
SIZE = (48, 64)
MOMENT = 5 * SECOND
"""In the middle of the holes' growth."""


def arrivals(seconds: float, rate: float = 30.0) -> np.ndarray:
    """Colour and depth with the same stamps, depth first."""
    stamps = (np.arange(round(seconds * rate)) * SECOND / rate).astype(np.int64) + SECOND
    found = np.empty(2 * len(stamps), ARRIVAL)
    found["row"] = np.arange(len(found))
    found["rgb"] = found["row"] % 2 == 1
    found["stamp_ns"] = found["log_ns"] = np.repeat(stamps, 2)
    return found


@settings(deadline=None)
@given(seed=st.integers(0, 1 << 32))
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_colour_always_arrives_as_recorded_and_in_order(scenario, seed: int) -> None:
    recorded = arrivals(3.0)
    arrived = scenario.arrive(recorded, seed)
    np.testing.assert_array_equal(arrived[arrived["rgb"]], recorded[recorded["rgb"]])
    assert (np.diff(arrived["log_ns"]) >= 0).all()
    np.testing.assert_array_equal(arrived, scenario.arrive(recorded, seed))
    assert set(arrived["row"]) <= set(recorded["row"])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_bursts_lose_their_share_in_outages_of_their_length(share: float) -> None:
    rate = 100.0
    recorded = arrivals(500.0, rate)
    arrived = stream_faults.lose_bursts(recorded, np.random.default_rng(0), share, length=1.0)
    depth = np.isin(recorded["row"][::2], arrived["row"])
    assert 1 - depth.mean() == pytest.approx(share, abs=0.06)
    edges = np.flatnonzero(np.diff(depth.astype(int)) == -1)
    assert (~depth).sum() / rate / len(edges) == pytest.approx(1.0, abs=0.25)


def test_late_depth_keeps_its_order_and_its_stamp() -> None:
    recorded = arrivals(3.0)
    late = stream_faults.delay(recorded, np.random.default_rng(0), longest=0.25)
    depth = late[~late["rgb"]]
    assert (np.diff(depth["stamp_ns"]) > 0).all()
    waited = depth["log_ns"] - depth["stamp_ns"]
    assert 0 <= waited.min() < waited.max() <= 0.25 * SECOND


def images(seed: int = 0, metres: bool = False) -> Seen:
    rng = np.random.default_rng(seed)
    depth = rng.integers(300, 6000, SIZE, np.uint16)
    depth[:4] = 0
    depth[4, :4] = 65535
    if metres:
        return Seen(rng.integers(0, 256, (*SIZE, 3), np.uint8), depth.astype(np.float32) / np.float32(1000))
    return Seen(rng.integers(0, 256, (*SIZE, 3), np.uint8), depth)


@pytest.mark.parametrize("metres", [False, True], ids=["mm", "m"])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_images_keep_their_kind_and_are_the_same_for_the_same_stamp(scenario, metres):
    recorded, untouched = images(metres=metres), images(metres=metres)
    seen = scenario.see(recorded, 1, (MOMENT, MOMENT), 0)
    for before, after, kept in zip(recorded, seen, untouched, strict=True):
        np.testing.assert_array_equal(before, kept)
        if after is not None:
            assert (after.shape, after.dtype) == (before.shape, before.dtype)
    if seen.depth is not None:  # where there was no reading, no fault makes one up
        assert not to_metres(seen.depth)[to_metres(recorded.depth) == 0].any()
    again = scenario.see(recorded, 1, (MOMENT, MOMENT), 0)
    for one, other in zip(seen, again, strict=True):
        np.testing.assert_array_equal(one, other)
    alone = scenario.see(Seen(None, None), 1, (MOMENT, MOMENT), 0)
    assert alone == (None, None)


def test_what_a_scenario_changes_is_what_its_name_says():
    recorded = images()
    for scenario in SCENARIOS:
        seen = scenario.see(recorded, 1, (MOMENT, MOMENT), 0)
        changes = {
            name
            for name, before, after in zip(("rgb", "depth"), recorded, seen, strict=True)
            if after is None or not np.array_equal(before, after)
        }
        expected = {"rgb": {"rgb"}, "both": {"rgb", "depth"}, "depth": {"depth"}}
        modality = scenario.name.partition("_")[0]
        assert changes == (set() if scenario.images is None else expected[modality]), scenario.name


@pytest.mark.parametrize("share", [0.0, 0.2, 0.7])
def test_holes_cover_their_share(share: float) -> None:
    depth = np.full((240, 320), 1000, np.uint16)
    lost = [
        (image_faults.lose_regions_of_depth(depth, np.random.default_rng(seed), share) == 0).mean()
        for seed in range(20)
    ]
    assert np.mean(lost) == pytest.approx(share, abs=0.02)


def test_noise_has_its_deviation() -> None:
    grey = np.full((240, 320, 3), 128, np.uint8)
    noisy = image_faults.add_rgb_noise(grey, np.random.default_rng(0), 25.0)
    assert noisy.astype(float).std() == pytest.approx(25, rel=0.03)
    depth = np.full((240, 320), 2.0, np.float32)
    noisy_depth = image_faults.add_depth_noise(depth, np.random.default_rng(0), 5.0)
    assert noisy_depth.std() == pytest.approx(5 * (0.0012 + 0.0019 * 1.6**2), rel=0.03)


def test_quantised_depth_lies_on_whole_disparities():
    coarse = image_faults.quantise_disparity(images(metres=True).depth, 40.0)
    disparity = 40 / coarse[coarse > 0]
    np.testing.assert_allclose(disparity, np.rint(disparity), rtol=1e-4)


def test_chosen_scenarios_include_those_of_the_robust_figure() -> None:
    assert [scenario.name for scenario in chosen_scenarios(["rgb_dark"])] == [*ROBUST, "rgb_dark"]
    assert chosen_scenarios(None) == SCENARIOS
    with pytest.raises(M3LError, match=r"no scenario fog; there are both_holes, "):
        chosen_scenarios(["fog"])
