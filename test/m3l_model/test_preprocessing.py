# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3l_model.preprocessing import Preprocessing, depth_limits, resize_nearest, resize_rgb, to_metres


def test_every_kind_of_hole_becomes_zero_metres() -> None:
    millimetres = np.array([[0, 65535, 1, 1500, 65534]], np.uint16)
    np.testing.assert_allclose(to_metres(millimetres), [[0, 0, 0.001, 1.5, 65.534]], rtol=1e-6)
    metres = np.array([[0, np.nan, np.inf, -np.inf, -1, 65535, 65.535, 1.5]], np.float32)
    np.testing.assert_array_equal(to_metres(metres), np.array([[0, 0, 0, 0, 0, 0, 0, 1.5]], np.float32))
    assert to_metres(metres).dtype == np.float32


@pytest.mark.parametrize(
    "depth", [np.zeros((2, 2), np.uint8), np.zeros((2, 2, 1), np.uint16), np.zeros(3, np.float32)]
)
def test_other_depth_is_refused(depth: np.ndarray) -> None:
    with pytest.raises(ValueError, match="millimetres or float32 metres"):
        to_metres(depth)


def test_metric_encoding_of_a_pixel_does_not_depend_on_the_others() -> None:
    preprocessing = Preprocessing(depth_range=(0.5, 4.5))
    near = torch.tensor([[[0.5, 1.5, 0.0]]])
    far = torch.tensor([[[9.0, 1.5, 0.0]]])
    rgb = torch.zeros(1, 1, 3, 3, dtype=torch.uint8)
    a, b = preprocessing.encode(rgb, near).depth, preprocessing.encode(rgb, far).depth
    assert a.shape == (1, 3, 1, 3)
    assert a[0, 0, 0].tolist() == [-2, -1, 0]
    assert b[0, 2, 0].tolist() == [2, -1, 0]


def test_normals_stand_beside_the_metric_depth_and_are_0_in_holes() -> None:
    preprocessing = Preprocessing(120, "normals", (0.0, 8.0))
    rows = torch.arange(120.0)[None, :, None].expand(1, 120, 160)
    depth = 2 / (0.5 + rows / 240)  # inverse depth rises downwards: a floor
    depth[:, :, :40] = 0
    encoded = preprocessing.encode(torch.zeros(1, 120, 160, 3), depth).depth
    metric = Preprocessing(120, "metric", (0.0, 8.0)).encode(torch.zeros(1, 120, 160, 3), depth).depth
    assert torch.equal(encoded[:, 0], metric[:, 0])
    assert not encoded[:, :, :, :40].any()
    assert encoded[0, 1, 60, 100].abs() < 0.01
    assert encoded[0, 2, 60, 100] > 0.5
    assert preprocessing.depth_channels == 3
    assert Preprocessing().depth_channels == 1


def test_minmax_encoding_is_the_reference_s_and_finite_on_a_constant_image() -> None:
    preprocessing = Preprocessing.reference()
    rgb = torch.zeros(2, 1, 3, 3, dtype=torch.uint8)
    encoded = preprocessing.encode(rgb, torch.tensor([[[0.0, 1.0, 4.0]], [[2.0, 2.0, 2.0]]]))
    assert encoded.depth[:, 0, 0].tolist() == [[0, 0.25, 1], [0, 0, 0]]
    assert encoded.depth_valid is None


def test_minmax_of_a_cut_is_its_image_s_and_0_where_there_is_no_reading() -> None:
    depth = torch.tensor([[[1.0, 2.0, 5.0]], [[0.0, 2.0, 4.0]]])
    cut = torch.tensor([[[0.0, 2.0]], [[0.0, 2.0]]])
    encoded = Preprocessing.reference().encode(torch.zeros(2, 1, 2, 3), cut, depth_limits(depth))
    assert encoded.depth[:, 0, 0].tolist() == [[0, 0.25], [0, 0.5]]


def test_holes_are_marked_only_for_models_trained_with_them() -> None:
    depth, rgb = torch.tensor([[[0.0, 2.0]]]), torch.zeros(1, 1, 2, 3, dtype=torch.uint8)
    assert Preprocessing().encode(rgb, depth).depth_valid is None
    valid = Preprocessing(mask_holes=True).encode(rgb, depth).depth_valid
    assert valid is not None
    assert valid.tolist() == [[[[False, True]]]]


def test_colour_is_normalised_by_imagenet_s_statistics() -> None:
    rgb = torch.tensor([[[[255, 0, 127]]]], dtype=torch.uint8)
    encoded = Preprocessing().encode(rgb, torch.zeros(1, 1, 1)).rgb
    expected = [(1 - 0.485) / 0.229, (0 - 0.456) / 0.224, (127 / 255 - 0.406) / 0.225]
    torch.testing.assert_close(encoded.flatten(), torch.tensor(expected))


@given(height=st.integers(1, 2000), width=st.integers(1, 2000), short=st.integers(32, 512) | st.none())
def test_input_size_is_large_enough_and_keeps_the_aspect(height: int, width: int, short: int | None) -> None:
    rows, columns = Preprocessing(short_side=short).input_size(height, width)
    assert min(rows, columns) == (short or max(32, min(height, width)))
    assert abs(rows * width - columns * height) <= max(height, width)


def test_resizing_depth_never_mixes_neighbours() -> None:
    depth = np.random.default_rng(0).choice(np.array([0.0, 1.0, 3.0], np.float32), (60, 80))
    assert set(np.unique(resize_nearest(depth, (31, 47)))) <= {0.0, 1.0, 3.0}
    assert resize_nearest(depth, (60, 80)) is depth
    rgb = np.zeros((60, 80, 3), np.uint8)
    assert resize_rgb(rgb, (30, 40)).shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"short_side": 16}, "short_side"),
        ({"depth_encoding": "hha"}, "metric, minmax or normals"),
        ({"depth_encoding": "normals"}, "needs a short_side"),
        ({"depth_range": (3, 1)}, "rising"),
    ],
)
def test_impossible_settings_are_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**fields)
