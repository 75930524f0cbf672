# SPDX-License-Identifier: Apache-2.0
"""oneDNN's own operators are used where they work, and not missed where they do not."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from m3l_model import onednn


@pytest.fixture(autouse=True)
def _asked_anew() -> None:
    onednn.available.cache_clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_compute_what_they_say(dtype: torch.dtype) -> None:
    if not onednn.available(dtype):
        pytest.skip(f"this torch has them not for {dtype} on this processor")
    torch.manual_seed(0)
    x = torch.randn(1, 16, 5, 7).to(dtype).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(8, 16, 1, 1).to(dtype), torch.randn(8).to(dtype)
    depthwise = torch.randn(16, 1, 3, 3).to(dtype)
    shift = torch.randn(16).to(dtype)
    rtol, atol = (1e-5, 1e-5) if dtype == torch.float32 else (0.02, 0.05)
    product = functional.conv2d(x.double(), weight.double(), bias.double())
    convolved = functional.conv2d(x.double(), depthwise.double(), shift.double(), padding=1, groups=16)

    found = onednn.conv_gelu(x, depthwise, shift, padding=1, groups=16)
    torch.testing.assert_close(found.double(), functional.gelu(convolved), rtol=rtol, atol=atol)
    found = onednn.product_sigmoid(x, weight, bias)
    torch.testing.assert_close(found.double(), product.sigmoid(), rtol=rtol, atol=atol)
    band = torch.randn(1, 8, 9, 7).to(dtype).contiguous(memory_format=torch.channels_last)
    before = band.double()
    onednn.add_product(band[:, :, 2:7], x, weight, bias)
    before[:, :, 2:7] += product
    torch.testing.assert_close(band.double(), before, rtol=rtol, atol=atol)


@pytest.mark.parametrize("broken", [AttributeError("gone"), RuntimeError("not on this processor"), None])
def test_what_does_not_work_is_not_used(monkeypatch: pytest.MonkeyPatch, broken: Exception | None) -> None:
    def other(x: torch.Tensor, *_: object) -> torch.Tensor:
        if broken is not None:
            raise broken
        return x + 1

    monkeypatch.setattr(onednn, "conv_gelu", other)
    assert not onednn.available(torch.float32)


def test_double_precision_goes_without() -> None:
    assert not onednn.available(torch.float64)
