# SPDX-License-Identifier: Apache-2.0
"""The measurements on a GPU, as far as a CPU allows: a part that fails keeps no other from running."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from m3l_model.bench import Case, Measurement, count_gflop
from m3l_model.errors import M3LError


@pytest.fixture
def inference_gpu(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(repository / "bench"))
    import inference_gpu

    yield inference_gpu
    del sys.modules["inference_gpu"]


def fail(*_: object) -> Any:
    raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")


def test_what_cannot_be_measured_is_named_and_the_rest_is_measured(
    inference_gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []

    def rate(dtype: torch.dtype) -> float:
        return 1e12 if dtype == torch.float32 else fail()

    def floor(backbone: str, name: str, *_: object) -> None:
        measured.append((backbone, name))
        if backbone == "mit_b0":
            fail()

    monkeypatch.setattr(inference_gpu, "measured_bandwidth", lambda: 1e12)
    monkeypatch.setattr(inference_gpu, "measured_matrix_rate", rate)
    monkeypatch.setattr(inference_gpu, "_floor", floor)
    assert inference_gpu.floors(tmp_path) == [
        "floor of mit_b0 in fp32",
        "matrix rate in bf16",
        "matrix rate in fp16",
    ]
    assert measured == [("mit_b0", "fp32"), ("mit_b2", "fp32")]
    monkeypatch.setattr(inference_gpu, "measured_bandwidth", fail)
    assert inference_gpu.floors(tmp_path) == ["bandwidth"]


@pytest.mark.usefixtures("cuda_on_cpu")
def test_a_network_is_measured_beside_its_floor(
    inference_gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(inference_gpu, "SIZE", (64, 96))
    inference_gpu._floor("mit_b0", "fp32", 1e12, 1e12, tmp_path)
    printed = capsys.readouterr().out
    assert printed.startswith("mit_b0 fp32: frame ")
    gflop = count_gflop("mit_b0", 13, (64, 96))
    assert f"floor {gflop:.2f} ms of arithmetic" in printed  # at 10^12 a second
    assert " ms with two in flight, NO graph, eager " in printed
    assert (tmp_path / "profile_mit_b0_fp32.txt").read_text().strip()


def test_a_compiled_network_is_measured_on_a_gpu_only(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(repository / "bench"))
    baselines = importlib.import_module("inference_baselines")
    for device, compiled in (("cpu", []), ("cuda", ["ours fp16 compiled"])):
        options = argparse.Namespace(device=device, threads=1, size="64x96", reference=None)
        cases = baselines._cases("mit_b0", options)
        assert [name for name, case in cases.items() if case.compile] == compiled
    del sys.modules["inference_baselines"]


def test_a_clone_that_cannot_be_used_or_a_backbone_that_fails_keeps_no_other_from_running(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(repository / "bench"))
    baselines = importlib.import_module("inference_baselines")

    def measure(cases: list[Case], rounds: int) -> list[Measurement]:
        if cases[0].model == "mit_b0":
            raise M3LError("the process died")
        return [Measurement("cpu", "fp32", (0.1,) * rounds, 1.0, 100.0) for _ in cases]

    monkeypatch.setattr(baselines, "measure_in_turn", measure)
    monkeypatch.setattr(
        sys, "argv", ["inference_baselines.py", "--rounds", "2", "--reference", str(tmp_path)]
    )
    assert baselines.main() == 1
    printed = capsys.readouterr().out
    assert f"the reference implementation is left out: {tmp_path}: not a clone" in printed
    assert "mit_b0: not measured: the process died" in printed
    assert "mit_b2 ours fp32" in printed
    del sys.modules["inference_baselines"]


@pytest.mark.usefixtures("cuda_on_cpu")
def test_growth_is_timed_of_a_graph_and_eager_where_there_is_none(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(repository / "bench"))
    growth = importlib.import_module("inference_growth")
    frame, graph = MagicMock(), MagicMock()
    eager = growth.replayed(frame, torch.device("cpu"), "batch of 1")
    assert capsys.readouterr().out == "batch of 1: no CUDA graph, timed eager: no capture on the CPU\n"
    frame.reset_mock()
    eager()
    assert frame.call_count == 1

    monkeypatch.setattr(torch.cuda, "graph", MagicMock())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    replay = growth.replayed(frame, torch.device("cpu"), "batch of 1")
    frame.reset_mock()
    replay()
    assert (frame.call_count, graph.replay.call_count) == (0, 1)
    assert not capsys.readouterr().out
    del sys.modules["inference_growth"]


def test_a_frame_is_submitted_before_the_one_ahead_of_it_is_waited_for(inference_gpu: Any) -> None:
    events: list[tuple[str, int]] = []

    class Engine:
        def submit(self, request: int) -> Callable[[], None]:
            number = sum(kind == "submit" for kind, _ in events)
            events.append(("submit", number))
            return lambda: events.append(("wait", number))

    assert inference_gpu.two_in_flight_ms(Engine(), None, count=2) > 0
    assert events == [("submit", 0), ("submit", 1), ("wait", 0), ("submit", 2), ("wait", 1)]


@pytest.mark.parametrize("tf32", [True, False])
def test_the_device_line_says_whether_convolutions_are_tf32(
    inference_gpu: Any, monkeypatch: pytest.MonkeyPatch, tf32: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "GPU")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    assert f"TF32 in fp32 convolutions: {tf32}" in inference_gpu.described()
