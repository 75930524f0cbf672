# SPDX-License-Identifier: Apache-2.0
"""cv_bridge, where ROS 2's is installed, gives the pixels that we give without it."""

from __future__ import annotations

import numpy as np
import pytest
from sensor_msgs.msg import Image

from m3l_model.images import ImageFormatError, to_rgb
from m3l_ros.conversion import CvBridgeConverter
from m3l_ros.providers import find_ros2_package

if find_ros2_package("cv_bridge") is None:
    pytest.skip("ROS 2's cv_bridge is not installed", allow_module_level=True)

CHANNELS = {
    **{
        "rgb8": 3,
        "bgr8": 3,
        "rgba8": 4,
        "bgra8": 4,
        "mono8": 1,
        "yuv422": 2,
        "yuv422_yuy2": 2,
        "uyvy": 2,
        "yuyv": 2,
    },
    **{"bayer_rggb8": 1, "bayer_bggr8": 1, "bayer_gbrg8": 1, "bayer_grbg8": 1},
    **{"rgb16": 6, "bgr16": 6, "bayer_rggb16": 2},
}
"""Bytes of a pixel."""


@pytest.fixture(scope="module")
def converter():
    from cv_bridge import CvBridge

    return CvBridgeConverter(CvBridge())


def message(encoding, width=32, height=24, padding=0, big_endian=False):
    step = width * CHANNELS[encoding] + padding
    pixels = np.random.default_rng(0).integers(0, 256, (height, step), np.uint8)
    return Image(
        height=height,
        width=width,
        encoding=encoding,
        step=step,
        is_bigendian=int(big_endian),
        data=pixels.tobytes(),
    )


@pytest.mark.parametrize("encoding", CHANNELS)
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_same_pixels(converter, encoding, padding):
    msg = message(encoding, padding=padding)
    np.testing.assert_array_equal(converter.to_rgb(msg), to_rgb(msg))


def test_same_pixels_of_big_endian_images(converter):
    msg = message("rgb16", big_endian=True)
    np.testing.assert_array_equal(converter.to_rgb(msg), to_rgb(msg))


@pytest.mark.parametrize("encoding", ["16UC1", "32FC1", "8UC3", "nonsense"])
def test_same_refusals(converter, encoding):
    msg = message("rgba8")
    msg.encoding = encoding
    with pytest.raises(ImageFormatError):
        converter.to_rgb(msg)


def test_damaged_image_is_refused(converter):
    msg = message("rgb8")
    msg.data = msg.data[:-1]
    with pytest.raises(ImageFormatError):
        converter.to_rgb(msg)
