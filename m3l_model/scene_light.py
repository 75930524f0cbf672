# SPDX-License-Identifier: Apache-2.0
"""Light on the scene's surfaces: ambient, two soft lamps, and a darkening where things meet the floor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m3l_model.scene_raycast import Box, Floats, Item

AMBIENT = 0.55

_FALLOFF_M = 4.0
_CONTACT_M = 0.12
_CELL_M = 0.01


class Lamp(NamedTuple):
    """A point light and what it adds to the ambient light on a surface close to it and facing it."""

    position: npt.NDArray[np.float64]
    strength: float


class Lighting:
    """The lamps of a room of those half sides, and the footprints of what stands on its floor."""

    def __init__(self, half: tuple[float, float], lamps: Iterable[Lamp], standing: Iterable[Item]) -> None:
        self._lamps = tuple(lamps)
        self._half = half
        self._contact = np.exp(-_gaps(half, standing) / np.float32(_CONTACT_M))

    def on(self, item: Item, points: Floats, normals: Floats) -> Floats:
        """The light (n,) on surface points of the item; points and normals (3, n) are in its own frame."""
        total = np.full(points.shape[1], AMBIENT, np.float32)
        for lamp in self._lamps:
            toward = (item.rotation.T @ (lamp.position - item.center)).astype(np.float32)[:, None] - points
            squared = np.square(toward).sum(axis=0)
            facing = 0.5 + 0.5 * (normals * toward).sum(axis=0) / np.sqrt(squared)
            total += lamp.strength * facing / (1 + squared / np.float32(_FALLOFF_M**2))
        return total * self._openness(item, points)

    def _openness(self, item: Item, points: Floats) -> Floats:
        """1 in the open, less the nearer a point is to the floor and to what stands on it."""
        x, y, z = item.rotation.astype(np.float32) @ points + item.center.astype(np.float32)[:, None]
        rows, columns = (
            np.clip((c + half) * np.float32(1 / _CELL_M), 0, size - 1).astype(np.intp)
            for c, half, size in zip((x, y), self._half, self._contact.shape, strict=True)
        )
        return 1 - np.float32(0.4) * self._contact[rows, columns] * np.exp(
            -np.abs(z) / np.float32(_CONTACT_M)
        )


def _gaps(half: tuple[float, float], standing: Iterable[Item]) -> Floats:
    """The distance from each cell of the floor to the nearest wall or thing, by x and y; 0 beneath things."""
    x, y = (np.arange(-h, h, _CELL_M, dtype=np.float64).astype(np.float32) for h in half)
    x, y = x[:, None], y[None, :]
    gaps = np.minimum(half[0] - np.abs(x), half[1] - np.abs(y))
    for item in standing:
        gaps = np.minimum(gaps, _gap(item, x - np.float32(item.center[0]), y - np.float32(item.center[1])))
    return gaps


def _gap(item: Item, x: Floats, y: Floats) -> Floats:
    """The distance from (x, y), relative to its centre, to the outline of an item that is turned about z only."""
    if not isinstance(item.shape, Box):
        return np.maximum(np.hypot(x, y) - np.float32(item.shape.half[0]), 0)
    cos, sin = item.rotation[:2, 0].astype(np.float32)
    along = np.abs(cos * x + sin * y) - np.float32(item.shape.half[0])
    across = np.abs(cos * y - sin * x) - np.float32(item.shape.half[1])
    return np.hypot(np.maximum(along, 0), np.maximum(across, 0))
