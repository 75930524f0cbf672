# SPDX-License-Identifier: Apache-2.0
"""Dropout2d and DropPath for samples that several processes share: together these drop what one process would."""

from __future__ import annotations

from torch import Tensor, nn

from m3l_model import ranks


class SampleDropout(nn.Module):
    """Drop parts of samples at random while training, and scale the rest so that the mean stays; else do nothing.

    Every process draws for the samples of all, from torch's own generator, and takes what is its samples'.

    Args:
        p: share that is dropped.

    Attributes:
        rows: (S,) int64, places of this process's samples among those of all processes; None: there are no others.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.rows: Tensor | None = None

    def forward(self, x: Tensor, taken: Tensor | None = None) -> Tensor:
        """Drop whole ``x[i]`` of (S, N, C), that is samples, or ``x[i, j]`` of (S, C, H, W), their channels.

        Args:
            x: S samples, as many as ``rows`` has, or R of them.
            taken: (R,) int64, which these are; None: all. Without ``rows`` it is of no account: nothing is drawn for
                what ``x`` does not hold.
        """
        if not self.training or self.p == 0:
            return x
        keep = 1 - self.p
        own = x.shape[:-2]
        if self.rows is None:
            noise = x.new_empty(own).bernoulli_(keep) / keep
        else:
            rows = self.rows if taken is None else self.rows[taken]
            everyone = len(self.rows) * ranks.count()
            noise = (x.new_empty(everyone, *own[1:]).bernoulli_(keep) / keep)[rows]
        return x * noise[..., None, None]


def take_rows(network: nn.Module, rows: Tensor) -> None:
    """Say for a network's next forward pass which samples it is given: ``rows`` of ``SampleDropout``."""
    for module in network.modules():
        if isinstance(module, SampleDropout):
            module.rows = rows
