# SPDX-License-Identifier: Apache-2.0
"""The engine of GPUs: graphs, two frames in flight, and what remains where a step is not to be had."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
import torch

from m3l_model import LinearFusionSegmenter, Predictor
from m3l_model.checkpoint import Metadata
from m3l_model.cuda_engine import _Buffers, segment_raw
from m3l_model.labels import LabelSet
from m3l_model.prepared import PreparedSegmenter
from m3l_model.preprocessing import Preprocessing

SIZE = (96, 128)


def model(short_side: int | None = None) -> LinearFusionSegmenter:
    torch.manual_seed(0)
    network = LinearFusionSegmenter("mit_b0", 5)
    network.metadata = Metadata(LabelSet.generic(5), Preprocessing(short_side, mask_holes=True))
    return network


def frame(seed: int = 0, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*size, 3), np.uint8), rng.integers(0, 6000, size, np.uint16)


def on_gpu(test: Any) -> Any:
    absent = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.gpu(absent(test))


@pytest.mark.parametrize("short_side", [None, 64])
def test_what_a_graph_holds_is_what_the_cpu_computes(short_side: int | None) -> None:
    """The steps of a frame on a GPU, taken here on the CPU."""
    network = model(short_side).eval()
    assert network.metadata is not None
    prepared, cpu = PreparedSegmenter(network), Predictor(model(short_side), "cpu", "fp32")
    rgb, depth = frame()
    for with_rgb, with_depth in ((True, True), (True, False), (False, True)):
        buffers = _Buffers(
            torch.from_numpy(rgb)[None],
            torch.from_numpy(depth.view(np.int16))[None],
            torch.tensor([[not with_rgb, not with_depth]]),
        )
        with torch.inference_mode():
            found = segment_raw(prepared, network.metadata.preprocessing, buffers, SIZE, True)
        expected = cpu.predict(rgb if with_rgb else None, depth if with_depth else None)
        assert found.confidence is not None
        assert expected.confidence is not None
        assert (found.labels[0].numpy() == expected.labels).mean() > 0.99
        np.testing.assert_allclose(found.confidence[0].numpy(), expected.confidence, atol=5e-3)


@on_gpu
@pytest.mark.parametrize("short_side", [None, 64])
def test_agrees_with_the_cpu_in_all_states(short_side: int | None) -> None:
    cpu = Predictor(model(short_side), "cpu", "fp32")
    gpu = Predictor(model(short_side), "cuda", "fp32")
    rgb, depth = frame()
    for inputs in ((rgb, depth), (rgb, None), (None, depth), (rgb, depth.astype(np.float32) / 1000)):
        expected, found = cpu.predict(*inputs), gpu.predict(*inputs)
        assert (expected.labels == found.labels).mean() > 0.99
        assert expected.confidence is not None
        assert found.confidence is not None
        np.testing.assert_allclose(found.confidence, expected.confidence, atol=5e-3)


@on_gpu
def test_frames_in_flight_keep_their_results() -> None:
    predictor = Predictor(model(), "cuda", "fp32")
    frames = [frame(seed) for seed in range(5)]
    alone = [predictor.predict(*images, with_confidence=False).labels for images in frames]
    pending = [predictor.submit(*images, with_confidence=False) for images in frames]
    for expected, waiting in zip(alone, pending, strict=True):
        np.testing.assert_array_equal(waiting.result().labels, expected)


@on_gpu
def test_more_shapes_than_are_kept() -> None:
    predictor = Predictor(model(), "cuda", "fp32")
    sizes = [(64 + 8 * i, 96) for i in range(6)]
    first = [predictor.predict(*frame(size=size)).labels for size in sizes]
    again = [predictor.predict(*frame(size=size)).labels for size in sizes]
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


@on_gpu
def test_a_graph_that_cannot_be_captured_is_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = Predictor(model(), "cuda", "fp32").predict(*frame()).labels

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no capture today")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    with caplog.at_level(logging.WARNING):
        labels = Predictor(model(), "cuda", "fp32").predict(*frame()).labels
    assert "no capture today" in caplog.text
    np.testing.assert_array_equal(labels, expected)
