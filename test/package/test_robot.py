# SPDX-License-Identifier: Apache-2.0
"""A robot needs no more than torch, safetensors and what apt has: bags are read elsewhere."""

from __future__ import annotations

import pytest

pytest.importorskip("rclpy", reason="needs ROS 2: pip install -e '.[ros]'")

NODE_WITHOUT_BAGS = """
import sys
for name in ("rosbags", "tqdm", "matplotlib", "jinja2"):
    sys.modules[name] = None
import m3l_ros.node, m3l_ros.segmentation_node, m3l_model.predictor
"""


def test_the_node_needs_nothing_that_reads_bags(run_python):
    done = run_python("-c", NODE_WITHOUT_BAGS)
    assert done.returncode == 0, done.stderr
