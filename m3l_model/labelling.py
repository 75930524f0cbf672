# SPDX-License-Identifier: Apache-2.0
"""From logits at a quarter of the size to labels at the image's, without ever holding all of its logits."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

_BAND_BYTES = 4 << 20
"""Size of the full-resolution logits held at a time; they stay in a processor's cache."""

_DENSE_SHARE = 0.35
"""Share of undecided pixels above which interpolating everything is faster than picking them out."""


class Labels(NamedTuple):
    """Class ids (B, H, W) uint8 and their probabilities (B, H, W) float32, or None."""

    labels: Tensor
    confidence: Tensor | None


def label(logits_BhwC: Tensor, size: tuple[int, int], with_confidence: bool = False) -> Labels:
    """Upsample logits bilinearly with aligned corners, as ``upsample`` does, and take the best class of each pixel.

    Without confidence, on the CPU, most pixels need no interpolation: what lies between four neighbouring logits is a
    mean of them, so a class that is best at all four is best everywhere between them.

    Args:
        logits_BhwC: any float type, channels last.
        size: (H, W) of the labels.
        with_confidence: give the best class's softmax probability too.
    """
    logits = logits_BhwC.float()
    if with_confidence:
        results = [_interpolated(sample, size) for sample in logits]
        return Labels(torch.stack([r[0] for r in results]), torch.stack([r[1] for r in results]))
    if logits.is_cuda or min(logits.shape[1:3]) < 2:
        return Labels(torch.stack([_interpolated_labels(sample, size) for sample in logits]), None)
    return Labels(torch.stack([_labels_between_corners(sample, size) for sample in logits]), None)


def _interpolated(logits_hwC: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    labels = logits_hwC.new_empty(size, dtype=torch.uint8)
    confidence = logits_hwC.new_empty(size)
    for rows, band_1CHW in _bands(logits_hwC, size):
        best, ids = band_1CHW.max(1)
        labels[rows] = ids[0]
        confidence[rows] = (best - band_1CHW.logsumexp(1)).exp_()[0]
    return labels, confidence


def _interpolated_labels(logits_hwC: Tensor, size: tuple[int, int]) -> Tensor:
    labels = logits_hwC.new_empty(size, dtype=torch.uint8)
    for rows, band_1CHW in _bands(logits_hwC, size):
        labels[rows] = band_1CHW.argmax(1)[0]
    return labels


def _bands(logits_hwC: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """Yield full-resolution logits (1, C, rows, W), channels last, some rows at a time."""
    height, width = size
    source_height, _, channels = logits_hwC.shape
    top, down = _positions(source_height, height, logits_hwC.device)
    rows = max(1, _BAND_BYTES // (width * channels * 4))
    for first in range(0, height, rows):
        band = slice(first, min(first + rows, height))
        below = (top[band] + 1).clamp(max=source_height - 1)
        mixed_HwC = torch.lerp(logits_hwC[top[band]], logits_hwC[below], down[band, None, None])
        image_1CHw = mixed_HwC[None].permute(0, 3, 1, 2)
        size_of_band = (image_1CHw.shape[2], width)
        yield band, functional.interpolate(image_1CHw, size_of_band, mode="bilinear", align_corners=True)


def _labels_between_corners(logits_hwC: Tensor, size: tuple[int, int]) -> Tensor:
    best_hw = logits_hwC.argmax(-1).to(torch.uint8)
    corner = best_hw[:-1, :-1]
    decided = (corner == best_hw[:-1, 1:]) & (corner == best_hw[1:, :-1]) & (corner == best_hw[1:, 1:])
    if decided.float().mean() < 1 - _DENSE_SHARE:
        return _interpolated_labels(logits_hwC, size)
    device = logits_hwC.device
    top, down = _positions(best_hw.shape[0], size[0], device)
    left, right = _positions(best_hw.shape[1], size[1], device)
    # An id no class has marks the undecided cells, so that one look-up gives labels and what is left to do.
    cells = torch.where(decided, corner.short(), -1)
    labels_HW = cells.index_select(0, top.clamp(max=cells.shape[0] - 1)).index_select(
        1, left.clamp(max=cells.shape[1] - 1)
    )
    y, x = (labels_HW < 0).nonzero(as_tuple=True)
    labels_HW[y, x] = _labels_at(logits_hwC, (top[y], down[y]), (left[x], right[x])).short()
    return labels_HW.to(torch.uint8)


def _labels_at(logits_hwC: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]) -> Tensor:
    """Give the best class at each of K points, given by their upper left neighbours and shares of the next ones."""
    height, width, channels = logits_hwC.shape
    flat = logits_hwC.reshape(-1, channels)
    top, down = rows
    left, right = columns
    below = (top + 1).clamp(max=height - 1)
    beside = (left + 1).clamp(max=width - 1)
    upper, lower = (
        torch.lerp(
            flat.index_select(0, y * width + left), flat.index_select(0, y * width + beside), right[:, None]
        )
        for y in (top, below)
    )
    return torch.lerp(upper, lower, down[:, None]).argmax(-1)


@functools.cache
def _positions(source: int, target: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Say where ``target`` samples with aligned corners fall among ``source``: index before, share of the one after.

    They are kept for good, 12 bytes a sample, since CUDA graphs go on using them by their addresses.
    """
    step = torch.tensor((source - 1) / (target - 1) if target > 1 else 0.0)
    position = torch.arange(target) * step
    before = position.long().clamp(max=source - 1)
    return before.to(device), (position - before).to(device)
