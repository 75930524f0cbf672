# SPDX-License-Identifier: Apache-2.0
"""The network rearranged for inference computes what the plain one computes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3l_model import onednn, prepared
from m3l_model.mit import Block
from m3l_model.prepared import PreparedSegmenter
from m3l_model.segmenter import RGB_ALONE, LinearFusionSegmenter

STATES = {"both": [False, False], "depth_missing": [False, True], "rgb_missing": [True, False]}
TOLERANCE = {torch.float32: 5e-5, torch.float64: 1e-9}


def trained(
    backbone: str, dtype: torch.dtype = torch.float32, skip_missing: bool = False
) -> LinearFusionSegmenter:
    """A network in which no weight and no statistic has its initial value, as after a training."""
    torch.manual_seed(0)
    model = LinearFusionSegmenter(backbone, 13, skip_missing=skip_missing).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        assert model.decoder.bn.running_mean is not None
        assert model.decoder.bn.running_var is not None
        model.decoder.bn.running_mean.normal_()
        model.decoder.bn.running_var.uniform_(0.5, 2)
    return model.eval()


def images(batch: int, height: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    rgb = torch.randn(batch, 3, height, width, generator=generator, dtype=dtype)
    return rgb, torch.randn(batch, 1, height, width, generator=generator, dtype=dtype)


def difference(
    model: LinearFusionSegmenter,
    network: PreparedSegmenter,
    rgb: torch.Tensor,
    depth: torch.Tensor,
    missing: torch.Tensor,
    valid: torch.Tensor | None = None,
) -> float:
    with torch.inference_mode():
        plain = model.quarter_logits(rgb, depth.expand(-1, 3, -1, -1), missing, valid).fused
        logits = network(rgb, depth, missing, valid).permute(0, 3, 1, 2)
    assert logits.shape == plain.shape
    assert float(plain.std()) > 0.01  # or else equality says nothing
    return float((logits - plain).abs().max())


@pytest.mark.parametrize("skip_missing", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("backbone", "size"), [("mit_b0", (100, 75)), ("mit_b2", (40, 33))])
def test_equals_the_plain_network_in_all_states(
    backbone: str, size: tuple[int, int], dtype: torch.dtype, skip_missing: bool
) -> None:
    model = trained(backbone, dtype, skip_missing)
    network = PreparedSegmenter(model, dtype)
    rgb, depth = images(2, *size, dtype)
    holes = torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(2)) > 0.97
    states = [torch.tensor([state, state]) for state in STATES.values()]
    for missing in [*states, torch.tensor([STATES["both"], STATES["rgb_missing"]])]:
        for valid in (None, holes):
            assert difference(model, network, rgb, depth, missing, valid) < TOLERANCE[dtype]


@pytest.mark.parametrize("state", sorted(STATES))
def test_depth_may_have_three_channels_that_differ(state: str) -> None:
    model = trained("mit_b0")
    rgb, depth = images(2, 40, 33, torch.float32)
    depth = torch.cat((depth, depth.flip(2), -depth), 1)
    missing = torch.tensor([STATES[state]] * 2)
    assert difference(model, PreparedSegmenter(model), rgb, depth, missing) < 5e-5


@settings(max_examples=15, deadline=None)
@given(
    height=st.integers(32, 90),
    width=st.integers(32, 90),
    batch=st.integers(1, 3),
    scratch=st.sampled_from([1, 100_000, 1 << 30]),
    states=st.lists(st.sampled_from(sorted(STATES)), min_size=3, max_size=3),
    skip_missing=st.booleans(),
)
def test_bands_of_any_height_give_the_same(
    height: int, width: int, batch: int, scratch: int, states: list[str], skip_missing: bool
) -> None:
    model = trained("mit_b0", skip_missing=skip_missing)
    rgb, depth = images(batch, height, width, torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepared, "_CPU_SCRATCH", scratch)
        missing = torch.tensor([STATES[state] for state in states[:batch]])
        assert difference(model, PreparedSegmenter(model), rgb, depth, missing) < 5e-5


def test_the_decoder_of_a_gpu_gives_what_the_cpu_s_gives() -> None:
    decoder = PreparedSegmenter(trained("mit_b0"))._decoder
    maps = [torch.randn(2, 2, 48 >> i, 40 >> i, width) for i, width in enumerate((32, 64, 160, 256))]
    with torch.inference_mode():
        torch.testing.assert_close(decoder._whole(maps), decoder(maps), rtol=0, atol=5e-5)


@pytest.mark.parametrize("state", ["depth_missing", "rgb_missing"])
def test_a_modality_alone_is_segmented_as_by_a_network_of_it_alone(state: str) -> None:
    model = trained("mit_b0", torch.float64, skip_missing=True)
    rgb, depth = images(1, 64, 96, torch.float64)
    missing = torch.tensor([STATES[state]])
    with torch.inference_mode():
        alone = model(rgb, depth.expand(-1, 3, -1, -1), missing)
        for block in (block for block in model.modules() if isinstance(block, Block)):
            block.fusion_ratio = 1.0
        apart = model(rgb, depth.expand(-1, 3, -1, -1))
    own = apart.rgb if state == "depth_missing" else apart.depth
    assert float((apart.rgb - apart.depth).std()) > 0.01
    for output in alone:
        torch.testing.assert_close(output, own, rtol=0, atol=1e-12)


@pytest.mark.parametrize("state", sorted(STATES))
def test_a_gpu_s_way_of_skipping_what_is_missing_gives_what_the_cpu_s_gives(state: str) -> None:
    """Where flags are not read on the host, both branches run, and the missing one's is not listened to."""
    network = PreparedSegmenter(trained("mit_b0", skip_missing=True))
    rgb, depth = images(2, 64, 96, torch.float32)
    missing = torch.tensor([STATES[state]] * 2)
    holes = torch.rand(2, 1, 64, 96, generator=torch.Generator().manual_seed(2)) > 0.97
    for valid in (None, holes):
        with torch.inference_mode():
            expected = network(rgb, depth, missing, valid)
            network.device = torch.device("cuda")
            found = network(rgb, depth, missing, valid)
            network.device = torch.device("cpu")
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


