# SPDX-License-Identifier: Apache-2.0
"""Mix Transformer encoder with Linear Fusion: both modalities as one batch, weights shared but for the LayerNorms.

The MiT encoder is SegFormer's (arXiv 2105.15203); Linear Fusion is section 3.1 of M3L (arXiv 2304.10756).

Shape suffixes: M modalities (2: RGB, depth), B samples, N tokens (H·W of the stage), C channels. Tokens travel as
``tokens_MBNC``, contiguous, which is channels-last for the convolutions, so that no layout is ever copied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

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
        self, images_MBCHW: Tensor, masked_MBN1: Tensor, absent_MBHW1: Sequence[Tensor | None] = (None,) * 4
    ) -> list[Tensor]:
        """Encode both modalities.

        Args:
            images_MBCHW: (2, B, 3, H, W) float, RGB first.
            masked_MBN1: (2, B, N, 1) bool with N the stage-1 tokens (or 1, for all of them): True where the mask
                token stands in for what was not seen (M3L, section 3.2).
            absent_MBHW1: for each stage (2, B, h, w, 1) bool, or (2, B, 1, 1, 1), True where the other branch takes
                nothing from this one; None: it takes everywhere.

        Returns:
            Four maps (2, B, h, w, C), at 1/4, 1/8, 1/16 and 1/32 of the input size, rounded up.
        """
        first, *others = self.stages
        maps: list[Tensor] = [
            first(images_MBCHW.permute(0, 1, 3, 4, 2), absent_MBHW1[0], masked_MBN1, self.mask_token)
        ]
        for stage, absent in zip(others, absent_MBHW1[1:], strict=True):
            maps.append(stage(maps[-1], absent))
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
        x_MBHWC: Tensor,
        absent_MBHW1: Tensor | None,
        masked_MBN1: Tensor | None = None,
        mask_token: Tensor | None = None,
    ) -> Tensor:
        """Map (2, B, H, W, C) to (2, B, h, w, C').

        Where ``masked_MBN1``, ``mask_token`` replaces what was embedded; where ``absent_MBHW1``, the other branch takes
        nothing from this one.
        """
        tokens_MBNC, height, width = self.patch_embed(x_MBHWC)
        if masked_MBN1 is not None and mask_token is not None:
            tokens_MBNC = torch.where(masked_MBN1, mask_token.to(tokens_MBNC.dtype), tokens_MBNC)
        alone_MBN1 = None if absent_MBHW1 is None else absent_MBHW1.flip(0).flatten(2, 3)
        for block in self.blocks:
            tokens_MBNC = block(tokens_MBNC, height, width, alone_MBN1)
        return self.norm(tokens_MBNC).unflatten(2, (height, width))


class ModalityLayerNorm(nn.Module):
    """LayerNorm with a weight and bias of its own for each modality, the only parameters the branches do not share."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(len(MODALITIES), dim))
        self.bias = nn.Parameter(torch.zeros(len(MODALITIES), dim))
        self.eps = eps

    def forward(self, x_MBNC: Tensor) -> Tensor:
        return _recomputed(self._normalise, x_MBNC)

    def _normalise(self, x_MBNC: Tensor) -> Tensor:
        normed = functional.layer_norm(x_MBNC, x_MBNC.shape[-1:], eps=self.eps)
        return torch.addcmul(self.bias[:, None, None], normed, self.weight[:, None, None])


class PatchEmbed(nn.Module):
    """Overlapping patches by a strided convolution, then LayerNorm."""

    def __init__(self, in_channels: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel, stride, kernel // 2)
        self.norm = ModalityLayerNorm(dim)

    def forward(self, x_MBHWC: Tensor) -> tuple[Tensor, int, int]:
        """Map (2, B, H, W, C) to tokens (2, B, N, C') and their height and width."""
        modalities, batch = x_MBHWC.shape[:2]
        y_NCHW = self.proj(x_MBHWC.flatten(0, 1).permute(0, 3, 1, 2))
        height, width = y_NCHW.shape[-2:]
        tokens = y_NCHW.permute(0, 2, 3, 1).reshape(modalities, batch, height * width, -1)
        return self.norm(tokens), height, width


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
        self, tokens_MBNC: Tensor, height: int, width: int, alone_MBN1: Tensor | None = None
    ) -> Tensor:
        attended = self.attn(self.norm1(tokens_MBNC), height, width)
        fused = linear_fusion(attended, self.fusion_ratio)
        if alone_MBN1 is not None:
            fused = torch.where(alone_MBN1, attended, fused)
        tokens_MBNC = tokens_MBNC + self.drop_path(fused)
        return tokens_MBNC + self.drop_path(self.mlp(self.norm2(tokens_MBNC), height, width))


def linear_fusion(x_MBNC: Tensor, ratio: float) -> Tensor:
    """Mix the two modalities: each keeps ``ratio`` of its own and takes ``1 - ratio`` of the other (M3L, equation 1).

    Args:
        x_MBNC: (2, ...) any shape with the modality axis first.
        ratio: r, in 0..1.

    Returns:
        The mixture, of the same shape.
    """
    return ratio * x_MBNC + (1 - ratio) * x_MBNC.flip(0)


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

    def forward(self, x_MBNC: Tensor, height: int, width: int) -> Tensor:
        modalities, batch, count, dim = x_MBNC.shape
        source_MBNC = x_MBNC
        if self.sr is not None:
            image = x_MBNC.view(modalities * batch, height, width, dim).permute(0, 3, 1, 2)
            reduced = self.sr(image).permute(0, 2, 3, 1)
            source_MBNC = self.norm(reduced.reshape(modalities, batch, -1, dim))
        q = self._split_heads(self.q(x_MBNC))
        k, v = (self._split_heads(part) for part in self.kv(source_MBNC).chunk(2, dim=-1))
        y = functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(modalities, batch, count, dim))

    def _split_heads(self, x_MBNC: Tensor) -> Tensor:
        return x_MBNC.flatten(0, 1).unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MixMlp(nn.Module):
    """Linear, 3x3 depth-wise convolution, GELU, Linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x_MBNC: Tensor, height: int, width: int) -> Tensor:
        x = self.fc1(x_MBNC)
        image = x.view(-1, height, width, x.shape[-1]).permute(0, 3, 1, 2)
        x = self.dwconv(image).permute(0, 2, 3, 1).reshape(x.shape)
        return _recomputed(self._project, x)

    def _project(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(x))


def _recomputed(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply ``function``; what lies between ``x`` and its result is computed again for the gradients, not kept."""
    if not torch.is_grad_enabled():
        return function(x)
    result: Tensor = checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
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
