# SPDX-License-Identifier: Apache-2.0
"""Damaged bags: what is read of them is as it was, or an error of the package's own says what is wrong.

A few hundred of the mutations that ``bag_mutations`` makes; its docstring says what counts as a failure, and what no
reader can detect. Thousands: ``python test/m3l_model/bag_mutations.py --count 5000``.
"""

from __future__ import annotations

import pytest
from bag_mutations import BYTES, FAILURES, FILES, MCAP, MESSAGES, SQLITE, Result, judge_seeds, table


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    folder = tmp_path_factory.mktemp("mutations")
    with (folder / "stderr").open("wb") as errors:
        return list(judge_seeds(range(400), folder, errors))


def test_nothing_wrong_comes_through_and_nothing_but_own_errors(results: list[Result]) -> None:
    failures = [result for result in results if result.outcome in FAILURES]

    assert not failures, f"{failures[:5]}\n{table(results)}"


def test_mutations_are_of_all_kinds_and_have_all_outcomes(results: list[Result]) -> None:
    kinds = {result.mutation.kind for result in results}
    outcomes = {result.outcome for result in results}

    assert kinds >= {*BYTES, *MCAP, *SQLITE, *FILES, *MESSAGES}
    assert outcomes >= {"identical", "refused", "warned", "undetected"}


def test_checksums_leave_nothing_undetected(results: list[Result]) -> None:
    covered = [result.outcome for result in results if result.mutation.covered]

    assert len(covered) > 100
    assert "undetected" not in covered
