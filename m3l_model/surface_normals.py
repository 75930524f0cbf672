# SPDX-License-Identifier: Apache-2.0
"""Surface normals from a depth image, by tensor operations alone, as input of a network.

On a plane inverse depth is a linear function of the pixel: its slopes, with the focal length, are the normal, and no
point need be projected. The focal length is not known where only images are at hand; one that lies amidst those of
RGB-D cameras stands in for it, so that the normals of a camera are its own, but alike from frame to frame.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

FOCAL_LENGTH = 1.1
"""Nominal focal length as a multiple of the image's shorter side: a Kinect's is 1.08, a RealSense D435's 0.9 to 1.3."""

_GRID = 120
"""Shorter side, about, of the grid that normals are taken on: between its points the noise of depth averages out."""
_WINDOW = 5
_NEAREST_M = 0.3


def surface_normals(metres_BHW: Tensor, short_side: int) -> Tensor:
    """Give the x and y components of unit normals in the camera's optical frame (REP 103: x right, y down, z forward).

    They point away from the camera: a wall straight ahead has (0, 0), a floor y towards 1, a ceiling towards -1.

    Args:
        metres_BHW: (B, H, W) float32 depth, 0 where there is no reading, of images or of windows cut from them.
        short_side: shorter side of the images, in pixels.

    Returns:
        (B, 2, H, W) float32 in -1..1; 0 where no reading is near.
    """
    height, width = metres_BHW.shape[1:]
    cell = max(1, short_side // _GRID)
    focal = FOCAL_LENGTH * short_side / cell
    seen = (metres_BHW > 0)[:, None]
    inverse = torch.where(seen, 1 / metres_BHW[:, None].clamp(min=_NEAREST_M), 0.0)
    smooth = _mean_of_cells(torch.cat((inverse, seen.to(inverse.dtype)), 1), cell)
    smooth = functional.avg_pool2d(
        functional.pad(smooth, (_WINDOW // 2,) * 4, mode="replicate"), _WINDOW, stride=1
    )
    inverse = smooth[:, :1] / smooth[:, 1:].clamp(min=1e-3)
    padded = functional.pad(inverse, (1, 1, 1, 1), mode="replicate")
    slope_x = (padded[:, :, 1:-1, 2:] - padded[:, :, 1:-1, :-2]) * (focal / 2)
    slope_y = (padded[:, :, 2:, 1:-1] - padded[:, :, :-2, 1:-1]) * (focal / 2)
    y, x = (torch.arange(side, dtype=inverse.dtype, device=inverse.device) for side in inverse.shape[2:])
    x, y = (x - x.mean()) / focal, (y - y.mean())[:, None] / focal
    normal = torch.cat((slope_x, slope_y, inverse - x * slope_x - y * slope_y), 1)
    components = normal[:, :2] / normal.norm(dim=1, keepdim=True).clamp(min=1e-4)
    if cell == 1:
        return components
    fine = functional.interpolate(components, scale_factor=float(cell), mode="bilinear", align_corners=False)
    return fine[:, :, :height, :width]


def _mean_of_cells(planes_BCHW: Tensor, cell: int) -> Tensor:
    """Average squares of ``cell`` pixels; those beyond the edge count as zeros in every plane."""
    if cell == 1:
        return planes_BCHW
    height, width = planes_BCHW.shape[2:]
    padded = functional.pad(planes_BCHW, (0, -width % cell, 0, -height % cell))
    return functional.avg_pool2d(padded, cell)
