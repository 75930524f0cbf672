# SPDX-License-Identifier: Apache-2.0
"""The experiments keep to the protocol of docs/experiments.md."""

from __future__ import annotations

import dataclasses
import importlib
import json
import sys
from collections.abc import Callable, Iterator
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from m3l_model.labels import LabelSet
from m3l_model.run_log import LOG_FILE


@pytest.fixture
def lists(repository: Path) -> dict[str, list[str]]:
    return {path.stem: path.read_text().split() for path in (repository / "experiments/nyuv2").glob("*.txt")}


@pytest.fixture
def script(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Imports a script by name; neither it nor what it changes outlives the test."""
    monkeypatch.syspath_prepend(str(repository / "experiments"))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    yield importlib.import_module
    for path in (repository / "experiments").glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.fixture
def rows(script: Callable[[str], Any]) -> Any:
    return script("rows")


def test_draws_are_of_the_usable_frames(lists: dict[str, list[str]]) -> None:
    usable, validation = set(lists["usable"]), set(lists["validation"])
    assert (len(usable), len(validation)) == (595, 100)
    assert not usable & validation
    draws = [set(lists[f"labelled_{draw}"]) for draw in (1, 2, 3)]
    assert all(len(draw) == 50 and draw <= usable for draw in draws)
    assert all(one != other for one, other in combinations(draws, 2))


@pytest.mark.data
def test_validation_is_in_blocks_with_gaps(lists: dict[str, list[str]], shared_data: Path) -> None:
    every = (shared_data / "data/nyuv2/train.txt").read_text().split()
    places = sorted(every.index(name) for name in lists["validation"])
    starts = [place for place in places if place - 1 not in places]
    assert len(starts) == 10
    near = {place + step for place in places for step in range(-5, 6)}
    assert [every[i] for i in range(len(every)) if i not in near] == lists["usable"]


_OURS = {"pseudo_labels": "soft", "cutmix": True, "skip_missing": True}
"""What ``m3l`` has over M3L, all of it."""


def test_rows_share_the_harness(rows: Any) -> None:
    for setting in (rows.NYUV2, rows.SYNTHETIC):
        configs = {row: rows.config_of(setting, row, 0.001) for row in rows.ALL_ROWS}
        longer = configs.pop("m3l_equal_time")
        assert longer == configs["m3l_burn_in"].in_steps(longer.steps)
        assert longer.steps > configs["m3l_burn_in"].steps
        pretraining = {row: rows.pretraining_of(setting, row) for row in configs}
        assert [row for row, config in pretraining.items() if config] == [
            "m3l_tuned_pretrained",
            "supervised_pretrained",
            "m3l_pretrained",
            "m3l_labelled_only_pretrained",
        ]
        for row, config in pretraining.items():
            if config:
                scratch = "m3l_burn_in" if row == "m3l_pretrained" else row.removesuffix("_pretrained")
                assert configs[row] == configs[scratch]
                assert config.preprocessing() == configs[row].preprocessing()
                assert config.steps == configs[row].steps
        assert configs["m3l_no_burn_in"].pseudo_start == configs["m3l"].pseudo_start == 0
        assert dataclasses.replace(configs["m3l_tuned"], **_OURS) == configs["m3l"]
        digests = {rows.digest(config, pretraining[row]) for row, config in configs.items()}
        assert len(digests) == len(configs)
        shared = [name for name in {**rows.HARNESS, **setting} if name != "labelled_batch"]
        for row, config in configs.items():
            images = 4 if row.startswith("m3l_labelled_only") else 8
            assert sum(config.step_frames(config.steps - 1)) == images, row
            if row != "m3l_paper":
                changed = {**rows.ABLATIONS, **rows.BURN_IN}[row][1] if row not in rows.ROWS else {}
                for name in (*shared, "batch_norm", "train_fused", "teacher_noise", "augmentation"):
                    expected = {**rows.HARNESS, **setting, **changed}.get(name, getattr(configs["m3l"], name))
                    assert getattr(config, name) == expected, (row, name)


def test_what_stands_in_for_a_modality_is_chosen_on_the_rooms_to_tune_on(
    tmp_path: Path, script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    synthetic = script("synthetic")
    trained: list[Path] = []

    def train(config: object, frames: object, out: Path, *_: object, **__: object) -> Path:
        trained.append(out)
        return out

    def score(checkpoint: Path, rooms: tuple[int, ...], _: object, fill: Any) -> dict[str, float]:
        better = "zeros" if rooms == synthetic.ROOMS["tune"] else "mean"
        return {"robust": 0.5 + (fill.name == better) / 4, "holes": 0.0}

    monkeypatch.setattr(synthetic, "RESULTS", tmp_path)
    monkeypatch.setattr(synthetic, "train", train)
    monkeypatch.setattr(synthetic, "score", score)
    names = {"none": ("zeros", "mean"), "student": ("token",)}
    monkeypatch.setattr(
        synthetic, "fills", lambda config, _: [SimpleNamespace(name=name) for name in names[config.masking]]
    )
    monkeypatch.setattr(synthetic, "_bag", lambda work, recording: recording.rooms)
    monkeypatch.setattr(synthetic, "RgbdBagDataset", lambda bags, labels: bags[0])
    monkeypatch.setattr(synthetic, "TrainingFrames", SimpleNamespace(select=lambda *_: None))
    monkeypatch.setattr(synthetic, "BagFrames", SimpleNamespace(open=lambda path: path))
    for row, fill in (("supervised", "zeros"), ("m3l", "token")):
        trained.clear()
        for kind in synthetic.ROOMS:
            assert synthetic.run_one(tmp_path, row, 0, 0.001, kind)
        found = [
            json.loads(next(tmp_path.glob(f"{kind}-{row}-*.json")).read_text()) for kind in synthetic.ROOMS
        ]
        assert [result["fill"] for result in found] == [fill] * 3
        assert [result["rooms"][0] for result in found] == [0, 100, 105]
        assert [result["miou"]["robust"] for result in found[1:]] == [0.5, 0.5]
        assert [path.name.split("-")[0] for path in trained] == ["tune", "final", "final"]
    path = next(tmp_path.glob("tune-supervised-*.json"))
    result = json.loads(path.read_text())
    del result["fill"]
    path.write_text(json.dumps(result))
    before = len(trained)
    with pytest.raises(SystemExit, match="does not say what stood in"):
        synthetic.run_one(tmp_path, "supervised", 1, 0.001, "final")
    assert len(trained) == before


def test_what_may_stand_in_is_what_a_row_was_trained_for(script: Callable[[str], Any], rows: Any) -> None:
    scoring = script("scoring")
    sample = SimpleNamespace(rgb=np.full((2, 3, 3), 9, np.uint8), depth=np.full((2, 3), 2000, np.uint16))
    frames = SimpleNamespace(labelled=np.arange(2), dataset=[sample, sample])
    names = {
        row: [fill.name for fill in scoring.fills(rows.config_of(rows.NYUV2, row, 0.001), frames)]
        for row in ("mean_teacher", "m3l_tuned", "m3l", "rgb_mean_teacher")
    }
    assert names == {
        "mean_teacher": ["zeros", "mean", "left out"],
        "m3l_tuned": ["token", "left out"],
        "m3l": ["left out"],
        "rgb_mean_teacher": ["left out"],
    }


def test_wall_time_is_in_the_result_and_in_the_table(
    tmp_path: Path,
    script: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, table = script("run"), script("table")
    scores = dict.fromkeys(table.COLUMNS, 0.5)

    def train(config: object, frames: object, out: Path, *_: object, **__: object) -> Path:
        out.mkdir(parents=True)
        steps = [
            {"step": n, "loss_supervised": 1.0, "loss_pseudo": 0.0, "learning_rate": 0.1} for n in range(2)
        ]
        lines = [json.dumps({**step, "seconds": 20.25}) + "\n" for step in steps]
        (out / LOG_FILE).write_text("".join(lines))
        (out / run.VALIDATION_FILE).touch()
        (out / run.CHECKPOINT_FILE).touch()
        return out

    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(run, "train", train)
    monkeypatch.setattr(run, "_gflop", lambda *_: 1.0)
    monkeypatch.setattr(run, "_scores", lambda *_: {"final": scores, "best": scores, "fill": None})
    bags = SimpleNamespace(training_frames=lambda draw: None)
    for row in ("m3l", "m3l_tuned"):
        assert run.run_one(bags, tmp_path, run.Machine("cpu"), row, 1, 0.001, False)
    older = run.result_path("m3l_tuned", 2, run.config_of(run.NYUV2, "m3l_tuned", 0.001))
    assert run.run_one(bags, tmp_path, run.Machine("cpu"), "m3l_tuned", 2, 0.001, False)
    result = json.loads(older.read_text())
    del result["config"]["skip_missing"]  # as from before there was this field
    older.write_text(json.dumps(result))
    (path,) = (tmp_path / "results").glob("m3l_tuned-1-*.json")
    result = json.loads(path.read_text())
    assert result.pop("wall_seconds") == 40.5
    path.write_text(json.dumps(result))
    monkeypatch.setattr(table, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(sys, "argv", ["table.py"])
    table.main()
    header, rule, *rows = capsys.readouterr().out.splitlines()[:4]
    assert header.endswith("| GFLOP | images | steps | wall s |")
    assert len({line.count("|") for line in (header, rule, *rows)}) == 1
    assert {row.split(" | ")[0]: row.split(" | ")[-2:] for row in rows} == {
        "| m3l": ["1500", "40 |"],
        "| m3l_tuned": ["1500", "- |"],
    }
    assert any(row.startswith("| m3l_tuned | 1, 2 |") for row in rows)


def test_a_row_is_shown_at_its_best_rate_or_at_those_that_count(
    tmp_path: Path,
    script: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = script("table")
    monkeypatch.setattr(table, "RESULTS", tmp_path)
    for row, rate, draw, robust in (
        ("m3l", 0.001, 1, 0.5),
        ("m3l", 0.001, 2, 0.9),
        ("m3l", 0.002, 1, 0.6),
        ("m3l_paper", 0.0001, 1, 0.1),
    ):
        scores = {"final": dict.fromkeys(table.COLUMNS, robust), "best": dict.fromkeys(table.COLUMNS, robust)}
        result = {"row": row, "draw": draw, "learning_rate": rate, "validation": scores, "gflop": 1.0}
        result |= {"config": {"modalities": "both"}, "images": 8, "steps": 1}
        (tmp_path / f"{row}-{draw}-{rate}.json").write_text(json.dumps(result))
    shown = {}
    for arguments in ((), ("--rates", "0.001")):
        monkeypatch.setattr(sys, "argv", ["table.py", *arguments])
        table.main()
        lines = capsys.readouterr().out.splitlines()[2:4]
        shown[arguments] = {tuple(line.strip("| ").split(" | ")[:3]) for line in lines}
    paper = ("m3l_paper", "1", "0.0001")
    assert shown == {
        (): {("m3l", "1", "0.002"), paper},
        ("--rates", "0.001"): {("m3l", "1, 2", "0.001"), paper},
    }


def test_scores_are_made_where_the_model_is_and_none_are_needed_to_say_that_they_lack(
    tmp_path: Path, script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = script("run")
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    named: list[str | None] = []

    def score(bags: object, part: str, config: object, frames: object, out: Path, fill: str | None) -> Any:
        named.append(fill)
        return {"final": {"robust": 0.5}, "best": {}, "fill": None}

    monkeypatch.setattr(run, "_scores", score)
    config = run.config_of(run.NYUV2, "m3l_tuned", 0.001)
    path = run.result_path("m3l_tuned", 1, config)
    path.parent.mkdir()
    path.write_text('{"row": "m3l_tuned"}')
    with pytest.raises(SystemExit, match="draw 1 has to come first"):
        run.best_rate("m3l_tuned", [0.001])
    again = (SimpleNamespace(training_frames=lambda draw: None), tmp_path, None, "m3l_tuned", 1, 0.001, True)
    assert run.run_one(*again)
    assert not named
    model = tmp_path / "runs" / path.stem / run.CHECKPOINT_FILE
    model.parent.mkdir(parents=True)
    model.touch()
    assert run.run_one(*again)
    assert named == [None, "token"]
    assert run.best_rate("m3l_tuned", [0.001]) == 0.001


def test_stanford_2d_3d_s_is_prepared_for_the_import_of_its_published_recipe(
    script: Callable[[str], Any], tmp_path: Path
) -> None:
    (tmp_path / "assets").mkdir()
    names = ["<UNK>", "wall_2_office_1_1", "beam_1_hallway_3_5", "window_4_lobby_1_2"]
    (tmp_path / "assets" / "semantic_labels.json").write_text(json.dumps(names))
    numbers = np.array([[0, 1, 2], [3, 4, 0x0D0D0D]], np.uint32)
    rgb = np.stack([numbers >> 16 & 255, numbers >> 8 & 255, numbers & 255], 2).astype(np.uint8)
    for area in ("area_1", "area_3", "area_5a"):
        path = tmp_path / area / "data" / "semantic" / f"camera_{area}_office_1_frame_0_domain_semantic.png"
        path.parent.mkdir(parents=True)
        cv2.imwrite(str(path), rgb[..., ::-1])

    assert script("stanford_ids").main([str(tmp_path)]) == 0

    classes = {name: i for i, name in enumerate(LabelSet.load("stanford13").classes)}
    wall, beam, window = (classes[name] for name in ("wall", "beam", "window"))
    for area in ("area_1", "area_3", "area_5a"):
        ids = tmp_path / area / "data" / "ids" / f"camera_{area}_office_1_frame_0_domain_ids.png"
        found = cv2.imread(str(ids), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(found, [[255, wall, beam], [window, 255, 255]])
    for part, area in (("train", "area_1"), ("val", "area_3"), ("test", "area_5a")):
        assert (tmp_path / f"{part}.txt").read_text() == f"camera_{area}_office_1_frame_0_domain\n"
    with pytest.raises(SystemExit, match=r"semantic_labels\.json"):
        script("stanford_ids").main([str(tmp_path / "area_1")])
    (tmp_path / "assets" / "semantic_labels.json").write_text("[")
    with pytest.raises(SystemExit, match="error: "):
        script("stanford_ids").main([str(tmp_path)])
