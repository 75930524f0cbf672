# SPDX-License-Identifier: Apache-2.0
"""Masks of COCO annotations: polygons and run lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt

_SCALE = 4
"""Polygons are drawn this much larger, and of each pixel the middle counts: drawn as they are, OpenCV would also fill
every pixel that an edge touches, and neighbours would overlap."""

_PIXELS_AT_ONCE = 1 << 20
"""So that a large polygon takes no more memory than the image."""

_SHIFT = 8
"""Fractional bits of the coordinates that OpenCV draws."""


class Mask(Protocol):
    """The pixels of an annotation."""

    def draw(self, height: int, width: int) -> npt.NDArray[np.bool_]:
        """Give (H, W) bool. Raises ``ValueError`` where the mask is not of such an image."""


class Polygons:
    """The union of polygons, each a list x, y, x, y, ...; a pixel covers the unit square whose corner is its index."""

    def __init__(self, polygons: Sequence[Sequence[float]]) -> None:
        self._polygons = []
        for numbers in polygons:
            if not isinstance(numbers, list) or not all(_is_number(value) for value in numbers):
                raise ValueError("a polygon is not a list of numbers")
            if len(numbers) < 6 or len(numbers) % 2:
                raise ValueError(
                    f"a polygon has {len(numbers)} numbers; x and y of 3 points or more are needed"
                )
            self._polygons.append(np.array(numbers, np.float64).reshape(-1, 2))

    def draw(self, height: int, width: int) -> npt.NDArray[np.bool_]:
        mask = np.zeros((height, width), bool)
        for points in self._polygons:
            if not np.all((points >= (-width, -height)) & (points <= (2 * width, 2 * height))):
                raise ValueError(f"a polygon reaches far out of the image of {width}x{height}")
            left, top = np.clip(np.floor(points.min(axis=0)), 0, (width, height)).astype(int)
            right, bottom = np.clip(np.ceil(points.max(axis=0)), 0, (width, height)).astype(int)
            if right == left:
                continue
            rows = max(1, _PIXELS_AT_ONCE // (right - left))
            for row in range(top, bottom, rows):
                end = min(row + rows, bottom)
                mask[row:end, left:right] |= _fill(points - (left, row), end - row, right - left)
        return mask


class RunLengths:
    """Run lengths down the columns, one after the other, beginning with pixels outside the mask.

    Args:
        counts: whole numbers, or the text to which COCO's tools compress them.
    """

    def __init__(self, counts: Sequence[int] | str) -> None:
        if isinstance(counts, str):
            counts = _decompress(counts)
        if not all(isinstance(count, int) and 0 <= count < 2**32 for count in counts):
            raise ValueError("run lengths are not whole numbers from 0 on")
        self._counts = np.array(counts, np.uint32)

    def draw(self, height: int, width: int) -> npt.NDArray[np.bool_]:
        total = int(self._counts.sum(dtype=np.uint64))
        if total != height * width:
            raise ValueError(f"run lengths add up to {total}, not to {width}x{height}")
        inside = np.arange(len(self._counts)) % 2 == 1
        return np.repeat(inside, self._counts.astype(np.int64)).reshape(width, height).T


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and abs(value) < 2**31


def _fill(points: npt.NDArray[np.float64], height: int, width: int) -> npt.NDArray[np.bool_]:
    canvas = np.zeros((height * _SCALE, width * _SCALE), np.uint8)
    corners = np.rint((points * _SCALE - 0.5) * (1 << _SHIFT)).astype(np.int32)
    cv2.fillPoly(canvas, [corners], 1, cv2.LINE_8, _SHIFT)
    return canvas[_SCALE // 2 :: _SCALE, _SCALE // 2 :: _SCALE] == 1


def _decompress(text: str) -> list[int]:
    """Read run lengths from text: 5 bits a character from ``0`` on, the lowest first; bit 6 says that more follow.

    Numbers are signed, and from the fourth on they are differences to the last but one. pycocotools is not used,
    because on damaged text it writes beyond its memory.
    """
    counts: list[int] = []
    value = bits = 0
    for character in text:
        group = ord(character) - ord("0")
        if not 0 <= group < 64 or bits > 35:
            raise ValueError("compressed run lengths are damaged")
        value |= (group & 31) << bits
        bits += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << bits
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = bits = 0
    if bits:
        raise ValueError("compressed run lengths end within a number")
    return counts
