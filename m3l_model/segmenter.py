# SPDX-License-Identifier: Apache-2.0
"""The Linear Fusion network: encoder, decoder and the mean of the two branches, whole or with a modality missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from m3l_model.decoder import SegFormerHead
from m3l_model.mit import BACKBONES, MODALITIES, Branches, MixTransformer

if TYPE_CHECKING:
    from m3l_model.checkpoint import Metadata

MIN_SIZE = 32
"""Least height and width of an input image, in pixels."""

MAX_SIZE = 8192
"""Greatest ones that a recipe or an export may ask for."""

RGB_ALONE = (20.0, -20.0)
"""Alpha for which the fused output is the RGB branch's, in models of colour alone."""


class SegmenterOutput(NamedTuple):
    """Logits of the RGB branch, the depth branch and both, each (B, C, H, W)."""

    rgb: Tensor
    depth: Tensor
    fused: Tensor


class LinearFusionSegmenter(nn.Module):
    """RGB-D segmentation that goes on when one modality is missing (M3L, arXiv 2304.10756, sections 3.1 and 3.2).

    Args:
        backbone: one of ``mit_b0`` to ``mit_b5``.
        num_classes: C of the logits.
        fusion_ratio: r of Linear Fusion, in 0..1.
        skip_missing: what is missing takes no part: where one modality has no data, in a whole sample or, in a depth
            hole, in a patch, the other one's branch is alone: it takes nothing from the missing one's, and what it says
            is the output of all three. Else the mask token, which stands in for it, is fused (M3L, section 3.2).

    Attributes:
        metadata: what the checkpoint says of classes, colours and preprocessing; None for a model built by hand.

    Raises:
        ValueError: unknown backbone, fewer than two classes, or a ratio outside 0..1.
    """

    def __init__(
        self,
        backbone: str = "mit_b0",
        num_classes: int = 13,
        fusion_ratio: float = 0.8,
        skip_missing: bool = False,
    ) -> None:
        super().__init__()
        if backbone not in BACKBONES:
            raise ValueError(f"backbone {backbone!r} is unknown; choose one of {', '.join(BACKBONES)}")
        if num_classes < 2:
            raise ValueError(f"num_classes is {num_classes}; at least 2 are needed")
        if not 0 <= fusion_ratio <= 1:
            raise ValueError(f"fusion_ratio is {fusion_ratio}; it must lie in 0..1")
        config = BACKBONES[backbone]
        self.backbone = backbone
        self.num_classes = num_classes
        self.fusion_ratio = fusion_ratio
        self.skip_missing = skip_missing
        self.encoder = MixTransformer(config, fusion_ratio)
        self.decoder = SegFormerHead(config.dims, num_classes)
        self.alpha = nn.Parameter(torch.ones(len(MODALITIES)))
        self.metadata: Metadata | None = None

    def forward(
        self, rgb: Tensor, depth: Tensor, missing: Tensor | None = None, depth_valid: Tensor | None = None
    ) -> SegmenterOutput:
        """Segment a batch.

        Args:
            rgb: (B, 3, H, W) float, normalised; H and W at least 32.
            depth: (B, 3, H, W) float, normalised; three channels.
            missing: (B, 2) bool, [rgb, depth], True where that modality is missing for that sample; what the missing
                input holds then has no influence. None: nothing is missing.
            depth_valid: (B, 1, H, W) bool, False in depth holes: a patch without any valid depth gets the mask token,
                and with ``skip_missing`` takes no part. For models trained with it.

        Returns:
            Logits of both branches and their fused mean, each (B, C, H, W).

        Raises:
            ValueError: shapes or types that do not fit, or, where ``missing`` is on the CPU, a sample with both
                modalities missing.
        """
        logits = self.quarter_logits(rgb, depth, missing, depth_valid)
        return SegmenterOutput(*(upsample(x, rgb.shape[-2:]) for x in logits))

    def quarter_logits(
        self, rgb: Tensor, depth: Tensor, missing: Tensor | None = None, depth_valid: Tensor | None = None
    ) -> SegmenterOutput:
        """Do as ``forward`` does, but leave the logits at a quarter of the input size, (B, C, ceil(H/4), ceil(W/4))."""
        _check_inputs(rgb, depth, missing, depth_valid)
        masked_MBN1 = masked_tokens(rgb, missing, depth_valid)
        images_MBCHW = torch.stack((rgb, depth))
        if missing is not None:  # its tokens are replaced; this keeps a NaN in it out of the gradients too
            images_MBCHW = images_MBCHW.masked_fill(missing.to(rgb.device).T[:, :, None, None, None], 0)
        if self.skip_missing:
            maps = self._encode_present(images_MBCHW, masked_MBN1, missing, depth_valid)
        else:
            branches = Branches.all_of(rgb.shape[0], rgb.device)
            maps = self.encoder(images_MBCHW.flatten(0, 1), masked_MBN1.flatten(0, 1), branches)
        branch_logits = self.decoder(maps)
        rgb_logits, depth_logits = branch_logits.unflatten(0, (len(MODALITIES), -1)).unbind()
        return SegmenterOutput(rgb_logits, depth_logits, self.fuse(rgb_logits, depth_logits))

    def _encode_present(
        self, images_MBCHW: Tensor, masked_MBN1: Tensor, missing: Tensor | None, depth_valid: Tensor | None
    ) -> list[Tensor]:
        """Give the maps of both branches of every sample; where one takes no part, its map is the other's.

        The branches of missing images are not computed where ``missing`` can be read.
        """
        if missing is not None and _readable(missing):
            branches = Branches.present(missing, images_MBCHW.device)
        else:
            branches = Branches.all_of(images_MBCHW.shape[1], images_MBCHW.device)
        absent_MBHW1 = absent_patches(images_MBCHW[0], missing, depth_valid)
        alone_RHW1 = [x.flip(0).flatten(0, 1)[branches.place_R] for x in absent_MBHW1]
        images_RCHW, masked_RN1 = (x.flatten(0, 1)[branches.place_R] for x in (images_MBCHW, masked_MBN1))
        maps = self.encoder(images_RCHW, masked_RN1, branches, alone_RHW1)
        maps = [x.index_select(0, branches.shown_S).unflatten(0, (len(MODALITIES), -1)) for x in maps]
        maps = [torch.where(a, x.flip(0), x) for a, x in zip(absent_MBHW1, maps, strict=True)]
        return [x.flatten(0, 1) for x in maps]

    def fuse(self, rgb_logits: Tensor, depth_logits: Tensor) -> Tensor:
        """Give the mean of both branches' logits, weighted by ``softmax(alpha)``."""
        weight = self.alpha.softmax(0)
        return weight[0] * rgb_logits + weight[1] * depth_logits


