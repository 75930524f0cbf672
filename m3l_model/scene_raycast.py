# SPDX-License-Identifier: Apache-2.0
"""Analytic ray casting of boxes, cylinders, spheres and the room around them, vectorised over pixels.

Vectors are component-first float32 arrays, (3, ...). A ray is `origin + t * direction`, where the directions
have length 1 along the optical axis, so that t is the z-depth in metres. Each shape lives in its own frame.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from m3l_model.scene_camera import Camera
from m3l_model.scene_textures import Texture

Floats = npt.NDArray[np.float32]
NEAR_M = 0.02
"""Nothing nearer than this is seen."""

_CORNERS = np.array(list(itertools.product((-1, 1), repeat=3))).T


class Shape(Protocol):
    """A convex solid (or, for `Hollow`, the inside of one)."""

    @property
    def half(self) -> tuple[float, float, float]:
        """Half the sides of the bounding box, metres."""

    def distance(self, origin: Floats, directions: Floats) -> Floats:
        """t (...) of the first hit of rays from an origin (3,) in directions (3, ...); inf where there is none."""

    def surface(self, points: Floats) -> tuple[Floats, Floats]:
        """Unit normals (3, n) and texture coordinates (2, n) in metres, at points (3, n) of the surface."""


class Item(NamedTuple):
    """A shape in the room: `rotation` (3, 3) takes its axes to the room's, `center` (3,) is its origin."""

    label: int
    shape: Shape
    texture: Texture
    center: npt.NDArray[np.float64]
    rotation: npt.NDArray[np.float64]


class Rays:
    """The rays of one camera image of (height, width) pixels with pinhole matrix k."""

    def __init__(self, camera: Camera, k: npt.NDArray[np.float64], width: int, height: int) -> None:
        self.camera, self.k = camera, k
        self.shape = (height, width)
        self.x = ((np.arange(width) - k[0, 2]) / k[0, 0]).astype(np.float32)
        self.y = ((np.arange(height) - k[1, 2]) / k[1, 1]).astype(np.float32)

    def origin(self, item: Item) -> Floats:
        """The camera's position in the item's frame, (3,)."""
        return (item.rotation.T @ (self.camera.position - item.center)).astype(np.float32)

    def directions(self, item: Item, pixels: npt.NDArray[np.intp]) -> Floats:
        """Directions (3, n) in the item's frame of the rays through those pixels, numbered row by row."""
        rows, columns = np.divmod(pixels, self.shape[1])
        right, down, forward = self._axes(item)[:, :, None].transpose(1, 0, 2)
        return right * self.x[columns] + down * self.y[rows] + forward

    def window(self, item: Item) -> tuple[slice, slice] | None:
        """The rows and columns of the item's bounding box on the image; None where that is out of view."""
        corners = item.rotation @ (_CORNERS * np.array(item.shape.half)[:, None]) + item.center[:, None]
        x, y, z = self.camera.rotation.T @ (corners - self.camera.position[:, None])
        beside = (x < self.x[0] * z, x > self.x[-1] * z, y < self.y[0] * z, y > self.y[-1] * z)
        if any(side.all() for side in (z < NEAR_M, *beside)):
            return None
        height, width = self.shape
        if (z < NEAR_M).any():
            return slice(0, height), slice(0, width)
        return _span(self.k[1, 1] * y / z + self.k[1, 2], height), _span(
            self.k[0, 0] * x / z + self.k[0, 2], width
        )

    def cast(self, items: tuple[Item, ...]) -> tuple[Floats, npt.NDArray[np.int16]]:
        """The depth of the nearest hit in metres and the index of the item hit, both (height, width)."""
        depth = np.full(self.shape, np.inf, np.float32)
        index = np.full(self.shape, -1, np.int16)
        for number, item in enumerate(items):
            window = self.window(item)
            if window is None:
                continue
            rows, columns = window
            right, down, forward = self._axes(item)[:, :, None, None].transpose(1, 0, 2, 3)
            directions = right * self.x[columns] + (down * self.y[rows, None] + forward)
            distance = item.shape.distance(self.origin(item), directions)
            nearer = distance < depth[window]
            np.copyto(depth[window], distance, where=nearer)
            index[window][nearer] = number
        return depth, index

    def _axes(self, item: Item) -> Floats:
        """The camera's axes in the item's frame, (3, 3) with the axes in columns."""
        return (item.rotation.T @ self.camera.rotation).astype(np.float32)


