# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from m3l_model import segmenter
from m3l_model.checkpoint import from_reference
from m3l_model.dropout import take_rows
from m3l_model.mit import BACKBONES, Stage, linear_fusion
from m3l_model.segmenter import LinearFusionSegmenter, upsample

MISSING = {"none": [False, False], "depth_missing": [False, True], "rgb_missing": [True, False]}

# FACTS of the reference implementation, 13 classes; ours leaves out the mask tokens of stages 2 to 4, never used there.
REFERENCE_PARAMETERS = {
    "mit_b0": 3_725_167,
    "mit_b1": 13_695_951,
    "mit_b2": 24_752_463,
    "mit_b3": 44_651_343,
    "mit_b4": 61_442_255,
    "mit_b5": 82_065_999,
}


@pytest.fixture
def model() -> LinearFusionSegmenter:
    torch.manual_seed(0)
    return LinearFusionSegmenter("mit_b0", 5).eval()


@pytest.fixture(params=[False, True], ids=["mask_token", "skip_missing"])
def either(request: pytest.FixtureRequest) -> LinearFusionSegmenter:
    torch.manual_seed(0)
    return LinearFusionSegmenter("mit_b0", 5, skip_missing=request.param).eval()


@pytest.fixture
def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 32, 48, generator=generator), torch.randn(2, 3, 32, 48, generator=generator)


