# SPDX-License-Identifier: Apache-2.0
"""The Linear Fusion network rearranged for inference: the same function of the same weights, in fewer and larger steps.

Shape suffixes as in mit.py, and P the modalities that are present. Images and tokens are (..., H, W, C) throughout,
which is channels-last for a convolution and a token matrix for a product, so that nothing changes its layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from m3l_model import bf16_attention, onednn, processor
from m3l_model.mit import MODALITIES, Block, MixMlp, MixTransformer, ModalityLayerNorm, Stage
from m3l_model.segmenter import LinearFusionSegmenter, absent_patches, masked_tokens

_CPU_SCRATCH = 6 << 20
"""Bytes of a CPU temporary: half of what is fast on processors with 1 to 2 MB of L2 a core and some L3 beside it."""


class PreparedSegmenter:
    """A trained network made ready for inference; it gives the fused logits only.

    What is rearranged, without changing the function (to rounding):

    - BatchNorm, the projections of the decoder and the weights of the mean of the branches become one matrix for each
      stage and modality, applied before the upsampling. ReLU lets the branches' (positive) weights through, so that
      the classifier runs once, on their sum.
    - Where the three channels of a depth image are equal they are one, and its first convolution's weights their sum.
    - A stage of one attention head has its output projection folded into its values.
    - Where a modality is missing from the whole batch and the model skips what is missing, the other's branch alone is
      computed (on the CPU, where it is known).
    - On the CPU: products run as 1x1 convolutions (oneDNN), the GELU and the residual inside them; where a map is
      large, each modality goes by itself, in place, its MLP and the decoder in bands of rows that stay in the caches.
      Where a modality is missing from the whole batch, its first attention, which then is one vector, is the one
      computed here, once.

    Weights that need no folding are shared with ``model``; a model that is trained further must be prepared anew.

    Args:
        model: the network, in eval mode, on its device.
        dtype: of weights and activations; float64 and float32 on any device.
    """

    def __init__(self, model: LinearFusionSegmenter, dtype: torch.dtype = torch.float32) -> None:
        self.device = model.alpha.device
        self.dtype = dtype
        self._skip_missing = model.skip_missing
        with torch.no_grad():
            self._decoder = _Decoder(model, dtype)
            self._encoder = _Encoder(model.encoder, dtype)

    def __call__(
        self,
        rgb_B3HW: Tensor,
        depth_BcHW: Tensor,
        missing: Tensor,
        depth_valid: Tensor | None = None,
    ) -> Tensor:
        """Segment a batch.

        Args:
            rgb_B3HW: normalised, any float type.
            depth_BcHW: encoded; of a depth image with three equal channels one is enough.
            missing: (B, 2) bool, [rgb, depth]; on the CPU, where it is read, for a network on the CPU.
            depth_valid: (B, 1, H, W) bool, False in holes, for models trained with masked holes.

        Returns:
            Fused logits (B, ceil(H/4), ceil(W/4), C) in the network's type.
        """
        masked = masked_tokens(rgb_B3HW, missing, depth_valid)
        absent, whole = [False, False], False
        if self.device.type == "cpu":
            absent = [bool(column.all()) for column in missing.unbind(1)]
            whole = not masked.any()
        images = [rgb_B3HW.to(self.dtype), depth_BcHW.to(self.dtype)]
        if whole or not self._skip_missing:
            return self._decoder(self._encoder(images, masked, absent))
        if any(absent):
            own = absent.index(False)
            return self._decoder(self._encoder.one(images[own], masked[own], own))
        return self._decoder(self._skipping(images, masked, absent_patches(rgb_B3HW, missing, depth_valid)))

    def _skipping(self, images: list[Tensor], masked: Tensor, absent: list[Tensor]) -> list[Tensor]:
        """Encode patch by patch without what is absent; where that is, a map is the other modality's."""
        taken = [(~each.flip(0)).to(self.dtype) for each in absent]
        maps = self._encoder(images, masked, [False, False], taken)
        for absent_MBHW1, x_MBHWC in zip(absent, maps, strict=True):
            for own, other in ((0, 1), (1, 0)):
                x_MBHWC[own] = torch.where(absent_MBHW1[own], x_MBHWC[other], x_MBHWC[own])
        return maps


