# SPDX-License-Identifier: Apache-2.0
"""Augment training batches: weakly (geometry, for teacher and student) and strongly (appearance, student only)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Batch(NamedTuple):
    """Frames before normalisation.

    Attributes:
        rgb: (B, H, W, 3) float32 in 0..255.
        depth_m: (B, H, W) float32 metres, 0 where there is no reading.
        labels: (B, H, W) int64 class ids, 255 where unknown.
        missing: (B, 2) bool, [rgb, depth] missing in the recording itself.
    """

    rgb: Tensor
    depth_m: Tensor
    labels: Tensor
    missing: Tensor


def weak(batch: Batch, crop: float, scales: tuple[float, float], generator: torch.Generator) -> Batch:
    """Flip half of the samples, scale each and cut a random window from it.

    Args:
        batch: frames of (H, W).
        crop: height and width of the window as a share of H and W.
        scales: least and greatest magnification; a window never reaches beyond the frame.
        generator: source of the draws.

    Returns:
        Frames of (crop·H, crop·W), rounded.
    """
    count = len(batch.rgb)
    low, high = scales
    zoom = ((low + (high - low) * torch.rand(count, generator=generator)) / crop).clamp(min=1)
    flip = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    shift = (2 * torch.rand(count, 2, generator=generator) - 1) * (1 - 1 / zoom)[:, None]
    affine = torch.zeros(count, 2, 3)
    affine[:, 0, 0] = flip / zoom
    affine[:, 1, 1] = 1 / zoom
    affine[:, :, 2] = shift
    height, width = (round(crop * side) for side in batch.depth_m.shape[1:])
    grid = functional.affine_grid(affine, [count, 1, height, width], align_corners=False)

    def sample(x_BCHW: Tensor, mode: str) -> Tensor:
        return functional.grid_sample(x_BCHW, grid, mode=mode, padding_mode="border", align_corners=False)

    rgb = sample(batch.rgb.permute(0, 3, 1, 2), "bilinear").permute(0, 2, 3, 1)
    planes = sample(torch.stack((batch.depth_m, batch.labels.float()), 1), "nearest")
    return Batch(rgb, planes[:, 0], planes[:, 1].long(), batch.missing)


def strong(batch: Batch, generator: torch.Generator) -> Batch:
    """Disturb appearance: light, contrast, tint and grain of colour; scale, noise and rectangular holes of depth."""
    count, height, width = batch.depth_m.shape

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    mean = batch.rgb.mean((1, 2, 3), keepdim=True)
    gray = batch.rgb.mean(3, keepdim=True)
    rgb = gray + (batch.rgb - gray) * uniform(0.4, 1.6, 1, 1, 1)
    rgb = (rgb - mean) * uniform(0.6, 1.4, 1, 1, 1) + mean * uniform(0.6, 1.4, 1, 1, 1)
    rgb = rgb * uniform(0.85, 1.15, 1, 1, 3)
    rgb = rgb + torch.randn(rgb.shape, generator=generator) * uniform(0, 8, 1, 1, 1)

    depth = batch.depth_m * uniform(0.95, 1.05, 1, 1)
    depth = depth * (1 + torch.randn(depth.shape, generator=generator) * uniform(0, 0.01, 1, 1))
    depth = depth * (batch.depth_m > 0) * ~_rectangles(count, height, width, generator)
    return batch._replace(rgb=rgb.clamp(0, 255), depth_m=depth)


def _rectangles(count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """One random rectangle a sample, up to a third of each side, in half of the samples: (B, H, W) bool."""
    extent = torch.rand(count, 2, generator=generator) / 3 * (torch.rand(count, 1, generator=generator) < 0.5)
    start = torch.rand(count, 2, generator=generator) * (1 - extent)
    rows = torch.arange(height)[None] / height
    columns = torch.arange(width)[None] / width
    in_rows = (rows >= start[:, :1]) & (rows < (start + extent)[:, :1])
    in_columns = (columns >= start[:, 1:]) & (columns < (start + extent)[:, 1:])
    return in_rows[:, :, None] & in_columns[:, None]
