# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3l_model import LinearFusionSegmenter, M3LError, Predictor, load_checkpoint
from m3l_model.augment import Batch, strong, weak
from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.bag_writer import BagWriter
from m3l_model.bags import BagError, BagFrames
from m3l_model.data import NetworkFrame, StepFrames, StepSampler, read_batches
from m3l_model.evaluation import evaluate
from m3l_model.evaluation_plan import evaluated_positions, plan_evaluation
from m3l_model.evaluation_summary import summarise
from m3l_model.labels import IGNORE_ID, LabelSet
from m3l_model.scenarios import ROBUST, chosen_scenarios
from m3l_model.shared_batches import LazySamples
from m3l_model.training import (
    TrainConfig,
    Trainer,
    draw_missing,
    load_config,
    train,
    update_teacher,
)
from m3l_model.training_frames import TrainingFrames

LABELS = LabelSet.generic(3)
CPU = torch.device("cpu")


def small(config: TrainConfig, **changes: object) -> TrainConfig:
    """The recipe on 32-pixel images, with pseudo labels from the first step."""
    sizes = {"short_side": 32, "crop": 1.0, "steps": 4, "labelled_batch": 2, "unlabelled_batch": 2}
    schedule = {"warmup_steps": 2, "pseudo_start": 0, "pseudo_ramp": 1, "pseudo_threshold": 0.0}
    return dataclasses.replace(config, **(sizes | schedule | changes))  # type: ignore[arg-type]


