# SPDX-License-Identifier: Apache-2.0
"""CutMix (arXiv 1905.04899): a sample gets a rectangle of another one, the same of colour, depth and labels."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from m3l_model.augment import rectangles
from m3l_model.draws import Purpose, StepDraws

_SHARE = 0.5
_AREA = (0.1, 0.4)
_ASPECT = (0.5, 2.0)


class CutMix(NamedTuple):
    """What B samples get of each other.

    Attributes:
        inside: (B, H, W) bool, the rectangles; half of the samples have none.
        source: (B,) int64, the sample each gets its rectangle from.
    """

    inside: Tensor
    source: Tensor

    @classmethod
    def draw(cls, groups: tuple[int, ...], size: tuple[int, int], draws: StepDraws) -> CutMix:
        """Draw rectangles of a tenth to four tenths of the image.

        Args:
            groups: samples of each kind, which is mixed by itself: two neighbours give to each other, and a last one
                without a neighbour stays as it is.
            size: height and width.
            draws: of all samples.
        """
        chosen, area, aspect, row, column = draws.uniform(Purpose.CUTMIX, 5).unbind(1)
        area = _AREA[0] + (_AREA[1] - _AREA[0]) * area
        aspect = _ASPECT[0] + (_ASPECT[1] - _ASPECT[0]) * aspect
        height, width = size
        extent = torch.stack(
            ((area * aspect * width / height).sqrt(), (area / aspect * height / width).sqrt()), 1
        )
        extent = extent.clamp(max=1) * (chosen < _SHARE)[:, None]
        start = torch.stack((row, column), 1) * (1 - extent)
        source, first = [], 0
        for count in groups:
            source += [first + min(i ^ 1, count - 1) for i in range(count)]
            first += count
        return cls(rectangles(height, width, start, extent), torch.tensor(source))

    def of(self, start: int, stop: int) -> CutMix:
        """Give what concerns some of the samples, whole groups."""
        return CutMix(self.inside[start:stop], self.source[start:stop] - start)

    def paste(self, planes: Tensor) -> Tensor:
        """Paste the rectangles into images or labels of all samples, (B, H, W) or (B, C, H, W)."""
        inside = self.inside.to(planes.device)
        if planes.ndim == 4:
            inside = inside[:, None]
        return torch.where(inside, planes[self.source.to(planes.device)], planes)
