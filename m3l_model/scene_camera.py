# SPDX-License-Identifier: Apache-2.0
"""Where the scene's camera is and what it sees: intrinsics, a pose, and the way round the room."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

HORIZONTAL_FOV_DEG = 57.0


def camera_matrix(width: int, height: int) -> npt.NDArray[np.float64]:
    """The 3x3 pinhole matrix of a Kinect-like camera: square pixels, centre of the image, no distortion."""
    focal = width / 2 / math.tan(math.radians(HORIZONTAL_FOV_DEG / 2))
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]], np.float64)


class Camera(NamedTuple):
    """A pose in the room (z up, metres); the columns of `rotation` are the axes right, down, forward."""

    rotation: npt.NDArray[np.float64]
    position: npt.NDArray[np.float64]


@dataclass(frozen=True)
class CameraPath:
    """A wobbling ellipse about the room's centre, travelled once a period while looking across the room.

    Everything is a sinusoid of the angle travelled, so that the path is smooth and closed.
    """

    radii: tuple[float, float]
    period_s: float
    clockwise: bool
    height: float
    tilt: float
    sway: float
    phases: tuple[float, float, float, float]

    def at(self, time_s: float) -> Camera:
        start, wobble_phase, sway_phase, bob_phase = self.phases
        angle = start + math.copysign(2 * math.pi * time_s / self.period_s, -1 if self.clockwise else 1)
        wobble = 1 + 0.1 * math.sin(2 * angle + wobble_phase)
        x = self.radii[0] * wobble * math.cos(angle)
        y = self.radii[1] * wobble * math.sin(angle)
        z = self.height + 0.04 * math.sin(3 * angle + bob_phase)
        yaw = math.atan2(-y, -x) + self.sway * math.sin(2 * angle + sway_phase)
        tilt = self.tilt + 0.04 * math.sin(3 * angle + sway_phase)
        forward = np.array(
            [math.cos(yaw) * math.cos(tilt), math.sin(yaw) * math.cos(tilt), -math.sin(tilt)], np.float64
        )
        right = np.array([math.sin(yaw), -math.cos(yaw), 0], np.float64)
        return Camera(np.column_stack([right, np.cross(forward, right), forward]), np.array([x, y, z]))
