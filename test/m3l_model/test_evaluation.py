# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from m3l_model import metrics
from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.bag_topics import DEFAULT_TOPICS
from m3l_model.bag_writer import BagWriter
from m3l_model.checkpoint import Metadata, save_checkpoint
from m3l_model.cli import main
from m3l_model.errors import M3LError
from m3l_model.evaluation import BlockResult, Evaluation, evaluate
from m3l_model.evaluation_plan import BLOCK_FRAMES, EvaluationPlan, evaluated_positions, plan_evaluation
from m3l_model.evaluation_store import FileStore
from m3l_model.evaluation_summary import score_table, summarise
from m3l_model.labels import LabelSet
from m3l_model.offline import run_offline
from m3l_model.predictor import Predictor
from m3l_model.preprocessing import Preprocessing
from m3l_model.scenarios import ROBUST, SCENARIOS, chosen_scenarios
from m3l_model.segmenter import LinearFusionSegmenter

LABELS = LabelSet.load("demo")
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
FRAMES = 21
RATE = 2
SIZE = (32, 48)


def model(seed: int, labels: LabelSet = LABELS) -> LinearFusionSegmenter:
    """A network whose masks vary: its last layer's weights are large."""
    torch.manual_seed(seed)
    network = LinearFusionSegmenter("mit_b0", len(labels.classes)).eval()
    network.metadata = Metadata(labels, Preprocessing(short_side=32))
    return network


def write_bag(
    path: Path, labelled: int = FRAMES, start: int = START, frames: int = FRAMES, most: int = 8
) -> Path:
    """Frames at 2 Hz, the first ones with labels; the picture stands still for two frames at a time."""
    rng = np.random.default_rng(1)
    with BagWriter(path) as writer:
        for index in range(frames):
            if index % 2 == 0:
                rgb = rng.integers(0, 255, (*SIZE, 3), np.uint8)
            depth = rng.integers(500, 5000, SIZE, np.uint16)
            labels = np.repeat(rng.integers(0, most, (4, 48), np.uint8), 8, 0) if index < labelled else None
            stamp = start + index * SECOND // RATE
            writer.write_frame(stamp, "camera", rgb, depth, labels, np.eye(3))
    return path


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bag(tmp_path_factory.mktemp("evaluation") / "drive")


@pytest.fixture(scope="module")
def predictors() -> dict[str, Predictor]:
    return {name: Predictor(model(seed), "cpu", "fp32") for seed, name in enumerate(("one", "other"))}


def plan_of(bag: Path, names: Sequence[str] | None = None, seed: int = 0) -> EvaluationPlan:
    dataset = RgbdBagDataset([bag], LABELS)
    return plan_evaluation(dataset, evaluated_positions(dataset), chosen_scenarios(names), seed)


@pytest.fixture(scope="module")
def evaluation(bag: Path, predictors: dict[str, Predictor]) -> Evaluation:
    """In all scenarios."""
    return evaluate(plan_of(bag, seed=2), predictors)


def test_each_scenario_scores_what_the_offline_pass_gives(
    bag: Path, predictors: dict[str, Predictor], evaluation: Evaluation
) -> None:
    dataset = RgbdBagDataset([bag], LABELS)
    classes = len(LABELS.classes)
    for number, scenario in enumerate(SCENARIOS):
        counts = np.zeros((classes, classes), np.int64)
        frames = list(run_offline(dataset, predictors["other"], scenario, 2, with_confidence=True))
        for frame in frames:
            if frame.labels is not None and frame.truth is not None:
                counts += metrics.confusion(frame.truth, frame.labels, classes)
        np.testing.assert_array_equal(evaluation.counts.confusion[1, number].sum(0), counts)
        scored = evaluation.frames[1, number]
        assert scored["stamp_ns"].tolist() == [frame.stamp_ns for frame in frames]
        assert scored["depth_stamp_ns"].tolist() == [frame.depth_stamp_ns or 0 for frame in frames]
        assert scored["used_depth"].tolist() == ["depth" in frame.used for frame in frames]


def test_blocks_are_five_seconds_of_a_recording_and_ten_frames_of_an_image_set(
    bag: Path, tmp_path: Path
) -> None:
    assert [len(block.positions) for block in plan_of(bag).blocks] == [10, 10, 1]
    images = write_bag(tmp_path / "images", start=SECOND)
    plan = plan_of(images)
    assert [len(block.positions) for block in plan.blocks] == [BLOCK_FRAMES] * 2 + [1]
    assert not any(block.video for block in plan.blocks)


def test_flicker_is_measured_where_the_picture_stood_still(evaluation: Evaluation) -> None:
    clean = evaluation.frames[0, 0]["flicker"]
    starts = [0, 10, 20]
    for at, flicker in enumerate(clean):
        if at in starts:
            assert math.isnan(flicker)
    still = [at for at in range(1, FRAMES, 2) if at not in starts]
    assert np.isfinite(clean[still]).all()
    # with colour alone, nothing changes between two frames of the same picture
    names = [scenario.name for scenario in SCENARIOS]
    assert (evaluation.frames[0, names.index("depth_missing")]["flicker"][still] == 0).all()


