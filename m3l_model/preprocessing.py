# SPDX-License-Identifier: Apache-2.0
"""From images to network input, in one place for training, evaluation and the live node.

Two steps: ``to_metres``, ``resize_rgb`` and ``resize_nearest`` (NumPy, one frame: depth to metres with holes as 0, both
to the network's size), and ``Preprocessing.encode`` (torch, a batch, on its device: normalised colour, encoded depth,
validity).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m3l_model.segmenter import MAX_SIZE, MIN_SIZE
from m3l_model.surface_normals import surface_normals

RGB_MEAN = (0.485, 0.456, 0.406)
RGB_STD = (0.229, 0.224, 0.225)
Pixel = TypeVar("Pixel", np.uint8, np.uint16, np.float32)

MAX_DEPTH_MM = 65535
"""The 16-bit value cameras use for "no reading", as they do 0."""


class Inputs(NamedTuple):
    """Network input of a batch: rgb and depth (B, 3, H, W) float32, depth_valid (B, 1, H, W) bool or None."""

    rgb: Tensor
    depth: Tensor
    depth_valid: Tensor | None


@dataclass(frozen=True)
class Preprocessing:
    """What is done to images before the network; kept in the checkpoint.

    Attributes:
        short_side: images are scaled, keeping their aspect, until their shorter side has this many pixels; None: not.
        depth_encoding: ``metric``: a fixed range of metres, so that a pixel's value never depends on another's;
            ``minmax``: the reference's, scaled by each whole image's own minimum and maximum, holes included.
            ``normals``: the metric depth, and the x and y components of ``surface_normals``, a channel each; needs a
            ``short_side``, the scale they are taken at.
        depth_range: nearest and farthest depth of ``metric`` and ``normals``, in metres; what lies beyond is clamped.
        mask_holes: patches without any valid depth get the mask token (only for models trained so).

    Raises:
        ValueError: a field out of range.
    """

    short_side: int | None = None
    depth_encoding: str = "metric"
    depth_range: tuple[float, float] = (0.0, 10.0)
    mask_holes: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "depth_range", tuple(self.depth_range))
        if self.short_side is not None and not MIN_SIZE <= self.short_side <= MAX_SIZE:
            raise ValueError(f"short_side is {self.short_side}; {MIN_SIZE} to {MAX_SIZE} pixels are possible")
        if self.depth_encoding not in ("metric", "minmax", "normals"):
            raise ValueError(
                f"depth_encoding {self.depth_encoding!r} is unknown; choose metric, minmax or normals"
            )
        if self.depth_encoding == "normals" and self.short_side is None:
            raise ValueError("depth_encoding normals needs a short_side, the scale that normals are taken at")
        near, far = self.depth_range
        if not 0 <= near < far:
            raise ValueError(f"depth_range {self.depth_range} must be two rising distances in metres")

    @classmethod
    def reference(cls) -> Preprocessing:
        """The reference implementation's: full resolution, depth scaled per image, holes taken as data."""
        return cls(depth_encoding="minmax")

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Give the network's input (height, width) for images of that size; never below the network's least."""
        short = self.short_side or max(min(height, width), MIN_SIZE)
        scale = short / min(height, width)
        return max(MIN_SIZE, round(height * scale)), max(MIN_SIZE, round(width * scale))

    @property
    def depth_channels(self) -> int:
        """How many of the depth input's three channels differ: all, or 1 where they are equal."""
        return 3 if self.depth_encoding == "normals" else 1

    def encode(self, rgb_BHW3: Tensor, depth_m_BHW: Tensor, limits_B2: Tensor | None = None) -> Inputs:
        """Normalise a batch on the device it is on.

        Args:
            rgb_BHW3: uint8 or float in 0..255.
            depth_m_BHW: float32 metres, 0 where there is no reading.
            limits_B2: ``depth_limits`` of the images that these are cut from; None: these are whole.
        """
        mean, std = _colour_statistics(rgb_BHW3.device)
        rgb = ((rgb_BHW3.float() / 255 - mean) / std).permute(0, 3, 1, 2)
        valid = (depth_m_BHW > 0)[:, None]
        if self.depth_encoding == "minmax":
            limits_B2 = depth_limits(depth_m_BHW) if limits_B2 is None else limits_B2
            depth = self._encode_minmax(depth_m_BHW, limits_B2)[:, None]
        else:
            depth = self._encode_metric(depth_m_BHW)[:, None]
        if self.depth_encoding == "normals":
            assert self.short_side is not None
            normals = 2 * surface_normals(depth_m_BHW, self.short_side)
            depth = torch.cat((depth, torch.where(valid, normals, 0.0)), 1)
        return Inputs(rgb, depth.expand(-1, 3, -1, -1), valid if self.mask_holes else None)

    @staticmethod
    def decode_rgb(rgb_3HW: Tensor) -> npt.NDArray[np.uint8]:
        """Give the image, (H, W, 3), of a normalised colour input."""
        mean, std = _colour_statistics(rgb_3HW.device)
        rgb = (rgb_3HW.permute(1, 2, 0) * std + mean).clamp(0, 1) * 255
        return np.asarray(rgb.round().to(torch.uint8).cpu().numpy())

    def _encode_metric(self, depth_m_BHW: Tensor) -> Tensor:
        """Map the range to -2..2, as wide as normalised colour; holes to 0, its middle."""
        near, far = self.depth_range
        scaled = (depth_m_BHW.clamp(near, far) - near) / (far - near) * 4 - 2
        return torch.where(depth_m_BHW > 0, scaled, 0.0)

    @staticmethod
    def _encode_minmax(depth_m_BHW: Tensor, limits_B2: Tensor) -> Tensor:
        """Map the limits to 0 and 1, and 0 to 0; a constant image to 0 rather than the reference's NaN."""
        low, high = limits_B2[:, :, None, None].unbind(1)
        scaled = (depth_m_BHW - low) / (high - low)
        return torch.where((depth_m_BHW > 0) & (high > low), scaled, 0.0)


