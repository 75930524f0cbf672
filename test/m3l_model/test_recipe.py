# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from m3l_model import M3LError
from m3l_model.recipe import StepFrames, TrainConfig, load_config
from m3l_model.resources import share_path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("pseudo_ramp", 0),
        ("pseudo_start", 20_000),
        ("labelled_batch", -1),
        ("backbone", "resnet50"),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("decoder_rate", float("inf")),
        ("weight_decay", -1.0),
        ("pseudo_weight", -1.0),
        ("warmup_steps", -3),
        ("depth_range", (0.0, float("inf"))),
        ("ema_decay", 1.5),
        ("scales", (1.5, 0.5)),
        ("crop", 0.01),
        ("masking", "none"),
        ("modalities", "rgb"),
    ],
)
def test_impossible_recipes_are_refused(field: str, value: object) -> None:
    with pytest.raises(M3LError, match=field):
        load_config("m3l", **{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mean_teacher", True),
        ("masking", "student"),
        ("modalities", "rgb"),
        ("cutmix", True),
        ("task", "draw"),
    ],
)
def test_a_recipe_that_reconstructs_has_nothing_to_teach_mask_or_paste(
    tmp_path: Path, field: str, value: object
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump({"mean_teacher": False, "task": "reconstruct", field: value}))
    with pytest.raises(M3LError, match=rf"mine\.yaml: .*{field}"):
        load_config(str(recipe))


def test_recipes_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    for unknown in ("nowhere", "mine.txt"):
        with pytest.raises(
            M3LError, match=rf"recipe '{unknown}' is unknown: choose demo_m3l, .* path of a YAML"
        ):
            load_config(unknown)
    with pytest.raises(M3LError, match=r"gone\.yaml: cannot read the recipe"):
        load_config(str(tmp_path / "gone.yaml"))
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("mean_teacher: true\nlerning_rate: 1\n")
    with pytest.raises(M3LError, match=r"mine\.yaml: unknown recipe fields \(lerning_rate\)"):
        load_config(str(recipe))
    for field, expected in (
        ("learning_rate: 2e-3", r"give a number \(YAML takes 2e-3 for text"),
        ("steps: 1.5", "give a whole number"),
        ("mean_teacher: 1", "give true or false"),
        ("masking: some", "choose one of none, student, both"),
        ("short_side: wide", "give a whole number"),
        ("scales: [1]", "give two numbers"),
        ("backbone: 3", "give a name"),
    ):
        recipe.write_text(f"mean_teacher: true\n{field}\n")
        with pytest.raises(
            M3LError, match=rf"mine\.yaml: {field.partition(':')[0]} cannot be .*; {expected}"
        ):
            load_config(str(recipe))
    for size, expected in ((8, ": windows need 32"), (100_000, "; 32 to 8192 pixels are possible")):
        recipe.write_text(f"mean_teacher: true\nshort_side: {size}\n")
        with pytest.raises(M3LError, match=rf"short_side .*{size}{expected}"):
            load_config(str(recipe))
    recipe.write_text("")
    with pytest.raises(M3LError, match=r"mine\.yaml: not a recipe"):
        load_config(str(recipe))
    recipe.write_text("steps: 5")
    with pytest.raises(M3LError, match=r"mine\.yaml: lacks mean_teacher"):
        load_config(str(recipe))


