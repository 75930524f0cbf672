# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m3l_model import LinearFusionSegmenter, M3LError, Prediction, Predictor, save_checkpoint
from m3l_model.predictor import _choose_precision
from m3l_model.preprocessing import Preprocessing


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_checkpoint(
        tmp_path / "model",
        LinearFusionSegmenter("mit_b0", 5),
        preprocessing=Preprocessing(48, mask_holes=True),
    )
    return tmp_path / "model"


@pytest.fixture
def predictor(checkpoint: Path) -> Predictor:
    return Predictor.from_checkpoint(checkpoint, device="cpu", precision="fp32")


@pytest.fixture
def frame() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (90, 120, 3), np.uint8), rng.integers(500, 5000, (90, 120), np.uint16)


def confidence(prediction: Prediction) -> np.ndarray:
    assert prediction.confidence is not None
    return prediction.confidence


def test_labels_and_confidence_have_the_colour_image_s_size(predictor: Predictor, frame: tuple) -> None:
    rgb, depth = frame
    prediction = predictor.predict(rgb, depth)
    assert prediction.labels.shape == (90, 120)
    assert prediction.labels.dtype == np.uint8
    assert prediction.confidence is not None
    assert prediction.confidence.dtype == np.float32
    assert (prediction.confidence >= 1 / 5 - 1e-6).all()
    assert (prediction.confidence <= 1).all()
    assert prediction.used == ("rgb", "depth")


def test_predicts_what_the_network_says(predictor: Predictor, checkpoint: Path) -> None:
    from m3l_model import load_checkpoint

    rng = np.random.default_rng(1)
    rgb, depth = rng.integers(0, 256, (48, 64, 3), np.uint8), rng.integers(1, 9000, (48, 64), np.uint16)
    model = load_checkpoint(checkpoint)
    inputs = Preprocessing(48, mask_holes=True).encode(
        torch.from_numpy(rgb)[None], torch.from_numpy(depth.astype(np.float32))[None] / 1000
    )
    with torch.no_grad():
        probability = model(inputs.rgb, inputs.depth, depth_valid=inputs.depth_valid).fused.softmax(1)[0]
    prediction = predictor.predict(rgb, depth)
    np.testing.assert_allclose(confidence(prediction), probability.amax(0), atol=1e-5)
    top_two = probability.topk(2, dim=0).values
    decided = ((top_two[0] - top_two[1]) > 1e-4).numpy()
    assert decided.mean() > 0.9
    assert (prediction.labels == probability.argmax(0).numpy())[decided].all()


def test_metres_and_millimetres_are_one_depth(predictor: Predictor, frame: tuple) -> None:
    rgb, depth = frame
    a, b = predictor.predict(rgb, depth), predictor.predict(rgb, depth.astype(np.float32) / 1000)
    np.testing.assert_allclose(confidence(a), confidence(b), atol=1e-5)


@pytest.mark.parametrize(
    "holes",
    [
        np.zeros((90, 120), np.uint16),
        np.full((90, 120), 65535, np.uint16),
        np.full((90, 120), np.nan, np.float32),
    ],
)
def test_depth_of_nothing_but_holes_is_missing_depth(
    predictor: Predictor, frame: tuple, holes: np.ndarray
) -> None:
    without = predictor.predict(frame[0], None)
    with_holes = predictor.predict(frame[0], holes)
    assert with_holes.used == without.used == ("rgb",)
    np.testing.assert_array_equal(confidence(with_holes), confidence(without))
    assert (confidence(without) != confidence(predictor.predict(*frame))).any()


def test_depth_alone_is_segmented_at_its_own_size(predictor: Predictor, frame: tuple) -> None:
    prediction = predictor.predict(None, frame[1][:60])
    assert prediction.labels.shape == (60, 120)
    assert prediction.used == ("depth",)


def test_registered_depth_of_another_scale_is_resampled(predictor: Predictor, frame: tuple) -> None:
    prediction = predictor.predict(frame[0], frame[1][::2, ::2])
    assert prediction.labels.shape == (90, 120)
    assert prediction.used == ("rgb", "depth")


@pytest.mark.parametrize("shape", [(7, 9), (33, 200), (480, 640)])
def test_any_image_size_is_segmented(predictor: Predictor, shape: tuple[int, int]) -> None:
    prediction = predictor.predict(np.zeros((*shape, 3), np.uint8), np.ones(shape, np.float32))
    assert prediction.labels.shape == shape


