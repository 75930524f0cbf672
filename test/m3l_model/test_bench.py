# SPDX-License-Identifier: Apache-2.0
"""Measurements are of what they say they are of."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from m3l_model import LinearFusionSegmenter, M3LError, save_checkpoint
from m3l_model.bench import Case, Measurement, _prepare, count_gflop, measure_in_turn, random_frame
from m3l_model.cli import main


def test_percentiles_and_rate() -> None:
    found = Measurement("cpu", "float32", (0.1, 0.3, 0.2), 1.0, 10.0)
    assert found.percentile(50) == pytest.approx(0.2)
    assert found.rate == pytest.approx(5)


def test_arithmetic_grows_with_the_area_and_the_network() -> None:
    small = count_gflop("mit_b0", 13, (240, 320))
    large = count_gflop("mit_b0", 13, (480, 640))
    assert 15 < large < 20  # the reference's 37.5 less what its decoder does on upsampled maps
    assert 4 < large / small < 6  # the area's share, and attention's, which grows faster
    assert count_gflop("mit_b2", 13, (240, 320)) > 3 * small


def test_arithmetic_is_counted_in_inference_mode_too() -> None:
    outside = count_gflop("mit_b0", 13, (64, 96))
    with torch.inference_mode():
        assert count_gflop("mit_b0", 13, (64, 96)) == outside


def test_a_frame_has_the_size_asked_for() -> None:
    rgb, depth = random_frame((75, 101), "both")
    assert rgb is not None
    assert depth is not None
    assert rgb.shape == (75, 101, 3)
    assert rgb.dtype == np.uint8
    assert depth.shape == (75, 101)
    assert depth.dtype == np.uint16
    assert depth.all()


def test_a_frame_lacks_what_its_state_says() -> None:
    rgb, depth = random_frame((75, 101), "rgb_only")
    assert rgb is not None
    assert depth is None
    rgb, depth = random_frame((75, 101), "depth_only")
    assert rgb is None
    assert depth is not None


def test_errors_of_the_measuring_process_reach_the_caller() -> None:
    with pytest.raises(
        M3LError, match="no_such_file: no such checkpoint file, and no backbone: those are mit_b0, "
    ):
        measure_in_turn([Case("no_such_file", "cpu")], frames=1)


def test_the_others_end_where_one_cannot_be_measured() -> None:
    cases = [Case("mit_b0", "cpu", "fp32", 1, (64, 96)), Case("no_such_file", "cpu")]
    with pytest.raises(
        M3LError, match="no_such_file: no such checkpoint file, and no backbone: those are mit_b0, "
    ):
        measure_in_turn(cases, frames=1)
    assert not multiprocessing.active_children()


def test_cases_take_turns_and_each_has_its_own_frames() -> None:
    cases = [Case("mit_b0", "cpu", "fp32", 1, size) for size in ((64, 96), (256, 384))]
    small, large = measure_in_turn(cases, frames=3)
    assert len(small.latencies) == len(large.latencies) == 3
    assert small.gflop is not None
    assert large.gflop is not None
    assert large.gflop > 10 * small.gflop
    assert large.percentile(50) > small.percentile(50)


def test_a_branch_that_is_left_out_is_half_of_the_arithmetic(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model", LinearFusionSegmenter("mit_b0", 5, skip_missing=True))
    model = str(tmp_path / "model")
    cases = [Case(model, "cpu", "fp32", 1, (64, 96), state) for state in ("both", "rgb_only")]
    both, alone = measure_in_turn(cases, frames=1)
    assert both.gflop
    assert alone.gflop == both.gflop / 2


def test_the_command_prints_a_row_for_each_combination(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--device",
        "cpu",
        "--precision",
        "fp32",
        "--size",
        "64x96",
        "--threads",
        "1",
        "--frames",
        "2",
    ]
    assert main(["bench", "mit_b0", *arguments, "--state", "both"]) == 0
    header, row, _ = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["model", "device", "precision"]
    assert row.split()[:5] == ["mit_b0", "cpu", "float32", "64x96", "both"]
    assert 0 < float(row.split()[5]) < 10_000
    assert float(row.split()[7]) == 1
    assert 0 < float(row.split()[-1]) < 2000


def test_an_exported_file_is_measured_in_the_precision_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[str] = []

    def measure(cases: list[Case], frames: int) -> list[Measurement]:
        measured.extend(case.precision for case in cases)
        return [Measurement("cpu", "float32", (0.1,), None, 1.0)] * len(cases)

    monkeypatch.setattr("m3l_model.commands.bench.measure_in_turn", measure)
    for arguments, precisions in (
        ([], ["fp32"]),
        (["--device", "cuda:99"], ["fp32"]),  # which onnxruntime may have, and torch not
        (["--precision", "auto", "fp32"], ["fp32"]),
        (["--precision", "fp32", "bf16"], ["fp32", "bf16"]),  # refused when it is loaded
    ):
        assert main(["bench", "model.onnx", "--state", "both", *arguments]) == 0
        assert measured == precisions
        measured.clear()


@pytest.mark.parametrize(("has_bf16", "precisions"), [(True, ["fp32", "auto"]), (False, ["fp32"])])
def test_what_a_processor_chooses_is_not_measured_twice(
    monkeypatch: pytest.MonkeyPatch, has_bf16: bool, precisions: list[str]
) -> None:
    measured: list[str] = []

    def measure(cases: list[Case], frames: int) -> list[Measurement]:
        measured.extend(case.precision for case in cases)
        return [Measurement("cpu", "float32", (0.1,), 1.0, 1.0)] * len(cases)

    monkeypatch.setattr("m3l_model.commands.bench.measure_in_turn", measure)
    monkeypatch.setattr("m3l_model.commands.bench.multiplies_bf16", lambda: has_bf16)
    assert main(["bench", "mit_b0", "--device", "cpu", "--state", "both"]) == 0
    assert measured == precisions


def test_a_compiled_network_is_measured_beside_the_plain_one(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, str, bool]] = []

    def measure(cases: list[Case], frames: int) -> list[Measurement]:
        measured.extend((case.model, case.state, case.compile) for case in cases)
        return [Measurement("cpu", "float32", (0.1,), None, 1.0)] * len(cases)

    monkeypatch.setattr("m3l_model.commands.bench.measure_in_turn", measure)
    assert main(["bench", "mit_b0", "model.onnx", "--precision", "fp32", "--compile"]) == 0
    assert measured == [
        ("mit_b0", "both", False),
        ("mit_b0", "rgb_only", False),
        ("mit_b0", "both", True),
        ("mit_b0", "rgb_only", True),
        ("model.onnx", "both", False),
        ("model.onnx", "rgb_only", False),
    ]


def test_a_case_says_whether_its_network_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda network, **_: compiled.append(network))
    for compile in (False, True):
        assert len(compiled) == 0
        _prepare(Case("mit_b0", "cpu", "fp32", 0, (64, 96), compile=compile))
    assert len(compiled) == 1


@pytest.mark.parametrize("size", ["640", "0x640", "480x-640", "480x640x3"])
def test_a_size_that_is_none_is_named(capsys: pytest.CaptureFixture[str], size: str) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "--size", size])
    assert "no size such as 480x640" in capsys.readouterr().err