def blocks(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images of 32x48 in 16x16 blocks; a class is a colour and a distance: rgb, depth in mm, labels."""
    labels = np.random.default_rng(seed).integers(0, 3, (count, 2, 3)).astype(np.uint8)
    labels = labels.repeat(16, 1).repeat(16, 2)
    rgb = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220]], np.uint8)[labels]
    return rgb, np.array([1000, 3000, 5000], np.uint16)[labels], labels


class MemoryFrames(list[NetworkFrame]):
    """Frames in the place of a data set of bags."""

    def __getitems__(self, positions: list[int]) -> LazySamples:
        return LazySamples(self, positions)

    def read(self, position: int, allocate: object = None) -> NetworkFrame:
        return self[position]


def block_frames(count: int = 8) -> MemoryFrames:
    whole = np.zeros(2, bool)
    return MemoryFrames(
        NetworkFrame(rgb, (depth / 1000).astype(np.float32), labels, whole)
        for rgb, depth, labels in zip(*blocks(count), strict=True)
    )


def batches(config: TrainConfig, seed: int = 0, count: int = 8, labelled: int = 4) -> Iterator[NetworkFrame]:
    """A run's batches of block frames, of which the first are labelled."""
    steps = [config.step_frames(step) for step in range(config.steps)]
    sampler = StepSampler(range(labelled), range(labelled, count), steps, seed)
    return read_batches(block_frames(count), sampler, 0)


def frames_of(bag: Path, label_set: LabelSet = LABELS, **options: Any) -> TrainingFrames:
    return TrainingFrames.select([BagFrames.open(bag)], label_set, **options)


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


@given(
    recorded=st.lists(
        st.sampled_from([(False, False), (True, False), (False, True)]), min_size=1, max_size=12
    ),
    whole=st.integers(0, 12),
    seed=st.integers(0, 999),
)
def test_draws_never_take_both_modalities(recorded: list[tuple[bool, bool]], whole: int, seed: int) -> None:
    given_missing = torch.tensor(recorded)
    missing = draw_missing(given_missing, whole, torch.Generator().manual_seed(seed))
    assert not missing.all(1).any()
    assert torch.equal(missing[:whole], given_missing[:whole])
    lacking = given_missing.any(1)
    assert torch.equal(missing[lacking], given_missing[lacking])


def test_draws_are_a_third_each() -> None:
    missing = draw_missing(torch.zeros(9000, 2, dtype=torch.bool), 0, torch.Generator().manual_seed(0))
    shares = missing.float().mean(0)
    assert ((shares - 1 / 3).abs() < 0.02).all()


def test_teacher_starts_as_the_student_and_then_follows_slowly() -> None:
    teacher, student = LinearFusionSegmenter(num_classes=3), LinearFusionSegmenter(num_classes=3)
    update_teacher(teacher, student, step=0, decay=0.99)
    assert all(torch.equal(v, student.state_dict()[k]) for k, v in teacher.state_dict().items())
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    with torch.no_grad():
        for name, tensor in student.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(7)
            elif not name.endswith("running_var"):
                tensor.add_(1)
    for step, moved in ((1, 0.5), (99999, 0.5 + 0.5 * 0.01)):
        update_teacher(teacher, student, step, decay=0.99)
        for name, tensor in teacher.state_dict().items():
            if name.endswith("num_batches_tracked"):
                assert tensor == 7
            elif not name.endswith("running_var"):
                torch.testing.assert_close(tensor, before[name] + moved, msg=name)


def test_the_teacher_is_in_eval_mode_and_only_the_student_gets_gradients() -> None:
    config = small(load_config("m3l"))
    trainer = Trainer(config, LABELS, 0, CPU)
    results = list(trainer.run(batches(config)))
    assert trainer.teacher is not None
    assert trainer.model is trainer.teacher
    assert trainer.student.training
    assert not trainer.teacher.training
    assert not any(p.requires_grad or p.grad is not None for p in trainer.teacher.parameters())
    assert all(p.grad is not None for p in trainer.student.parameters())
    assert all(np.isfinite((r.loss_supervised, r.loss_pseudo)).all() for r in results)


def test_a_supervised_run_has_no_teacher_and_masks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    config = small(load_config("supervised"))
    trainer = Trainer(config, LABELS, 0, CPU)
    trainer.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    results = list(trainer.run(batches(config)))
    assert trainer.teacher is None
    assert trainer.model is trainer.student
    assert len(seen) == 4
    assert not any(missing.any() for missing in seen)
    assert all(result.loss_pseudo == 0 for result in results)


def test_the_student_sees_the_first_copy_whole_and_the_teacher_everything() -> None:
    config = small(load_config("m3l"), steps=12)
    trainer = Trainer(config, LABELS, 0, CPU)
    assert trainer.teacher is not None
    student: list[torch.Tensor] = []
    teacher: list[torch.Tensor] = []
    trainer.student.register_forward_pre_hook(lambda _, inputs: student.append(inputs[2]))
    trainer.teacher.register_forward_pre_hook(lambda _, inputs: teacher.append(inputs[2]))
    list(trainer.run(batches(config)))
    assert {tuple(x.shape) for x in student} == {(6, 2)}
    assert {tuple(x.shape) for x in teacher} == {(2, 2)}
    assert not any(missing[:2].any() for missing in student)
    assert torch.stack(student)[:, 2:].any(0).all()
    assert not any(missing.any() for missing in teacher)


@pytest.mark.parametrize("recipe", ["m3l", "supervised"])
def test_the_seed_decides_everything(recipe: str) -> None:
    config = small(load_config(recipe))

    def losses(seed: int) -> list[float]:
        results = Trainer(config, LABELS, seed, CPU).run(batches(config, seed))
        return [result.loss_supervised + result.loss_pseudo for result in results]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_learns_blocks_that_colour_and_depth_tell() -> None:
    schedule = {"steps": 60, "learning_rate": 1e-3, "warmup_steps": 5, "pseudo_start": 30, "pseudo_ramp": 10}
    config = small(load_config("m3l"), labelled_batch=4, **schedule)
    trainer = Trainer(config, LABELS, 0, CPU)
    results = list(trainer.run(batches(config, count=24, labelled=20)))
    assert results[-1].loss_supervised < results[0].loss_supervised
    predictor = Predictor(trainer.student, "cpu")

    def accuracy(use_rgb: bool, use_depth: bool) -> float:
        frames = zip(*blocks(4, seed=5), strict=True)
        masks = [
            (predictor.predict(rgb if use_rgb else None, depth if use_depth else None).labels, truth)
            for rgb, depth, truth in frames
        ]
        return float(np.mean([mask == truth for mask, truth in masks]))

    assert accuracy(use_rgb=True, use_depth=True) > 0.9
    assert accuracy(use_rgb=True, use_depth=False) > 0.9
    assert accuracy(use_rgb=False, use_depth=True) > 0.6  # chance is a third


def test_weak_augmentation_moves_colour_depth_and_labels_together() -> None:
    rgb, depth, labels = blocks(6)
    batch = Batch(
        torch.from_numpy(rgb).float(),
        torch.from_numpy(depth.astype(np.float32)),
        torch.from_numpy(labels).long(),
        torch.zeros(6, 2, dtype=torch.bool),
    )
    moved = weak(batch, 1.0, (1.0, 1.5), torch.Generator().manual_seed(0))
    assert moved.rgb.shape == batch.rgb.shape
    assert not torch.equal(moved.labels, batch.labels)
    assert torch.equal(moved.depth_m, torch.tensor([1000.0, 3000.0, 5000.0])[moved.labels])
    pure = moved.rgb.amax(3) > 215
    assert pure.float().mean() > 0.7
    assert torch.equal(moved.rgb.argmax(3)[pure], moved.labels[pure])


def test_strong_augmentation_keeps_labels_range_and_holes() -> None:
    rgb, depth, labels = map(torch.from_numpy, blocks(8))
    batch = Batch(rgb.float(), depth.float() / 1000, labels.long(), torch.zeros(8, 2, dtype=torch.bool))
    batch.depth_m[:, :5] = 0
    disturbed = strong(batch, torch.Generator().manual_seed(0))
    assert torch.equal(disturbed.labels, batch.labels)
    assert (disturbed.depth_m[:, :5] == 0).all()
    assert (disturbed.depth_m[:, 5:] == 0).any()
    assert disturbed.rgb.min() >= 0
    assert disturbed.rgb.max() <= 255
    assert not torch.equal(disturbed.rgb, batch.rgb)


@given(
    labelled=st.integers(1, 9),
    unlabelled=st.integers(1, 9),
    steps=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5)), min_size=1, max_size=20),
    seed=st.integers(-5, 5),
)
def test_every_position_comes_once_before_any_comes_again(
    labelled: int, unlabelled: int, steps: list[tuple[int, int]], seed: int
) -> None:
    pools = [set(range(labelled)), set(range(50, 50 + unlabelled))]
    sampler = StepSampler(list(pools[0]), list(pools[1]), [StepFrames(*step) for step in steps], seed)
    drawn = list(sampler)
    assert drawn == list(sampler)
    assert len(drawn) == len(sampler) == len(steps)
    streams: list[list[int]] = [[], []]
    for positions, (count, rest) in zip(drawn, steps, strict=True):
        assert len(positions) == count + rest <= sampler.batch_size
        streams[0] += positions[:count]
        streams[1] += positions[count:]
    for stream, pool in zip(streams, pools, strict=True):
        for start in range(0, len(stream), len(pool)):
            part = stream[start : start + len(pool)]
            assert len(set(part)) == len(part)
            assert set(part) <= pool