def upsample(logits: Tensor, size: tuple[int, int] | torch.Size) -> Tensor:
    """Resize logits (B, C, h, w) to (B, C, *size), bilinear with aligned corners, as the method does."""
    return functional.interpolate(logits, size=tuple(size), mode="bilinear", align_corners=True)


def _check_inputs(rgb: Tensor, depth: Tensor, missing: Tensor | None, depth_valid: Tensor | None) -> None:
    batch, _, height, width = rgb.shape if rgb.ndim == 4 else (0, 0, 0, 0)
    if rgb.ndim != 4 or rgb.shape[1] != 3 or depth.shape != rgb.shape:
        raise ValueError(
            f"rgb and depth must both be (B, 3, H, W), got {tuple(rgb.shape)} and {tuple(depth.shape)}"
        )
    if height < MIN_SIZE or width < MIN_SIZE:
        raise ValueError(f"input is {height}x{width}; height and width must be at least {MIN_SIZE}")
    if depth_valid is not None and (
        depth_valid.dtype != torch.bool or depth_valid.shape != (batch, 1, height, width)
    ):
        raise ValueError(
            f"depth_valid must be bool ({batch}, 1, {height}, {width}), "
            f"got {depth_valid.dtype} {tuple(depth_valid.shape)}"
        )
    if missing is None:
        return
    if missing.dtype != torch.bool or missing.shape != (batch, 2):
        raise ValueError(f"missing must be bool ({batch}, 2), got {missing.dtype} {tuple(missing.shape)}")
    if _readable(missing) and bool(missing.all(dim=1).any()):
        raise ValueError("missing marks both modalities of a sample; at least one must be present")


def _readable(missing: Tensor) -> bool:
    """Tell whether the values can be looked at without waiting for an accelerator, and are not a trace's."""
    return missing.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def masked_tokens(rgb: Tensor, missing: Tensor | None, depth_valid: Tensor | None) -> Tensor:
    """Say which stage-1 tokens the mask token replaces.

    Args:
        rgb: the colour input, (B, 3, H, W): its size, type and device count.
        missing: (B, 2) bool as for ``LinearFusionSegmenter``.
        depth_valid: (B, 1, H, W) bool as for ``LinearFusionSegmenter``.

    Returns:
        (2, B, N, 1) bool with N the stage-1 tokens, or 1 where all are alike.
    """
    if missing is None:
        missing = torch.zeros(rgb.shape[0], len(MODALITIES), dtype=torch.bool, device=rgb.device)
    masked = missing.to(rgb.device).T[:, :, None, None]
    if depth_valid is None:
        return masked
    seen = functional.max_pool2d(depth_valid.to(rgb.dtype), kernel_size=7, stride=4, padding=3)
    holes = (seen == 0).flatten(2).transpose(1, 2)
    return masked | torch.stack((torch.zeros_like(holes), holes))


def absent_patches(rgb: Tensor, missing: Tensor | None, depth_valid: Tensor | None) -> list[Tensor]:
    """Say which patches take no part: those of a missing modality, and those in depth holes where there is colour.

    Args:
        rgb: the colour input, (B, 3, H, W): its size, type and device count.
        missing: (B, 2) bool as for ``LinearFusionSegmenter``.
        depth_valid: (B, 1, H, W) bool as for ``LinearFusionSegmenter``.

    Returns:
        For each of the four stages (2, B, h, w, 1) bool, or (2, B, 1, 1, 1) without ``depth_valid``. Of a patch at most
        one modality is absent.
    """
    if missing is None:
        missing = torch.zeros(rgb.shape[0], len(MODALITIES), dtype=torch.bool, device=rgb.device)
    missing_MB111 = missing.to(rgb.device).T[:, :, None, None, None]
    if depth_valid is None:
        return [missing_MB111] * 4
    no_rgb, no_depth = missing_MB111
    seen_B1HW = depth_valid.to(rgb.dtype)
    absent = []
    for kernel, stride in ((7, 4), (3, 2), (3, 2), (3, 2)):
        seen_B1HW = functional.max_pool2d(seen_B1HW, kernel, stride, kernel // 2)
        holes_BHW1 = (seen_B1HW == 0).permute(0, 2, 3, 1)
        depth = no_depth | (holes_BHW1 & ~no_rgb)
        absent.append(torch.stack((no_rgb.expand_as(depth), depth)))
    return absent
