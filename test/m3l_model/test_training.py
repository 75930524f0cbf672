# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import contextlib
import dataclasses
import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins import MixedPrecision
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_kills import write_bag
from training_samples import blocks, small

from m3l_model import M3LError, Predictor, load_checkpoint, training, training_memory
from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.bag_writer import BagWriter
from m3l_model.bags import BagFrames
from m3l_model.checkpoint import CheckpointError, read_tensors, write_tensors
from m3l_model.evaluation import evaluate
from m3l_model.evaluation_plan import evaluated_positions, plan_evaluation
from m3l_model.evaluation_summary import summarise
from m3l_model.labels import IGNORE_ID, LabelSet
from m3l_model.learner import Learner, StepResult
from m3l_model.recipe import load_config
from m3l_model.run_log import LOG_FILE, VALIDATION_FILE, read_log, wall_seconds
from m3l_model.run_state import STATE_FILE
from m3l_model.scenarios import ROBUST, chosen_scenarios
from m3l_model.splits import BagSplits, Splits, TimeRange
from m3l_model.training import BEST_FILE, CHECKPOINT_FILE, Intervals, Machine, train
from m3l_model.training_frames import TrainingFrames
from m3l_model.validation import validate
from m3l_model.views import Views

LABELS = LabelSet.generic(3)
CPU = Machine("cpu", workers=0)


def frames_of(bag: Path, label_set: LabelSet = LABELS, **options: Any) -> TrainingFrames:
    return TrainingFrames.select([BagFrames.open(bag)], label_set, **options)


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return read_tensors(folder / STATE_FILE)[0]


def assert_same_state(one: Path, other: Path) -> None:
    expected, found = state_of(one), state_of(other)
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert read_log(one) == read_log(other)


def assert_same_end(one: Path, other: Path) -> None:
    """As ``assert_same_state``, with the validations and what is best by them."""
    assert_same_state(one, other)
    assert (one / VALIDATION_FILE).read_text() == (other / VALIDATION_FILE).read_text()
    progress, found = (read_tensors(run / STATE_FILE)[1]["progress"] for run in (one, other))
    assert progress == found
    best, found_best = (load_checkpoint(run / BEST_FILE).state_dict() for run in (one, other))
    assert all(torch.equal(tensor, found_best[name]) for name, tensor in best.items())


def signalled_at(
    last: int, number: signal.Signals = signal.SIGTERM, step: Callable[..., StepResult] = Learner.step
) -> Callable[[Learner, int, Views], StepResult]:
    """A step during whose ``last`` the process gets a signal."""

    def signalled(self: Learner, index: int, views: Views) -> StepResult:
        if index == last:
            signal.raise_signal(number)
        return step(self, index, views)

    return signalled


def spoilt_at(
    last: int, spoil: Callable[[Learner, StepResult], StepResult]
) -> Callable[[Learner, int, Views], StepResult]:
    """A step that something happens after."""
    step = Learner.step

    def spoilt(self: Learner, index: int, views: Views) -> StepResult:
        result = step(self, index, views)
        return spoil(self, result) if index == last else result

    return spoilt


@pytest.fixture
def block_bag(tmp_path: Path) -> Path:
    rgb, depth, labels = blocks(8)
    with BagWriter(tmp_path / "bag") as bag:
        for index in range(8):
            truth = labels[index] if index in (2, 4, 6) else None
            bag.write_frame(
                1_000_000_000 + index * 100_000_000, "camera", rgb[index], depth[index], truth, np.eye(3)
            )
    return tmp_path / "bag"


def test_frames_come_from_the_bag_at_the_network_s_size(block_bag: Path) -> None:
    chosen = frames_of(block_bag)
    assert chosen.labelled.tolist() == [2, 4, 6]
    assert chosen.unlabelled.tolist() == [0, 1, 3, 5, 7]
    read = chosen.at_network_size(small(load_config("m3l"), short_side=64).preprocessing())
    frames = [read[position] for position in range(len(read))]
    assert {frame.rgb.shape for frame in frames} == {(64, 96, 3)}
    assert {frame.labels.shape for frame in frames} == {frame.depth_m.shape for frame in frames} == {(64, 96)}
    assert np.array_equal(frames[2].labels, blocks(8)[2][2].repeat(2, 0).repeat(2, 1))
    assert all((frames[position].labels == IGNORE_ID).all() for position in chosen.unlabelled)
    assert np.unique(frames[3].depth_m).tolist() == pytest.approx([1.0, 3.0, 5.0])
    assert not any(frame.missing.any() for frame in frames[1:])