def test_one_kind_of_frames_does_not_change_the_order_of_the_other() -> None:
    some = StepSampler(range(9), range(9, 30), [StepFrames(3, 0)] * 5, seed=1)
    more = StepSampler(range(9), range(9, 30), [StepFrames(3, 4)] * 5, seed=1)
    assert list(some) == [positions[:3] for positions in more]
    assert list(some) != list(StepSampler(range(9), range(9, 30), [StepFrames(3, 0)] * 5, seed=2))


def test_a_step_takes_unlabelled_frames_only_when_they_serve() -> None:
    config = small(load_config("m3l"), steps=6, labelled_batch=3, unlabelled_batch=2, pseudo_start=3)
    assert [config.step_frames(step) for step in range(6)] == [(6, 0)] * 3 + [(6, 2)] * 3
    assert small(load_config("supervised"), labelled_batch=3).step_frames(5) == (3, 0)


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
            device="cpu",
            workers=workers,
        )
        facts = json.loads((out / "run.json").read_text())
        assert facts["workers"] == workers
        return facts["log"], load_checkpoint(checkpoint).state_dict()

    log, weights = run(0)
    for workers in (1, 2):
        other_log, other_weights = run(workers)
        assert other_log == log
        assert all(torch.equal(other_weights[name], tensor) for name, tensor in weights.items())


