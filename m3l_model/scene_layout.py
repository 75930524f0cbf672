# SPDX-License-Identifier: Apache-2.0
"""Furnishes a room at random: what stands where, its size, colours and pattern, and the camera's way around it.

Whatever takes up space is covered by discs, rows (x, y, z, radius) of an array, and a new thing is placed where its
discs touch none of those before it. The camera's path is covered first, so that nothing gets in its way.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from m3l_model.scene_camera import CameraPath
from m3l_model.scene_light import Lamp, Lighting
from m3l_model.scene_raycast import Box, Cylinder, Hollow, Item, Sphere
from m3l_model.scene_textures import PRINT_KINDS, Color, Paint, Plastic, Print, Texture, Wood

Doubles = npt.NDArray[np.float64]
Proposal: TypeAlias = "tuple[Item, Doubles]"

CAMERA_CLEARANCE_M = 0.5
RELIEF_M = 0.005
"""How far a rug rises from the floor and a picture from its wall."""

_WALL_GAP_M = 0.02
_BALL_RADII_M = (0.16, 0.36)
_ROUND_SHARE = 0.35
_PLASTIC_HUES = (0.0, 0.17, 0.33, 0.58, 0.83)
_ATTEMPTS = 400
_NOTHING = np.empty((0, 4))
_UP = np.array([0.0, 0.0, 1.0])


class SceneClass(IntEnum):
    """The label ids, in the order of config/labels/demo.yaml."""

    FLOOR = 0
    WALL = 1
    RUG = 2
    PICTURE = 3
    CABINET = 4
    CRATE = 5
    COLUMN = 6
    BALL = 7


@dataclass(frozen=True)
class Room:
    """All that stays the same over the frames. The floor is z = 0 and its centre the origin."""

    half: tuple[float, float]
    height: float
    path: CameraPath
    lighting: Lighting
    items: tuple[Item, ...]


def furnish(rng: np.random.Generator) -> Room:
    """A room with everything in it, drawn from `rng`."""
    half = (rng.uniform(2.4, 2.9), rng.uniform(2.4, 2.9))
    height = rng.uniform(2.4, 2.8)
    path = _camera_path(half, rng)
    standing, lying = _Furnisher(half, height, rng).furnish(path)
    lighting = Lighting(half, [_lamp(half, height, rng) for _ in range(2)], standing)
    return Room(half, height, path, lighting, (*standing, *lying))


class _Furnisher:
    """Draws the things of one room; palettes that several of them share are drawn once."""

    def __init__(self, half: tuple[float, float], height: float, rng: np.random.Generator) -> None:
        self.half, self.height, self.rng = half, height, rng
        self.paint = Paint(_hsv(rng.random(), rng.uniform(0.05, 0.2), rng.uniform(0.65, 0.85)))
        self.wood_hsv = (rng.uniform(0.055, 0.11), rng.uniform(0.3, 0.55), rng.uniform(0.45, 0.7))
        self.boarded = rng.random() < 0.65

    def furnish(self, path: CameraPath) -> tuple[list[Item], list[Item]]:
        """What stands on the floor, out of the camera's way, and all the rest.

        Only balls lie inside the camera's loop, where all else would block the view the whole time.
        """
        rng = self.rng
        columns = [self.column] * rng.integers(2, 5)
        hues = rng.permutation(_PLASTIC_HUES)[: rng.integers(3, 6)].tolist()
        crates = [partial(self.box, SceneClass.CRATE, self.plastic(hue)) for hue in hues]
        cabinets = [partial(self.box, SceneClass.CABINET, self.wood()) for _ in range(rng.integers(3, 6))]
        boxes = [(crates + cabinets)[i] for i in rng.permutation(len(crates) + len(cabinets))]
        way, middle = _path_discs(path), _disc(np.zeros(3), min(path.radii))
        standing, footprints = self.place(columns + boxes, np.concatenate([way, middle]))

        tops = [item for item in standing if isinstance(item.shape, Box)]
        balls = rng.integers(6, 9)
        perched = [self.perched_ball(tops[i]) for i in rng.permutation(len(tops))[: balls // 2]]
        rolling, _ = self.place([self.ball] * (balls - len(perched)), np.concatenate([way, footprints]))
        rugs, _ = self.place([self.rug] * rng.integers(2, 4), _NOTHING)
        pictures, _ = self.place([self.picture] * rng.integers(6, 9), _NOTHING)
        return standing + rolling, [*self.shell(), *perched, *rugs, *pictures]

    def place(self, draws: list[Callable[[], Proposal]], taken: Doubles) -> tuple[list[Item], Doubles]:
        """An item of each draw, in the first place it proposes that is free, and the discs of all of them.

        An item that finds no place in many attempts is left out.
        """
        items, footprints = [], _NOTHING
        for draw in draws:
            for _ in range(_ATTEMPTS):
                item, discs = draw()
                if _clear(discs, taken) and _clear(discs, footprints):
                    items.append(item)
                    footprints = np.concatenate([footprints, discs])
                    break
        return items, footprints

    def shell(self) -> tuple[Item, Item]:
        """The floor, and walls and ceiling; these reach below the floor, so that the two share no surface."""
        slab = 0.05
        floor = Box((*self.half, slab))
        walls = Hollow((*self.half, self.height / 2 + slab))
        return (
            Item(SceneClass.FLOOR, floor, self.wood(), _at(0, 0, -slab), np.eye(3)),
            Item(SceneClass.WALL, walls, self.paint, _at(0, 0, self.height / 2 - slab), np.eye(3)),
        )

    def column(self) -> Proposal:
        """A column near one of the walls."""
        radius = self.rng.uniform(0.16, 0.28)
        rotation, length, away = self.wall()
        along = self.rng.uniform(-1, 1) * (length - radius - _WALL_GAP_M)
        foot = rotation @ _at(along, away - radius - self.rng.uniform(_WALL_GAP_M, 0.8), 0)
        shape = Cylinder(radius, self.height / 2)
        item = Item(SceneClass.COLUMN, shape, self.paint, foot + _at(0, 0, self.height / 2), np.eye(3))
        return item, _disc(foot, radius)

    def box(self, label: SceneClass, texture: Texture) -> Proposal:
        """A cabinet or a crate, of the same sizes, half of them with the back to a wall."""
        wide, deep, high = self.rng.uniform((0.25, 0.2, 0.25), (0.6, 0.34, 0.75)).tolist()
        if self.rng.random() < 0.5:
            rotation, length, away = self.wall()
            along = self.rng.uniform(-1, 1) * (length - wide - _WALL_GAP_M)
            foot = rotation @ _at(along, away - deep - _WALL_GAP_M, 0)
        else:
            rotation = _turn(self.rng.uniform(0, 2 * math.pi))
            foot = self.spot(math.hypot(wide, deep))
        item = Item(label, Box((wide, deep, high)), texture, foot + _at(0, 0, high), rotation)
        return item, _cover(foot, rotation[:, 0], wide, deep)

    def ball(self) -> Proposal:
        radius = self.rng.uniform(*_BALL_RADII_M)
        foot = self.spot(radius + _WALL_GAP_M)
        return self.ball_at(foot + _at(0, 0, radius), radius), _disc(foot, radius)

    def perched_ball(self, box: Item) -> Item:
        """A ball on top of a box, well inside its outline."""
        wide, deep, high = box.shape.half
        radius = min(self.rng.uniform(*_BALL_RADII_M), deep)
        offset = self.rng.uniform(-1, 1) * (wide - radius)
        return self.ball_at(box.center + box.rotation @ _at(offset, 0, high + radius), radius)

    def ball_at(self, center: Doubles, radius: float) -> Item:
        tumbled = _turn(self.rng.uniform(0, 2 * math.pi)) @ _tip(self.rng.uniform(0, math.pi))
        return Item(SceneClass.BALL, Sphere(radius), self.printed(), center, tumbled)

    def rug(self) -> Proposal:
        rise = _at(0, 0, RELIEF_M / 2)
        if self.rng.random() < _ROUND_SHARE:
            radius = self.rng.uniform(0.5, 0.85)
            center, disc = self.spot(radius) + rise, Cylinder(radius, RELIEF_M / 2)
            return Item(SceneClass.RUG, disc, self.printed(), center, np.eye(3)), _disc(center, radius)
        long, short = self.rng.uniform((0.7, 0.4), (1.1, 0.7)).tolist()
        rotation = _turn(self.rng.uniform(0, 2 * math.pi))
        center, sheet = self.spot(math.hypot(long, short)) + rise, Box((long, short, RELIEF_M / 2))
        item = Item(SceneClass.RUG, sheet, self.printed(), center, rotation)
        return item, _cover(center, rotation[:, 0], long, short)

    def picture(self) -> Proposal:
        rotation, length, away = self.wall()
        is_round = self.rng.random() < _ROUND_SHARE
        wide, high = self.rng.uniform(0.3, 0.65, 2).tolist()
        high = wide if is_round else high
        along = self.rng.uniform(-1, 1) * (length - wide)
        center = rotation @ _at(along, away - RELIEF_M / 2, self.rng.uniform(high + 0.2, 1.9 - high / 2))
        if is_round:
            plate = Cylinder(wide, RELIEF_M / 2)
            item = Item(SceneClass.PICTURE, plate, self.printed(), center, rotation @ _tip(math.pi / 2))
            return item, _disc(center, wide)
        canvas = Box((wide, RELIEF_M / 2, high))
        discs = _cover(center, rotation[:, 0], wide, high) if wide > high else _cover(center, _UP, high, wide)
        return Item(SceneClass.PICTURE, canvas, self.printed(), center, rotation), discs

    def wall(self) -> tuple[Doubles, float, float]:
        """A wall: its frame (x along it, y toward it, z up), half its length, its distance from the centre."""
        side = int(self.rng.integers(4))
        length, away = self.half if side % 2 == 0 else self.half[::-1]
        return _turn(side * math.pi / 2), length, away

    def spot(self, margin: float) -> Doubles:
        """A point of the floor at least `margin` from the walls."""
        x, y = (self.rng.uniform(-1, 1) * (half - margin) for half in self.half)
        return _at(x, y, 0)

    def wood(self) -> Wood:
        """The room's wood, each piece a shade of its own."""
        hue, saturation, value = (part * self.rng.uniform(0.9, 1.1) for part in self.wood_hsv)
        return Wood(_hsv(hue, saturation, value), self.rng.uniform(0.08, 0.2) if self.boarded else None)

    def plastic(self, hue: float) -> Plastic:
        hue += self.rng.uniform(-0.03, 0.03)
        color = _hsv(hue, self.rng.uniform(0.75, 0.95), self.rng.uniform(0.65, 0.9))
        return Plastic(color, self.rng.uniform(0.06, 0.15))

    def printed(self) -> Print:
        """Three colours of any hue, a dark, a middling and a light one."""
        values = self.rng.permutation(self.rng.uniform((0.25, 0.5, 0.75), (0.45, 0.7, 0.95))).tolist()
        dark, middle, light = (_hsv(self.rng.random(), self.rng.uniform(0.35, 0.85), v) for v in values)
        first, second = (PRINT_KINDS[i] for i in self.rng.integers(len(PRINT_KINDS), size=2))
        fine, coarse = self.rng.uniform((0.08, 0.2), (0.2, 0.5)).tolist()
        return Print((dark, middle, light), (first, second), (fine, coarse))