def test_a_field_that_is_there_twice_is_named(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("mean_teacher: true\nema_decay: 0.99\nema_decay: 0.999\n")
    with pytest.raises(M3LError, match="ema_decay is there twice"):
        load_config(str(recipe))


def test_all_recipes_of_the_package_are_valid() -> None:
    names = {path.stem for path in share_path("config/train").glob("*.yaml")}
    assert {
        "supervised",
        "supervised_dropout",
        "mean_teacher",
        "mean_teacher_dropout",
        "m3l",
        "m3l_paper",
        "rgb_supervised",
        "rgb_mean_teacher",
        "pretrain",
    } <= names
    for name in names:
        load_config(name)


METHOD = {
    *("mean_teacher", "masking", "second_labelled", "modalities", "fusion_ratio", "skip_missing", "cutmix"),
    *("pseudo_frames", "pseudo_labels", "pseudo_start", "pseudo_ramp"),
}
"""Fields that say what a recipe is, rather than in what harness it trains."""


@pytest.mark.parametrize("data", ["", "stanford_", "sunrgbd_"])
def test_what_m3l_is_compared_with_has_its_harness(data: str) -> None:
    names = ["supervised", "mean_teacher", "mean_teacher_dropout"]
    if not data:
        names += ["supervised_dropout", "rgb_supervised", "rgb_mean_teacher"]
    ours = load_config(f"{data}m3l")
    for name in names:
        theirs = load_config(f"{data}{name}")
        without = METHOD | ({"depth_encoding"} if theirs.modalities == "rgb" else set())
        if not theirs.mean_teacher:
            without |= {"unlabelled_batch", "ema_decay"}  # it has neither
        for field in asdict(ours).keys() - without:
            assert getattr(theirs, field) == getattr(ours, field), (name, field)


def test_windows_smaller_than_the_network_takes_are_refused_once_the_frames_are_known() -> None:
    config = load_config("m3l", short_side=None, depth_encoding="metric")
    assert config.window(48, 60) == (32, 40)
    with pytest.raises(M3LError, match=r"frames of 60x40 leaves windows of 40x27, .* 32 pixels or more"):
        config.window(40, 60)


def test_pseudo_labels_that_would_never_come_are_refused() -> None:
    with pytest.raises(M3LError, match=r"pseudo_start is 2000, but steps 2000: .*"):
        load_config("m3l", pseudo_start=2000, steps=2000)
    assert load_config("m3l", pseudo_start=2000, steps=2001).step_frames(2000).unlabelled == 8
    for harmless in ({"pseudo_weight": 0.0}, {"mean_teacher": False, "masking": "student"}):
        load_config("m3l", pseudo_start=2000, steps=2000, **harmless)


@pytest.mark.parametrize("steps", [1, 2, 7, 100, 1999, 20_000, 40_000])
def test_a_recipe_in_other_steps_keeps_its_shares(steps: int) -> None:
    for path in share_path("config/train").glob("*.yaml"):
        recipe = load_config(path.stem)
        config = recipe.in_steps(steps)
        assert config.steps == steps
        for name in ("warmup_steps", "pseudo_start", "pseudo_ramp"):
            share = getattr(recipe, name) / recipe.steps
            assert share * steps - 1 < getattr(config, name) <= max(1.0, share * steps), path.stem
        same = {"steps": 0, "warmup_steps": 0, "pseudo_start": 0, "pseudo_ramp": 0}
        assert asdict(config) | same == asdict(recipe) | same


def test_a_step_reads_what_its_losses_use() -> None:
    late = {"steps": 6, "labelled_batch": 3, "unlabelled_batch": 2, "pseudo_start": 3, "pseudo_ramp": 1}
    config = load_config("m3l", second_labelled="another", **late)
    assert [config.step_frames(step) for step in range(6)] == [(3, 3, 0)] * 3 + [(3, 3, 2)] * 3
    assert load_config("supervised", labelled_batch=3).step_frames(5) == (3, 0, 0)
    assert load_config("m3l_paper", labelled_batch=3, unlabelled_batch=2).step_frames(0) == (3, 0, 2)


def test_processes_share_every_kind_of_a_step_s_frames() -> None:
    step = StepFrames(4, 2, 6)
    assert step.of_rank(0, 1) == ([0, 1, 2, 3], [4, 5], [6, 7, 8, 9, 10, 11])
    assert step.of_rank(0, 2) == ([0, 1], [4], [6, 7, 8])
    assert step.of_rank(1, 2) == ([2, 3], [5], [9, 10, 11])


def test_the_learning_rate_rises_and_falls() -> None:
    config = TrainConfig(mean_teacher=False, learning_rate=1.0, warmup_steps=10, steps=100)
    rates = [config.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(rates[9]) == pytest.approx(0.91**0.9)
    assert rates[9:] == sorted(rates[9:], reverse=True)
