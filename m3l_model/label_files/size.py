# SPDX-License-Identifier: Apache-2.0
"""Checks of a label image's size, made before memory is taken for it."""

from __future__ import annotations

from m3l_model.labels import LabelError

MAX_PIXELS = 1 << 24
"""Of 4096x4096, more than RGB-D cameras have; what claims more is damaged, or worse."""

_MAX_SIDE = 65535


def check_size(height: int, width: int, shape: tuple[int, int] | None, source: str) -> None:
    """Compare a label image's size with its colour image's, (H, W), where that is known.

    Raises:
        LabelError: another size, or one that no camera has.
    """
    if not (1 <= height <= _MAX_SIDE and 1 <= width <= _MAX_SIDE and height * width <= MAX_PIXELS):
        raise LabelError(f"{source}: claims to be {width}x{height}; 1 to {MAX_PIXELS} pixels are possible")
    if shape is not None and (height, width) != shape:
        raise LabelError(
            f"{source} is {width}x{height}, but its colour image {shape[1]}x{shape[0]}; labels must have the size of "
            "the colour image"
        )
