# SPDX-License-Identifier: Apache-2.0
"""Raw images to the network's size by tensor operations: on a GPU, and inside an exported model.

They do what ``preprocessing`` does with NumPy and OpenCV; resized colour may differ by one grey level of 256.

The tables of a pair of sizes are kept for good, since CUDA graphs go on using them by their addresses: those of an
image of 480x640 that becomes 120x160 take 0.6 MB, of 1080x1920 that becomes 480x853 9 MB.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from m3l_model import preprocessing
from m3l_model.preprocessing import MAX_DEPTH_MM


def metres(raw_BHW: Tensor) -> Tensor:
    """Turn raw depth to float32 metres, 0 for every hole, as ``preprocessing.to_metres`` does.

    Args:
        raw_BHW: float32 metres, or the bits of uint16 millimetres as int16, in which torch computes everywhere.
    """
    if raw_BHW.dtype == torch.int16:
        millimetres = raw_BHW.int() & MAX_DEPTH_MM
        return torch.where(millimetres == MAX_DEPTH_MM, 0, millimetres).float() * 1e-3
    valid = (raw_BHW > 0) & (raw_BHW < MAX_DEPTH_MM / 1000)
    return torch.where(valid, raw_BHW, torch.zeros_like(raw_BHW))


def resize_rgb(rgb_BHW3: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale (B, H, W, 3) uint8 to float (B, *size, 3) of whole numbers: by area when it shrinks, else bilinear."""
    height, width = rgb_BHW3.shape[1:3]
    if (height, width) == size:
        return rgb_BHW3.float()
    weights = _area_weights if size[0] < height else _linear_weights
    rows, columns = (weights(*pair, rgb_BHW3.device) for pair in ((height, size[0]), (width, size[1])))
    resized_BcHW = rows @ rgb_BHW3.permute(0, 3, 1, 2).float() @ columns.T
    return resized_BcHW.permute(0, 2, 3, 1).round().clamp(0, 255)


def resize_nearest(image_BHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Scale (B, H, W) to (B, *size) without mixing neighbours, as ``preprocessing.resize_nearest`` does."""
    height, width = image_BHW.shape[1:3]
    if (height, width) == size:
        return image_BHW
    rows, columns = (_nearest(*pair, image_BHW.device) for pair in ((height, size[0]), (width, size[1])))
    return image_BHW.index_select(1, rows).index_select(2, columns)


@functools.cache
def _area_weights(source: int, target: int, device: torch.device) -> Tensor:
    """Share of each source pixel in each target pixel: (target, source), rows summing to 1."""
    scale = source / target
    first = torch.arange(target, dtype=torch.float64)[:, None] * scale
    left = torch.arange(source, dtype=torch.float64)
    overlap = torch.minimum(first + scale, left + 1) - torch.maximum(first, left)
    return (overlap.clamp(min=0) / scale).float().to(device)


@functools.cache
def _linear_weights(source: int, target: int, device: torch.device) -> Tensor:
    identity = torch.eye(source)[None]
    return functional.interpolate(identity, target, mode="linear", align_corners=False)[0].T.to(device)


@functools.cache
def _nearest(source: int, target: int, device: torch.device) -> Tensor:
    taken_1T = preprocessing.resize_nearest(np.arange(source, dtype=np.float32)[None], (1, target))
    return torch.from_numpy(taken_1T[0].astype(np.int64)).to(device)