def test_agreement_is_with_the_mask_of_both_modalities(evaluation: Evaluation) -> None:
    names = [scenario.name for scenario in SCENARIOS]
    assert (evaluation.frames[0, 0]["agreement"] == 1).all()
    assert (evaluation.frames[0, names.index("depth_missing")]["agreement"] < 1).any()


def test_comparisons_use_the_same_resamples_and_name_what_changed(
    bag: Path, predictors: dict[str, Predictor]
) -> None:
    plan = plan_of(bag, ROBUST)
    same = evaluate(plan, {"a": predictors["one"], "b": predictors["one"], "c": predictors["other"]})
    ab, ac, _ = summarise(same).comparisons
    assert (ab.a, ab.b, ac.b) == ("a", "b", "c")
    assert all(figure.value == 0 for figure in ab.headline.values())
    accuracy = same.frames["accuracy"][:, 0].astype(float)
    most = int(np.abs(accuracy[2] - accuracy[0]).argmax())
    assert ac.frames[0] == (0, most, accuracy[2, most] - accuracy[0, most])
    whole = same.counts.confusion[:, 0].sum(1)
    expected = dict(zip(LABELS.classes, metrics.iou(whole[2]) - metrics.iou(whole[0]), strict=True))
    assert {name: figure.value for name, figure in ac.classes.items()} == pytest.approx(
        {name: value for name, value in expected.items() if np.isfinite(value)}
    )


def test_an_interrupted_evaluation_goes_on_where_it_stopped(
    bag: Path, predictors: dict[str, Predictor], tmp_path: Path
) -> None:
    plan = plan_of(bag, ROBUST)
    uninterrupted = evaluate(plan, predictors)
    done = 0

    def interrupt(frames: int) -> None:
        nonlocal done
        done += frames
        if done == 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(plan, predictors, FileStore(tmp_path / "progress", {"seed": 2}), report=interrupt)
    reported: list[int] = []
    store = FileStore(tmp_path / "progress", {"seed": 2})
    assert [store.has(number) for number in range(3)] == [True, False, False]
    again = evaluate(plan, predictors, store, report=reported.append)
    assert reported == [10, *[1] * 11]
    for name in ("confusion", "calibration", "boundary", "flicker", "agreement"):
        np.testing.assert_array_equal(getattr(again.counts, name), getattr(uninterrupted.counts, name))
    with pytest.raises(M3LError, match="differs in seed; remove the folder"):
        FileStore(tmp_path / "progress", {"seed": 3})
    (tmp_path / "progress" / "block_000001.npz").write_bytes(b"cut off")
    with pytest.raises(M3LError, match=r"block_000001\.npz: damaged progress"):
        evaluate(plan, predictors, FileStore(tmp_path / "progress", {"seed": 2}))


def test_without_labels_only_proxies_are_measured(tmp_path: Path, predictors: dict[str, Predictor]) -> None:
    plan = plan_of(write_bag(tmp_path / "drive", labelled=0, frames=8), ROBUST)
    assert not plan.labelled
    summary = summarise(evaluate(plan, predictors))
    one = summary.models["one"]
    assert not one.headline
    assert math.isnan(one.majority)
    assert set(one.scenarios["clean"].figures) == {"flicker", "agreement", "confidence"}
    assert all("(proxy)" in line for line in score_table(summary).splitlines()[1:])


def test_models_of_different_classes_are_not_compared(bag: Path, predictors: dict[str, Predictor]) -> None:
    others = {"nyu": Predictor(model(0, LabelSet.load("nyu13")), "cpu", "fp32")}
    with pytest.raises(M3LError, match="nyu has the classes of label set 'nyu13', one those of 'demo'"):
        evaluate(plan_of(bag, ROBUST), {"one": predictors["one"], **others})


def test_a_bag_without_depth_is_said_to_be_one(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "blind") as writer:
        image = np.zeros((*SIZE, 3), np.uint8)
        writer.write_rgb(DEFAULT_TOPICS.rgb, START, "camera", image)
        writer.write_labels(str(DEFAULT_TOPICS.label), START, "camera", image[..., 0])
    with pytest.raises(M3LError, match="none of 1 frames has depth; name the depth topic"):
        plan_of(tmp_path / "blind")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("models")
    paths = [folder / name / "checkpoint.safetensors" for name in ("one", "other")]
    for seed, path in enumerate(paths):
        path.parent.mkdir()
        save_checkpoint(path, model(seed))
    return [str(path) for path in paths]


def command(checkpoints: list[str], bag: Path, *more: str) -> list[str]:
    models = [part for path in checkpoints for part in ("--checkpoint", path)]
    return ["eval", *models, "--bag", str(bag), "--device", "cpu", *more]


