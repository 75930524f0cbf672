# SPDX-License-Identifier: Apache-2.0
"""`m3l eval --live`: what it asks for, says and ends with; the check itself, with a node, is in test/integration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from m3l_model.agreement import Answer, compare
from m3l_model.bag_writer import BagWriter
from m3l_model.checkpoint import save_checkpoint
from m3l_model.cli import main
from m3l_model.commands import eval as command
from m3l_model.segmenter import LinearFusionSegmenter

PAIRED = [Answer(stamp, stamp, "paired", b"mask") for stamp in range(1, 4)]
LOST = [PAIRED[0], PAIRED[1]._replace(depth_stamp_ns=None, reason="depth_lost"), PAIRED[2]]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model and a bag whose label image fits nothing, which is not looked at."""
    tmp_path = tmp_path_factory.mktemp("live")
    with BagWriter(tmp_path / "bag") as writer:
        rgb, labels = np.zeros((32, 48, 3), np.uint8), np.zeros((4, 4), np.uint8)
        writer.write_frame(10**9, "camera", rgb, np.ones((32, 48), np.uint16), labels, np.eye(3))
    save_checkpoint(tmp_path / "model.safetensors", LinearFusionSegmenter("mit_b0", 3))
    return [
        "--checkpoint",
        str(tmp_path / "model.safetensors"),
        "--bag",
        str(tmp_path / "bag"),
        "--device",
        "cpu",
    ]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], float | None]]:
    """Scenarios and rates that were asked for; depth_missing is answered otherwise."""
    found: list[tuple[list[str], float | None]] = []

    def check(
        dataset: Any, predictor: Any, path: Path, scenarios: Any, seed: int, bag: int, rate: Any
    ) -> Any:
        assert (seed, bag) == (7, 0)
        assert isinstance(predictor.device, torch.device)
        assert dataset.bags[bag].topics.label is None
        found.append(([scenario.name for scenario in scenarios], rate))
        for scenario in scenarios:
            live = LOST if scenario.name == "depth_missing" else PAIRED
            yield scenario, compare(LOST if scenario.name == "depth_bursts_50" else PAIRED, live)

    monkeypatch.setattr(command, "_live_check", lambda: check)
    return found


def test_every_scenario_but_colour_missing_is_played_and_a_difference_is_the_exit_code(
    inputs: list[str], asked: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", *inputs, "--live", "--seed", "7", "--scenarios", "depth_decimated"]) == 1
    assert asked == [(["clean", "depth_missing", "depth_decimated"], None)]
    said = "".join(capsys.readouterr())
    assert "rgb_missing: not played" in said
    assert "model, bag, clean: 3 frames, decisions and masks equal\n" in said
    assert "model, bag, depth_missing: NOT THE SAME: 3 frames, 1 decided otherwise" in said


@pytest.mark.parametrize(
    ("options", "rate", "found_fault_with"), [(["--live"], None, 2), (["--live", "0.5"], 0.5, 1)]
)
def test_at_a_rate_edges_of_outages_are_tolerated(
    inputs: list[str],
    asked: list[Any],
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    rate: float | None,
    found_fault_with: int,
) -> None:
    assert main(["eval", *inputs, *options, "--seed", "7", "--scenarios", "depth_bursts_50"]) == 1
    assert asked == [(["clean", "depth_missing", "depth_bursts_50"], rate)]
    assert "".join(capsys.readouterr()).count("NOT THE SAME") == found_fault_with


@pytest.mark.parametrize("rate", ["0", "-1", "nan", "inf", "fast"])
def test_what_is_no_rate_is_refused(inputs: list[str], capsys: pytest.CaptureFixture[str], rate: str) -> None:
    with pytest.raises(SystemExit) as raised:
        main(["eval", *inputs, f"--live={rate}"])
    assert raised.value.code == 2
    assert "--live" in capsys.readouterr().err


def test_options_of_an_evaluation_are_refused(inputs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["eval", *inputs, "--live", "--frames", "2", "--out", "report", "--fail-under", "robust=0.4"])
        == 2
    )
    assert "leave --out, --frames, --fail-under out" in capsys.readouterr().err
