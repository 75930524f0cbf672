# SPDX-License-Identifier: Apache-2.0
"""Models that the node cannot use are refused in one line, with the way out."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch

from m3l_model.checkpoint import save_checkpoint
from m3l_model.errors import M3LError
from m3l_model.labels import LabelSet
from m3l_model.predictor import Predictor
from m3l_model.preprocessing import Preprocessing
from m3l_model.segmenter import LinearFusionSegmenter
from m3l_ros.models import _warm_up, check_model, load_model, release_memory
from m3l_ros.parameters import NodeParameters


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model.safetensors"
    save_checkpoint(path, LinearFusionSegmenter("mit_b0", num_classes=5))
    return path


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """An ONNX file as m3l export writes it for images of 96x128, without logits; its labels are the image's red."""
    onnx = pytest.importorskip("onnx", reason="needs onnx: pip install 'm3l_ros[onnx]'")
    pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'm3l_ros[onnx]'")
    from onnx import TensorProto, helper

    types = {"rgb": TensorProto.UINT8, "depth": TensorProto.FLOAT, "missing": TensorProto.BOOL}
    shapes = {"rgb": [1, 96, 128, 3], "depth": [1, 96, 128], "missing": [1, 2]}
    graph = helper.make_graph(
        [helper.make_node("Gather", ["rgb", "red"], ["labels"], axis=3)],
        "red",
        [helper.make_tensor_value_info(name, types[name], shape) for name, shape in shapes.items()],
        [helper.make_tensor_value_info("labels", TensorProto.UINT8, [1, 96, 128])],
        [helper.make_tensor("red", TensorProto.INT64, [], [0])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    header = {
        "labels": json.loads(LabelSet.generic(5).to_json()),
        "preprocessing": asdict(Preprocessing()),
        "size": [96, 128],
    }
    helper.set_model_props(model, {"m3l": json.dumps(header)})
    path = tmp_path_factory.mktemp("models") / "model.onnx"
    onnx.save(model, path)
    return path


def refusal(checkpoint, **parameters):
    with pytest.raises(M3LError) as raised:
        load_model(NodeParameters(checkpoint=str(checkpoint), **parameters))
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_model_that_fits_is_loaded_and_has_run(checkpoint):
    predictor = load_model(NodeParameters(checkpoint=str(checkpoint), num_classes=5, device="cpu"))
    assert (len(predictor.labels.classes), predictor.device) == (5, torch.device("cpu"))


def test_exported_model_is_loaded_and_goes_on_without_confidence(exported, caplog):
    check_model(str(exported), 5)
    predictor = load_model(NodeParameters(checkpoint=str(exported), num_classes=5, device="cpu"))
    assert (len(predictor.labels.classes), predictor.precision) == (5, torch.float32)
    assert not caplog.records
    for with_confidence in (False, True, True):
        found = predictor.predict(np.full((96, 128, 3), 3, np.uint8), None, with_confidence)
        assert (found.labels == 3).all()
        assert found.confidence is None
    assert [record.getMessage() for record in caplog.records] == [
        f"{exported}: gives no logits, so there are labels but no confidence; export it with --logits"
    ]


def test_exported_models_that_do_not_fit_are_named(exported, tmp_path, monkeypatch):
    with pytest.raises(M3LError, match="has 5 classes, parameter num_classes asks for 13"):
        check_model(str(exported), 13)
    assert "computes in fp32, not 'bf16'; choose precision auto or fp32" in refusal(
        exported, precision="bf16"
    )
    assert refusal(tmp_path / "gone.onnx") == f"{tmp_path / 'gone.onnx'}: no such ONNX file"
    (tmp_path / "bad.onnx").write_bytes(b"no ONNX file")
    assert refusal(tmp_path / "bad.onnx").startswith(f"{tmp_path / 'bad.onnx'}: not a readable ONNX file")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(M3LError, match="needs onnxruntime, which is not installed: pip install"):
        check_model(str(exported), 5)


@pytest.mark.parametrize(
    ("device", "image_size", "frames"),
    [
        ("cpu", None, [((480, 640), np.uint16)]),
        ("cpu", (96, 128), [((96, 128), np.uint16)]),
        ("cuda", None, [((480, 640), np.uint16), ((480, 640), np.float32)]),
    ],
)
def test_what_a_camera_sends_is_prepared(device, image_size, frames):
    """On a GPU each size and type of depth, with confidence or without, is prepared by itself."""
    seen = []

    class StandIn:
        def predict(self, rgb, depth, with_confidence=True):
            assert rgb.shape == (*depth.shape, 3)
            assert not with_confidence
            seen.append((depth.shape, depth.dtype))

    stand_in = StandIn()
    stand_in.device, stand_in.image_size = torch.device(device), image_size
    _warm_up(stand_in)
    assert seen == frames


def test_none_and_missing_and_damaged_ones_are_named(tmp_path):
    assert "give a model file, as in --ros-args -p checkpoint:=" in refusal("")
    assert refusal(tmp_path / "gone") == f"{tmp_path / 'gone'}: no such checkpoint file"
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\x09" + bytes(7) + b"{no model")
    assert refusal(damaged).startswith(f"{damaged}: ")


def test_what_cannot_be_opened_is_named(tmp_path):
    too_long = tmp_path / ("a" * 300)
    assert refusal(too_long) == f"{too_long}: cannot be read: File name too long"
    assert refusal("/proc/self/mem") == "/proc/self/mem: cannot be read: Input/output error"
    assert refusal("~nobody-of-this-name/model").endswith("give the whole path")


def test_weights_that_end_too_early_are_named(checkpoint, tmp_path):
    short = tmp_path / "short.safetensors"
    short.write_bytes(checkpoint.read_bytes()[:-1000])
    assert refusal(short).startswith(f"{short}: ")


def test_other_number_of_classes_is_named_with_both_ways_out(checkpoint):
    said = refusal(checkpoint, num_classes=13)
    assert said.startswith(f"{checkpoint}: has 5 classes, parameter num_classes asks for 13")
    assert "choose another checkpoint, or set num_classes to 0" in said
    with pytest.raises(M3LError, match="has 5 classes"):
        check_model(str(checkpoint), 13)


def test_device_that_is_not_there_is_named(checkpoint):
    assert "device 'cuda:99' is not there" in refusal(checkpoint, device="cuda:99")
    assert "choose auto, cpu, cuda or cuda:N" in refusal(checkpoint, device="tpu")


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 999 bytes"),
        MemoryError(),
    ],
)
def test_want_of_memory_is_told_from_other_failures(checkpoint, monkeypatch, error):
    def predict(*args, **kwargs):
        raise error

    monkeypatch.setattr(Predictor, "predict", predict)
    said = refusal(checkpoint, device="cpu")
    assert said.startswith(f"{checkpoint}: no memory left for it on device cpu: free some, choose another")


def test_other_failures_are_left_as_they_are(checkpoint, monkeypatch):
    def predict(*args, **kwargs):
        raise RuntimeError("anything")

    monkeypatch.setattr(Predictor, "predict", predict)
    with pytest.raises(RuntimeError, match="anything"):
        load_model(NodeParameters(checkpoint=str(checkpoint), device="cpu"))


def test_memory_that_cannot_be_given_back_keeps_nothing_from_being_released(monkeypatch, caplog):
    def fail():
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    release_memory()
    assert "cannot be given back: CUDA error: unspecified launch failure" in caplog.text


@pytest.mark.gpu
def test_gpu_that_is_full_is_named(checkpoint):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.cuda.set_per_process_memory_fraction(1e-6)
    try:
        assert "no memory left for it on device cuda" in refusal(checkpoint, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
