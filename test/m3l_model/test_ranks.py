# SPDX-License-Identifier: Apache-2.0
"""Two processes compute what one does: each test starts them as torchrun would, over gloo."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from ranks_resume import go_on
from torch import Tensor, nn
from training_kills import write_bag

from m3l_model import ranks
from m3l_model.checkpoint import read_tensors
from m3l_model.ranks import BatchNormOfAll
from m3l_model.run_log import VALIDATION_FILE, read_log
from m3l_model.run_state import STATE_FILE
from m3l_model.training import BEST_FILE, CHECKPOINT_FILE

WORKER = Path(__file__).with_name("ranks_worker.py")
RESUME = Path(__file__).with_name("ranks_resume.py")
VALIDATION = Path(__file__).with_name("ranks_validation.py")


def run(count: int, *arguments: str) -> dict[str, object]:
    """Start the worker in so many processes; give what the first one prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    result = subprocess.run([*command, str(WORKER), *arguments], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr[-3000:]
    found: dict[str, object] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


class Stopped(NamedTuple):
    """How a run ended that was signalled."""

    returncode: int
    said: str
    errors: str


def stopped_run(
    folder: Path, launcher: Sequence[str], processes: Sequence[str], signalled: Callable[[int, int], None]
) -> Stopped:
    """Start a long run in a folder, and signal it when its first state is there."""
    write_bag(folder / "bag")
    (folder / "recipe.yaml").write_text(
        "{mean_teacher: true, short_side: 32, crop: 1.0, steps: 5000, labelled_batch: 2, unlabelled_batch: 2}"
    )
    (folder / "labels.yaml").write_text(
        "{name: two, classes: [{name: a, color: [1, 2, 3], ids: [0]}, {name: b, color: [4, 5, 6], ids: [1, 2]}]}"
    )
    out = folder / "run"
    command = [sys.executable, *launcher, "-m", "m3l_model", "train", "--bag", "bag", "--out", str(out)]
    command += ["--label-set", "labels.yaml", "--config", "recipe.yaml", "--device", "cpu", *processes]
    command += ["--save-every", "1", "--allow-unlabelled-classes"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        ends = time.monotonic() + 150
        while not (out / STATE_FILE).exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < ends, "no state was written"
            time.sleep(0.05)
        signalled(process.pid, signal.SIGTERM)
        said, errors = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return Stopped(process.returncode, said, errors[-3000:])


def assert_state_is_of_the_log(out: Path) -> None:
    done = json.loads(read_tensors(out / STATE_FILE)[1]["progress"])["steps"]
    assert [line["step"] for line in read_log(out)] == list(range(done))


@pytest.mark.parametrize(
    ("processes", "signalled"),
    [(["--devices", "2", "--workers", "0"], os.kill), (["--workers", "2"], os.killpg)],
    ids=["first of two ranks", "loader workers too"],
)
def test_sigterm_stops_all_processes_of_a_run_with_its_state(
    tmp_path: Path, processes: list[str], signalled: Callable[[int, int], None]
) -> None:
    ended = stopped_run(tmp_path, (), processes, signalled)
    assert ended.returncode == 0, ended.errors
    assert ended.said.startswith("stopped early; go on with --resume")
    assert_state_is_of_the_log(tmp_path / "run")


def signal_job(process: int, number: int) -> None:
    """Signal a launcher's processes, and then itself, as a scheduler does; it hands the signal on to them again."""
    for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
        os.kill(int(child), number)
    os.kill(process, number)


def test_sigterm_to_all_of_torchrun_s_processes_leaves_their_state(tmp_path: Path) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    ended = stopped_run(tmp_path, torchrun, ("--workers", "0"), signal_job)
    assert ended.said.startswith("stopped early; go on with --resume"), ended.errors
    assert ended.returncode == 1  # torchrun's own
    assert_state_is_of_the_log(tmp_path / "run")


@pytest.mark.parametrize("damaged", [False, True])
def test_processes_that_do_not_find_the_same_state_do_not_go_on(tmp_path: Path, damaged: bool) -> None:
    write_bag(tmp_path / "bag")
    go_on(tmp_path / "bag", tmp_path / "0")
    if damaged:
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / STATE_FILE).write_bytes(b"nothing")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(RESUME), str(tmp_path / "bag"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200)
    states = [tmp_path / rank / STATE_FILE for rank in "01"]
    if damaged:
        expected = ["0: another process of this run cannot go on", f"1: {states[1]}: not a readable"]
    else:
        expected = [
            f"{rank}: {path}: not every process finds the same state (this one of {steps} steps); let --out be a "
            "folder that all machines share"
            for rank, (path, steps) in enumerate(zip(states, (2, 0), strict=True))
        ]
    said = sorted(result.stdout.splitlines())
    assert len(said) == 2, result.stderr[-3000:]
    assert all(line.startswith(start) for line, start in zip(said, expected, strict=True)), said


def test_two_processes_validate_as_one_does_and_go_on_to_the_same_bits(tmp_path: Path) -> None:
    write_bag(tmp_path / "bag")

    def life(count: int, out: Path, *stop: str) -> None:
        command = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            str(count),
        ]
        command += [str(VALIDATION), str(tmp_path / "bag"), str(out), *stop]
        result = subprocess.run(command, capture_output=True, text=True, timeout=200)
        assert result.returncode == 0, result.stderr[-3000:]

    one, two, stopped = (tmp_path / name for name in ("one", "two", "stopped"))
    life(1, one)
    life(2, two)
    for where in ("1", "look"):  # in the step before the validation, then within it
        life(2, stopped, where)
        assert not (stopped / CHECKPOINT_FILE).exists()
        progress = json.loads(read_tensors(stopped / STATE_FILE)[1]["progress"])
        assert (progress["steps"], progress["look_due"]) == (2, True)
        assert not (stopped / VALIDATION_FILE).read_text()
    life(2, stopped)
    logs = [
        [json.loads(line) for line in (out / VALIDATION_FILE).read_text().splitlines()] for out in (one, two)
    ]
    assert [line["step"] for line in logs[1]] == [2, 4]
    for expected, found in zip(*logs, strict=True):
        assert found == pytest.approx(expected, abs=2e-3)  # a pixel of 1536 may tie
    assert (stopped / VALIDATION_FILE).read_text() == (two / VALIDATION_FILE).read_text()
    for name in (CHECKPOINT_FILE, BEST_FILE, STATE_FILE):
        whole, resumed = (read_tensors(out / name)[0] for out in (two, stopped))
        assert whole.keys() == resumed.keys()
        assert all(torch.equal(tensor, resumed[key]) for key, tensor in whole.items()), name


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 8e-3), (torch.float16, 1e-3)]
)
def test_batch_norm_of_all_is_torch_s_in_half_precision_too(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, tolerance: float
) -> None:
    """Of one process that takes the way of several."""
    torch.manual_seed(0)
    x = (2 * torch.randn(12, 4, 80, 107) + 3).to(dtype)  # more pixels than float16 counts to
    found = []
    for norm in (nn.BatchNorm2d(4), BatchNormOfAll(4)):
        given = x.clone().requires_grad_()
        output = norm(given)
        output.sigmoid().sum().backward()
        found.append((output, given.grad, norm.running_mean, norm.running_var))
        monkeypatch.setattr(ranks, "count", lambda: 2)
        monkeypatch.setattr(ranks, "total", Tensor.detach)
    for expected, own in zip(*found, strict=True):
        assert expected is not None
        torch.testing.assert_close(own, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("recipe", "precision", "tolerance"),
    [
        ("m3l", "32-true", 1e-4),
        ("m3l", "64-true", 1e-9),
        ("demo_m3l", "64-true", 1e-9),
        ("m3l_paper", "64-true", 1e-9),
        ("rgb_mean_teacher", "64-true", 1e-9),
        ("pretrain", "64-true", 1e-9),
    ],
)
def test_two_processes_compute_the_same_losses_and_statistics(
    recipe: str, precision: str, tolerance: float
) -> None:
    one, two = (run(count, recipe, precision) for count in (1, 2))
    assert two["ranks"] == 2
    assert two["losses"] == pytest.approx(one["losses"], rel=tolerance)
    for name in ("running_mean", "running_var"):
        assert two[name] == pytest.approx(one[name], rel=10 * tolerance, abs=10 * tolerance), name
