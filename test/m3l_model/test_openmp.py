# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from m3l_model.openmp import share_cores


def test_threads_sleep_unless_the_user_says_otherwise() -> None:
    unset: dict[str, str] = {}
    share_cores(unset)
    assert unset == {"OMP_WAIT_POLICY": "PASSIVE"}
    chosen = {"OMP_WAIT_POLICY": "ACTIVE"}
    share_cores(chosen)
    assert chosen == {"OMP_WAIT_POLICY": "ACTIVE"}
