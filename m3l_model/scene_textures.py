# SPDX-License-Identifier: Apache-2.0
"""Procedural surfaces: colour as a function of a place on an object, with less detail farther away.

A texture is called with `uv` (2, n) in metres and `blur` (n,), the width in metres that one pixel covers there,
and returns the colour (3, n) in [0, 1] before shading. Detail finer than `blur` fades, so that nothing flickers
as the camera moves. All arrays are float32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Color = tuple[float, float, float]
Texture = Callable[[Floats, Floats], Floats]

_TABLE_SIDE = 256
_TABLE = np.random.default_rng(0).uniform(-1, 1, _TABLE_SIDE**2).astype(np.float32)


@dataclass(frozen=True)
class Wood:
    """Boards along u, `board` metres wide, with grain; chipboard where that is None: floor, cabinets."""

    color: Color
    board: float | None

    def __call__(self, uv: Floats, blur: Floats) -> Floats:
        u, v = uv
        if self.board is None:
            tone = 0.10 * noise(u, v, 0.02, 0.02, blur) + 0.08 * noise(u, v, 0.3, 0.3, blur)
        else:
            row = np.floor(v / np.float32(self.board))
            grain = 0.10 * noise(u + row, v, 0.25, 0.012, blur) + 0.06 * noise(u, v, 0.5, 0.08, blur)
            tone = (
                grain + 0.08 * _random_at(row.astype(np.intp), 0) - 0.3 * _lines(v, self.board, 0.006, blur)
            )
        return _tint(self.color, tone)


@dataclass(frozen=True)
class Paint:
    """Plaster with a faint grain and a broad, uneven wash: walls, ceiling, columns."""

    color: Color

    def __call__(self, uv: Floats, blur: Floats) -> Floats:
        u, v = uv
        tone = 0.06 * noise(u, v, 0.35, 2.0, blur) + 0.03 * noise(u, v, 0.05, 0.05, blur)
        return _tint(self.color, tone)


@dataclass(frozen=True)
class Plastic:
    """One saturated colour with faint ribs: crates."""

    color: Color
    rib: float

    def __call__(self, uv: Floats, blur: Floats) -> Floats:
        u, v = uv
        tone = 0.05 * _square_wave(u, self.rib, blur) + 0.05 * noise(u, v, 0.15, 0.15, blur)
        return _tint(self.color, tone)


@dataclass(frozen=True)
class Print:
    """Two patterns over each other in three colours: rugs, pictures, balls."""

    colors: tuple[Color, Color, Color]
    kinds: tuple[PrintKind, PrintKind]
    periods: tuple[float, float]

    def __call__(self, uv: Floats, blur: Floats) -> Floats:
        ground, first, second = (np.array(color, np.float32)[:, None] for color in self.colors)
        for color, kind, period in zip((first, second), self.kinds, self.periods, strict=True):
            ground = ground + (color - ground) * (0.5 + 0.5 * _PRINTS[kind](uv, period, blur))
        return ground * (1 + 0.06 * noise(uv[0], uv[1], 0.02, 0.02, blur))


def noise(u: Floats, v: Floats, cell_u: float, cell_v: float, blur: Floats) -> Floats:
    """Smooth value noise in [-1, 1] with cells of that size in metres, faded where `blur` exceeds them."""
    x, y = u / np.float32(cell_u), v / np.float32(cell_v)
    column, row = np.floor(x), np.floor(y)
    x, y = x - column, y - row
    x, y = x * x * (3 - 2 * x), y * y * (3 - 2 * y)
    left, low = column.astype(np.intp), row.astype(np.intp)
    low_left, low_right = _random_at(left, low), _random_at(left + 1, low)
    high_left, high_right = _random_at(left, low + 1), _random_at(left + 1, low + 1)
    bottom = low_left + x * (low_right - low_left)
    top = high_left + x * (high_right - high_left)
    return (bottom + y * (top - bottom)) * _fade(min(cell_u, cell_v), blur)


def _random_at(x: npt.NDArray[np.intp], y: npt.NDArray[np.intp] | int) -> Floats:
    """A number in [-1, 1] that belongs to that whole-numbered point of the plane."""
    return _TABLE.take((x & (_TABLE_SIDE - 1)) + _TABLE_SIDE * (y & (_TABLE_SIDE - 1)))


def _checks(uv: Floats, period: float, blur: Floats) -> Floats:
    return _square_wave(uv[0], period, blur) * _square_wave(uv[1], period, blur)


def _stripes(uv: Floats, period: float, blur: Floats) -> Floats:
    return _square_wave(uv[1], period, blur)


def _diagonals(uv: Floats, period: float, blur: Floats) -> Floats:
    return _square_wave((uv[0] + uv[1]) * np.float32(0.7071), period, blur)


def _rings(uv: Floats, period: float, blur: Floats) -> Floats:
    return _square_wave(np.hypot(uv[0], uv[1]), period, blur)


def _patches(uv: Floats, period: float, blur: Floats) -> Floats:
    cell = period / 2
    return np.clip(4 * noise(uv[0], uv[1], cell, cell, blur), -1, 1)


PrintKind = Literal["checks", "stripes", "diagonals", "rings", "patches"]
_PRINTS: dict[PrintKind, Callable[[Floats, float, Floats], Floats]] = {
    "checks": _checks,
    "stripes": _stripes,
    "diagonals": _diagonals,
    "rings": _rings,
    "patches": _patches,
}
PRINT_KINDS: tuple[PrintKind, ...] = tuple(_PRINTS)


def _square_wave(x: Floats, period: float, blur: Floats) -> Floats:
    """-1 and 1 in turn, half a period each, with edges as soft as a pixel is wide."""
    phase = x / np.float32(period)
    to_edge = (0.25 - np.abs(phase - np.floor(phase) - np.float32(0.5))) * np.float32(period)
    return np.clip(to_edge / (blur / 2), -1, 1) * _fade(period / 2, blur)


def _lines(x: Floats, spacing: float, width: float, blur: Floats) -> Floats:
    """1 on lines of that width at every multiple of the spacing, 0 between, averaged over a pixel."""
    phase = x / np.float32(spacing)
    to_line = np.abs(phase - np.rint(phase)) * np.float32(spacing)
    soft = blur + np.float32(width)
    return np.clip(1 - to_line / soft, 0, 1) * (width / soft)


def _fade(size: float, blur: Floats) -> Floats:
    ratio = blur / np.float32(size)
    return np.float32(1) / (np.float32(1) + ratio * ratio)


def _tint(color: Color, tone: Floats) -> Floats:
    return np.array(color, np.float32)[:, None] * (1 + tone)
