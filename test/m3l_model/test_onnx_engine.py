# SPDX-License-Identifier: Apache-2.0
"""Where a file runs, by an onnxruntime that has CUDA; a stand-in of it, since few machines have that."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from m3l_model import M3LError, Predictor, onnx_engine
from m3l_model.labels import LabelSet
from m3l_model.onnx_export import METADATA_KEY

HEADER = {"labels": json.loads(LabelSet.generic(5).to_json()), "preprocessing": {}, "size": None}


class Runtime:
    """Stands in for the module onnxruntime; ``gpus`` of them can be used, and ``used`` was, if any."""

    SessionOptions = SimpleNamespace

    def __init__(self, gpus: int) -> None:
        self._gpus = gpus
        self.used: int | None = None

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def InferenceSession(self, path: str, options: object, providers: list[Any]) -> Any:
        first = providers[0]
        index = first[1]["device_id"] if isinstance(first, tuple) else 0
        if index < self._gpus:
            self.used = index
        names = self.get_available_providers()[0 if index < self._gpus else 1 :]
        return SimpleNamespace(
            get_providers=lambda: names,
            get_modelmeta=lambda: SimpleNamespace(custom_metadata_map={METADATA_KEY: json.dumps(HEADER)}),
            get_outputs=list,
        )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "model.onnx").touch()
    return tmp_path / "model.onnx"


@pytest.mark.parametrize(("device", "index"), [("auto", 0), ("cuda", 0), ("cuda:1", 1)])
def test_the_gpu_asked_for_is_used(
    file: Path, monkeypatch: pytest.MonkeyPatch, device: str, index: int
) -> None:
    runtime = Runtime(gpus=2)
    monkeypatch.setattr(onnx_engine, "import_onnxruntime", lambda _: runtime)
    assert str(Predictor.from_checkpoint(file, device).device) == f"cuda:{index}"
    assert runtime.used == index


@pytest.mark.parametrize(("gpus", "device"), [(0, "cuda"), (2, "cuda:2")])
def test_a_gpu_that_onnxruntime_cannot_use_is_an_error(
    file: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, device: str
) -> None:
    monkeypatch.setattr(onnx_engine, "import_onnxruntime", lambda _: Runtime(gpus))
    with pytest.raises(M3LError, match=f"device '{device}': onnxruntime cannot use it"):
        Predictor.from_checkpoint(file, device)


def test_auto_takes_the_cpu_where_the_gpu_cannot_be_used(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(onnx_engine, "import_onnxruntime", lambda _: Runtime(gpus=0))
    with caplog.at_level(logging.WARNING):
        assert Predictor.from_checkpoint(file, "auto").device.type == "cpu"
    assert "cannot use the GPU" in caplog.text


def test_an_index_that_is_none_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_engine, "import_onnxruntime", lambda _: Runtime(gpus=1))
    with pytest.raises(M3LError, match="'cuda:x' is unknown"):
        Predictor.from_checkpoint(file, "cuda:x")
