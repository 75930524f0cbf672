# SPDX-License-Identifier: Apache-2.0
"""SegFormer's all-MLP decoder, arranged so that its wide 1x1 convolution runs before the upsampling, not after."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from m3l_model.dropout import SampleDropout


class SegFormerHead(nn.Module):
    """Merge four feature maps into class logits at the size of the largest.

    The definition (arXiv 2105.15203, section 3.2) projects every map to ``width`` channels, upsamples, concatenates
    (smallest map first) and applies one 1x1 convolution. All of that is linear, and a 1x1 convolution commutes with
    bilinear upsampling, so each map's two projections are multiplied into one and applied at the map's own size: the
    same function for a fraction of the arithmetic.

    Args:
        dims: channels of the four maps, largest map first.
        num_classes: C of the logits.
        width: channels of the merged map.
    """

    def __init__(self, dims: tuple[int, int, int, int], num_classes: int, width: int = 256) -> None:
        super().__init__()
        linears = [nn.Linear(dim, width) for dim in dims]
        self.linears = nn.ModuleList(linears)
        self.fuse = nn.Conv2d(4 * width, width, 1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.dropout = SampleDropout(0.1)
        self.classifier = nn.Conv2d(width, num_classes, 1)
        nn.init.kaiming_normal_(self.fuse.weight, mode="fan_out", nonlinearity="relu")
        nn.init.normal_(self.classifier.weight, std=0.01)
        for linear in linears:
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Decode four maps (B, h_i, w_i, C_i), largest first, to logits (B, num_classes, h_1, w_1)."""
        size = maps[0].shape[1:3]
        fuses = self.fuse.weight.flatten(1).chunk(4, dim=1)[::-1]
        layers = [layer for layer in self.linears if isinstance(layer, nn.Linear)]
        bias = torch.stack([fuse @ layer.bias for fuse, layer in zip(fuses, layers, strict=True)]).sum(0)
        merged: Tensor | None = None
        for x_BHWC, layer, fuse in zip(maps, layers, fuses, strict=True):
            weight = fuse @ layer.weight
            projected = functional.linear(x_BHWC, weight, bias if merged is None else None).permute(
                0, 3, 1, 2
            )
            if merged is None:
                merged = projected
            else:
                merged = merged + functional.interpolate(
                    projected, size=size, mode="bilinear", align_corners=False
                )
        assert merged is not None
        x = functional.relu(self.bn(merged))
        return self.classifier(self.dropout(x))