def test_the_result_does_not_depend_on_the_number_of_workers(tmp_path: Path, block_bag: Path) -> None:
    def run(workers: int) -> tuple[list[Any], dict[str, torch.Tensor]]:
        out = tmp_path / f"run_{workers}"
        checkpoint = train(
            small(load_config("m3l"), steps=6),
            frames_of(block_bag),
            out,
            seed=3,
            machine=Machine("cpu", workers=workers),
        )
        facts = json.loads((out / "run.json").read_text())
        assert facts["workers"] == workers
        assert checkpoint is not None
        return read_log(out), load_checkpoint(checkpoint).state_dict()

    log, weights = run(0)
    for workers in (1, 2):
        other_log, other_weights = run(workers)
        assert other_log == log
        assert all(torch.equal(other_weights[name], tensor) for name, tensor in weights.items())


def test_trains_from_a_bag_and_scores_on_one(tmp_path: Path, block_bag: Path) -> None:
    out = tmp_path / "run"
    checkpoint = train(
        small(load_config("m3l")), frames_of(block_bag), out, seed=3, machine=CPU, notes={"splits": None}
    )
    assert checkpoint is not None
    facts = json.loads((out / "run.json").read_text())
    assert (facts["labelled_frames"], facts["unlabelled_frames"], facts["seed"]) == (3, 5, 3)
    assert (facts["label_set"], facts["label_files"], facts["splits"]) == (LABELS.name, None, None)
    assert len(read_log(out)) == 4
    assert not list(out.glob("*.part"))
    metadata = load_checkpoint(checkpoint).metadata
    assert metadata is not None
    assert metadata.labels == LABELS
    dataset = RgbdBagDataset([block_bag], LABELS)
    plan = plan_evaluation(dataset, evaluated_positions(dataset), chosen_scenarios(ROBUST))
    assert plan.frames == 3
    summary = summarise(evaluate(plan, {"run": Predictor.from_checkpoint(checkpoint, "cpu")}))
    figures = {name: figure.value for name, figure in summary.models["run"].headline.items()}
    assert 0 <= figures["clean"] <= 1
    assert figures["robust"] == pytest.approx(sum(figures[name] for name in ROBUST) / 3)
    with pytest.raises(M3LError, match="exists already"):
        train(small(load_config("m3l")), frames_of(block_bag), out, seed=3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_writes_the_state_and_resume_ends_with_the_same_bits(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    config = small(load_config("m3l"), steps=5)
    whole, out = tmp_path / "whole", tmp_path / "run"
    train(config, frames_of(block_bag), whole, seed=3, machine=CPU)
    monkeypatch.setattr(Learner, "step", signalled_at(1, number))
    before = signal.getsignal(number)
    assert train(config, frames_of(block_bag), out, seed=3, machine=CPU) is None
    assert signal.getsignal(number) is before
    assert len(read_log(out)) == 2
    assert not (out / CHECKPOINT_FILE).exists()
    monkeypatch.undo()
    assert train(config, frames_of(block_bag), out, seed=3, machine=Machine("cpu", workers=1), resume=True)
    assert_same_state(whole, out)
    seconds = [json.loads(line)["seconds"] for line in (out / LOG_FILE).read_text().splitlines()]
    assert len(seconds) == 5
    assert min(seconds) > 0
    assert wall_seconds(out) == pytest.approx(sum(seconds))
    expected = load_checkpoint(whole / CHECKPOINT_FILE).state_dict()
    found = load_checkpoint(out / CHECKPOINT_FILE).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())


@contextlib.contextmanager
def no_death() -> Iterator[None]:
    """Where a SIGTERM is let through, the test fails, rather than the process of all tests."""
    before = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the signal was let through"))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_second_sigterm_does_not_end_a_run_without_its_state(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    once = signalled_at(1)
    monkeypatch.setattr(Learner, "step", signalled_at(1, step=once))
    with no_death():
        config, out = small(load_config("supervised"), steps=5), tmp_path / "run"
        assert train(config, frames_of(block_bag), out, seed=3, machine=CPU) is None
    assert json.loads(read_tensors(out / STATE_FILE)[1]["progress"])["steps"] == 2


def test_a_second_sigint_aborts(tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    once = signalled_at(1, signal.SIGINT)
    monkeypatch.setattr(Learner, "step", signalled_at(1, signal.SIGINT, step=once))
    with pytest.raises(KeyboardInterrupt):
        train(small(load_config("supervised")), frames_of(block_bag), tmp_path / "run", seed=3, machine=CPU)


@pytest.mark.parametrize(
    ("owner", "name"), [(TrainingFrames, "check_labels"), (training, "new_network"), (Fabric, "launch")]
)
def test_a_sigterm_before_the_first_step_leaves_nothing(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str
) -> None:
    original = getattr(owner, name)

    def signalled(*args: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return original(*args)

    monkeypatch.setattr(owner, name, signalled)
    with no_death():
        config, out = small(load_config("supervised")), tmp_path / "run"
        assert train(config, frames_of(block_bag), out, seed=3, machine=CPU) is None
    assert not out.exists()


def test_seconds_that_were_not_all_logged_are_not_summed(tmp_path: Path) -> None:
    lines = [{**StepResult(step, 1.0, 0.0, 0.1)._asdict(), "seconds": 0.5} for step in range(2)]
    (tmp_path / LOG_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert wall_seconds(tmp_path) == 1.0
    del lines[0]["seconds"]
    (tmp_path / LOG_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert wall_seconds(tmp_path) is None


def test_a_run_that_is_killed_ends_with_the_same_bits() -> None:
    script = Path(__file__).with_name("training_kills.py")
    command = [sys.executable, str(script), "--kills", "3", "--writing", "1", "--seed", "7"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 kills, 1 inside writing: every run ended with the same bits" in result.stdout


def test_a_state_from_before_a_field_was_there_is_of_its_default(tmp_path: Path, block_bag: Path) -> None:
    config, out = small(load_config("supervised"), steps=1), tmp_path / "run"
    frames = frames_of(block_bag)
    train(config, frames, out, seed=3, machine=CPU)
    tensors, header = read_tensors(out / STATE_FILE)
    identity = json.loads(header["identity"])
    del identity["config"]["skip_missing"]
    write_tensors(out / STATE_FILE, tensors, {**header, "identity": json.dumps(identity)})
    assert train(config, frames, out, seed=3, machine=CPU, resume=True) == out / CHECKPOINT_FILE
    changed = dataclasses.replace(config, skip_missing=True)
    with pytest.raises(CheckpointError, match=r"skip_missing changed \(False, now True\)"):
        train(changed, frames, out, seed=3, machine=CPU, resume=True)


WRITTEN_WITH = {
    "other": ({"precision": "bf16-mixed", "device": "cuda", "processes": "4"}, "will differ"),
    "fewer": ({"processes": "2"}, "may differ in its last digits"),
    "same": ({}, None),
}


@pytest.mark.parametrize(("written", "differs"), WRITTEN_WITH.values(), ids=WRITTEN_WITH)
def test_a_run_that_goes_on_elsewhere_says_so_in_one_line(
    tmp_path: Path,
    block_bag: Path,
    caplog: pytest.LogCaptureFixture,
    written: dict[str, str],
    differs: str | None,
) -> None:
    config, frames, out = small(load_config("supervised"), steps=1), frames_of(block_bag), tmp_path / "run"
    train(config, frames, out, seed=3, machine=CPU)
    path = out / STATE_FILE
    tensors, header = read_tensors(path)
    assert {name: header[name] for name in ("precision", "device", "processes")} == {
        "precision": "32",
        "device": "cpu",
        "processes": "1",
    }
    write_tensors(path, tensors, {**header, **written})
    train(config, frames, out, seed=3, machine=CPU, resume=True)
    was = ", ".join(f"{name} {value}" for name, value in written.items())
    now = ", ".join(f"{name} {header[name]}" for name in written)
    said = [f"{path}: written with {was}, now {now}: the result {differs}"] if differs else []
    assert caplog.messages == said


def test_a_state_that_does_not_say_where_it_was_written_goes_on(
    tmp_path: Path, block_bag: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config, frames, out = small(load_config("supervised"), steps=1), frames_of(block_bag), tmp_path / "run"
    train(config, frames, out, seed=3, machine=CPU)
    tensors, header = read_tensors(out / STATE_FILE)
    older = {name: text for name, text in header.items() if name not in ("precision", "device", "processes")}
    write_tensors(out / STATE_FILE, tensors, older)
    assert train(config, frames, out, seed=3, machine=CPU, resume=True) == out / CHECKPOINT_FILE
    assert not caplog.messages


def test_a_run_goes_on_in_half_precision(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, frames, out = small(load_config("supervised"), steps=3), frames_of(block_bag), tmp_path / "run"
    monkeypatch.setattr(Learner, "step", signalled_at(0))
    train(config, frames, out, seed=3, machine=CPU)
    monkeypatch.undo()
    scaled = MixedPrecision("16-mixed", "cpu")  # which Fabric itself has for GPUs only
    monkeypatch.setattr(Machine, "fabric", lambda self: Fabric(accelerator="cpu", devices=1, plugins=scaled))
    half = Machine("cpu", precision="16-mixed", workers=0)
    assert train(config, frames, out, seed=3, machine=half, resume=True) == out / CHECKPOINT_FILE
    assert "written with precision 32, now precision 16-mixed: the result will differ" in caplog.text
    header = read_tensors(out / STATE_FILE)[1]
    assert header["precision"] == "16-mixed"
    assert json.loads(header["scaler"])["scale"] > 0
    assert [line["step"] for line in read_log(out)] == [0, 1, 2]


def test_resume_refuses_the_state_of_another_run(tmp_path: Path, block_bag: Path) -> None:
    config, out = small(load_config("m3l"), steps=1), tmp_path / "run"
    frames = frames_of(block_bag)
    train(config, frames, out, seed=3, machine=CPU)
    done = state_of(out)
    assert train(config, frames, out, seed=3, machine=CPU, resume=True) == out / CHECKPOINT_FILE
    assert all(torch.equal(tensor, done[name]) for name, tensor in state_of(out).items())
    fewer = dataclasses.replace(frames, unlabelled=frames.unlabelled[1:])
    other_ids = dataclasses.replace(LABELS, id_map={0: 0, 1: 2, 2: 1})
    for change, changed, seed, frames_now in (
        ("seed changed \\(3, now 4\\)", config, 4, frames),
        ("steps changed \\(1, now 2\\)", dataclasses.replace(config, steps=2), 3, frames),
        ("the frames that are trained on, or what their labels mean, changed", config, 3, fewer),
        ("what their labels mean, changed", config, 3, frames_of(block_bag, other_ids)),
    ):
        with pytest.raises(CheckpointError, match=change):
            train(changed, frames_now, out, seed=seed, machine=CPU, resume=True)
    (out / STATE_FILE).write_bytes(b"nothing")
    with pytest.raises(CheckpointError, match="not a readable"):
        train(config, frames, out, seed=3, machine=CPU, resume=True)
    write_tensors(out / STATE_FILE, {"x": torch.zeros(1)}, {"format": "other"})
    with pytest.raises(CheckpointError, match="not the state of a training run"):
        train(config, frames, out, seed=3, machine=CPU, resume=True)


def test_a_run_that_diverges_says_so_and_keeps_its_last_state(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(learner: Learner, result: StepResult) -> StepResult:
        return result._replace(loss_supervised=float("nan"))

    config = small(load_config("supervised"), steps=4)
    monkeypatch.setattr(Learner, "step", spoilt_at(2, lose))
    out, each = tmp_path / "run", Intervals(1, 0)
    with pytest.raises(
        M3LError, match="run: training diverged: the loss is not finite in step 3; make learning"
    ):
        train(config, frames_of(block_bag), out, seed=3, machine=CPU, intervals=each)
    assert json.loads(read_tensors(out / STATE_FILE)[1]["progress"])["steps"] == 2
    assert not (out / CHECKPOINT_FILE).exists()


def test_weights_that_diverged_in_the_last_step_are_not_written(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @torch.no_grad()
    def grow(learner: Learner, result: StepResult) -> StepResult:
        learner.network.decoder.classifier.weight[0] = float("inf")
        return result

    config = small(load_config("supervised"), steps=2)
    monkeypatch.setattr(Learner, "step", spoilt_at(1, grow))
    out = tmp_path / "run"
    with pytest.raises(
        CheckpointError, match=r"not written, since .*classifier\.weight has come to hold values"
    ):
        train(config, frames_of(block_bag), out, seed=3, machine=CPU, intervals=Intervals(1, 0))
    assert json.loads(read_tensors(out / STATE_FILE)[1]["progress"])["steps"] == 1


def test_a_run_goes_on_without_the_weights_it_started_from(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, frames, out = small(load_config("supervised"), steps=2), frames_of(block_bag), tmp_path / "run"
    weights = train(config, frames, tmp_path / "first", seed=3, machine=CPU)
    assert weights is not None
    monkeypatch.setattr(Learner, "step", signalled_at(0))
    assert train(config, frames, out, seed=3, machine=CPU, pretrained=str(weights)) is None
    monkeypatch.undo()
    weights.unlink()
    assert train(config, frames, out, seed=3, machine=CPU, pretrained=str(weights), resume=True)
    with pytest.raises(M3LError, match="no such file"):
        train(config, frames, tmp_path / "new", seed=3, machine=CPU, pretrained=str(weights), resume=True)


def test_what_a_finished_run_showed_stays_on_the_board(tmp_path: Path, block_bag: Path) -> None:
    config, frames, out = small(load_config("supervised"), steps=2), frames_of(block_bag), tmp_path / "run"
    for resume in (False, True):
        train(config, frames, out, seed=3, machine=CPU, resume=resume)
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    assert [[event.step for event in board.Images(tag)] for tag in board.Tags()["images"]] == [[2]]
    assert [event.step for event in board.Scalars("train/loss_supervised")] == [0, 1]


def test_a_full_disk_loses_nothing_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    write_tensors(path, {"x": torch.arange(9)}, {"step": "1"})
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"state\.safetensors: cannot write"):
            write_tensors(path, {"x": torch.zeros(100_000)}, {"step": "2"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


FULL = {
    "in the log": (40_000, 39_900, [], "the log cannot be written"),
    "in the log that goes on": (40_000, 50_000, [], "the log cannot be written"),
    "in pictures": (40_000, 0, ["--save-every", "0", "--validate-every", "1"], "the log cannot be written"),
    "in run.json": (100, 0, [], "cannot be written"),
}


@pytest.mark.parametrize(("limit", "logged", "options", "says"), FULL.values(), ids=FULL)
def test_a_disk_that_is_full_is_said_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    logged: int,
    options: list[str],
    says: str,
) -> None:
    write_bag(tmp_path / "bag")
    recipe, labels, out = tmp_path / "recipe.yaml", tmp_path / "labels.yaml", tmp_path / "run"
    recipe.write_text("{mean_teacher: false, short_side: 32, crop: 1.0, steps: 4, labelled_batch: 2}")
    labels.write_text(
        "{name: two, classes: [{name: a, color: [1, 2, 3], ids: [0]}, {name: b, color: [4, 5, 6], ids: [1, 2]}]}"
    )
    monkeypatch.setattr(Learner, "step", signalled_at(0))
    train(
        load_config(str(recipe)), frames_of(tmp_path / "bag", LabelSet.load(labels)), out, seed=0, machine=CPU
    )
    line = json.loads((out / LOG_FILE).read_text())
    (out / LOG_FILE).write_text(json.dumps({**line, "note": "x" * logged}) + "\n")
    before = (out / STATE_FILE).read_bytes()
    command = [sys.executable, "-m", "m3l_model", "train", "--bag", "bag", "--label-set", str(labels)]
    command += ["--config", str(recipe), "--device", "cpu", "--workers", "0", "--out", str(out), "--resume"]
    result = subprocess.run(
        [*command, "--save-every", "1", *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.splitlines()[-1].startswith(f"m3l train: error: {out}: {says} (File too large); "), (
        result.stderr
    )
    assert (out / STATE_FILE).read_bytes() == before


def split_frames(bag: Path) -> TrainingFrames:
    """The bag with its frames 4 to 7 for validation, of which 4 and 6 have labels."""
    ranges = {"training": (TimeRange(0, 350_000_000),), "validation": (TimeRange(350_000_000, None),)}
    return frames_of(bag, splits=Splits((BagSplits(bag, **ranges),)))


def test_validates_keeps_the_best_and_resumes_with_it(tmp_path: Path, block_bag: Path) -> None:
    config, out = small(load_config("m3l"), steps=4, labelled_batch=1), tmp_path / "run"
    frames = split_frames(block_bag)
    train(config, frames, out, 3, CPU, Intervals(2, 1), allow_unlabelled_classes=True)
    lines = [json.loads(line) for line in (out / VALIDATION_FILE).read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert line["robust"] == pytest.approx(sum(line[name] for name in ROBUST) / 3)
    best = max(lines, key=lambda line: line["robust"])
    progress = json.loads(read_tensors(out / STATE_FILE)[1]["progress"])
    assert (progress["steps"], progress["best_miou"]) == (4, best["robust"])
    assert progress["best_step"] == best["step"]
    dataset = RgbdBagDataset([block_bag], LABELS)
    plan = plan_evaluation(dataset, np.array([4, 6]), chosen_scenarios(ROBUST))
    summary = summarise(evaluate(plan, {"best": Predictor.from_checkpoint(out / BEST_FILE, "cpu", "fp32")}))
    assert summary.models["best"].headline["robust"].value == pytest.approx(best["robust"])
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("train/loss_supervised")] == [0, 1, 2, 3]
    shown = [event.value for event in board.Scalars("validation/robust")]
    assert shown == pytest.approx([line["robust"] for line in lines])
    (panel,) = board.Tags()["images"]
    assert (board.Images(panel)[-1].height, board.Images(panel)[-1].width) == (2 * 120, 5 * 180)


@pytest.mark.parametrize(
    ("recipe", "decisive"),
    [("m3l", "robust"), ("mean_teacher", "clean"), ("rgb_mean_teacher", "depth_missing")],
)
def test_the_best_is_never_chosen_with_an_untrained_token(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, decisive: str
) -> None:
    names = ("clean", "depth_missing", "rgb_missing", "robust")
    seen: list[dict[str, float]] = []

    def scores(*_: object) -> dict[str, float]:
        seen.append({name: float(len(seen) == (1 if name == decisive else 2)) for name in names})
        return seen[-1]

    monkeypatch.setattr(training, "validate", scores)
    config, out = small(load_config(recipe), steps=3, labelled_batch=1), tmp_path / "run"
    train(config, split_frames(block_bag), out, 3, CPU, Intervals(0, 1), allow_unlabelled_classes=True)
    assert json.loads(read_tensors(out / STATE_FILE)[1]["progress"])["best_step"] == 2


def test_a_validation_that_was_missed_is_made_up_for(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, frames = small(load_config("m3l"), steps=4, labelled_batch=1), split_frames(block_bag)

    def run(out: Path) -> Path | None:
        return train(config, frames, out, 3, CPU, Intervals(2, 2), resume=True, allow_unlabelled_classes=True)

    run(tmp_path / "whole")
    out = tmp_path / "run"

    def fail(*_: object) -> dict[str, float]:
        raise M3LError("a damaged label")

    for done in (2, 4):
        monkeypatch.setattr(training, "validate", fail)
        with pytest.raises(M3LError, match="a damaged label"):
            run(out)
        assert json.loads(read_tensors(out / STATE_FILE)[1]["progress"])["steps"] == done
        with pytest.raises(M3LError, match="a damaged label"):
            run(out)
        assert len(read_log(out)) == done
        monkeypatch.setattr(training, "validate", validate)
        monkeypatch.setattr(Learner, "step", signalled_at(done))
        run(out)
        monkeypatch.undo()
    assert_same_end(tmp_path / "whole", out)


def test_a_signal_at_a_validation_is_answered_at_once(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, frames = small(load_config("m3l"), steps=4, labelled_batch=1), split_frames(block_bag)
    whole, out = tmp_path / "whole", tmp_path / "run"
    options: dict[str, Any] = {"intervals": Intervals(0, 2), "allow_unlabelled_classes": True}
    train(config, frames, whole, 3, CPU, **options)
    monkeypatch.setattr(Learner, "step", signalled_at(1))
    assert train(config, frames, out, 3, CPU, **options) is None
    assert not (out / VALIDATION_FILE).read_text()
    monkeypatch.undo()
    train(config, frames, out, 3, CPU, resume=True, **options)
    assert_same_end(whole, out)


@pytest.mark.parametrize("steps", [2, 4])
def test_a_signal_within_a_validation_ends_it_after_the_frame(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    config, frames = small(load_config("m3l"), steps=4, labelled_batch=1), split_frames(block_bag)
    whole, out = tmp_path / "whole", tmp_path / "run"
    options: dict[str, Any] = {"intervals": Intervals(0, 2), "allow_unlabelled_classes": True}
    train(config, frames, whole, 3, CPU, **options)
    asked: list[int] = []

    def signalled(model: Any, plan: Any, stopped: Callable[[], bool]) -> dict[str, float] | None:
        validations.append(plan)

        def after_a_frame() -> bool:
            if len(validations) == steps // 2:
                asked.append(len(asked))
                if len(asked) == 2:  # before the first frame, then after it
                    signal.raise_signal(signal.SIGTERM)
            return stopped()

        return validate(model, plan, after_a_frame)

    validations: list[Any] = []
    monkeypatch.setattr(training, "validate", signalled)
    with no_death():
        assert train(config, frames, out, 3, CPU, **options) is None
    assert asked == [0, 1]
    progress = json.loads(read_tensors(out / STATE_FILE)[1]["progress"])
    assert (progress["steps"], progress["look_due"]) == (steps, True)
    assert not (out / CHECKPOINT_FILE).exists()
    with no_death():  # a signal in the validation that is made up for
        validations[:] = [None] * (steps // 2 - 1)
        asked.clear()
        assert train(config, frames, out, 3, CPU, resume=True, **options) is None
    assert len(read_log(out)) == steps
    monkeypatch.undo()
    assert train(config, frames, out, 3, CPU, resume=True, **options) == out / CHECKPOINT_FILE
    assert_same_end(whole, out)


def test_what_cannot_validate_is_said_before_the_first_step(tmp_path: Path) -> None:
    rgb, depth, labels = blocks(8)
    with BagWriter(tmp_path / "bag") as bag:
        for index in range(8):
            seen, truth = depth[index] if index < 4 else None, None if index % 2 else labels[index]
            bag.write_frame(1_000_000_000 + index * 100_000_000, "camera", rgb[index], seen, truth, np.eye(3))
    frames, out = split_frames(tmp_path / "bag"), tmp_path / "run"
    with pytest.raises(M3LError, match="validation: none of 2 frames has depth"):
        train(small(load_config("m3l")), frames, out, seed=3, machine=CPU)
    assert not out.exists()


def test_a_recording_of_colour_alone_trains_and_validates_a_model_of_colour(tmp_path: Path) -> None:
    rgb, _, labels = blocks(8)
    with BagWriter(tmp_path / "bag") as bag:
        for index in range(8):
            truth = None if index % 2 else labels[index]
            bag.write_frame(1_000_000_000 + index * 100_000_000, "camera", rgb[index], None, truth, np.eye(3))
    frames, out = split_frames(tmp_path / "bag"), tmp_path / "run"
    assert train(small(load_config("rgb_mean_teacher")), frames, out, 3, CPU, Intervals(0, 2))
    lines = [json.loads(line) for line in (out / VALIDATION_FILE).read_text().splitlines()]
    assert [line.keys() for line in lines] == [{"step", "depth_missing"}] * 2
    progress = json.loads(read_tensors(out / STATE_FILE)[1]["progress"])
    assert progress["best_miou"] == max(line["depth_missing"] for line in lines)
    assert (out / BEST_FILE).is_file()


def test_validation_changes_nothing(tmp_path: Path, block_bag: Path) -> None:
    config = small(load_config("m3l"), steps=3, labelled_batch=1)
    for name, every in (("seldom", 0), ("often", 1)):
        train(
            config,
            split_frames(block_bag),
            tmp_path / name,
            seed=3,
            machine=CPU,
            intervals=Intervals(0, every),
            allow_unlabelled_classes=True,
        )
    assert_same_state(tmp_path / "seldom", tmp_path / "often")


def test_images_that_train_and_validate_are_found(tmp_path: Path, block_bag: Path) -> None:
    copied = tmp_path / "again"
    rgb, depth, labels = blocks(8)
    with BagWriter(copied) as bag:
        for index in range(8):
            stamp_ns = 1_000_000_000 + index * 100_000_000
            bag.write_frame(stamp_ns, "camera", rgb[index], depth[index], labels[index], np.eye(3))
    whole = (TimeRange(0, None),)
    splits = Splits((BagSplits(block_bag, whole), BagSplits(copied, validation=whole)))
    frames = TrainingFrames.select([BagFrames.open(block_bag), BagFrames.open(copied)], LABELS, splits=splits)
    with pytest.raises(
        M3LError, match=r"training and validation overlap: .*bag and .*again hold the same image"
    ):
        train(small(load_config("m3l")), frames, tmp_path / "run", seed=0, machine=CPU)
    assert not (tmp_path / "run").exists()


def test_too_little_memory_is_said_before_the_first_step(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 9999 kB\nMemAvailable: 40000 kB\n")
    monkeypatch.setattr(training_memory, "_MEMORY_INFO", info)
    with pytest.raises(
        M3LError, match=r"takes about 0\.\d GiB, and cpu has 0\.0 GiB free; scale labelled_batch 2"
    ):
        train(small(load_config("m3l")), frames_of(block_bag), tmp_path / "run", seed=0, machine=CPU)
    assert not (tmp_path / "run").exists()


def test_more_processes_on_the_cpu_do_not_have_more_memory(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemAvailable: 90000 kB\n")  # one process takes 124 MB, 75 of them for parameters
    monkeypatch.setattr(training_memory, "_MEMORY_INFO", info)
    monkeypatch.setattr(Fabric, "launch", lambda self: pytest.fail("processes are started"))
    config = small(load_config("m3l"), labelled_batch=4, unlabelled_batch=4)
    with pytest.raises(M3LError, match=r"takes about 0\.2 GiB, and cpu has 0\.1 GiB free"):
        train(config, frames_of(block_bag), tmp_path / "run", seed=0, machine=Machine("cpu", devices=2))


def test_processes_share_the_samples_of_a_step_but_not_its_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, parameters, size = load_config("m3l"), 1000, (120, 160)
    one, half = (training_memory.step_bytes(config, 13, parameters, size, count) for count in (1, 2))
    assert 2 * half - one == 5 * torch.empty(parameters).nbytes  # student, gradients, moments, teacher
    monkeypatch.setattr(training_memory, "_free_bytes", lambda device: half)
    training_memory.check_memory(half, config, torch.device("cuda"), 2)
    with pytest.raises(M3LError, match="cpu has"):
        training_memory.check_memory(half, config, torch.device("cpu"), 2)


def test_colour_alone_takes_less_memory_where_depth_s_branch_is_left_out() -> None:
    colour = load_config("rgb_supervised")
    every_branch = dataclasses.replace(colour, skip_missing=False)
    alone, both = (training_memory.step_bytes(each, 13, 1000, (120, 160)) for each in (colour, every_branch))
    assert 0.6 * both < alone < 0.75 * both


def test_half_precision_takes_less_memory_for_samples_and_more_for_parameters() -> None:
    config = load_config("m3l")

    def needed(parameters: int, side: int, precision: str) -> int:
        return training_memory.step_bytes(config, 13, parameters, (side, side), precision=precision)

    for precision in ("bf16-mixed", "16-mixed"):
        assert 0.6 * needed(0, 160, "32") < needed(0, 160, precision) < 0.8 * needed(0, 160, "32")
        more = torch.empty(1000, dtype=torch.float16).nbytes
        assert needed(1000, 0, precision) - needed(1000, 0, "32") == more


def test_the_precision_of_a_run_decides_what_its_step_takes(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def refuse(needed: int, *_: object) -> None:
        asked.append(needed)
        raise M3LError("too little")

    monkeypatch.setattr(training, "check_memory", refuse)
    for precision in ("32", "bf16-mixed"):
        machine = Machine("cpu", precision=precision, workers=0)
        with pytest.raises(M3LError, match="too little"):
            train(small(load_config("m3l")), frames_of(block_bag), tmp_path / "run", seed=0, machine=machine)
    assert asked[0] != asked[1]


def test_a_container_s_memory_counts(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "meminfo"
    info.write_text("MemAvailable: 99999999 kB\n")
    monkeypatch.setattr(training_memory, "_MEMORY_INFO", info)
    monkeypatch.setattr(training_memory, "cgroup_room", lambda: 2**30 // 16)
    with pytest.raises(M3LError, match=r"and cpu has 0\.1 GiB free"):
        train(small(load_config("m3l")), frames_of(block_bag), tmp_path / "run", seed=0, machine=CPU)
    monkeypatch.setattr(training_memory, "cgroup_room", lambda: None)
    assert training_memory._free_bytes(torch.device("cpu")) == 99999999 * 1024


def test_a_process_on_a_gpu_asks_its_own_for_memory(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, launched = torch.device("cuda", 1), []
    monkeypatch.setattr(Fabric, "device", property(lambda self: own))
    monkeypatch.setattr(Fabric, "launch", lambda self: launched.append(True))

    def free(device: torch.device) -> tuple[int, int]:
        assert (device, launched) == (own, [True])
        return 1000, 2000

    monkeypatch.setattr(torch.cuda, "mem_get_info", free)
    with pytest.raises(M3LError, match=r"cuda:1 has 0\.0 GiB free"):
        train(small(load_config("m3l")), frames_of(block_bag), tmp_path / "run", seed=0, machine=CPU)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("which", "samples"), [("unlabelled", 4), ("all", 3 + 3 + 4)])
def test_soft_pseudo_labels_count_in_the_memory_of_a_step(which: str, samples: int) -> None:
    soft = load_config("m3l", pseudo_frames=which, labelled_batch=3, unlabelled_batch=4)
    hard = dataclasses.replace(soft, pseudo_labels="hard")
    extra = [training_memory.step_bytes(config, 13, 1000, (120, 160)) for config in (soft, hard)]
    assert extra[0] - extra[1] == 2 * torch.empty(samples, 13, 120, 160).nbytes  # the teacher's, and mixed


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_read(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    frames = frames_of(block_bag)
    monkeypatch.setattr(TrainingFrames, "check_labels", lambda *_: pytest.fail("labels were checked"))
    with pytest.raises(
        M3LError, match=r"file/run: cannot be written \(Not a directory\); choose another --out"
    ):
        train(small(load_config("m3l")), frames, tmp_path / "file" / "run", seed=0, machine=CPU)


def test_labels_without_a_class_are_refused(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        for index in range(3):
            rgb, depth = np.zeros((32, 48, 3), np.uint8), np.full((32, 48), 900, np.uint16)
            truth = np.full((32, 48), IGNORE_ID, np.uint8) if index else None
            bag.write_frame(1_000_000_000 + index * 100_000_000, "camera", rgb, depth, truth, np.eye(3))
    with pytest.raises(M3LError, match="show no class of label set 'generic'"):
        train(small(load_config("m3l")), frames_of(tmp_path / "bag"), tmp_path / "run", seed=0, machine=CPU)


def test_machines_that_cannot_be_are_refused(tmp_path: Path, block_bag: Path) -> None:
    for message, machine in (
        ("precision '8' is unknown", Machine("cpu", precision="8")),
        (
            "labelled_batch 2 cannot be shared by 3 processes, in pairs.* a multiple of 6",
            Machine("cpu", devices=3),
        ),
        ("not there", Machine("cuda:99")),
        ("--nodes 2: nothing here starts .* by torchrun", Machine("cpu", nodes=2)),
    ):
        with pytest.raises(M3LError, match=message):
            train(small(load_config("m3l")), frames_of(block_bag), tmp_path / "run", seed=0, machine=machine)


@pytest.mark.parametrize("recipe", ["supervised", "mean_teacher"])
def test_frames_that_a_recipe_does_not_take_need_not_be_shared(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    config = small(load_config(recipe, cutmix=False), labelled_batch=3, unlabelled_batch=2)
    monkeypatch.setattr(Fabric, "launch", lambda self: pytest.fail("processes are started"))
    taken = recipe == "mean_teacher"
    with pytest.raises(
        M3LError if taken else pytest.fail.Exception,
        match="unlabelled_batch 2 cannot be shared by 3 processes" if taken else "processes are started",
    ):
        train(config, frames_of(block_bag), tmp_path / "run", seed=0, machine=Machine("cpu", devices=3))


def test_a_label_set_s_own_ignore_id_is_ignored(block_bag: Path) -> None:
    labels = dataclasses.replace(LABELS, id_map={0: 0, 1: 1, 2: 200}, ignore_id=200)
    frames = frames_of(block_bag, labels).at_network_size(small(load_config("m3l")).preprocessing())
    assert {id for i in (2, 4, 6) for id in np.unique(frames[i].labels)} == {0, 1, IGNORE_ID}
