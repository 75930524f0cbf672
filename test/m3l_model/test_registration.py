# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import CameraInfo

from m3l_model.registration import registration_problem


def camera(width=640, height=480, fx=525.0, fy=525.0, cx=319.5, cy=239.5):
    return CameraInfo(width=width, height=height, k=[fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0])


@pytest.mark.parametrize(
    ("rgb_frame", "depth_frame"), [(None, None), ("color", None), (None, "depth"), ("color", "color")]
)
def test_nothing_speaks_against_it(rgb_frame, depth_frame):
    assert registration_problem(rgb_frame, depth_frame, None, None) is None
    assert registration_problem(rgb_frame, depth_frame, camera(), camera()) is None
    assert registration_problem(rgb_frame, depth_frame, camera(), None) is None


def test_other_frame_is_named_with_the_way_out():
    problem = registration_problem("color_optical", "depth_optical", None, None)
    assert problem is not None
    for text in ("color_optical", "depth_optical", "align_depth", "depth_image_proc"):
        assert text in problem
    assert "\n" not in problem


@pytest.mark.parametrize(
    "depth",
    [
        camera(fx=380.0, fy=380.0),
        camera(cx=300.0),
        camera(cy=250.0),
        camera(width=848, height=480),
        camera(width=0, height=0),
    ],
    ids=["focal length", "cx", "cy", "aspect", "no size"],
)
def test_other_view_is_a_problem(depth):
    problem = registration_problem("camera", "camera", camera(), depth)
    assert problem is not None
    assert "depth_image_proc" in problem


def test_uncalibrated_cameras_of_one_size_are_left_alone():
    nothing = CameraInfo(width=640, height=480)
    assert registration_problem("camera", "camera", camera(), nothing) is None


@given(scale=st.sampled_from([0.25, 0.5, 0.75, 1.5, 2.0]), corner_based=st.booleans())
def test_scaled_image_of_the_same_view_is_registered(scale, corner_based):
    """Drivers scale the principal point either about the image's corner or about its first pixel's centre."""
    rgb = camera()
    shift = 0.5 if corner_based else 0.0
    k = np.array(rgb.k) * scale
    cx, cy = [(rgb.k[at] + shift) * scale - shift for at in (2, 5)]
    depth = camera(round(640 * scale), round(480 * scale), k[0], k[4], cx, cy)
    assert registration_problem("camera", "camera", rgb, depth) is None