def test_the_command_writes_json_csv_and_html(
    checkpoints: list[str], bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "report"
    few = ["--scenarios", "depth_bursts_50", "--every", "2"]
    assert main(command(checkpoints, bag, *few, "--out", str(out))) == 0
    table = capsys.readouterr().out
    assert "robust" in table
    assert sorted(path.name for path in out.iterdir()) == [
        "evaluation.json",
        "frames.csv",
        "index.html",
        "scores.csv",
    ]
    content = json.loads((out / "evaluation.json").read_text())
    assert content["evaluated"]["frames"] == 11
    assert list(content["models"]) == ["one", "other"]
    headline = content["models"]["one"]["headline"]
    assert headline["robust"]["value"] == pytest.approx(np.mean([headline[name]["value"] for name in ROBUST]))
    with (out / "frames.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 4 * 11
    clean = [row for row in rows if row["model"] == "one" and row["scenario"] == "clean"]
    assert {row["reason"] for row in clean} == {"paired"}
    with (out / "scores.csv").open(newline="") as file:
        scores = {
            (row["model"], row["scenario"], row["figure"]): row["value"] for row in csv.DictReader(file)
        }
    assert float(scores["other", "clean", "miou"]) == content["models"]["other"]["headline"]["clean"]["value"]


def test_a_report_of_something_else_is_not_overwritten(
    checkpoints: list[str], bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--scenarios", "clean", "--frames", "6", "--out", str(tmp_path / "report")]
    for _ in range(2):
        assert main(command(checkpoints[:1], bag, *short)) == 0
    before = (tmp_path / "report" / "evaluation.json").read_bytes()
    capsys.readouterr()
    assert main(command(checkpoints[1:], bag, *short, "--seed", "5")) == 2
    assert (
        "report: holds the report of an evaluation that differs in models, seed; choose"
        in capsys.readouterr().err
    )
    assert (tmp_path / "report" / "evaluation.json").read_bytes() == before
    (tmp_path / "report" / "evaluation.json").write_text("[]")
    assert main(command(checkpoints[:1], bag, *short)) == 2
    assert "evaluation.json: no report of m3l eval" in capsys.readouterr().err


def test_a_figure_below_its_limit_is_exit_code_1(
    checkpoints: list[str], bag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = command(checkpoints[:1], bag, "--scenarios", "clean", "--frames", "6")
    assert main([*short, "--fail-under", "robust=0.0", "--fail-under", "clean=0"]) == 0
    capsys.readouterr()
    assert main([*short, "--fail-under", "robust=0.99"]) == 1
    assert "one: robust is 0." in capsys.readouterr().err
    assert main([*short, "--fail-under", "rmm_avg=0.1"]) == 2
    assert "--fail-under rmm_avg: no such figure here; there are robust, clean" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bag", "arguments", "complaint"),
    [
        ({"most": 30}, [], "ids outside label set 'demo'"),
        ({"labelled": 0}, ["--label-topic", "/camera/labels"], "drive: none has a topic /camera/labels"),
        ({"labelled": 0}, ["--labels", "empty"], "empty: "),
        (
            {"labelled": 0},
            ["--fail-under", "robust=0.5"],
            "no such figure here; there are none without labels",
        ),
        ({}, ["--scenarios", "fog"], "no scenario fog; there are "),
        ({"frames": 0}, [], "drive: "),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(
    checkpoints: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    bag: dict[str, int],
    arguments: list[str],
    complaint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_bag(tmp_path / "drive", **{"frames": 4, **bag})
    assert main(command(checkpoints[:1], Path("drive"), *arguments)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("m3l eval: error: ")
    assert complaint in error


def test_half_labelled_and_unlabelled_bags_are_said_to_be_so(
    checkpoints: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = write_bag(tmp_path / "half", labelled=3, frames=6)
    assert main(command(checkpoints[:1], half, "--scenarios", "clean")) == 0
    assert "3 of 6 frames have labels: only those are evaluated" in capsys.readouterr().out
    bare = write_bag(tmp_path / "bare", labelled=0, frames=6)
    assert main(command(checkpoints[:1], bare, "--scenarios", "clean")) == 0
    out = capsys.readouterr().out
    assert "none of the 6 frames has labels: what is measured are proxies" in out
    assert "clean: flicker (proxy)" in out


def test_the_command_says_how_far_it_came_and_goes_on(
    checkpoints: list[str],
    bag: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save = FileStore.save

    def interrupted(store: FileStore, number: int, result: BlockResult) -> None:
        save(store, number, result)
        raise KeyboardInterrupt

    short = command(checkpoints[:1], bag, "--scenarios", "clean", "--out", str(tmp_path / "out"))
    monkeypatch.setattr(FileStore, "save", interrupted)
    assert main(short) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == (
        "interrupted after 10 of 21 frames; the same command goes on from the last block that was finished"
    )
    done: list[int] = []

    def noted(store: FileStore, number: int, result: BlockResult) -> None:
        done.append(number)
        save(store, number, result)

    monkeypatch.setattr(FileStore, "save", noted)
    assert main(short) == 0
    assert done == [1, 2]
    assert not (tmp_path / "out" / "progress").exists()
    assert main([*short[:-2], "--out", checkpoints[0]]) == 2
    assert "cannot keep the progress" in capsys.readouterr().err
