# SPDX-License-Identifier: Apache-2.0
"""The two losses of M3L (arXiv 2304.10756, section 3.2): supervised OHEM cross entropy and the pseudo-label loss.

In a run of several processes each gives its part of the loss of all their samples: the parts add up to it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from m3l_model import ranks
from m3l_model.labels import IGNORE_ID

OHEM_THRESHOLD = 0.7


class WithGradient(torch.autograd.Function):
    """A value whose gradient is known: it stands for what was computed of its input, which need not be kept."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """Give ``value``, a scalar, of ``source``, with ``gradient`` of the source's shape."""
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor, None, None]:
        """Scale the gradient."""
        return scale * ctx.saved_tensors[0], None, None


class Ohem(NamedTuple):
    """OHEM cross entropy of one output.

    Attributes:
        loss: scalar, this process's part.
        kept: pixels that count, over all processes.
        limit: true-class probability up to which a pixel counts; None where all labelled ones do.
    """

    loss: Tensor
    kept: int
    limit: float | None


def supervised_loss(
    log_probabilities_BCHW: Tensor, labels_BHW: Tensor, min_kept: int, threshold: float = OHEM_THRESHOLD
) -> Ohem:
    """Cross entropy over the hard pixels: true class below ``max(threshold, min_kept-th smallest probability)``.

    With ``min_kept`` 0, or more than there are labelled pixels, all labelled pixels count; without any labelled pixel
    the loss is 0, where the reference gives NaN.

    Args:
        log_probabilities_BCHW: of one output.
        labels_BHW: int64 class ids, ``IGNORE_ID`` where unknown.
        min_kept: least number of pixels kept, over all processes.
        threshold: pixels whose true class is no more probable than this are always kept.
    """
    losses = functional.nll_loss(log_probabilities_BCHW, labels_BHW, ignore_index=IGNORE_ID, reduction="none")
    losses = losses[labels_BHW != IGNORE_ID]
    probability = torch.exp(-losses.detach())
    below = probability <= threshold
    counts = ranks.total(torch.stack(((labels_BHW != IGNORE_ID).sum(), below.sum())))
    labelled, hard = (int(count) for count in counts)
    if not labelled:
        return Ohem(log_probabilities_BCHW.sum() * 0, 0, None)
    if not 0 < min_kept <= labelled:
        return Ohem(losses.sum() / labelled, labelled, None)
    if hard >= min_kept:
        return Ohem(losses[below].sum() / hard, hard, threshold)
    limit = ranks.kth_smallest(probability, min_kept)
    chosen = probability <= limit
    kept = int(ranks.total(chosen.sum()))
    return Ohem(losses[chosen].sum() / kept, kept, float(limit))


def pseudo_loss(log_probabilities_BCHW: Tensor, pseudo_labels: Tensor) -> Tensor:
    """Cross entropy against the teacher's labels, over all pixels: this process's part.

    Args:
        log_probabilities_BCHW: of one output of the student.
        pseudo_labels: (B, H, W) int64 class ids, or (B, C, H, W) probabilities.
    """
    if pseudo_labels.ndim == 4:
        total = -(pseudo_labels * log_probabilities_BCHW).sum()
    else:
        total = functional.nll_loss(log_probabilities_BCHW, pseudo_labels, reduction="sum")
    pixels = log_probabilities_BCHW[:, 0].numel() * ranks.count()
    return total / pixels
