# SPDX-License-Identifier: Apache-2.0
"""Synthetic RGB-D video of a furnished room with its labels, deterministic by seed, for demos and tests.

The eight classes are made so that neither colour nor depth is enough by itself:

==================  ===============================================  ====================================
classes             alike in                                         told apart by
==================  ===============================================  ====================================
floor, rug          depth: a rug rises 5 mm, less than the noise     colour: wood or a print
wall, picture       depth: a picture is 5 mm thick                   colour: plain paint or a print
cabinet, crate      depth: boxes of the same sizes and places        colour: wood or plain bright plastic
floor, cabinet      colour: the one wood of the room                 depth: a plane or a box
wall, column        colour: the one paint of the room                depth: a plane or a cylinder
rug, picture, ball  colour: prints drawn from one family             depth: on the floor, a wall, or round
==================  ===============================================  ====================================

As in any room, shading and outlines still hint at shape, and height and place at colour. The ceiling is wall.

The parts: the room (`scene_layout`), its surfaces (`scene_textures`) and light (`scene_light`), the ray caster
(`scene_raycast`), the camera's way (`scene_camera`) and the sensor (`scene_sensor`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m3l_model.errors import M3LError
from m3l_model.scene_camera import camera_matrix
from m3l_model.scene_layout import Room, SceneClass, furnish
from m3l_model.scene_raycast import Floats, Rays
from m3l_model.scene_sensor import expose, measure_depth

__all__ = ["Scene", "SceneClass", "SceneFrame", "camera_matrix", "render"]


class SceneFrame(NamedTuple):
    """One frame: colour (H, W, 3), z-depth (H, W) in mm with 0 for no reading, `SceneClass` ids (H, W)."""

    stamp_offset_ns: int
    """Nanoseconds since frame 0."""
    rgb: npt.NDArray[np.uint8]
    depth_mm: npt.NDArray[np.uint16]
    labels: npt.NDArray[np.uint8]


def render(
    seed: int, frames: int, *, width: int = 320, height: int = 240, rate_hz: float = 10.0
) -> Iterator[SceneFrame]:
    """The first `frames` frames of `Scene(seed)`, taken `rate_hz` times a second."""
    scene = Scene(seed)
    for index in range(frames):
        yield scene.render(index, width=width, height=height, rate_hz=rate_hz)


class Scene:
    """One room. Its frames can be rendered in any order, and in other processes, with the same result."""

    def __init__(self, seed: int) -> None:
        """Raises `M3LError` where the seed is negative."""
        if seed < 0:
            raise M3LError(f"scene seed {seed} is negative: give 0 or more")
        self.seed = seed
        self.room: Room = furnish(np.random.default_rng((seed, 0)))

    def render(self, index: int, *, width: int = 320, height: int = 240, rate_hz: float = 10.0) -> SceneFrame:
        """Frame number `index`: the same bytes for the same seed, index, size and rate.

        Raises `M3LError` where there can be no such frame.
        """
        if index < 0 or min(width, height) < 2 or rate_hz <= 0:
            raise M3LError(
                f"scene frame {index} of {width}x{height} at {rate_hz} Hz: index must be 0 or more, the size at "
                "least 2x2, and the rate above 0"
            )
        rng = np.random.default_rng((self.seed, 1, index))
        time_s = index / rate_hz
        k = camera_matrix(width, height)
        rays = Rays(self.room.path.at(time_s), k, width, height)
        depth, owner = rays.cast(self.room.items)
        radiance, incidence = self._shade(rays, depth, owner)
        labels = np.array([item.label for item in self.room.items], np.uint8)[owner]
        exposure = 1 + 0.12 * math.sin(0.9 * time_s + self.seed) + 0.01 * rng.standard_normal()
        return SceneFrame(
            stamp_offset_ns=round(index * 1e9 / rate_hz),
            rgb=expose(radiance, exposure, rng),
            depth_mm=measure_depth(depth, incidence, float(k[0, 0]), rng),
            labels=labels,
        )

    def _shade(self, rays: Rays, depth: Floats, owner: npt.NDArray[np.int16]) -> tuple[Floats, Floats]:
        """Radiance (3, H, W) and the cosine between ray and surface (H, W), each item's pixels at once."""
        radiance = np.empty((3, depth.size), np.float32)
        incidence = np.empty(depth.size, np.float32)
        items = self.room.items
        ends = np.bincount(owner.ravel(), minlength=len(items)).cumsum()
        groups = np.split(owner.argsort(axis=None, kind="stable"), ends[:-1])
        for item, pixels in zip(items, groups, strict=True):
            if pixels.size:
                distance, directions = depth.ravel()[pixels], rays.directions(item, pixels)
                points = rays.origin(item)[:, None] + distance * directions
                normals, uv = item.shape.surface(points)
                length = np.sqrt(np.square(directions).sum(axis=0))
                cosine = np.abs((normals * directions).sum(axis=0)) / length
                blur = distance / (np.float32(rays.k[0, 0]) * np.maximum(cosine, np.float32(0.1)))
                radiance[:, pixels] = item.texture(uv, blur) * self.room.lighting.on(item, points, normals)
                incidence[pixels] = cosine
        return radiance.reshape(3, *depth.shape), incidence.reshape(depth.shape)
