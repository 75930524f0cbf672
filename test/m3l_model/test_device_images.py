# SPDX-License-Identifier: Apache-2.0
"""Images resized by tensor operations are those that NumPy and OpenCV resize."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from m3l_model import device_images, preprocessing

SIZES = [
    ((48, 64), (12, 16)),
    ((48, 64), (36, 48)),
    ((45, 61), (32, 43)),
    ((20, 30), (32, 48)),
    ((9, 9), (9, 9)),
]


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_colour_differs_by_a_grey_level_at_most(source: tuple[int, int], target: tuple[int, int]) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (*source, 3), np.uint8)
    expected = preprocessing.resize_rgb(rgb, target).astype(int)
    found = device_images.resize_rgb(torch.from_numpy(rgb)[None], target)[0].numpy()
    assert found.shape == (*target, 3)
    assert np.abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.85


sides = st.tuples(st.integers(1, 400), st.integers(1, 400))


@given(source=sides, target=sides)
@example(source=(480, 640), target=(360, 480))  # samples fall on the edge of two pixels
@example(source=(480, 640), target=(480, 640))
def test_depth_is_the_same(source: tuple[int, int], target: tuple[int, int]) -> None:
    millimetres = np.random.default_rng(0).integers(0, 65536, source, np.uint16)
    millimetres.flat[:3] = (0, 65535, 65534)[: millimetres.size]
    for raw in (millimetres, millimetres.astype(np.float32) / 1000):
        expected = preprocessing.to_metres(preprocessing.resize_nearest(raw, target))
        bits = torch.from_numpy(raw.view(np.int16) if raw.dtype == np.uint16 else raw)
        found = device_images.resize_nearest(device_images.metres(bits[None]), target)[0]
        np.testing.assert_array_equal(found.numpy(), expected)


def test_every_kind_of_hole_is_zero() -> None:
    raw = torch.tensor([[[0.0, -1.0, float("nan"), float("inf"), 65.535, 1.5]]])
    assert device_images.metres(raw).tolist() == [[[0, 0, 0, 0, 0, 1.5]]]


@pytest.mark.parametrize(
    "table", [device_images._area_weights, device_images._linear_weights, device_images._nearest]
)
def test_tables_outlive_those_of_other_sizes(table: Callable[[int, int, torch.device], torch.Tensor]) -> None:
    """A CUDA graph goes on using them by their addresses."""
    cpu = torch.device("cpu")
    first = table(48, 12, cpu)
    for source in range(49, 120):
        table(source, 12, cpu)
    assert table(48, 12, cpu) is first
