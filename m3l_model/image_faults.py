# SPDX-License-Identifier: Apache-2.0
"""What may be wrong with the images themselves: regions lost, range cut, noise, coarse steps, darkness, blur.

Colour is (H, W, 3) uint8, depth (H, W) uint16 millimetres or float32 metres, 0 where there is no reading; what comes
out is of the same size and type, and shares no memory with what went in.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from m3l_model.preprocessing import to_metres

Rgb = npt.NDArray[np.uint8]
Depth = npt.NDArray[np.uint16] | npt.NDArray[np.float32]

_GRID = (6, 8)
"""Random values a hole's outline is made of, down and across the image."""
_OUTLINE = (48, 64)


def lose_regions_of_depth(depth: Depth, rng: np.random.Generator, share: float) -> Depth:
    """Lose the readings of irregular regions that cover ``share`` of the image."""
    kept = depth.copy()
    kept[_regions(depth.shape, rng, share)] = 0
    return kept


def lose_regions_of_rgb(rgb: Rgb, rng: np.random.Generator, share: float) -> Rgb:
    """Blacken irregular regions that cover ``share`` of the image."""
    kept = rgb.copy()
    kept[_regions(rgb.shape[:2], rng, share)] = 0
    return kept


def cut_range(depth: Depth, nearest: float, farthest: float) -> Depth:
    """Lose what is nearer or farther, in metres."""
    kept = depth.copy()
    metres = to_metres(depth)
    kept[(metres < nearest) | (metres > farthest)] = 0
    return kept


def add_depth_noise(depth: Depth, rng: np.random.Generator, times: float) -> Depth:
    """Add ``times`` the axial noise of a Kinect, whose deviation is 1.2 mm + 1.9 mm (z/m - 0.4)^2 (Nguyen 2012)."""
    metres = to_metres(depth)
    deviation = np.float32(times) * (
        np.float32(0.0012) + np.float32(0.0019) * (metres - np.float32(0.4)) ** 2
    )
    noisy = metres + deviation * rng.standard_normal(depth.shape, np.float32)
    return _as_depth(np.maximum(noisy, np.float32(1e-3)), metres, depth.dtype)


def quantise_disparity(depth: Depth, focal_times_baseline: float) -> Depth:
    """Round depth to whole pixels of disparity of a stereo camera, of a focal length in pixels and a baseline in m."""
    metres = to_metres(depth)
    with np.errstate(divide="ignore"):
        disparity = np.maximum(np.rint(np.float32(focal_times_baseline) / metres), np.float32(1))
    return _as_depth(np.float32(focal_times_baseline) / disparity, metres, depth.dtype)


def darken(rgb: Rgb, rng: np.random.Generator, gain: float, noise: float) -> Rgb:
    """Take a ``gain`` below 1 of the light, and the sensor's noise of a deviation in grey levels."""
    return _add_noise(rgb, rng, gain, noise)


def blur(rgb: Rgb, rng: np.random.Generator, share: float) -> Rgb:
    """Smear along a straight line of any direction, as long as ``share`` of the image's width."""
    length = max(3, round(share * rgb.shape[1])) | 1
    angle = rng.uniform(0, math.pi)
    reach = (length - 1) / 2
    middle = length // 2
    kernel = np.zeros((length, length), np.float32)
    across, down = round(reach * math.cos(angle)), round(reach * math.sin(angle))
    cv2.line(kernel, (middle - across, middle - down), (middle + across, middle + down), (1.0,))
    return np.asarray(cv2.filter2D(rgb, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE), np.uint8)


def add_rgb_noise(rgb: Rgb, rng: np.random.Generator, noise: float) -> Rgb:
    """Add Gaussian noise of a deviation in grey levels."""
    return _add_noise(rgb, rng, 1.0, noise)


def _add_noise(rgb: Rgb, rng: np.random.Generator, gain: float, noise: float) -> Rgb:
    noisy = rng.standard_normal(rgb.shape, np.float32)
    noisy *= np.float32(noise)
    noisy += rgb * np.float32(gain)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def _regions(shape: tuple[int, ...], rng: np.random.Generator, share: float) -> npt.NDArray[np.bool_]:
    """Irregular regions: where a smooth random field is lowest."""
    coarse = cv2.resize(rng.random(_GRID, np.float32), _OUTLINE[::-1], interpolation=cv2.INTER_CUBIC)
    limit = np.float32(np.quantile(coarse, share)) if share > 0 else np.float32(-np.inf)
    field = cv2.resize(coarse, (shape[1], shape[0]), interpolation=cv2.INTER_LINEAR)
    return np.asarray(field < limit)


def _as_depth(
    metres: npt.NDArray[np.float32], before: npt.NDArray[np.float32], dtype: np.dtype[np.uint16 | np.float32]
) -> Depth:
    """Metres as the type the image had, with the holes that were there before."""
    if dtype == np.uint16:
        millimetres = np.clip(np.rint(metres * np.float32(1000)), 1, 65534)
        return np.where(before > 0, millimetres, 0).astype(np.uint16)
    return np.where(before > 0, metres, np.float32(0)).astype(np.float32)
