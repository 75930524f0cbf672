# SPDX-License-Identifier: Apache-2.0
"""Mix Transformer encoder with Linear Fusion: both modalities as one batch, weights shared but for the LayerNorms.

The MiT encoder is SegFormer's (arXiv 2105.15203); Linear Fusion is section 3.1 of M3L (arXiv 2304.10756).

Shape suffixes: M modalities (2: RGB, depth), B samples, S branches of all samples (2·B, all RGB ones first), R those of
them that are computed (see ``Branches``), N tokens (H·W of the stage), C channels. Tokens travel as ``tokens_RNC``,
contiguous, which is channels-last for the convolutions, so that no layout is ever copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from m3l_model.dropout import SampleDropout

MODALITIES = ("rgb", "depth")
"""Order of the modality axis everywhere."""


@dataclass(frozen=True)
class MitConfig:
    """Widths and depths of one Mix Transformer (SegFormer, table 6)."""

    dims: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int] = (1, 2, 5, 8)
    reductions: tuple[int, int, int, int] = (8, 4, 2, 1)
    mlp_ratio: int = 4
    drop_path: float = 0.1


BACKBONES: dict[str, MitConfig] = {
    "mit_b0": MitConfig((32, 64, 160, 256), (2, 2, 2, 2)),
    "mit_b1": MitConfig((64, 128, 320, 512), (2, 2, 2, 2)),
    "mit_b2": MitConfig((64, 128, 320, 512), (3, 4, 6, 3)),
    "mit_b3": MitConfig((64, 128, 320, 512), (3, 4, 18, 3)),
    "mit_b4": MitConfig((64, 128, 320, 512), (3, 8, 27, 3)),
    "mit_b5": MitConfig((64, 128, 320, 512), (3, 6, 40, 3)),
}


class Branches(NamedTuple):
    """Which branches of a batch are computed: R of the S, in their order.

    Attributes:
        place_R: (R,) int64, of the S.
        depth_R: (R,) bool, those of depth.
        other_R: (R,) int64, which of the R is of the same sample; where none other is, the branch itself.
        shown_S: (S,) int64, which of the R stands for each; for one that is not computed the sample's other one.
    """

    place_R: Tensor
    depth_R: Tensor
    other_R: Tensor
    shown_S: Tensor

    @classmethod
    def all_of(cls, batch: int, device: torch.device) -> Branches:
        """Take both branches of every sample."""
        place_MB = torch.arange(len(MODALITIES) * batch, device=device).view(len(MODALITIES), batch)
        place_R = place_MB.flatten()
        return cls(place_R, place_R >= batch, place_MB.flip(0).flatten(), place_R)

    @classmethod
    def present(cls, missing_B2: Tensor, device: torch.device) -> Branches:
        """Leave out those of what is missing.

        Args:
            missing_B2: (B, 2) bool on the CPU, never both of a sample.
            device: where the branches are computed.
        """
        there_MB = ~missing_B2.T
        place_R = there_MB.flatten().nonzero().flatten()
        row_MB = there_MB.flatten().cumsum(0).view(there_MB.shape) - 1
        shown_MB = torch.where(there_MB, row_MB, row_MB.flip(0))
        other_MB = torch.where(there_MB.flip(0), row_MB.flip(0), row_MB)
        parts = (place_R, place_R >= len(missing_B2), other_MB.flatten()[place_R], shown_MB.flatten())
        return cls(*(part.to(device) for part in parts))


class MixTransformer(nn.Module):
    """Encode RGB and depth together into four feature maps each.

    Args:
        config: widths and depths, one of ``BACKBONES``.
        fusion_ratio: r of Linear Fusion, the share of a branch's own attention output; 1 decouples the branches.
    """

    def __init__(self, config: MitConfig, fusion_ratio: float) -> None:
        super().__init__()
        blocks = sum(config.depths)
        drop_paths = [config.drop_path * index / (blocks - 1) for index in range(blocks)]
        widths = (3, *config.dims)
        self.mask_token = nn.Parameter(torch.empty(config.dims[0]))
        self.stages = nn.ModuleList(
            Stage(
                in_channels=widths[i],
                dim=config.dims[i],
                heads=config.heads[i],
                reduction=config.reductions[i],
                mlp_ratio=config.mlp_ratio,
                drop_paths=drop_paths[sum(config.depths[:i]) : sum(config.depths[: i + 1])],
                fusion_ratio=fusion_ratio,
                patch=(7, 4) if i == 0 else (3, 2),
            )
            for i in range(4)
        )
        nn.init.normal_(self.mask_token, std=0.02)
        self.apply(_init_weights)

    def forward(
        self,
        images_RCHW: Tensor,
        masked_RN1: Tensor,
        branches: Branches,
        alone_RHW1: Sequence[Tensor | None] = (None,) * 4,
    ) -> list[Tensor]:
        """Encode branches of both modalities.

        Args:
            images_RCHW: (R, 3, H, W) float.
            masked_RN1: (R, N, 1) bool with N the stage-1 tokens (or 1, for all of them): True where the mask token
                stands in for what was not seen (M3L, section 3.2).
            branches: what the R are.
            alone_RHW1: for each stage (R, h, w, 1) bool, or (R, 1, 1, 1), True where a branch takes nothing from the
                other one; None: it takes everywhere.

        Returns:
            Four maps (R, h, w, C), at 1/4, 1/8, 1/16 and 1/32 of the input size, rounded up.
        """
        first, *others = self.stages
        maps: list[Tensor] = [
            first(images_RCHW.permute(0, 2, 3, 1), branches, alone_RHW1[0], masked_RN1, self.mask_token)
        ]
        for stage, alone in zip(others, alone_RHW1[1:], strict=True):
            maps.append(stage(maps[-1], branches, alone))
        return maps


class Stage(nn.Module):
    """One resolution of the encoder: patch embedding, transformer blocks, closing LayerNorm."""

    def __init__(
        self,
        in_channels: int,
        dim: int,
        heads: int,
        reduction: int,
        mlp_ratio: int,
        drop_paths: list[float],
        fusion_ratio: float,
        patch: tuple[int, int],
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(in_channels, dim, *patch)
        self.blocks = nn.ModuleList(
            Block(dim, heads, reduction, mlp_ratio, drop_path, fusion_ratio) for drop_path in drop_paths
        )
        self.norm = ModalityLayerNorm(dim)

    def forward(
        self,
        x_RHWC: Tensor,
        branches: Branches,
        alone_RHW1: Tensor | None,
        masked_RN1: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """Map (R, H, W, C) to (R, h, w, C').

        Where ``masked_RN1``, ``mask_token`` replaces what was embedded; where ``alone_RHW1``, a branch takes nothing
        from the other one.
        """
        tokens_RNC, height, width = self.patch_embed(x_RHWC, branches)
        if masked_RN1 is not None and mask_token is not None:
            tokens_RNC = torch.where(masked_RN1, mask_token.to(tokens_RNC.dtype), tokens_RNC)
        alone_RN1 = None if alone_RHW1 is None else alone_RHW1.flatten(1, 2)
        for block in self.blocks:
            tokens_RNC = block(tokens_RNC, height, width, branches, alone_RN1)
        return self.norm(tokens_RNC, branches).unflatten(1, (height, width))


class ModalityLayerNorm(nn.Module):
    """LayerNorm with a weight and bias of its own for each modality, the only parameters the branches do not share."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(len(MODALITIES), dim))
        self.bias = nn.Parameter(torch.zeros(len(MODALITIES), dim))
        self.eps = eps

    def forward(self, x_RNC: Tensor, branches: Branches) -> Tensor:
        depth_R11 = branches.depth_R[:, None, None]
        weight, bias = (torch.where(depth_R11, part[1], part[0]) for part in (self.weight, self.bias))
        return _recomputed(self._normalise, x_RNC, weight, bias)

    def _normalise(self, x_RNC: Tensor, weight_R1C: Tensor, bias_R1C: Tensor) -> Tensor:
        normed = functional.layer_norm(x_RNC, x_RNC.shape[-1:], eps=self.eps)
        return torch.addcmul(bias_R1C, normed, weight_R1C)


class PatchEmbed(nn.Module):
    """Overlapping patches by a strided convolution, then LayerNorm."""

    def __init__(self, in_channels: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel, stride, kernel // 2)
        self.norm = ModalityLayerNorm(dim)

    def forward(self, x_RHWC: Tensor, branches: Branches) -> tuple[Tensor, int, int]:
        """Map (R, H, W, C) to tokens (R, N, C') and their height and width."""
        y_RCHW = self.proj(x_RHWC.permute(0, 3, 1, 2))
        height, width = y_RCHW.shape[-2:]
        tokens = y_RCHW.permute(0, 2, 3, 1).flatten(1, 2)
        return self.norm(tokens, branches), height, width


class Block(nn.Module):
    """Attention, fused across the modalities, then the convolutional MLP, which is not fused."""

    def __init__(
        self, dim: int, heads: int, reduction: int, mlp_ratio: int, drop_path: float, fusion_ratio: float
    ) -> None:
        super().__init__()
        self.norm1 = ModalityLayerNorm(dim)
        self.attn = SpatialReductionAttention(dim, heads, reduction)
        self.norm2 = ModalityLayerNorm(dim)
        self.mlp = MixMlp(dim, dim * mlp_ratio)
        self.drop_path = SampleDropout(drop_path)
        self.fusion_ratio = fusion_ratio

    def forward(
        self,
        tokens_RNC: Tensor,
        height: int,
        width: int,
        branches: Branches,
        alone_RN1: Tensor | None = None,
    ) -> Tensor:
        attended = self.attn(self.norm1(tokens_RNC, branches), height, width, branches)
        fused = linear_fusion(attended, self.fusion_ratio, branches.other_R)
        if alone_RN1 is not None:
            fused = torch.where(alone_RN1, attended, fused)
        tokens_RNC = tokens_RNC + self.drop_path(fused, branches.place_R)
        hidden = self.mlp(self.norm2(tokens_RNC, branches), height, width)
        return tokens_RNC + self.drop_path(hidden, branches.place_R)


def linear_fusion(x_RNC: Tensor, ratio: float, other_R: Tensor) -> Tensor:
    """Mix branches: each keeps ``ratio`` of its own and takes ``1 - ratio`` of the other modality's (M3L, equation 1).

    Args:
        x_RNC: (R, ...) any shape with the branches first.
        ratio: r, in 0..1.
        other_R: of ``Branches``.

    Returns:
        The mixture, of the same shape.
    """
    return ratio * x_RNC + (1 - ratio) * x_RNC.index_select(0, other_R)


class SpatialReductionAttention(nn.Module):
    """Multi-head self-attention whose keys and values are reduced by a strided convolution."""

    def __init__(self, dim: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        self.sr: nn.Conv2d | None = None
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = ModalityLayerNorm(dim)

    def forward(self, x_RNC: Tensor, height: int, width: int, branches: Branches) -> Tensor:
        rows, count, dim = x_RNC.shape
        source_RNC = x_RNC
        if self.sr is not None:
            image = x_RNC.view(rows, height, width, dim).permute(0, 3, 1, 2)
            reduced = self.sr(image).permute(0, 2, 3, 1)
            source_RNC = self.norm(reduced.reshape(rows, -1, dim), branches)
        q = self._split_heads(self.q(x_RNC))
        k, v = (self._split_heads(part) for part in self.kv(source_RNC).chunk(2, dim=-1))
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(rows, count, dim))

    def _split_heads(self, x_RNC: Tensor) -> Tensor:
        return x_RNC.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MixMlp(nn.Module):
    """Linear, 3x3 depth-wise convolution, GELU, Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x_RNC: Tensor, height: int, width: int) -> Tensor:
        x = self.fc1(x_RNC)
        image = x.view(-1, height, width, x.shape[-1]).permute(0, 3, 1, 2)
        x = self.dwconv(image).permute(0, 2, 3, 1).reshape(x.shape)
        return _recomputed(self._project, x)

    def _project(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(x))


def _recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """Apply ``function``; what lies between ``inputs`` and the result is computed again for the gradients, not kept."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


def _init_weights(module: nn.Module) -> None:
    """Initialise as SegFormer does: truncated normal for Linear, fan-out normal for convolutions, zero biases."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=(2.0 / fan_out) ** 0.5)
    if isinstance(module, (nn.Linear, nn.Conv2d)) and module.bias is not None:
        nn.init.zeros_(module.bias)