def test_confidence_is_left_out_when_not_asked_for(predictor: Predictor, frame: tuple) -> None:
    rgb, depth = frame
    with_it, without = predictor.predict(rgb, depth), predictor.predict(rgb, depth, with_confidence=False)
    assert without.confidence is None
    np.testing.assert_array_equal(with_it.labels, without.labels)


def test_nothing_to_segment_and_wrong_types_are_named(predictor: Predictor, frame: tuple) -> None:
    rgb, depth = frame
    with pytest.raises(ValueError, match="both None"):
        predictor.predict(None, None)
    with pytest.raises(ValueError, match="nothing to segment"):
        predictor.predict(None, np.zeros((40, 40), np.uint16))
    with pytest.raises(ValueError, match="HxWx3 uint8"):
        predictor.predict(rgb.astype(np.float32), depth)
    with pytest.raises(ValueError, match="HxWx3 uint8"):
        predictor.predict(rgb[..., :2], depth)
    for empty in (rgb[:0], rgb[:, :0]):
        with pytest.raises(ValueError, match="rgb has no pixels"):
            predictor.predict(empty, depth)
    with pytest.raises(ValueError, match="nothing to segment"):
        predictor.predict(None, depth[:0])
    with pytest.raises(ValueError, match=r"got uint16 \(90, 120, 1\)"):
        predictor.predict(rgb, depth[..., None])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "tpu"}, "choose auto"),
        ({"device": "meta"}, "choose auto"),
        ({"device": "cuda:77"}, "GPUs"),
        ({"device": "cpu:3"}, "device 'cpu:3' is not there: there is one cpu"),
        ({"device": "cpu", "precision": "int4"}, "fp32"),
    ],
)
def test_absent_devices_and_precisions_are_named(checkpoint: Path, arguments: dict, message: str) -> None:
    with pytest.raises(M3LError, match=message):
        Predictor.from_checkpoint(checkpoint, **arguments)


@pytest.mark.parametrize(
    ("hip", "capability", "expected"),
    [(None, (7, 5), torch.float16), (None, (8, 0), torch.bfloat16), ("6.4", (0, 0), torch.bfloat16)],
)
def test_a_gpu_that_only_emulates_bf16_gets_fp16(
    monkeypatch: pytest.MonkeyPatch, hip: str | None, capability: tuple[int, int], expected: torch.dtype
) -> None:
    def capability_of(device: torch.device) -> tuple[int, int]:
        return capability if device.index == 1 else (1, 0)

    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: capability < (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", capability_of)
    assert _choose_precision("auto", torch.device("cuda:1")) == expected


def test_bf16_agrees_with_fp32_on_most_pixels(checkpoint: Path, frame: tuple) -> None:
    exact = Predictor.from_checkpoint(checkpoint, "cpu", "fp32").predict(*frame)
    rough = Predictor.from_checkpoint(checkpoint, "cpu", "bf16").predict(*frame)
    assert (exact.labels == rough.labels).mean() > 0.9


def test_a_network_is_compiled_on_the_cpu_too(
    checkpoint: Path, frame: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def compile(network: Callable[..., torch.Tensor], dynamic: bool) -> Callable[..., torch.Tensor]:
        def call(*inputs: Any) -> torch.Tensor:
            calls.append(len(inputs))
            return network(*inputs)

        return call

    monkeypatch.setattr(torch, "compile", compile)
    expected = Predictor.from_checkpoint(checkpoint, "cpu").predict(*frame)
    assert not calls
    found = Predictor.from_checkpoint(checkpoint, "cpu", compile=True).predict(*frame)
    assert len(calls) == 1
    np.testing.assert_array_equal(found.labels, expected.labels)


def test_a_compiler_that_is_not_there_is_done_without(
    checkpoint: Path, frame: tuple, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> torch.Tensor:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    expected = Predictor.from_checkpoint(checkpoint, "cpu").predict(*frame)
    with caplog.at_level(logging.WARNING):
        found = Predictor.from_checkpoint(checkpoint, "cpu", compile=True).predict(*frame)
    assert caplog.messages == ["torch.compile failed, going on without it: no C++ compiler"]
    np.testing.assert_array_equal(found.labels, expected.labels)
