# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from m3l_model.openmp import leave_cores_to_torch, share_cores


def test_threads_wait_for_a_moment_and_then_sleep() -> None:
    unset: dict[str, str] = {}
    share_cores(unset)
    assert unset == {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "20000"}


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "0"}, {"GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_what_the_user_says_stands(chosen: dict[str, str], expected: dict[str, str]) -> None:
    share_cores(chosen)
    assert chosen == expected


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        ({}, {}),
        ({"OMP_WAIT_POLICY": "PASSIVE"}, {"OMP_WAIT_POLICY": "PASSIVE"}),
        ({"GOMP_SPINCOUNT": "0"}, {"GOMP_SPINCOUNT": "0", "OMP_WAIT_POLICY": "PASSIVE"}),
    ],
)
def test_what_was_set_is_taken_back_and_what_the_user_says_stands(
    chosen: dict[str, str], expected: dict[str, str]
) -> None:
    share_cores(chosen)
    leave_cores_to_torch(chosen)
    assert chosen == expected