def _camera_path(half: tuple[float, float], rng: np.random.Generator) -> CameraPath:
    scale = rng.uniform(0.38, 0.46)
    phases = rng.uniform(0, 2 * math.pi, 4).tolist()
    return CameraPath(
        radii=(half[0] * scale, half[1] * scale),
        period_s=rng.uniform(18, 22),
        clockwise=rng.random() < 0.5,
        height=rng.uniform(1.15, 1.3),
        tilt=rng.uniform(0.24, 0.32),
        sway=rng.uniform(0.25, 0.45),
        phases=(phases[0], phases[1], phases[2], phases[3]),
    )


def _lamp(half: tuple[float, float], height: float, rng: np.random.Generator) -> Lamp:
    x, y = rng.uniform(-0.6, 0.6, 2) * half
    return Lamp(_at(x, y, height - rng.uniform(0.2, 0.5)), rng.uniform(0.3, 0.5))


def _path_discs(path: CameraPath) -> Doubles:
    places = np.array([path.at(time_s).position for time_s in np.linspace(0, path.period_s, 90)])
    places[:, 2] = 0
    return np.column_stack([places, np.full(len(places), CAMERA_CLEARANCE_M)])


def _disc(center: Doubles, radius: float) -> Doubles:
    return np.array([[*center, radius]])


def _cover(center: Doubles, along: Doubles, half_long: float, half_short: float) -> Doubles:
    """Discs that cover a rectangle, in a row along its longer side."""
    count = max(1, math.ceil(half_long / half_short))
    piece = half_long / count
    offsets = (2 * np.arange(count) + 1) * piece - half_long
    return np.column_stack([center + offsets[:, None] * along, np.full(count, math.hypot(piece, half_short))])


def _clear(discs: Doubles, taken: Doubles) -> bool:
    gaps = np.linalg.norm(discs[:, None, :3] - taken[None, :, :3], axis=2)
    return bool((gaps > discs[:, None, 3] + taken[None, :, 3]).all())


def _at(x: float, y: float, z: float) -> Doubles:
    return np.array([x, y, z], np.float64)


def _turn(angle: float) -> Doubles:
    """Rotation about the vertical, z."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _tip(angle: float) -> Doubles:
    """Rotation about x."""
    c, s = math.cos(angle), math.sin(angle)
    return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])


def _hsv(hue: float, saturation: float, value: float) -> Color:
    return colorsys.hsv_to_rgb(hue % 1, saturation, value)
