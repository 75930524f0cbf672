# SPDX-License-Identifier: Apache-2.0
"""The profile of a frame counts every operator once, as what it is."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest


def test_a_profile_adds_up_and_tells_kinds_apart(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(repository / "bench"))
    profile = importlib.import_module("inference_profile")
    monkeypatch.setattr(profile, "SIZE", (64, 96))
    monkeypatch.setattr(sys, "argv", ["inference_profile.py", "--backbones", "mit_b0", "--frames", "1"])
    assert profile.main() == 0
    rows = dict(line.rsplit(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    total = float(rows.pop("all"))
    assert sum(map(float, rows.values())) == pytest.approx(total, abs=0.1 * len(rows))
    assert rows.keys() >= {profile.ATTENTION, profile.DEPTHWISE, profile.PRODUCTS, "LayerNorm", "the rest"}

    def kind(name: str, *shapes: list[int]) -> str:
        return str(profile.kind_of(SimpleNamespace(key=name, input_shapes=list(shapes))))

    assert kind("aten::convolution", [1, 8, 4, 4], [8, 1, 3, 3]) == profile.DEPTHWISE
    assert kind("aten::convolution", [1, 8, 4, 4], [8, 8, 3, 3]) == profile.PRODUCTS
    assert kind("aten::copy_", [1], [1]) == "the rest"
    del sys.modules["inference_profile"]
