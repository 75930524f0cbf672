# SPDX-License-Identifier: Apache-2.0
"""Attention by two products is torch's, also where its short cut does not reach."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from m3l_model import bf16_attention, onednn

pytestmark = pytest.mark.skipif(
    not onednn.available(torch.bfloat16), reason="needs oneDNN's bf16 on this processor"
)


def random(count: int, tokens: int, heads: int, channels: int, spread: float = 1.0) -> Tensor:
    return (spread * torch.randn(count, tokens, heads, channels)).bfloat16()


def exact(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    first, second, third = (x.double().transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(first, second, third).transpose(1, 2)


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 300),
    sources=st.integers(1, 40),
    heads=st.integers(1, 3),
    channels=st.sampled_from([8, 32, 64]),
    spread=st.sampled_from([0.1, 1.0, 3.0]),
    offset=st.sampled_from([0.0, 40.0]),
)
def test_equals_exact_attention_to_the_rounding_of_keys_and_weights(
    tokens: int, sources: int, heads: int, channels: int, spread: float, offset: float
) -> None:
    torch.manual_seed(tokens)
    q, k = random(2, tokens, heads, channels, spread), random(2, sources, heads, channels, spread) + offset
    v = random(2, sources, heads, channels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bf16_attention, "_FEWEST_TOKENS", 1)
        patch.setattr(bf16_attention, "_BAND_BYTES", 5000)
        found = bf16_attention.attention(q, k, v)
    assert found.is_contiguous()
    centred = k.double() - k.double().mean(1, keepdim=True)
    logit = float(torch.einsum("nthd,nshd->nhts", q.double(), centred).abs().max()) * channels**-0.5
    rounding = (0.5 * logit + 2) * float(v.abs().max()) / 256  # of the keys, the weights and the result
    assert float((found.double() - exact(q, k, v)).abs().max()) < rounding


@pytest.mark.parametrize("largest", [30.0, 50.0, 70.0, 500.0])
def test_weights_of_any_size_neither_overflow_nor_vanish(
    largest: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One key fits one query so well that its weight is exp(largest) times the others'; another query it repels."""
    torch.manual_seed(0)
    monkeypatch.setattr(bf16_attention, "_FEWEST_TOKENS", 1)
    asked = []
    by_torch = bf16_attention._by_torch

    def counted(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        asked.append(largest)
        return by_torch(q, k, v)

    monkeypatch.setattr(bf16_attention, "_by_torch", counted)
    q, k, v = (random(1, tokens, 1, 16, 0.1) for tokens in (20, 30, 30))
    direction = torch.ones(16).bfloat16()
    k[0, 7, 0] = direction
    q[0, 0, 0], q[0, 1, 0] = direction * largest / 4, -direction * largest / 4
    found = bf16_attention.attention(q, k, v)
    torch.testing.assert_close(found.double(), exact(q, k, v), rtol=0.02, atol=0.01)
    assert bool(asked) == (largest > 60)
