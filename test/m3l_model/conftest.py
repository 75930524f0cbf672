# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the model's tests."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch


@pytest.fixture
def reference_fixtures(shared_data: Path) -> Path:
    """Where the reference implementation's exact outputs lie."""
    return shared_data / "fixtures" / "dev"


@pytest.fixture
def reference_weights(reference_fixtures: Path) -> Callable[[str], dict[str, torch.Tensor]]:
    """Makes the mit_b0 state dict of a prefix, under the reference's names, by the rule in the outputs' README."""
    entries = json.loads((reference_fixtures / "official_keys_b0.json").read_text())

    def make(prefix: str) -> dict[str, torch.Tensor]:
        return {
            name: torch.from_numpy(_reference_value(prefix + name, tuple(shape))) for name, shape in entries
        }

    return make


@pytest.fixture
def reference_network(
    reference_weights: Callable[[str], dict[str, torch.Tensor]],
) -> dict[str, torch.Tensor]:
    """The mit_b0 state dict of the reference's outputs, under its names."""
    return reference_weights("")


def _reference_value(key: str, shape: tuple[int, ...]) -> np.ndarray:
    normal = np.random.RandomState(zlib.crc32(key.encode())).normal(0, 1, shape)
    if key == "alpha":
        return np.array([0.3, -0.2], np.float32)
    if key.endswith("num_batches_tracked"):
        return np.array(0)
    if key.endswith("mask_token"):
        value = 0.5 * normal
    elif key.endswith("running_var"):
        value = 1 + 0.1 * np.abs(normal)
    elif key.endswith("running_mean"):
        value = 0.02 * normal
    elif any(part in key for part in (".ln_0.", ".ln_1.", ".bn.")) and key.endswith(".weight"):
        value = 1 + 0.02 * normal
    elif len(shape) >= 2:
        value = normal / np.sqrt(np.prod(shape[1:]))
    else:
        value = 0.02 * normal
    return np.asarray(value, np.float32)
