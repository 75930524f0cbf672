# SPDX-License-Identifier: Apache-2.0
"""The classes' colours over the image, as the node publishes them and bags and videos show them."""

from __future__ import annotations

from typing import cast

import cv2
import numpy as np
import numpy.typing as npt


def paint_over(
    rgb: npt.NDArray[np.uint8] | None, color: npt.NDArray[np.uint8], opacity: float = 0.5
) -> npt.NDArray[np.uint8]:
    """Mix an image with the colours of its classes.

    Args:
        rgb: (H, W, 3) uint8; None where colour is lost, which shows as black.
        color: (H, W, 3) uint8, of ``LabelSet.colorize``.
        opacity: of the colours, 0 to 1.
    """
    below = np.zeros_like(color) if rgb is None else rgb
    return cast("npt.NDArray[np.uint8]", cv2.addWeighted(color, opacity, below, 1.0 - opacity, 0.0))
