# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from m3l_model import metrics
from m3l_model.bootstrap import LEAST_BLOCKS, RESAMPLES, BlockBootstrap


def share(counts: np.ndarray) -> np.ndarray:
    return metrics.share(counts)


def blocks(number: int, seed: int, chance: float = 0.3, pixels: int = 100) -> np.ndarray:
    """Counts of shares that are independent from block to block."""
    hits = np.random.default_rng(seed).binomial(pixels, chance, number)
    return np.stack((np.full(number, pixels), hits), -1)


def test_resamples_pool_counts_rather_than_average_figures() -> None:
    counts = np.array([[1000, 1000], *[[1, 0]] * (LEAST_BLOCKS - 1)])
    resampled = BlockBootstrap(len(counts), 0).resample(counts)
    assert resampled.shape == (RESAMPLES, 2)
    with_large = resampled[:, 0] >= 1000
    assert (share(resampled)[with_large] > 0.99).all()
    assert (share(resampled)[~with_large] == 0).all()


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(200):
        interval = BlockBootstrap(40, seed).interval_of(share, blocks(40, seed))
        assert interval is not None
        covered += interval.low <= 0.3 <= interval.high
    assert 180 <= covered <= 199  # 95 % of 200 is 190; percentiles of 40 blocks are a little narrow


def test_the_interval_has_the_width_that_theory_gives() -> None:
    interval = BlockBootstrap(100, 1).interval_of(share, blocks(100, 1))
    assert interval is not None
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * np.sqrt(0.3 * 0.7 / 10_000), rel=0.2)


def test_what_is_compared_on_the_same_resamples_differs_by_little() -> None:
    bootstrap = BlockBootstrap(30, 0)
    one = blocks(30, 5)
    other = one + np.array([0, 1])
    difference = bootstrap.interval(share(bootstrap.resample(other)) - share(bootstrap.resample(one)))
    assert difference is not None
    assert difference == pytest.approx((0.01, 0.01))


def test_the_same_seed_draws_the_same() -> None:
    counts = blocks(20, 3)
    draws = [BlockBootstrap(20, seed).interval_of(share, counts) for seed in (7, 7, 8)]
    assert draws[0] == draws[1] != draws[2]


def test_few_blocks_or_figures_have_no_interval() -> None:
    assert BlockBootstrap(LEAST_BLOCKS - 1, 0).interval_of(share, blocks(LEAST_BLOCKS - 1, 0)) is None
    assert BlockBootstrap(9, 0).interval_of(share, np.zeros((9, 2), np.int64)) is None