@dataclass(frozen=True)
class Box:
    """A box of sides 2 * half."""

    half: tuple[float, float, float]

    def distance(self, origin: Floats, directions: Floats) -> Floats:
        entry, leave = _slabs(origin, directions, self.half)
        return _convex_hit(entry.max(axis=0), leave.min(axis=0))

    def surface(self, points: Floats) -> tuple[Floats, Floats]:
        half = np.array(self.half, np.float32)[:, None]
        face = np.abs(points / half).argmax(axis=0)
        pixels = np.arange(face.size)
        normals = np.zeros_like(points)
        normals[face, pixels] = np.sign(points[face, pixels])
        across = np.where(face == 0, points[1], points[0])
        up = np.where(face == 2, points[1], points[2])
        return normals, np.stack([across, up])


@dataclass(frozen=True)
class Hollow:
    """The inside of a box: what a camera in a room sees of walls and ceiling."""

    half: tuple[float, float, float]

    def distance(self, origin: Floats, directions: Floats) -> Floats:
        return _slabs(origin, directions, self.half)[1].min(axis=0)

    def surface(self, points: Floats) -> tuple[Floats, Floats]:
        normals, uv = Box(self.half).surface(points)
        return -normals, uv


@dataclass(frozen=True)
class Cylinder:
    """A cylinder about the z axis, closed at both ends."""

    radius: float
    half_height: float

    @property
    def half(self) -> tuple[float, float, float]:
        return self.radius, self.radius, self.half_height

    def distance(self, origin: Floats, directions: Floats) -> Floats:
        entry, leave = _round(origin[:2], directions[:2], self.radius)
        end_entry, end_leave = _slabs(origin[2:], directions[2:], (self.half_height,))
        return _convex_hit(np.maximum(entry, end_entry[0]), np.minimum(leave, end_leave[0]))

    def surface(self, points: Floats) -> tuple[Floats, Floats]:
        x, y, z = points
        end = np.abs(z) * self.radius >= np.hypot(x, y) * self.half_height
        zero = np.zeros_like(z)
        normals = np.where(end, np.stack([zero, zero, np.sign(z)]), np.stack([x, y, zero]) / self.radius)
        around = np.arctan2(y, x) * np.float32(self.radius)
        return normals, np.where(end, points[:2], np.stack([around, z]))


@dataclass(frozen=True)
class Sphere:
    """A sphere; its texture is wrapped around the z axis."""

    radius: float

    @property
    def half(self) -> tuple[float, float, float]:
        return self.radius, self.radius, self.radius

    def distance(self, origin: Floats, directions: Floats) -> Floats:
        return _convex_hit(*_round(origin, directions, self.radius))

    def surface(self, points: Floats) -> tuple[Floats, Floats]:
        normals = points / np.float32(self.radius)
        x, y, z = normals
        angles = np.stack([np.arctan2(y, x), np.arcsin(np.clip(z, -1, 1))])
        return normals, angles * np.float32(self.radius)


def _span(coordinates: npt.NDArray[np.float64], size: int) -> slice:
    """The pixels from the smallest to the largest coordinate, within an image of that size."""
    low, high = np.clip([np.floor(coordinates.min()), np.ceil(coordinates.max()) + 1], 0, size)
    return slice(int(low), int(high))


def _slabs(origin: Floats, directions: Floats, half: tuple[float, ...]) -> tuple[Floats, Floats]:
    """t at which rays enter and leave |coordinate| <= half, for each coordinate, (k, ...)."""
    column = (len(half),) + (1,) * (directions.ndim - 1)
    reach = np.array(half, np.float32).reshape(column)
    start = origin.reshape(column)
    with np.errstate(divide="ignore"):
        inverse = np.float32(1) / directions
    first = (-reach - start) * inverse
    second = np.multiply(inverse, reach - start, out=inverse)
    return np.minimum(first, second), np.maximum(first, second, out=second)


def _round(origin: Floats, directions: Floats, radius: float) -> tuple[Floats, Floats]:
    """t at which rays enter and leave the circle or sphere of that radius; entry is inf for a miss."""
    a = (directions * directions).sum(axis=0)
    b = np.tensordot(origin, directions, 1)
    c = np.float32(origin @ origin - radius * radius)
    discriminant = b * b - a * c
    root = np.sqrt(np.maximum(discriminant, 0))
    entry = np.where(discriminant < 0, np.float32(np.inf), (-b - root) / a)
    return entry, (-b + root) / a


def _convex_hit(entry: Floats, leave: Floats) -> Floats:
    return np.where((entry < leave) & (entry > NEAR_M), entry, np.float32(np.inf))
