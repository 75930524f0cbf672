# SPDX-License-Identifier: Apache-2.0
"""Tells whether depth images are registered to the colour images: fusion is pixel by pixel."""

from __future__ import annotations

from typing import Protocol

_REMEDY = (
    "switch on your driver's alignment (RealSense: align_depth.enable, Orbbec: depth_registration) and subscribe to "
    "the aligned depth, or run depth_image_proc's register node"
)
_PIXELS = 1.0
_RELATIVE = 0.01


class CameraInfo(Protocol):
    """The fields of sensor_msgs/CameraInfo that matter here."""

    width: int
    height: int
    k: object
    """Row-major 3x3 intrinsic matrix; all zero where the camera is not calibrated."""


def registration_problem(
    rgb_frame_id: str | None,
    depth_frame_id: str | None,
    rgb_info: CameraInfo | None,
    depth_info: CameraInfo | None,
) -> str | None:
    """Say what speaks against depth being registered to colour, and the way out; None where nothing does.

    Args:
        rgb_frame_id: of the colour images; None where none has come.
        depth_frame_id: of the depth images, likewise.
        rgb_info: the colour camera's; None where none has come.
        depth_info: the depth camera's, likewise.
    """
    if rgb_frame_id is not None and depth_frame_id is not None and rgb_frame_id != depth_frame_id:
        return (
            f"depth is not registered to colour: its frame_id is {depth_frame_id!r}, that of colour {rgb_frame_id!r}; "
            f"{_REMEDY}"
        )
    if rgb_info is not None and depth_info is not None and not _same_view(rgb_info, depth_info):
        return (
            "depth is not registered to colour: its camera_info is not that of colour at another scale; "
            f"{_REMEDY}"
        )
    return None


def scale_of(rgb_size: tuple[int, int], depth_size: tuple[int, int]) -> float | None:
    """Depth pixels for one colour pixel.

    Args:
        rgb_size, depth_size: (width, height) in pixels.

    Returns:
        None where width and height disagree by more than a pixel, or one is 0: no scale turns one into the other.
    """
    if not (all(rgb_size) and all(depth_size)):
        return None
    scale = depth_size[0] / rgb_size[0]
    return scale if abs(depth_size[1] - scale * rgb_size[1]) <= _PIXELS else None


def _same_view(rgb: CameraInfo, depth: CameraInfo) -> bool:
    """Whether the two pinhole cameras differ by a scale only, to within a pixel of the depth image or a percent."""
    scale = scale_of((rgb.width, rgb.height), (depth.width, depth.height))
    if scale is None:
        return False
    rgb_k, depth_k = [list(map(float, info.k)) for info in (rgb, depth)]  # type: ignore[call-overload]
    if not (rgb_k[0] and depth_k[0]):
        return True
    return all(
        abs(depth_k[at] - scale * rgb_k[at]) <= max(_PIXELS, _RELATIVE * abs(depth_k[at]))
        for at in (0, 2, 4, 5)
    )
