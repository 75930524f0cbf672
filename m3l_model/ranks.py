# SPDX-License-Identifier: Apache-2.0
"""What the processes of one training run compute together: sums, the k-th smallest, and batch normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional


def count() -> int:
    """Give the number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def total(value: Tensor) -> Tensor:
    """Sum a tensor over all processes, without gradients."""
    if count() == 1:
        return value.detach()
    summed = value.detach().clone()
    distributed.all_reduce(summed)
    return summed


def any_of_us(flag: bool) -> bool:
    """Tell whether the flag is set in any process; all are to ask."""
    if count() == 1:
        return flag
    device = torch.device("cuda") if distributed.get_backend() == "nccl" else torch.device("cpu")
    return bool(total(torch.tensor(flag, dtype=torch.uint8, device=device)))


def kth_smallest(values: Tensor, k: int) -> Tensor:
    """Give the k-th smallest (from 1) of all processes' values, a scalar.

    Args:
        values: (N,), of any number; together at least k.
        k: the same in all processes.
    """
    if count() == 1:
        return values.kthvalue(k).values
    smallest = values.sort().values[:k]
    padded = functional.pad(smallest, (0, k - len(smallest)), value=float("inf"))
    gathered = [torch.empty_like(padded) for _ in range(count())]
    distributed.all_gather(gathered, padded)
    return torch.cat(gathered).kthvalue(k).values


class _Total(torch.autograd.Function):
    """``total`` with gradients: what all processes' losses say of the sum."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return total(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return total(gradient)


class BatchNormOfAll(nn.BatchNorm2d):
    """BatchNorm2d whose moments are those of all processes' batches; unlike SyncBatchNorm it works on CPUs too.

    The moments are taken in float32 at least: in half precision a count of pixels may be infinite.
    """

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Normalise (B, C, H, W); in eval mode with the running statistics, as BatchNorm2d does."""
        if not self.training or count() == 1:
            return super().forward(x_BCHW)
        exact_BCHW = x_BCHW.to(torch.promote_types(x_BCHW.dtype, torch.float32))
        size = exact_BCHW.new_tensor([x_BCHW.numel() // x_BCHW.shape[1]])
        sums = _Total.apply(torch.cat((exact_BCHW.sum((0, 2, 3)), size)))
        size = sums[-1].detach()
        mean = sums[:-1] / size
        centred = exact_BCHW - mean[:, None, None]
        variance = _Total.apply(centred.square().sum((0, 2, 3))) / size
        self._remember(mean.detach(), variance.detach() * size / (size - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x_BCHW.dtype)

    @torch.no_grad()
    def _remember(self, mean_C: Tensor, variance_C: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean_C.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance_C.to(self.running_var.dtype), self.momentum)
        self.num_batches_tracked += 1
