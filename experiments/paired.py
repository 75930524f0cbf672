# SPDX-License-Identifier: Apache-2.0
"""Differences of runs that share draw and seed, and whether they show anything, as docs/experiments.md has it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

_RUNS = 3
_T_975 = {2: 12.706, 3: 4.303}
"""Student's t for 95 % intervals of so many differences."""


def verdict(one: Mapping[int, float], other: Mapping[int, float]) -> str:
    """Say how much more ``one`` has than ``other``: "shown" where three agree in sign and the interval excludes 0.

    Args:
        one, other: a score in percent by draw or seed.
    """
    values = [one[number] - other[number] for number in sorted(one.keys() & other.keys())]
    text = ", ".join(f"{value:+.1f}" for value in values)
    if len(values) < 2:
        return f"{text}: not shown ({len(values)} of {_RUNS})"
    mean = statistics.mean(values)
    half = _T_975[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    shown = len(values) == _RUNS and min(values) * max(values) > 0 and abs(mean) > half
    return f"{text}: {mean:+.1f} ± {half:.1f}: {'shown' if shown else 'not shown'}"
