# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from m3l_model.robustness import failure_metrics, headline_names, robust
from m3l_model.scenarios import SCENARIOS

MIOU = {"clean": 0.6, "depth_missing": 0.4, "rgb_missing": 0.2}


def test_robust_miou_is_the_mean_of_the_paper_s_three_conditions() -> None:
    assert robust(MIOU) == pytest.approx(0.4)
    assert robust({"clean": 0.6}) is None


def test_entire_missing_leaves_out_that_both_are_missing() -> None:
    figures = failure_metrics(MIOU)
    assert figures["emm_avg"] == pytest.approx(0.4)
    p = 0.1
    expected = ((1 - p) ** 2 * 0.6 + (1 - p) * p * (0.4 + 0.2)) / (1 - p**2)
    assert figures["emm_e_0.1"] == pytest.approx(expected)
    assert "rmm_avg" not in figures


def test_noise_may_strike_both() -> None:
    miou = {"clean": 0.8, "depth_noise": 0.6, "rgb_noise": 0.4, "both_noise": 0.2}
    figures = failure_metrics(miou)
    assert figures["nm_avg"] == pytest.approx(0.5)
    assert figures["nm_e_0.3"] == pytest.approx(0.49 * 0.8 + 0.21 * (0.6 + 0.4) + 0.09 * 0.2)


def test_resamples_are_computed_at_once() -> None:
    resampled = {name: np.array([value, value / 2]) for name, value in MIOU.items()}
    np.testing.assert_allclose(
        failure_metrics(resampled)["emm_e_0.5"], np.array([1, 0.5]) * failure_metrics(MIOU)["emm_e_0.5"]
    )


def test_all_scenarios_give_all_figures() -> None:
    names = headline_names([scenario.name for scenario in SCENARIOS])
    assert {"robust", "clean", "emm_avg", "rmm_e_0.3", "nm_e_0.5"} <= set(names)