@pytest.mark.parametrize("alpha", [(9.0, -9.0), RGB_ALONE])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_modality_alone_needs_no_share_of_the_mean(dtype: torch.dtype, alpha: tuple[float, float]) -> None:
    model = trained("mit_b0", skip_missing=True)
    rgb, depth = images(1, 64, 96, torch.float32)
    with torch.no_grad():
        model.alpha.copy_(torch.tensor(alpha))
        missing = torch.tensor([STATES["rgb_missing"]])
        exact = model.quarter_logits(rgb, depth.expand(-1, 3, -1, -1), missing).fused
        found = PreparedSegmenter(model, dtype)(rgb, depth, missing).permute(0, 3, 1, 2).float()
    assert float((found - exact).abs().max()) < 0.1 * float(exact.std())


def test_goes_without_onednn_s_own_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained("mit_b0")
    rgb, depth = images(1, 64, 96, torch.float32)
    monkeypatch.setattr(onednn, "available", lambda _: False)
    for dtype, tolerance in ((torch.float32, 5e-5), (torch.bfloat16, 0.5)):
        network = PreparedSegmenter(model, dtype)
        assert difference(model, network, rgb, depth, torch.tensor([[False, False]])) < tolerance


@pytest.mark.parametrize("skip_missing", [False, True])
def test_what_a_missing_image_holds_has_no_influence(skip_missing: bool) -> None:
    network = PreparedSegmenter(trained("mit_b0", skip_missing=skip_missing))
    rgb, depth = images(2, 64, 64, torch.float32)
    missing = torch.tensor([[False, True], [True, False]])
    with torch.inference_mode():
        first = network(rgb, depth, missing)
        rgb[1], depth[0] = float("nan"), float("inf")
        torch.testing.assert_close(network(rgb, depth, missing), first, rtol=0, atol=0)


@pytest.mark.parametrize("state", sorted(STATES))
@pytest.mark.parametrize("skip_missing", [False, True])
def test_bf16_is_close(skip_missing: bool, state: str) -> None:
    model = trained("mit_b0", skip_missing=skip_missing)
    rgb, depth = images(1, 96, 128, torch.float32)
    holes = torch.rand(1, 1, 96, 128, generator=torch.Generator().manual_seed(2)) > 0.97
    with torch.inference_mode():
        exact, rough = (
            PreparedSegmenter(model, dtype)(rgb, depth, torch.tensor([STATES[state]]), holes).float()
            for dtype in (torch.float32, torch.bfloat16)
        )
    assert float((exact - rough).abs().max()) < 0.1 * float(exact.std())


def test_the_model_it_was_made_of_is_left_as_it_was() -> None:
    model = trained("mit_b0")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = PreparedSegmenter(model, torch.bfloat16)
    with torch.inference_mode():
        network(*images(1, 64, 64, torch.float32), torch.tensor([[False, True]]))
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize("channels", [1, 3])
def test_the_embedding_of_an_image_is_channels_last(channels: int) -> None:
    """Else the LayerNorm that follows copies the map."""
    encoder = PreparedSegmenter(LinearFusionSegmenter("mit_b0", 5).eval())._encoder
    embed = encoder.embed_equal_channels if channels == 1 else encoder.first.embed
    with torch.inference_mode():
        assert embed(torch.randn(2, 64, 96, channels).contiguous()).is_contiguous()
        assert embed(torch.randn(2, channels, 64, 96).permute(0, 2, 3, 1)).is_contiguous()
