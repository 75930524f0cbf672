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

    def forward(self, x: Tensor) -> Tensor:
        """Drop whole ``x[i, j]``, of (M, B, N, C), that is samples, or of (M·B, C, H, W), their channels; S is M·B."""
        if not self.training or self.p == 0:
            return x
        keep = 1 - self.p
        own = x.shape[:2]
        processes = 1 if self.rows is None else ranks.count()
        noise = x.new_empty(own.numel() * processes).bernoulli_(keep) / keep
        if self.rows is not None:
            noise = noise.view(len(self.rows) * processes, -1)[self.rows]
        return x * noise.view(*own, 1, 1)


def take_rows(network: nn.Module, rows: Tensor) -> None:
    """Say for a network's next forward pass which samples it is given: ``rows`` of ``SampleDropout``."""
    for module in network.modules():
        if isinstance(module, SampleDropout):
            module.rows = rows