class _Linear(NamedTuple):
    """Weight (out, in, 1, 1) and bias (out,) of a product along the channels."""

    weight: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> _Linear:
        return cls(
            weight.detach().to(dtype)[:, :, None, None], None if bias is None else bias.detach().to(dtype)
        )

    def __call__(self, x_BHWC: Tensor) -> Tensor:
        if x_BHWC.is_cuda:
            return functional.linear(x_BHWC, self.weight.flatten(1), self.bias)
        return functional.conv2d(x_BHWC.permute(0, 3, 1, 2), self.weight, self.bias).permute(0, 2, 3, 1)

    def add_to(self, x_BHWC: Tensor, y_BHWC: Tensor) -> None:
        """Add the product of ``y_BHWC`` to ``x_BHWC``."""
        if x_BHWC.is_cuda or not onednn.available(x_BHWC.dtype):
            x_BHWC.add_(self(y_BHWC))
            return
        onednn.add_product(x_BHWC.permute(0, 3, 1, 2), y_BHWC.permute(0, 3, 1, 2), self.weight, self.bias)


class _Conv(NamedTuple):
    """A convolution of channels-last images."""

    weight: Tensor
    bias: Tensor
    stride: int
    padding: int
    groups: int = 1

    @classmethod
    def of(cls, conv: torch.nn.Module, dtype: torch.dtype, weight: Tensor | None = None) -> _Conv:
        assert isinstance(conv, torch.nn.Conv2d)
        assert conv.bias is not None
        weight = (conv.weight if weight is None else weight).detach().to(dtype)
        return cls(
            weight if conv.groups > 1 else _channels_last(weight),
            conv.bias.detach().to(dtype),
            conv.stride[0],
            int(conv.padding[0]),
            conv.groups,
        )

    def __call__(self, x_BHWC: Tensor) -> Tensor:
        image = x_BHWC.permute(0, 3, 1, 2)
        y = functional.conv2d(image, self.weight, self.bias, self.stride, self.padding, groups=self.groups)
        return y.permute(0, 2, 3, 1)

    def with_gelu(self, x_BHWC: Tensor) -> Tensor:
        """Give the GELU of the convolution, whose stride is 1."""
        if x_BHWC.is_cuda or not onednn.available(x_BHWC.dtype):
            return functional.gelu(self(x_BHWC))
        image = x_BHWC.permute(0, 3, 1, 2)
        y = onednn.conv_gelu(image, self.weight, self.bias, self.padding, self.groups)
        return y.permute(0, 2, 3, 1)