def test_an_error_in_a_worker_arrives_as_it_is() -> None:
    class Broken(MemoryFrames):
        def read(self, position: int, allocate: object = None) -> NetworkFrame:
            if position == 3:
                raise BagError("bag: frame 3 is damaged")
            return self[position]

    sampler = StepSampler(range(4), [], [StepFrames(4, 0)], seed=0)
    sampler_of_others = StepSampler(range(3), [], [StepFrames(3, 0)], seed=0)
    for workers in (0, 2):
        frames = Broken(block_frames(4))
        assert len(list(read_batches(frames, sampler_of_others, workers))) == 1
        with pytest.raises(BagError, match=r"^bag: frame 3 is damaged$"):
            list(read_batches(frames, sampler, workers))


def test_trains_from_a_bag_and_scores_on_one(tmp_path: Path, block_bag: Path) -> None:
    out = tmp_path / "run"
    checkpoint = train(
        small(load_config("m3l")), frames_of(block_bag), out, seed=3, device="cpu", notes={"splits": None}
    )
    facts = json.loads((out / "run.json").read_text())
    assert (facts["labelled_frames"], facts["unlabelled_frames"], facts["seed"]) == (3, 5, 3)
    assert (facts["label_set"], facts["label_files"], facts["splits"]) == (LABELS.name, None, None)
    assert len(facts["log"]) == 4
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


def test_a_label_set_s_own_ignore_id_is_ignored(block_bag: Path) -> None:
    labels = dataclasses.replace(LABELS, id_map={0: 0, 1: 1, 2: 200}, ignore_id=200)
    frames = frames_of(block_bag, labels).at_network_size(small(load_config("m3l")).preprocessing())
    assert {id for i in (2, 4, 6) for id in np.unique(frames[i].labels)} == {0, 1, IGNORE_ID}


def test_what_was_trained_is_kept_when_interrupted(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def interrupted(self: Trainer, number: int, frames: NetworkFrame) -> object:
        if number == 2:
            raise KeyboardInterrupt
        return step(self, number, frames)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(small(load_config("m3l")), frames_of(block_bag), tmp_path / "run", seed=0, device="cpu")
    assert load_checkpoint(tmp_path / "run" / "interrupted.safetensors").num_classes == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("pseudo_ramp", 0),
        ("labelled_batch", -1),
        ("backbone", "resnet50"),
        ("learning_rate", 0.0),
        ("ema_decay", 1.5),
        ("scales", (1.5, 0.5)),
        ("crop", 0.01),
    ],
)
def test_impossible_recipes_are_refused(field: str, value: object) -> None:
    with pytest.raises(M3LError, match=field):
        load_config("m3l", **{field: value})


def test_recipes_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(M3LError, match=r"nowhere\.yaml"):
        load_config("nowhere")
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("modality_dropout: true\nmean_teacher: true\nlerning_rate: 1\n")
    with pytest.raises(M3LError, match=r"mine\.yaml: unknown recipe fields \(lerning_rate\)"):
        load_config(str(recipe))
    for field in ("learning_rate: 2e-3", "steps: 1.5", "mean_teacher: 1", "scales: [1]", "backbone: 3"):
        recipe.write_text(f"modality_dropout: true\n{field}\n")
        with pytest.raises(M3LError, match=rf"mine\.yaml: {field.partition(':')[0]} cannot be"):
            load_config(str(recipe))
    recipe.write_text("modality_dropout: true\nmean_teacher: true\nshort_side: 8\n")
    with pytest.raises(M3LError, match="short_side"):
        load_config(str(recipe))
