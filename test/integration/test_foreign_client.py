# SPDX-License-Identifier: Apache-2.0
"""The node on Fast DDS and a program on Cyclone DDS, without ROS 2, that gives it images and takes its masks."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from m3l_model.predictor import Predictor

pytest.importorskip("cyclonedds", reason="needs Cyclone DDS: pip install -e '.[test]'")

FRAMES, WITH_DEPTH = 8, 5


def test_program_that_is_not_ros_publishes_images_and_receives_masks(
    start_node, environment, images_of, checkpoint, class_names, tmp_path
):
    rgb, depth = zip(*(images_of(index) for index in range(FRAMES)), strict=True)
    np.savez(tmp_path / "images.npz", rgb=rgb, depth=depth[:WITH_DEPTH])
    start_node(
        *("-p", f"checkpoint:={checkpoint}", "-p", "overload:=queue", "-p", "input_depth:=50"),
        *("-p", "max_wait:=1.0", "-p", "depth_timeout:=10.0", "-p", "diagnostics_period:=0.1"),
    )
    client = Path(__file__).with_name("foreign_client.py")
    done = subprocess.run(
        [sys.executable, str(client), str(tmp_path / "images.npz"), str(tmp_path / "masks.npz")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr

    received = np.load(tmp_path / "masks.npz")
    assert received["stamps"].tolist() == [10_000 + index for index in range(FRAMES)]
    assert {*received["frame_ids"].tolist(), *received["encodings"].tolist()} == {"foreign_camera", "mono8"}
    [classes] = received["classes"].tolist()
    assert json.loads(classes)["classes"] == class_names
    predictor = Predictor.from_checkpoint(checkpoint, device="cpu")
    for index, mask in enumerate(received["masks"]):
        paired = predictor.predict(rgb[index], depth[index]).labels
        alone = predictor.predict(rgb[index], None).labels
        expected, other = (paired, alone) if index < WITH_DEPTH else (alone, paired)
        assert (mask == expected).mean() > 0.99 > (mask == other).mean(), index
