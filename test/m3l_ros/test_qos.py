# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from rclpy.qos import HistoryPolicy, ReliabilityPolicy

from m3l_ros.qos import input_qos

RELIABLE, BEST_EFFORT = ReliabilityPolicy.RELIABLE, ReliabilityPolicy.BEST_EFFORT


@pytest.mark.parametrize(
    ("policy", "offered", "requested"),
    [
        ("auto", [], RELIABLE),
        ("auto", [RELIABLE, RELIABLE], RELIABLE),
        ("auto", [BEST_EFFORT], BEST_EFFORT),
        ("auto", [RELIABLE, BEST_EFFORT], BEST_EFFORT),
        ("reliable", [BEST_EFFORT], RELIABLE),
        ("best_effort", [RELIABLE], BEST_EFFORT),
    ],
)
def test_reliability_follows_the_publishers_unless_it_is_set(policy, offered, requested):
    qos = input_qos(policy, 3, offered)
    assert (qos.reliability, qos.history, qos.depth) == (requested, HistoryPolicy.KEEP_LAST, 3)