@pytest.mark.data
@pytest.mark.parametrize("case", MISSING)
def test_reproduces_the_reference_forward_pass(
    reference_fixtures: Path, reference_network: dict[str, torch.Tensor], case: str
) -> None:
    expected = np.load(reference_fixtures / "forward_b0.npz")
    model = LinearFusionSegmenter("mit_b0", 13).eval()
    model.load_state_dict(from_reference(reference_network))
    with torch.no_grad():
        outputs = model(
            torch.from_numpy(expected["in_rgb"]),
            torch.from_numpy(expected["in_depth"]),
            torch.tensor([MISSING[case]]),
        )
    for output, name in zip(outputs, ("rgb", "depth", "ens"), strict=True):
        np.testing.assert_allclose(output.numpy(), expected[f"{case}_{name}"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_parameter_counts_are_the_reference_s_but_for_its_unused_mask_tokens(backbone: str) -> None:
    with torch.device("meta"):
        model = LinearFusionSegmenter(backbone, 13)
    unused_mask_tokens = sum(BACKBONES[backbone].dims[1:])
    assert sum(p.numel() for p in model.parameters()) == REFERENCE_PARAMETERS[backbone] - unused_mask_tokens


@settings(max_examples=12, deadline=None)
@given(height=st.integers(32, 75), width=st.integers(32, 75), batch=st.integers(1, 2))
def test_any_size_from_32_gives_logits_of_the_input_s_size(height: int, width: int, batch: int) -> None:
    model = LinearFusionSegmenter("mit_b0", 4).eval()
    rgb, depth = torch.randn(2, batch, 3, height, width)
    with torch.no_grad():
        outputs = model(rgb, depth)
    assert [tuple(x.shape) for x in outputs] == [(batch, 4, height, width)] * 3


@pytest.mark.parametrize(("missing", "index"), [([True, False], 0), ([False, True], 1)])
def test_what_a_missing_input_holds_has_no_influence(
    either: LinearFusionSegmenter, images: tuple[torch.Tensor, torch.Tensor], missing: list[bool], index: int
) -> None:
    flags = torch.tensor([missing, missing])
    spoilt = list(images)
    spoilt[index] = torch.full_like(images[index], float("nan"))
    with torch.no_grad():
        expected, actual = either(*images, flags), either(*spoilt, flags)
    for a, b in zip(expected, actual, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_missing_input_s_nan_stays_out_of_the_gradients(
    either: LinearFusionSegmenter, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    rgb, depth = images
    outputs = either(rgb, torch.full_like(depth, float("nan")), torch.tensor([[False, True]] * 2))
    sum(x.square().sum() for x in outputs).backward()
    assert all(p.grad.isfinite().all() for p in either.parameters() if p.grad is not None)


def test_missing_is_per_sample(
    either: LinearFusionSegmenter, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    with torch.no_grad():
        mixed = either(*images, torch.tensor([[False, True], [False, False]])).fused
        alone = either(*(x[:1] for x in images), torch.tensor([[False, True]])).fused
        whole = either(*images).fused
    torch.testing.assert_close(mixed[:1], alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[1:], whole[1:], rtol=0, atol=1e-5)
    assert (mixed[0] - whole[0]).abs().max() > 1e-3


@pytest.mark.parametrize(("missing", "own"), [([True, False], 1), ([False, True], 0)])
def test_a_branch_that_is_skipped_has_no_part_in_any_output(
    images: tuple[torch.Tensor, torch.Tensor], missing: list[bool], own: int
) -> None:
    model = LinearFusionSegmenter("mit_b0", 5, skip_missing=True).eval()
    outputs = model(*images, torch.tensor([missing] * 2))
    torch.testing.assert_close(outputs.rgb, outputs.depth, rtol=0, atol=0)
    torch.testing.assert_close(outputs.fused, outputs.rgb, rtol=0, atol=1e-5)
    outputs.fused.square().sum().backward()
    assert model.encoder.mask_token.grad is not None
    assert not model.encoder.mask_token.grad.any()
    for name, parameter in model.named_parameters():
        if "norm" in name and name.startswith("encoder"):
            assert parameter.grad is not None
            assert parameter.grad[own].any(), name
            assert not parameter.grad[1 - own].any(), name


@pytest.mark.parametrize("holes", [False, True])
def test_leaving_branches_out_changes_the_work_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, holes: bool
) -> None:
    """Outputs and gradients in training, with all that is dropped at random, against those of all branches."""
    missing = torch.tensor([[False, False], [False, True], [True, False], [False, True]])
    torch.manual_seed(0)
    model = LinearFusionSegmenter("mit_b0", 5, skip_missing=True).double().train()
    images = torch.randn(2, 4, 3, 64, 96, dtype=torch.float64)
    valid = torch.rand(4, 1, 64, 96) > 0.5
    valid[..., :40] = False
    take_rows(model, torch.arange(8))
    found = []
    for left_out in (True, False):
        if not left_out:
            monkeypatch.setattr(segmenter, "_readable", lambda _: False)
        model.zero_grad()
        torch.manual_seed(1)
        with FlopCounterMode(display=False) as counter:
            outputs = model(images[0], images[1], missing, valid if holes else None)
            loss = sum((x * (1 + i)).square().mean() for i, x in enumerate(outputs))
            loss.backward()
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found.append(([*outputs, *gradients], counter.get_total_flops()))
    (one, fewer), (other, all_of_them) = found
    assert len(one) == len(other) == 3 + len(list(model.parameters()))
    for x, y in zip(one, other, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-12)
    assert fewer < 0.75 * all_of_them


def test_depth_without_a_valid_pixel_equals_missing_depth(
    either: LinearFusionSegmenter, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    holes = torch.zeros(2, 1, 32, 48, dtype=torch.bool)
    either, images = either.double(), (images[0].double(), images[1].double())
    with torch.no_grad():
        by_holes = either(*images, depth_valid=holes).fused
        by_flag = either(*images, torch.tensor([[False, True]] * 2)).fused
        whole = either(*images).fused
        valid_everywhere = either(*images, depth_valid=~holes).fused
    # A branch that is not computed makes the batch another, which rounds otherwise.
    torch.testing.assert_close(by_holes, by_flag, rtol=0, atol=1e-12 if either.skip_missing else 0)
    torch.testing.assert_close(valid_everywhere, whole, rtol=0, atol=0)


def test_within_a_hole_colour_alone_speaks() -> None:
    torch.manual_seed(0)
    model = LinearFusionSegmenter("mit_b0", 5, skip_missing=True).eval()
    images = torch.randn(2, 1, 3, 64, 256)
    valid = torch.zeros(1, 1, 64, 256, dtype=torch.bool)
    valid[..., 192:] = True
    with torch.no_grad():
        rgb, depth, _ = model.quarter_logits(images[0], images[1], depth_valid=valid)
    torch.testing.assert_close(rgb[..., :32], depth[..., :32], rtol=0, atol=0)
    assert (rgb[..., 56:] - depth[..., 56:]).abs().amin() > 0


def test_depth_s_own_holes_are_its_own_where_colour_is_missing(
    images: tuple[torch.Tensor, torch.Tensor],
) -> None:
    torch.manual_seed(0)
    model = LinearFusionSegmenter("mit_b0", 5, skip_missing=True).eval()
    valid = torch.rand(2, 1, 32, 48) > 0.97
    with torch.no_grad():
        first = model(*images, torch.tensor([[True, False]] * 2), valid)
        stage = model.encoder.stages[1]
        assert isinstance(stage, Stage)
        stage.norm.weight[0] += 1
        second = model(*images, torch.tensor([[True, False]] * 2), valid)
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_one_valid_pixel_keeps_the_patches_that_see_it(
    model: LinearFusionSegmenter, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    valid = torch.zeros(2, 1, 32, 48, dtype=torch.bool)
    with torch.no_grad():
        none = model(*images, depth_valid=valid).fused
        valid[:, :, 9, 17] = True
        some = model(*images, depth_valid=valid).fused
    assert (some - none).abs().max() > 1e-4


def test_fused_is_the_softmax_weighted_mean_of_the_branches(
    model: LinearFusionSegmenter, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    with torch.no_grad():
        model.alpha.copy_(torch.tensor([1.0, -0.5]))
        rgb, depth, fused = model.quarter_logits(*images)
        weight = model.alpha.softmax(0)
        torch.testing.assert_close(fused, weight[0] * rgb + weight[1] * depth)
        torch.testing.assert_close(model(*images).fused, upsample(fused, (32, 48)))


def test_every_parameter_gets_a_gradient_when_something_is_missing(
    model: LinearFusionSegmenter, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    outputs = model(*images, torch.tensor([[True, False], [False, True]]))
    sum(x.square().sum() for x in outputs).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_linear_fusion_swaps_completely_at_ratio_0_and_not_at_all_at_1() -> None:
    x = torch.randn(2, 3, 4)
    other = torch.tensor([1, 0])
    torch.testing.assert_close(linear_fusion(x, 0.0, other), x.flip(0))
    torch.testing.assert_close(linear_fusion(x, 1.0, other), x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rgb": torch.zeros(1, 3, 31, 48)}, "both be"),
        ({"rgb": torch.zeros(1, 3, 31, 48), "depth": torch.zeros(1, 3, 31, 48)}, "at least 32"),
        ({"missing": torch.tensor([[True, True]])}, "both modalities"),
        ({"missing": torch.tensor([[1, 0]])}, "must be bool"),
        ({"missing": torch.tensor([True, False])}, r"\(1, 2\)"),
        ({"depth_valid": torch.ones(1, 1, 16, 16, dtype=torch.bool)}, "depth_valid"),
    ],
)
def test_inputs_that_do_not_fit_are_named(
    model: LinearFusionSegmenter, change: dict[str, torch.Tensor], message: str
) -> None:
    inputs = {"rgb": torch.zeros(1, 3, 32, 48), "depth": torch.zeros(1, 3, 32, 48)} | change
    with pytest.raises(ValueError, match=message):
        model(**inputs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet50", 5, 0.8), "mit_b0"),
        (("mit_b0", 1, 0.8), "num_classes"),
        (("mit_b0", 5, 1.5), "fusion_ratio"),
    ],
)
def test_impossible_networks_are_refused(arguments: tuple[str, int, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LinearFusionSegmenter(*arguments)


def test_one_exported_graph_serves_every_batch_size_and_every_case(
    either: LinearFusionSegmenter, images: tuple[torch.Tensor, torch.Tensor]
) -> None:
    batch = torch.export.Dim("batch", min=1, max=8)
    flags = torch.tensor([[False, True], [False, False]])
    program = torch.export.export(either, (*images, flags), dynamic_shapes=[{0: batch}] * 3).module()
    rgb, depth = (torch.cat((x, x[:1])) for x in images)
    others = torch.tensor([[True, False], [False, True], [False, False]])
    with torch.no_grad():
        torch.testing.assert_close(
            program(rgb, depth, others).fused, either(rgb, depth, others).fused, rtol=0, atol=1e-5
        )
