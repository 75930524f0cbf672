# SPDX-License-Identifier: Apache-2.0
"""Attention on a CPU that multiplies bf16 itself but has no AMX: torch's own kernel gains nothing from bf16 there."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from m3l_model import onednn

_BAND_BYTES = 3 << 19
"""Size of the weights held at a time: what fits the L2 cache of two cores."""

_FEWEST_TOKENS = 1024
"""Below this torch's kernel is as fast."""

_SHIFT = 60.0
_LARGEST_TOTAL = 2.0**-10
_COLUMNS = 16
"""Columns of ones: as many as the product computes at a time in any case."""


def attention(q_NTHD: Tensor, k_NSHD: Tensor, v_NSHD: Tensor) -> Tensor:
    """Attend from T tokens to S, as ``scaled_dot_product_attention`` does, to bf16's rounding of keys and weights.

    It is two products and, inside the first, exp(x - 60), which is the logistic function there to 0.1 %. The mean of
    the keys is taken from each, which changes no softmax: then the weights of a token add up to at least S exp(-60),
    and where they add up to 0.001 or less, no one was too large. Where they do not, torch's own kernel is asked.

    Args:
        q_NTHD: bf16 queries of N images, T tokens, H heads, D channels.
        k_NSHD: keys.
        v_NSHD: values.

    Returns:
        (N, T, H, D), contiguous.
    """
    count, tokens, heads, channels = q_NTHD.shape
    if tokens < _FEWEST_TOKENS:
        return _by_torch(q_NTHD, k_NSHD, v_NSHD)
    sources = k_NSHD.shape[1]
    out_NTHD = torch.empty(q_NTHD.shape, dtype=q_NTHD.dtype)
    totals_NHT = torch.empty(count, heads, tokens, dtype=q_NTHD.dtype)
    centred = k_NSHD.float()
    centred = ((centred - centred.mean(1, keepdim=True)) * channels**-0.5).to(k_NSHD.dtype)
    keys_NHSD = centred.transpose(1, 2).contiguous()
    ones = v_NSHD.new_ones(count, heads, _COLUMNS, sources)
    values_NHDS = torch.cat((v_NSHD.permute(0, 2, 3, 1), ones), dim=2)
    shift = q_NTHD.new_full((sources,), -_SHIFT)
    rows = max(1, _BAND_BYTES // (sources * q_NTHD.element_size()))
    for image in range(count):
        for head in range(heads):
            keys = keys_NHSD[image, head, :, :, None, None]
            values = values_NHDS[image, head, :, :, None, None]
            for first in range(0, tokens, rows):
                band = slice(first, first + rows)
                queries = q_NTHD[image, band, head].contiguous()
                weights = onednn.product_sigmoid(queries[None, :, None].permute(0, 3, 1, 2), keys, shift)
                y_TD = functional.conv2d(weights, values)[0, :, :, 0].T
                total = y_TD[:, channels]
                torch.div(y_TD[:, :channels], total[:, None], out=out_NTHD[image, band, head])
                totals_NHT[image, head, band] = total
    if bool(totals_NHT.amax() <= _LARGEST_TOTAL):
        return out_NTHD
    return _by_torch(q_NTHD, k_NSHD, v_NSHD)


def _by_torch(q_NTHD: Tensor, k_NSHD: Tensor, v_NSHD: Tensor) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in (q_NTHD, k_NSHD, v_NSHD))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous()
