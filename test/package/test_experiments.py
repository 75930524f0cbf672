# SPDX-License-Identifier: Apache-2.0
"""The experiments keep to the protocol of docs/experiments.md."""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def lists(repository: Path) -> dict[str, list[str]]:
    return {path.stem: path.read_text().split() for path in (repository / "experiments/nyuv2").glob("*.txt")}


@pytest.fixture
def rows(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(repository / "experiments"))
    import rows

    yield rows
    del sys.modules["rows"]


def test_draws_are_of_the_usable_frames(lists: dict[str, list[str]]) -> None:
    usable, validation = set(lists["usable"]), set(lists["validation"])
    assert (len(usable), len(validation)) == (595, 100)
    assert not usable & validation
    draws = [set(lists[f"labelled_{draw}"]) for draw in (1, 2, 3)]
    assert all(len(draw) == 50 and draw <= usable for draw in draws)
    assert all(one != other for one, other in combinations(draws, 2))


@pytest.mark.data
def test_validation_is_in_blocks_with_gaps(lists: dict[str, list[str]], shared_data: Path) -> None:
    every = (shared_data / "data/nyuv2/train.txt").read_text().split()
    places = sorted(every.index(name) for name in lists["validation"])
    starts = [place for place in places if place - 1 not in places]
    assert len(starts) == 10
    near = {place + step for place in places for step in range(-5, 6)}
    assert [every[i] for i in range(len(every)) if i not in near] == lists["usable"]


def test_rows_share_the_harness(rows: Any) -> None:
    for setting in (rows.NYUV2, rows.SYNTHETIC):
        configs = {row: rows.config_of(setting, row, 0.001) for row in (*rows.ROWS, *rows.ABLATIONS)}
        assert len({rows.digest(config) for config in configs.values()}) == len(configs)
        shared = [name for name in {**rows.HARNESS, **setting} if name != "labelled_batch"]
        for row, config in configs.items():
            assert sum(config.step_frames(config.steps - 1)) == 8, row
            if row != "m3l_paper":
                for name in (*shared, "batch_norm", "train_fused", "teacher_noise", "augmentation"):
                    expected = {**rows.HARNESS, **setting}.get(name, getattr(configs["m3l"], name))
                    assert getattr(config, name) == expected, (row, name)