def _channels_last(weight: Tensor) -> Tensor:
    """Lay a convolution's weight out as (out, h, w, in), whose strides then tell the result's layout.

    Of one channel ``contiguous(memory_format=torch.channels_last)`` leaves the strides as they are.
    """
    return weight.permute(0, 2, 3, 1).clone(memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


class _Norm:
    """LayerNorm with a weight and bias for each modality."""

    def __init__(self, norm: ModalityLayerNorm, dtype: torch.dtype) -> None:
        self.weight = norm.weight.detach().to(dtype)
        self.bias = norm.bias.detach().to(dtype)
        self.eps = norm.eps

    def __call__(self, x_PBHWC: Tensor, present: slice) -> Tensor:
        shape = x_PBHWC.shape[-1:]
        if len(x_PBHWC) == 1:
            return functional.layer_norm(x_PBHWC, shape, *self.of(present.start), self.eps)
        normed = functional.layer_norm(x_PBHWC, shape, eps=self.eps)
        return torch.addcmul(self.bias[:, None, None, None], normed, self.weight[:, None, None, None])

    def of(self, modality: int) -> tuple[Tensor, Tensor]:
        return self.weight[modality], self.bias[modality]


_BOTH = slice(0, len(MODALITIES))
_EACH = [slice(modality, modality + 1) for modality in range(len(MODALITIES))]


class _Attention:
    """Attention with spatial reduction, before its output projection and the fusion."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        attn = block.attn
        self.heads = attn.heads
        self.norm1 = _Norm(block.norm1, dtype)
        self.q = _Linear.of(attn.q.weight, attn.q.bias, dtype)
        self.sr = None if attn.sr is None else _Conv.of(attn.sr, dtype)
        self.norm = None if attn.sr is None else _Norm(attn.norm, dtype)
        kv_weight: Tensor = attn.kv.weight
        kv_bias: Tensor = attn.kv.bias
        proj = attn.proj
        self.proj: _Linear | None = None
        if self.heads == 1:  # softmax rows sum to 1, so that bias and projection may come before it
            k_weight, v_weight = kv_weight.chunk(2)
            k_bias, v_bias = kv_bias.chunk(2)
            kv_weight = torch.cat((k_weight, proj.weight @ v_weight))
            kv_bias = torch.cat((k_bias, proj.weight @ v_bias + proj.bias))
        else:
            self.proj = _Linear.of(proj.weight, proj.bias, dtype)
        self.kv = _Linear.of(kv_weight, kv_bias, dtype)
        self._attend = _flash_attention if attn.q.weight.is_cuda else _attention_on_cpu(dtype)

    def __call__(self, x_PBHWC: Tensor, present: slice = _BOTH) -> Tensor:
        shape = x_PBHWC.shape
        normed_PBHWC = self.norm1(x_PBHWC, present)
        normed_NHWC = normed_PBHWC.flatten(0, 1)
        source_NHWC = normed_NHWC
        if self.sr is not None and self.norm is not None:
            reduced_NHWC = self.sr(normed_NHWC)
            source_NHWC = self.norm(reduced_NHWC.unflatten(0, shape[:2]), present).flatten(0, 1)
        q = self._split_heads(self.q(normed_NHWC))
        k, v = (self._split_heads(part) for part in self.kv(source_NHWC).chunk(2, dim=-1))
        return self._attend(q, k, v).reshape(shape)

    def project(self, y_PBHWC: Tensor) -> Tensor:
        if self.proj is None:
            return y_PBHWC
        return self.proj(y_PBHWC.flatten(0, 1)).reshape(y_PBHWC.shape)

    def _split_heads(self, x_NHWC: Tensor) -> Tensor:
        """Give (N, tokens, heads, channels of a head)."""
        return x_NHWC.flatten(1, 2).unflatten(-1, (self.heads, -1))


def _flash_attention(q_NTHD: Tensor, k_NSHD: Tensor, v_NSHD: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_NTHD, k_NSHD, v_NSHD))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)


def _attention_on_cpu(dtype: torch.dtype) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Give what is faster: torch's kernel gains from bf16 where the processor has AMX, and only there."""
    if dtype == torch.bfloat16 and onednn.available(dtype) and not processor.multiplies_bf16_tiles():
        return bf16_attention.attention
    return _flash_attention


class _Mlp:
    """LayerNorm, Linear, depth-wise convolution, GELU, Linear and the residual."""

    def __init__(self, norm2: ModalityLayerNorm, mlp: MixMlp, dtype: torch.dtype) -> None:
        self.norm2 = _Norm(norm2, dtype)
        self.fc1 = _Linear.of(mlp.fc1.weight, mlp.fc1.bias, dtype)
        self.dwconv = _Conv.of(mlp.dwconv, dtype)
        self.fc2 = _Linear.of(mlp.fc2.weight, mlp.fc2.bias, dtype)

    def add_to(self, x_PBHWC: Tensor, present: slice) -> None:
        """Add to every modality at once."""
        hidden = self._hidden(self.norm2(x_PBHWC, present).flatten(0, 1))
        self.fc2.add_to(x_PBHWC.flatten(0, 1), hidden)

    def add_in_bands(self, x_BHWC: Tensor, modality: int) -> None:
        """Add to one modality, in bands of rows that stay in the caches."""
        height, width = x_BHWC.shape[1:3]
        bands = _bands(height, width * len(self.fc1.weight) * x_BHWC.element_size())
        for x_1HWC in x_BHWC.split(1):
            normed = self._normed(x_1HWC, modality, bands[0])
            for (first, last), following in zip(bands, [*bands[1:], None], strict=True):
                # The next band looks at a row of this one as it was.
                ahead = normed if following is None else self._normed(x_1HWC, modality, following)
                top = max(first - 1, 0)
                self.fc2.add_to(x_1HWC[:, first:last], self._hidden(normed)[:, first - top : last - top])
                normed = ahead

    def _normed(self, x_1HWC: Tensor, modality: int, band: tuple[int, int]) -> Tensor:
        """Normalise a band and the rows above and below, which the convolution looks at."""
        first, last = band
        rows = x_1HWC[None, :, max(first - 1, 0) : last + 1]
        return self.norm2(rows, _EACH[modality])[0]

    def _hidden(self, normed_NHWC: Tensor) -> Tensor:
        return self.dwconv.with_gelu(self.fc1(normed_NHWC))


class _Block:
    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        self.attention = _Attention(block, dtype)
        self.mlp = _Mlp(block.norm2, block.mlp, dtype)
        self.ratio = block.fusion_ratio

    def __call__(self, x_PBHWC: Tensor, present: slice = _BOTH, taken_MBHW1: Tensor | None = None) -> None:
        """Do the block in place; of the other modality it takes all, or ``taken_MBHW1``, 0 or 1, of its share."""
        if len(x_PBHWC) == 1:
            self._attend_alone(x_PBHWC, present)
        else:
            self._attend(x_PBHWC, taken_MBHW1)
        self.add_mlp(x_PBHWC, present)

    def _attend_alone(self, x_1BHWC: Tensor, present: slice) -> None:
        self._add_projected(x_1BHWC[0], self.attention(x_1BHWC, present)[0])

    def _attend(self, x_MBHWC: Tensor, taken_MBHW1: Tensor | None) -> None:
        if self._whole(x_MBHWC):
            attended_MBHWC = self.attention.project(self.attention(x_MBHWC))
            if taken_MBHW1 is not None:
                share = taken_MBHW1 * (1 - self.ratio)
                x_MBHWC.add_(torch.lerp(attended_MBHWC, attended_MBHWC.flip(0), share))
                return
            x_MBHWC.add_(attended_MBHWC, alpha=self.ratio)
            for own, other in ((0, 1), (1, 0)):
                x_MBHWC[own].add_(attended_MBHWC[other], alpha=1 - self.ratio)
            return
        attended = [self.attention(x_MBHWC[part], part)[0] for part in _EACH]
        for own, other in ((0, 1), (1, 0)):
            if taken_MBHW1 is None:
                mixed = torch.lerp(attended[other], attended[own], self.ratio)
            else:
                mixed = torch.lerp(attended[own], attended[other], taken_MBHW1[own] * (1 - self.ratio))
            self._add_projected(x_MBHWC[own], mixed)

    def _add_projected(self, x_BHWC: Tensor, attended_BHWC: Tensor) -> None:
        if self.attention.proj is None:
            x_BHWC.add_(attended_BHWC)
        else:
            self.attention.proj.add_to(x_BHWC, attended_BHWC)

    def add_mlp(self, x_PBHWC: Tensor, present: slice = _BOTH) -> None:
        if self._whole(x_PBHWC):
            self.mlp.add_to(x_PBHWC, present)
            return
        for modality, x_BHWC in enumerate(x_PBHWC, present.start):
            self.mlp.add_in_bands(x_BHWC, modality)

    def _whole(self, x_PBHWC: Tensor) -> bool:
        """Tell whether the modalities go as one batch: on a GPU, and where the hidden layer of all is small."""
        hidden = x_PBHWC.numel() // x_PBHWC.shape[-1] * len(self.mlp.fc1.weight)
        return x_PBHWC.is_cuda or hidden * x_PBHWC.element_size() <= _CPU_SCRATCH


class _Stage:
    def __init__(self, stage: Stage, dtype: torch.dtype) -> None:
        self.embed = _Conv.of(stage.patch_embed.proj, dtype)
        self.embed_norm = _Norm(stage.patch_embed.norm, dtype)
        self.blocks = [_Block(block, dtype) for block in stage.blocks if isinstance(block, Block)]
        self.norm = _Norm(stage.norm, dtype)

    def __call__(self, x_PBHWC: Tensor, present: slice, taken_MBHW1: Tensor | None) -> Tensor:
        embedded = self.embed(x_PBHWC.flatten(0, 1)).unflatten(0, x_PBHWC.shape[:2])
        return self.finish(self.embed_norm(embedded, present), self.blocks, present, taken_MBHW1)

    def finish(
        self,
        x_PBHWC: Tensor,
        blocks: list[_Block],
        present: slice = _BOTH,
        taken_MBHW1: Tensor | None = None,
    ) -> Tensor:
        for block in blocks:
            block(x_PBHWC, present, taken_MBHW1)
        return self.norm(x_PBHWC, present)


class _Encoder:
    """Stage 1 treats each modality by itself until they are fused: one may be missing."""

    def __init__(self, encoder: MixTransformer, dtype: torch.dtype) -> None:
        stages = [stage for stage in encoder.stages if isinstance(stage, Stage)]
        self.first, *self.others = [_Stage(stage, dtype) for stage in stages]
        proj = stages[0].patch_embed.proj
        self.embed_equal_channels = _Conv.of(proj, dtype, weight=proj.weight.sum(1, keepdim=True))
        self.mask_token = encoder.mask_token.detach().to(dtype)
        # The attention of tokens that are all the same is the same for every token, whatever the image's size.
        reduction = (
            1 if self.first.blocks[0].attention.sr is None else self.first.blocks[0].attention.sr.stride
        )
        tokens = self.mask_token.expand(1, 1, reduction, reduction, -1).contiguous()
        self.masked_attention = [
            self.first.blocks[0].attention.project(self.first.blocks[0].attention(tokens, part))[0, 0, 0, 0]
            for part in _EACH
        ]

    def __call__(
        self,
        images: list[Tensor],
        masked_MBN1: Tensor,
        absent: list[bool],
        taken_MBHW1: Sequence[Tensor | None] = (None,) * 4,
    ) -> list[Tensor]:
        """Give four maps (2, B, h, w, C); ``taken_MBHW1`` of each stage is as for its blocks."""
        first_MBHWC = self._first_stage(images, masked_MBN1, absent, taken_MBHW1[0])
        return self._others(first_MBHWC, _BOTH, taken_MBHW1[1:])

    def one(self, image_BCHW: Tensor, masked_BN1: Tensor, own: int) -> list[Tensor]:
        """Give four maps (1, B, h, w, C) of one modality that is alone."""
        embedded_1BHWC = self._embed(image_BCHW, own, masked_BN1)[None]
        first_1BHWC = self.first.finish(embedded_1BHWC, self.first.blocks, _EACH[own])
        return self._others(first_1BHWC, _EACH[own], (None,) * 3)

    def _others(
        self, first_PBHWC: Tensor, present: slice, taken_MBHW1: Sequence[Tensor | None]
    ) -> list[Tensor]:
        maps = [first_PBHWC]
        for stage, taken in zip(self.others, taken_MBHW1, strict=True):
            maps.append(stage(maps[-1], present, taken))
        return maps

    def _first_stage(
        self, images: list[Tensor], masked_MBN1: Tensor, absent: list[bool], taken_MBHW1: Tensor | None
    ) -> Tensor:
        if any(absent):
            own = absent.index(False)
            x_BHWC = self._embed(images[own], own, masked_MBN1[own])
            x_MBHWC = self._first_block_with_one(x_BHWC, own)
            return self.first.finish(x_MBHWC, self.first.blocks[1:])
        embedded = [self._embed(images[m], m, masked_MBN1[m]) for m in range(len(MODALITIES))]
        return self.first.finish(torch.stack(embedded), self.first.blocks, taken_MBHW1=taken_MBHW1)

    def _embed(self, image_BCHW: Tensor, modality: int, masked_BN1: Tensor) -> Tensor:
        embed = self.embed_equal_channels if image_BCHW.shape[1] == 1 else self.first.embed
        y_BHWC = embed(image_BCHW.permute(0, 2, 3, 1))
        weight, bias = self.first.embed_norm.of(modality)
        tokens = functional.layer_norm(y_BHWC, y_BHWC.shape[-1:], weight, bias, self.first.embed_norm.eps)
        if masked_BN1.device.type == "cpu" and not masked_BN1.any():
            return tokens
        batch, height, width, _ = tokens.shape
        if masked_BN1.shape[1] == 1:
            masked = masked_BN1[..., None]
        else:
            masked = masked_BN1.reshape(batch, height, width, 1)
        return torch.where(masked, self.mask_token, tokens)

    def _first_block_with_one(self, x_BHWC: Tensor, own: int) -> Tensor:
        """Do the first block where only modality ``own`` was seen: the other is the mask token everywhere."""
        block, other = self.first.blocks[0], 1 - own
        attended_BHWC = block.attention.project(block.attention(x_BHWC[None], _EACH[own]))[0]
        constant = self.masked_attention[other]
        x_MBHWC = x_BHWC.new_empty(len(MODALITIES), *x_BHWC.shape)
        torch.add(x_BHWC + (1 - block.ratio) * constant, attended_BHWC, alpha=block.ratio, out=x_MBHWC[own])
        token = self.mask_token + block.ratio * constant
        torch.add(token, attended_BHWC, alpha=1 - block.ratio, out=x_MBHWC[other])
        block.add_mlp(x_MBHWC)
        return x_MBHWC


class _Decoder:
    """SegFormer's decoder and the mean of the two branches, all that is linear multiplied out."""

    def __init__(self, model: LinearFusionSegmenter, dtype: torch.dtype) -> None:
        head = model.decoder
        bn = head.bn
        assert bn.running_var is not None
        assert bn.running_mean is not None
        scale = bn.weight / torch.sqrt(bn.running_var + bn.eps)
        fuses = head.fuse.weight.flatten(1).chunk(4, dim=1)[::-1]
        shift = bn.bias - bn.running_mean * scale
        layers = [layer for layer in head.linears if isinstance(layer, torch.nn.Linear)]
        shift = shift + scale * sum(fuse @ layer.bias for fuse, layer in zip(fuses, layers, strict=True))
        self.projections, self.alone = (
            [
                [
                    _Linear.of(
                        share * scale[:, None] * (fuse @ layer.weight),
                        share * shift if i == 0 else None,
                        dtype,
                    )
                    for i, (fuse, layer) in enumerate(zip(fuses, layers, strict=True))
                ]
                for share in shares
            ]
            for shares in (model.alpha.softmax(0), torch.ones_like(model.alpha[:1]))
        )
        classifier = head.classifier
        self.classifier = _Linear.of(classifier.weight.flatten(1), classifier.bias, dtype)
        self._rows: dict[tuple[int, int], Tensor] = {}

    def __call__(self, maps_PBHWC: list[Tensor]) -> Tensor:
        """Give logits (B, h, w, C) of both modalities, or of one, which then weighs 1, whatever its share."""
        if maps_PBHWC[0].is_cuda:
            return self._whole(maps_PBHWC)
        modalities, batch = maps_PBHWC[0].shape[:2]
        branches = self.projections if modalities == len(MODALITIES) else self.alone
        return torch.stack([self._banded([x[:, i] for x in maps_PBHWC], branches) for i in range(batch)])

    def _whole(self, maps_MBHWC: list[Tensor]) -> Tensor:
        size = maps_MBHWC[0].shape[2:4]
        branches = []
        for modality, projections in enumerate(self.projections):
            merged, *others = (
                projection(x[modality]).permute(0, 3, 1, 2)
                for projection, x in zip(projections, maps_MBHWC, strict=True)
            )
            for x in others:
                merged = merged + functional.interpolate(x, size, mode="bilinear", align_corners=False)
            branches.append(functional.relu(merged))
        return self.classifier((branches[0] + branches[1]).permute(0, 2, 3, 1))

    def _banded(self, maps_PHWC: list[Tensor], branches: list[list[_Linear]]) -> Tensor:
        """Decode one sample: the smaller maps are projected, then interpolated into each band of the largest."""
        largest = maps_PHWC[0]
        height, width = largest.shape[1:3]
        projected = [
            [projection(x[i : i + 1]) for projection, x in zip(projections[1:], maps_PHWC[1:], strict=True)]
            for i, projections in enumerate(branches)
        ]
        logits = largest.new_empty(height, width, len(self.classifier.weight))
        row_bytes = width * self.classifier.weight.shape[1] * largest.element_size()
        for first, last in _bands(height, row_bytes):
            hidden, *others = (
                self._band(largest[i : i + 1, first:last], projections[0], projected[i], first, height)
                for i, projections in enumerate(branches)
            )
            for other in others:
                hidden.add_(other)
            logits[first:last] = self.classifier(hidden.view(1, last - first, width, -1))[0]
        return logits

    def _band(
        self, x_1HWC: Tensor, projection: _Linear, projected: list[Tensor], first: int, height: int
    ) -> Tensor:
        """Merge the maps of one modality in the rows of ``x_1HWC``, which begins at ``first`` of ``height``.

        ``projection`` is that of the largest map; the smaller ones, ``projected``, have been through theirs.
        """
        rows, width = x_1HWC.shape[1:3]
        mixing, wide = [], []
        for source_1HWC in projected:
            count = source_1HWC.shape[1]
            low = max(0, math.floor((first + 0.5) * count / height - 0.5))
            high = min(count, math.floor((first + rows - 0.5) * count / height - 0.5) + 2)
            mixing.append(self._row_weights(height, count, x_1HWC)[first : first + rows, low:high])
            wide.append(self._widen(source_1HWC[:, low:high], width))
        merged = projection(x_1HWC).reshape(rows, -1)
        return merged.addmm_(torch.cat(mixing, 1), torch.cat(wide)).relu_()

    @staticmethod
    def _widen(x_1HWC: Tensor, width: int) -> Tensor:
        """Interpolate along the rows only: (1, H, W, C) to a matrix (H, width * C)."""
        height = x_1HWC.shape[1]
        size = (height, width)
        y = functional.interpolate(x_1HWC.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False)
        return y.permute(0, 2, 3, 1).reshape(height, -1)

    def _row_weights(self, height: int, source: int, like: Tensor) -> Tensor:
        """Give the matrix (height, source) of bilinear interpolation along the columns."""
        key = (height, source)
        if key not in self._rows:
            identity = torch.eye(source, dtype=torch.float64)[None]
            rows = functional.interpolate(identity, height, mode="linear", align_corners=False)[0].T
            self._rows[key] = rows.to(like).contiguous()
        return self._rows[key]


def _bands(height: int, row_bytes: int) -> list[tuple[int, int]]:
    """Cut rows into equal bands of at most ``_CPU_SCRATCH`` bytes."""
    count = max(1, math.ceil(height * row_bytes / _CPU_SCRATCH))
    rows = math.ceil(height / count)
    return [(first, min(first + rows, height)) for first in range(0, height, rows)]
