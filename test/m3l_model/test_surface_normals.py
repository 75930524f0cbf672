# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3l_model.surface_normals import FOCAL_LENGTH, surface_normals


def plane(normal: tuple[float, float, float], distance: float, height: int, width: int) -> torch.Tensor:
    """Depth of a plane of a unit normal, at a distance from the camera along it; 0 where it is behind or too near."""
    focal = FOCAL_LENGTH * min(height, width)
    x = (torch.arange(width) - (width - 1) / 2) / focal
    y = (torch.arange(height) - (height - 1) / 2)[:, None] / focal
    along = normal[0] * x + normal[1] * y + normal[2]
    depth = distance / along
    return torch.where((along > 0) & (depth > 0.3), depth, torch.zeros(()))[None]


@settings(deadline=None)
@given(
    st.floats(-1.2, 1.2), st.floats(-1.2, 1.2), st.floats(1.0, 6.0), st.sampled_from([(120, 160), (240, 320)])
)
def test_a_plane_has_its_normal(tilt: float, turn: float, distance: float, size: tuple[int, int]) -> None:
    normal = (math.sin(turn) * math.cos(tilt), math.sin(tilt), math.cos(turn) * math.cos(tilt))
    depth = plane(normal, distance, *size)
    seen = torch.nn.functional.max_pool2d((depth == 0).float(), 25, 1, 12) == 0
    found = surface_normals(depth, 120 if size[0] == 120 else 240)[0]
    inside = seen[0].clone()
    inside[:12], inside[-12:], inside[:, :12], inside[:, -12:] = False, False, False, False
    assert inside.any()
    for component in range(2):
        assert (found[component][inside] - normal[component]).abs().le(0.01).all()


def test_floor_wall_and_ceiling() -> None:
    middle = (0, slice(None), 60, 80)
    assert torch.allclose(surface_normals(plane((0, 0, 1), 2, 120, 160), 120)[middle], torch.zeros(2))
    floor = surface_normals(plane((0, 1, 0), 1.2, 120, 160), 120)[0, :, 110, 80]
    ceiling = surface_normals(plane((0, -1, 0), 1.2, 120, 160), 120)[0, :, 10, 80]
    assert torch.allclose(floor, torch.tensor([0.0, 1.0]), atol=0.01)
    assert torch.allclose(ceiling, torch.tensor([0.0, -1.0]), atol=0.01)


@pytest.mark.parametrize("short_side", [32, 120, 250, 480])
def test_holes_leave_the_rest_as_it_is(short_side: int) -> None:
    height, width = short_side, short_side * 4 // 3
    whole = plane((0.0, 0.6, 0.8), 2.0, height, width)
    holed = whole.clone()
    holed[:, : height // 2] = 0
    found = surface_normals(holed, short_side)
    assert found.shape == (1, 2, height, width)
    assert found.isfinite().all()
    far = height // 2 + max(8, height // 6)
    assert torch.allclose(found[:, :, far:], surface_normals(whole, short_side)[:, :, far:], atol=1e-4)
    assert not surface_normals(torch.zeros(1, height, width), short_side).any()


def test_noise_of_a_hundredth_turns_a_wall_by_a_few_degrees() -> None:
    generator = torch.Generator().manual_seed(0)
    depth = plane((0, 0, 1), 3, 480, 640)
    noisy = depth * (1 + 0.01 * torch.randn(depth.shape, generator=generator))
    assert surface_normals(noisy, 480).norm(dim=1).median() < math.sin(math.radians(5))
