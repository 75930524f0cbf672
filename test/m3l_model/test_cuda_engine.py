# SPDX-License-Identifier: Apache-2.0
"""The engine of GPUs: graphs, two frames in flight, and what remains where a step is not to be had."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from m3l_model import LinearFusionSegmenter, Predictor, device_images, labelling
from m3l_model.checkpoint import Metadata
from m3l_model.cuda_engine import CudaEngine, _Buffers, capture, segment_raw
from m3l_model.engine import Compiled, Request
from m3l_model.labelling import Labels
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


@pytest.mark.usefixtures("cuda_on_cpu")
def test_only_the_network_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the compiler's hands the tables of the images and labels would be made anew for every frame."""
    made: list[object] = []
    made_by_the_compiled: list[object] = []

    def compile(network: Callable[..., Any], dynamic: bool) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            before = len(made)
            outputs = network(*inputs)
            made_by_the_compiled.append(made[before:])
            return outputs

        return call

    def counted(table: Callable[..., Any]) -> Callable[..., Any]:
        def make(*sizes: Any) -> Any:
            made.append(sizes)
            return table(*sizes)

        return make

    monkeypatch.setattr(torch, "compile", compile)
    for module, name in (
        (device_images, "_area_weights"),
        (device_images, "_nearest"),
        (labelling, "_positions"),
    ):
        monkeypatch.setattr(module, name, counted(getattr(module, name)))
    engine = CudaEngine(model().eval(), Preprocessing(64, mask_holes=True), torch.float32, compile=True)
    engine.submit(Request(*frame(), SIZE, True))()
    assert made
    assert made_by_the_compiled
    assert not any(made_by_the_compiled)


def test_a_compiler_that_fails_is_done_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    on_gpu = cast(torch.Tensor, SimpleNamespace(is_cuda=True))
    inputs = on_gpu, on_gpu, on_gpu, None
    network = Compiled(lambda *_: torch.ones(1))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match="no compiler"):
        network(*inputs)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with caplog.at_level(logging.WARNING):
        assert [float(network(*inputs)) for _ in range(2)] == [1, 1]
    assert [record.getMessage() for record in caplog.records] == [
        "torch.compile failed, going on without it: no compiler"
    ]


@pytest.mark.usefixtures("cuda_on_cpu")
def test_a_frame_that_fails_leaves_alone_what_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    engine = CudaEngine(model().eval(), Preprocessing(), torch.float32)
    first, second, third = (Request(*frame(seed), SIZE, False) for seed in range(3))
    expected = [engine.submit(request)().labels for request in (first, third)]
    in_flight = engine.submit(first)
    with monkeypatch.context() as patch:
        patch.setattr(engine._program(second), "run", fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            engine.submit(second)
    after = engine.submit(third)
    assert (expected[0] != expected[1]).any()
    np.testing.assert_array_equal(in_flight().labels, expected[0])
    np.testing.assert_array_equal(after().labels, expected[1])


@pytest.mark.usefixtures("cuda_on_cpu")
def test_an_engine_that_is_dropped_is_gone_at_once() -> None:
    """Its memory on the GPU does not wait for the garbage collector."""
    request = Request(*frame(), SIZE, False)
    gc.disable()
    try:
        engine = CudaEngine(model().eval(), Preprocessing(), torch.float32)
        engine.submit(request)()
        gone = weakref.ref(engine), weakref.ref(engine._program(request)), weakref.ref(engine._network)
        del engine
        assert [each() for each in gone] == [None] * 3
    finally:
        gc.enable()


class FailingCapture:
    """In place of torch.cuda.graph, of a capture that something invalidates: the end of it fails too."""

    def __init__(self, graph: object, pool: object, stream: object, capture_error_mode: str) -> None:
        assert capture_error_mode == "thread_local"

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        raise RuntimeError("operation failed due to a previous error during capture")


def test_a_capture_that_failed_is_ended_for_the_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []
    stream = SimpleNamespace(device_index=1)
    generator = SimpleNamespace(
        clone_state=lambda: "clone", graphsafe_set_state=lambda state: calls.append(("set", state))
    )
    monkeypatch.setattr(torch.cuda, "default_generators", (None, generator))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", FailingCapture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 7))
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *call, name=name: calls.append((name, *call)))

    def segment() -> Labels:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="previous error") as raised:
        capture(segment, cast(torch.cuda.Stream, stream))
    assert "not permitted" in str(raised.value.__context__)
    ended = [("_cuda_endAllocateToPool", 1, (0, 7)), ("_cuda_releasePool", 1, (0, 7))]
    assert calls == [*ended, ("set", "clone")]


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


@on_gpu
def test_a_capture_that_fails_midway_leaves_the_gpu_as_it_was(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = Predictor(model(), "cuda", "fp32").predict(*frame()).labels
    stream = torch.cuda.current_stream()

    def reading(*arguments: Any) -> Labels:
        labels = segment_raw(*arguments)
        if torch.cuda.is_current_stream_capturing():
            labels.labels.sum().item()  # waits, which a capture cannot
        return labels

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr("m3l_model.cuda_engine.segment_raw", reading)
        predictor = Predictor(model(), "cuda", "fp32")
        for _ in range(3):
            np.testing.assert_array_equal(predictor.predict(*frame()).labels, expected)
    assert caplog.text.count("no CUDA graph of") == 1
    assert torch.cuda.current_stream() == stream
    torch.rand(1, device="cuda")
    torch.cuda.empty_cache()
    caplog.clear()
    np.testing.assert_array_equal(Predictor(model(), "cuda", "fp32").predict(*frame()).labels, expected)
    assert not caplog.records  # a capture after it succeeds
