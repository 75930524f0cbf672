# SPDX-License-Identifier: Apache-2.0
"""The two losses of M3L (arXiv 2304.10756, section 3.2): supervised OHEM cross entropy and the pseudo-label loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from m3l_model.labels import IGNORE_ID
from m3l_model.segmenter import SegmenterOutput


def supervised_loss(
    outputs: SegmenterOutput, labels_BHW: Tensor, min_kept: int, threshold: float = 0.7
) -> Tensor:
    """Average OHEM cross entropy over the three outputs.

    Args:
        outputs: logits (B, C, H, W).
        labels_BHW: int64 class ids, ``IGNORE_ID`` where unknown.
        min_kept: least number of pixels kept per output.
        threshold: pixels whose true class is less probable than this are always kept.
    """
    return torch.stack([ohem_cross_entropy(x, labels_BHW, min_kept, threshold) for x in outputs]).mean()


def ohem_cross_entropy(
    logits_BCHW: Tensor, labels_BHW: Tensor, min_kept: int, threshold: float = 0.7
) -> Tensor:
    """Cross entropy over the hard pixels: true class below ``max(threshold, min_kept-th smallest probability)``.

    With ``min_kept`` 0, or more than there are labelled pixels, all labelled pixels count; without any labelled pixel
    the loss is 0, where the reference gives NaN.

    Returns:
        A scalar.
    """
    losses = functional.cross_entropy(logits_BCHW, labels_BHW, ignore_index=IGNORE_ID, reduction="none")
    losses = losses[labels_BHW != IGNORE_ID]
    if losses.numel() == 0:
        return logits_BCHW.sum() * 0
    if not 0 < min_kept <= losses.numel():
        return losses.mean()
    probability = torch.exp(-losses.detach())
    limit = probability.kthvalue(min_kept).values.clamp(min=threshold)
    return losses[probability <= limit].mean()


def pseudo_loss(outputs: SegmenterOutput, pseudo_labels_BHW: Tensor) -> Tensor:
    """Average the cross entropy of the three outputs against the teacher's labels.

    Args:
        outputs: the student's logits (B, C, H, W).
        pseudo_labels_BHW: int64 class ids, ``IGNORE_ID`` for pixels the teacher says nothing of.
    """
    return torch.stack([ohem_cross_entropy(x, pseudo_labels_BHW, min_kept=0) for x in outputs]).mean()
