# SPDX-License-Identifier: Apache-2.0
"""Convolutions on the CPU with what follows them inside: the operators of oneDNN that torch.compile generates calls of.

They are torch's, but not promised for every version, processor and type: ``available`` tries them once.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn import functional

_NO_PADDING, _ONCE = [0, 0], [1, 1]


@functools.cache
def available(dtype: torch.dtype) -> bool:
    """Tell whether this torch on this processor has these operators for ``dtype`` and they compute what they should."""
    if dtype not in (torch.float32, torch.bfloat16):
        return False
    x = torch.linspace(-2, 2, 16 * 16, dtype=dtype).view(1, 4, 4, 16).permute(0, 3, 1, 2)
    weight, depthwise = torch.eye(16, dtype=dtype)[:, :, None, None], torch.ones(16, 1, 1, 1, dtype=dtype)
    bias = torch.zeros(16, dtype=dtype)
    try:
        found = (
            conv_gelu(x, depthwise, bias, 0, 16),
            product_sigmoid(x, weight, bias),
            add_product(x.clone(memory_format=torch.channels_last), x, weight, bias),
        )
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    expected = (functional.gelu(x), torch.sigmoid(x), x + x)
    return all(torch.allclose(a, b, rtol=0.02, atol=0.02) for a, b in zip(found, expected, strict=True))


def conv_gelu(x_NCHW: Tensor, weight: Tensor, bias: Tensor, padding: int, groups: int) -> Tensor:
    """Give the exact GELU of a convolution of stride 1."""
    sides = [padding, padding]
    return torch.ops.mkldnn._convolution_pointwise(
        x_NCHW, weight, bias, sides, _ONCE, _ONCE, groups, "gelu", [], "none"
    )


def product_sigmoid(x_NCHW: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Give the logistic function of a product along the channels, which is not rounded in between."""
    return torch.ops.mkldnn._convolution_pointwise(
        x_NCHW, weight, bias, _NO_PADDING, _ONCE, _ONCE, 1, "sigmoid", [], ""
    )


def add_product(x_NCHW: Tensor, y_NCHW: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Add a product along the channels of ``y_NCHW`` to ``x_NCHW``, in place; both channels-last."""
    return torch.ops.mkldnn._convolution_pointwise_.binary(
        x_NCHW, y_NCHW, weight, bias, _NO_PADDING, _ONCE, _ONCE, 1, "add", None, None, [], None
    )
