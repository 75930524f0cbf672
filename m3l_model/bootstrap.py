# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals by resampling blocks of consecutive frames, which are no independent samples one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

RESAMPLES = 1000
LEVEL = 0.95
LEAST_BLOCKS = 5
"""With fewer, their resamples say little."""


class Interval(NamedTuple):
    """Where a figure lies with 95 % confidence."""

    low: float
    high: float


class BlockBootstrap:
    """One draw of resamples, to be used for all that is compared: (1000, B) how often each block is in each.

    Args:
        blocks: B, how many there are.
        seed: of the draw.
    """

    def __init__(self, blocks: int, seed: int) -> None:
        rng = np.random.default_rng((seed, blocks))
        self._enough = blocks >= LEAST_BLOCKS
        self._weights = rng.multinomial(blocks, np.full(blocks, 1 / max(blocks, 1)), RESAMPLES).astype(float)

    def resample(self, counts: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
        """Pool the counts of the blocks in each resample: (1000, ...) of (B, ...)."""
        pooled = self._weights @ counts.reshape(len(counts), -1)
        return np.asarray(pooled.reshape(-1, *counts.shape[1:]))

    def interval(self, figures: npt.NDArray[np.float64]) -> Interval | None:
        """Give the interval of a figure, (1000,) of the resamples; None where blocks or finite figures are too few."""
        known = figures[np.isfinite(figures)]
        if not self._enough or len(known) < RESAMPLES / 2:
            return None
        low, high = np.quantile(known, ((1 - LEVEL) / 2, (1 + LEVEL) / 2))
        return Interval(float(low), float(high))

    def interval_of(
        self, figure: Callable[[npt.NDArray[Any]], npt.NDArray[np.float64]], counts: npt.NDArray[Any]
    ) -> Interval | None:
        """Give the interval of ``figure``, a function of pooled counts, from the counts of blocks, (B, ...)."""
        return self.interval(figure(self.resample(counts)))