def depth_limits(depth_m_BHW: Tensor) -> Tensor:
    """Give each image's least and greatest depth, (B, 2), holes included as 0."""
    return torch.stack((depth_m_BHW.amin((1, 2)), depth_m_BHW.amax((1, 2))), 1)


@functools.cache
@torch.inference_mode(False)
def _colour_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Give mean and deviation once a device: a CUDA graph cannot take them from the host."""
    return torch.tensor(RGB_MEAN, device=device), torch.tensor(RGB_STD, device=device)


def to_metres(depth: npt.NDArray[np.uint16] | npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Convert depth to float32 metres with 0 for every hole.

    Args:
        depth: (H, W) uint16 millimetres (0 and 65535 are holes) or float32 metres (NaN, infinity, 0, negative values,
            and 65.535 and more are holes).

    Raises:
        ValueError: another type or shape.
    """
    _check_depth(depth)
    if depth.dtype == np.uint16:
        valid, scale = depth != MAX_DEPTH_MM, 1e-3
    else:
        with np.errstate(invalid="ignore"):
            valid, scale = (depth > 0) & (depth < np.float32(MAX_DEPTH_MM / 1000)), 1.0
    metres: npt.NDArray[np.float32] = np.zeros(depth.shape, np.float32)
    np.multiply(depth, np.float32(scale), out=metres, where=valid)
    return metres


def has_reading(depth: npt.NDArray[np.uint16] | npt.NDArray[np.float32]) -> bool:
    """Tell whether a depth image, as ``to_metres`` takes it, has anything but holes; most tell by a few pixels.

    Raises:
        ValueError: another type or shape.
    """
    _check_depth(depth)
    return bool(to_metres(depth[::16, ::16]).any() or to_metres(depth).any())


def _check_depth(depth: npt.NDArray[np.generic]) -> None:
    if depth.ndim != 2 or depth.dtype not in (np.uint16, np.float32):
        raise ValueError(
            f"depth must be HxW uint16 millimetres or float32 metres, got {depth.dtype} {depth.shape}"
        )


def resize_rgb(rgb: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Scale (H, W, 3) uint8 to (*size, 3): by area when it shrinks, else bilinear."""
    if rgb.shape[:2] == size:
        return rgb
    shrinks = size[0] < rgb.shape[0]
    return np.asarray(
        cv2.resize(rgb, size[::-1], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR), np.uint8
    )


def resize_nearest(image: npt.NDArray[Pixel], size: tuple[int, int]) -> npt.NDArray[Pixel]:
    """Scale (H, W) depth or labels to ``size`` without mixing neighbours."""
    if image.shape[:2] == size:
        return image
    return np.asarray(cv2.resize(image, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT), image.dtype)
