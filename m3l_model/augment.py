# SPDX-License-Identifier: Apache-2.0
"""Augment training batches: weakly (geometry, for teacher and student) and strongly (appearance, student only)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from m3l_model.draws import Purpose, StepDraws
from m3l_model.labels import IGNORE_ID

REFERENCE_SCALES = (0.5, 0.75, 1.0, 1.5, 1.75, 2.0)
"""Magnifications the reference implementation draws from."""


class Batch(NamedTuple):
    """Frames before normalisation.

    Attributes:
        rgb: (B, H, W, 3) float32 in 0..255.
        depth_m: (B, H, W) float32 metres, 0 where there is no reading.
        labels: (B, H, W) int64 class ids, 255 where unknown.
        missing: (B, 2) bool, [rgb, depth] missing in the recording itself.
        depth_limits: (B, 2) float32, of the whole frames as they were recorded.
    """

    rgb: Tensor
    depth_m: Tensor
    labels: Tensor
    missing: Tensor
    depth_limits: Tensor

    def repeated(self, copied: int) -> Batch:
        """Give the batch with a second copy of its first samples, right behind them."""
        return Batch(*(torch.cat((column[:copied], column)) for column in self))


def weak(batch: Batch, crop: float, scales: tuple[float, float], draws: StepDraws) -> Batch:
    """Flip half of the samples, scale each and cut a random window from it.

    Args:
        batch: frames of (H, W).
        crop: height and width of the window as a share of H and W.
        scales: least and greatest magnification; a window never reaches beyond the frame.
        draws: source of the draws.

    Returns:
        Frames of (crop·H, crop·W), rounded.
    """
    low, high = scales
    uniform = draws.uniform(Purpose.WEAK, 4)
    zoom = ((low + (high - low) * uniform[:, 0]) / crop).clamp(min=1)
    height, width = (round(crop * side) for side in batch.depth_m.shape[1:])
    place = (2 * uniform[:, 2:] - 1) * (1 - 1 / zoom)[:, None]
    return _windows(batch, torch.stack((1 / zoom, 1 / zoom), 1), place, uniform[:, 1], (height, width))


def reference_weak(batch: Batch, pixels: int, draws: StepDraws) -> Batch:
    """Do as the reference implementation: flip half of the samples, scale each, cut a square of ``pixels`` at random.

    A frame that is smaller than the square is in its middle. What a window has beyond the frame is 0 in colour and
    depth, and has no label.

    Args:
        batch: frames of (H, W).
        pixels: side of the square.
        draws: source of the draws.
    """
    uniform = draws.uniform(Purpose.WEAK, 4)
    scales = torch.tensor(REFERENCE_SCALES, dtype=torch.float32)[
        (uniform[:, 0] * len(REFERENCE_SCALES)).long()
    ]
    sides = (
        torch.tensor(batch.depth_m.shape[:0:-1])[None] * scales[:, None]
    )  # width, height of the scaled frame
    extent = pixels / sides
    place = (2 * uniform[:, 2:] - 1) * (1 - extent).clamp(min=0)
    return _windows(batch, extent, place, uniform[:, 1], (pixels, pixels))


def _windows(batch: Batch, extent: Tensor, place: Tensor, flip: Tensor, size: tuple[int, int]) -> Batch:
    """Cut a window from each sample and scale it to ``size``; beyond the frame it is 0 and without labels.

    Args:
        batch: the samples.
        extent: (B, 2) width and height of the windows as a share of the frame's.
        place: (B, 2) their middles, x and y, -1 to 1 across the frame.
        flip: (B,) below a half where the window is mirrored.
        size: height and width of the result.
    """
    affine = torch.zeros(len(extent), 2, 3, dtype=extent.dtype)
    affine[:, 0, 0] = torch.where(flip < 0.5, -extent[:, 0], extent[:, 0])
    affine[:, 1, 1] = extent[:, 1]
    affine[:, :, 2] = place
    grid = functional.affine_grid(affine.to(batch.rgb.device), [len(extent), 1, *size], align_corners=False)
    inside = (grid.abs() <= 1).all(3)[:, None]

    def sample(x_BCHW: Tensor, mode: str) -> Tensor:
        return inside * functional.grid_sample(
            x_BCHW, grid, mode=mode, padding_mode="border", align_corners=False
        )

    rgb = sample(batch.rgb.permute(0, 3, 1, 2), "bilinear").permute(0, 2, 3, 1)
    planes = sample(torch.stack((batch.depth_m, batch.labels.float() - IGNORE_ID), 1), "nearest")
    labels = planes[:, 1].round().long() + IGNORE_ID
    return batch._replace(rgb=rgb, depth_m=planes[:, 0], labels=labels)


def strong(batch: Batch, draws: StepDraws) -> Batch:
    """Disturb appearance: light, contrast, tint and grain of colour; scale, noise and rectangular holes of depth."""
    height, width = batch.depth_m.shape[1:]
    device = batch.rgb.device
    uniform = draws.uniform(Purpose.STRONG, 14).to(device)

    def between(low: float, high: float, column: int, count: int = 1) -> Tensor:
        return (low + (high - low) * uniform[:, column : column + count])[:, None, None]

    mean = batch.rgb.mean((1, 2, 3), keepdim=True)
    gray = batch.rgb.mean(3, keepdim=True)
    rgb = gray + (batch.rgb - gray) * between(0.4, 1.6, 0)
    rgb = (rgb - mean) * between(0.6, 1.4, 1) + mean * between(0.6, 1.4, 2)
    rgb = rgb * between(0.85, 1.15, 3, 3)
    noise = draws.normal(Purpose.COLOUR_NOISE, (height, width, 3), device)
    rgb = rgb + noise * between(0, 8, 6)

    depth = batch.depth_m * between(0.95, 1.05, 7)[..., 0]
    noise = draws.normal(Purpose.DEPTH_NOISE, (height, width), device)
    depth = depth * (1 + noise * between(0, 0.01, 8)[..., 0])
    extent = uniform[:, 9:11] / 3 * (uniform[:, 13:] < 0.5)
    depth = depth * (batch.depth_m > 0) * ~rectangles(height, width, uniform[:, 11:13] * (1 - extent), extent)
    return batch._replace(rgb=rgb.clamp(0, 255), depth_m=depth)


def rectangles(height: int, width: int, start_B2: Tensor, extent_B2: Tensor) -> Tensor:
    """Give a rectangle of each sample, (B, height, width) bool.

    Args:
        height, width: of the image.
        start_B2: first row and column, as shares of these.
        extent_B2: sides, likewise; 0 for none.
    """
    rows = torch.arange(height, device=extent_B2.device)[None] / height
    columns = torch.arange(width, device=extent_B2.device)[None] / width
    end = start_B2 + extent_B2
    in_rows = (rows >= start_B2[:, :1]) & (rows < end[:, :1])
    in_columns = (columns >= start_B2[:, 1:]) & (columns < end[:, 1:])
    return in_rows[:, :, None] & in_columns[:, None]
