# SPDX-License-Identifier: Apache-2.0
"""Image messages to arrays by way of cv_bridge, with the pixels that ``m3l_model.images`` gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from m3l_model import images


class CvBridgeConverter:
    """``to_rgb`` by cv_bridge, for the messages it converts as it should.

    cv_bridge's Python shears images whose rows are padded by less than a pixel, fails on big-endian ones with NumPy 2,
    rounds 16-bit colour otherwise than rosbags-image and reads no compressed depth. Those messages, and damaged
    ones, are left to ``m3l_model.images``, so that every robot sees the same pixels.

    Args:
        bridge: a ``cv_bridge.CvBridge``.
    """

    def __init__(self, bridge: Any) -> None:
        self._bridge = bridge

    def to_rgb(self, msg: Any) -> npt.NDArray[np.uint8]:
        """Colour image, raw or compressed, as (H, W, 3) uint8 RGB.

        Raises:
            ImageFormatError: the encoding is not of colour or not supported, or the sizes contradict one another.
        """
        if not self._converts(msg):
            return images.to_rgb(msg)
        converted: npt.NDArray[np.uint8] = self._bridge.imgmsg_to_cv2(msg, desired_encoding="rgb8")
        return converted

    def _converts(self, msg: Any) -> bool:
        if hasattr(msg, "format") or msg.is_bigendian or not images.is_color(msg):
            return False
        try:
            dtype, channels = self._bridge.encoding_to_dtype_with_channels(msg.encoding)
        except TypeError:  # CvBridgeError is one: an encoding it does not know
            return False
        tight = msg.width * channels == msg.step and msg.height * msg.step == len(msg.data) > 0
        return np.dtype(dtype) == np.uint8 and tight
