# SPDX-License-Identifier: Apache-2.0
"""One figure for many failures: the paper's robust mIoU, and the metrics of arXiv 2503.18445.

That benchmark asks how good a model is when modalities are missing entirely (EMM), in random regions (RMM) or noisy
(NM), over all combinations of failed modalities: their average, and the expectation where each modality fails by
itself with probability p. Where both are missing entirely there is nothing to segment: that combination is left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from m3l_model.scenarios import ROBUST

FAILURE_PROBABILITIES = (0.1, 0.3, 0.5)

COMBINATIONS: dict[str, dict[tuple[bool, bool], str]] = {
    "emm": {(False, False): "clean", (False, True): "depth_missing", (True, False): "rgb_missing"},
    "rmm": {
        (False, False): "clean",
        (False, True): "depth_holes",
        (True, False): "rgb_holes",
        (True, True): "both_holes",
    },
    "nm": {
        (False, False): "clean",
        (False, True): "depth_noise",
        (True, False): "rgb_noise",
        (True, True): "both_noise",
    },
}
"""For each kind of failure, by whether colour and depth fail, the scenario."""

Value = TypeVar("Value", float, npt.NDArray[np.float64])


def robust(miou: Mapping[str, Value]) -> Value | None:
    """Mean of the mIoU with both modalities, colour alone and depth alone (arXiv 2304.10756); None without one."""
    return _mean([miou[name] for name in ROBUST]) if all(name in miou for name in ROBUST) else None


def failure_metrics(miou: Mapping[str, Value]) -> dict[str, Value]:
    """Give ``emm_avg``, ``emm_e_0.1`` and so on, of those kinds of failure whose scenarios were all evaluated.

    Args:
        miou: of each scenario, a number or (N,) of resamples.
    """
    figures: dict[str, Value] = {}
    for kind, scenarios in COMBINATIONS.items():
        if not all(name in miou for name in scenarios.values()):
            continue
        figures[f"{kind}_avg"] = _mean([miou[name] for name in scenarios.values()])
        for p in FAILURE_PROBABILITIES:
            odds = {
                fails: (p if fails[0] else 1 - p) * (p if fails[1] else 1 - p)
                for fails in product((False, True), repeat=2)
                if fails in scenarios
            }
            terms = [miou[scenarios[fails]] * (chance / sum(odds.values())) for fails, chance in odds.items()]
            figures[f"{kind}_e_{p:g}"] = _sum(terms)
    return figures


def headline_names(scenarios: Sequence[str]) -> list[str]:
    """The figures that are made of these scenarios: the robust mIoU, the mIoU of each, and the failure metrics."""
    zeros = dict.fromkeys(scenarios, 0.0)
    return [*(["robust"] if robust(zeros) is not None else []), *scenarios, *failure_metrics(zeros)]


def _mean(values: list[Value]) -> Value:
    return _sum(values) / len(values)


def _sum(values: list[Value]) -> Value:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total
