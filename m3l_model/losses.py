# SPDX-License-Identifier: Apache-2.0
"""The two losses of M3L (arXiv 2304.10756, section 3.2): supervised OHEM cross entropy and the pseudo-label loss.

In a run of several processes each gives its part of the loss of all their samples: the parts add up to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from m3l_model import ranks
from m3l_model.labels import IGNORE_ID

OHEM_THRESHOLD = 0.7


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


def supervised_loss(outputs: Sequence[Tensor], labels_BHW: Tensor, min_kept: int) -> Tensor:
    """Average OHEM cross entropy over the outputs.

    Args:
        outputs: logits (B, C, H, W) each.
        labels_BHW: int64 class ids, ``IGNORE_ID`` where unknown.
        min_kept: least number of pixels kept per output, over all processes.
    """
    return torch.stack([ohem(x, labels_BHW, min_kept).loss for x in outputs]).mean()


def ohem(logits_BCHW: Tensor, labels_BHW: Tensor, min_kept: int, threshold: float = OHEM_THRESHOLD) -> Ohem:
    """Cross entropy over the hard pixels: true class below ``max(threshold, min_kept-th smallest probability)``.

    With ``min_kept`` 0, or more than there are labelled pixels, all labelled pixels count; without any labelled pixel
    the loss is 0, where the reference gives NaN.
    """
    losses = functional.cross_entropy(logits_BCHW, labels_BHW, ignore_index=IGNORE_ID, reduction="none")
    losses = losses[labels_BHW != IGNORE_ID]
    probability = torch.exp(-losses.detach())
    below = probability <= threshold
    counts = ranks.total(torch.stack(((labels_BHW != IGNORE_ID).sum(), below.sum())))
    labelled, hard = (int(count) for count in counts)
    if not labelled:
        return Ohem(logits_BCHW.sum() * 0, 0, None)
    if not 0 < min_kept <= labelled:
        return Ohem(losses.sum() / labelled, labelled, None)
    if hard >= min_kept:
        return Ohem(losses[below].sum() / hard, hard, threshold)
    limit = ranks.kth_smallest(probability, min_kept)
    chosen = probability <= limit
    kept = int(ranks.total(chosen.sum()))
    return Ohem(losses[chosen].sum() / kept, kept, float(limit))


def pseudo_loss(outputs: Sequence[Tensor], pseudo_labels_BHW: Tensor) -> Tensor:
    """Average the cross entropy of the outputs against the teacher's labels.

    Args:
        outputs: the student's logits (B, C, H, W) each.
        pseudo_labels_BHW: int64 class ids, ``IGNORE_ID`` for pixels the teacher says nothing of.
    """
    labelled = int(ranks.total((pseudo_labels_BHW != IGNORE_ID).sum()))
    sums = [
        functional.cross_entropy(x, pseudo_labels_BHW, ignore_index=IGNORE_ID, reduction="sum")
        for x in outputs
    ]
    return torch.stack(sums).mean() / max(1, labelled)
