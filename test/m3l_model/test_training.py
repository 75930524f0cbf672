# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from m3l_model import LinearFusionSegmenter, M3LError, Predictor, load_checkpoint
from m3l_model.augment import Batch, strong, weak
from m3l_model.bag_topics import DEFAULT_TOPICS
from m3l_model.bag_writer import BagWriter
from m3l_model.checkpoint import Metadata
from m3l_model.data import FrameStore, load_frames, shuffled_batches
from m3l_model.evaluation import evaluate, labelled_frames
from m3l_model.labels import IGNORE_ID, LabelSet
from m3l_model.preprocessing import Preprocessing
from m3l_model.training import (
    TrainConfig,
    Trainer,
    draw_missing,
    load_config,
    train,
    update_teacher,
)

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


def block_store(count: int = 8, labelled: int = 4) -> FrameStore:
    rgb, depth, labels = blocks(count)
    has_labels = torch.arange(count) < labelled
    ids = torch.from_numpy(labels)
    ids[~has_labels] = IGNORE_ID
    return FrameStore(
        torch.from_numpy(rgb),
        torch.from_numpy(depth.astype(np.float32) / 1000),
        ids,
        torch.zeros(count, 2, dtype=torch.bool),
        has_labels,
    )


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
    trainer = Trainer(small(load_config("m3l")), block_store(), LABELS, 0, CPU)
    results = list(trainer.run())
    assert trainer.teacher is not None
    assert trainer.model is trainer.teacher
    assert trainer.student.training
    assert not trainer.teacher.training
    assert not any(p.requires_grad or p.grad is not None for p in trainer.teacher.parameters())
    assert all(p.grad is not None for p in trainer.student.parameters())
    assert all(np.isfinite((r.loss_supervised, r.loss_pseudo)).all() for r in results)


def test_a_supervised_run_has_no_teacher_and_masks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    trainer = Trainer(small(load_config("supervised")), block_store(), LABELS, 0, CPU)
    trainer.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[2]))
    results = list(trainer.run())
    assert trainer.teacher is None
    assert trainer.model is trainer.student
    assert len(seen) == 4
    assert not any(missing.any() for missing in seen)
    assert all(result.loss_pseudo == 0 for result in results)


def test_the_student_sees_the_first_copy_whole_and_the_teacher_everything() -> None:
    trainer = Trainer(small(load_config("m3l"), steps=12), block_store(), LABELS, 0, CPU)
    assert trainer.teacher is not None
    student: list[torch.Tensor] = []
    teacher: list[torch.Tensor] = []
    trainer.student.register_forward_pre_hook(lambda _, inputs: student.append(inputs[2]))
    trainer.teacher.register_forward_pre_hook(lambda _, inputs: teacher.append(inputs[2]))
    list(trainer.run())
    assert {tuple(x.shape) for x in student} == {(6, 2)}
    assert {tuple(x.shape) for x in teacher} == {(2, 2)}
    assert not any(missing[:2].any() for missing in student)
    assert torch.stack(student)[:, 2:].any(0).all()
    assert not any(missing.any() for missing in teacher)


@pytest.mark.parametrize("recipe", ["m3l", "supervised"])
def test_the_seed_decides_everything(recipe: str) -> None:
    def losses(seed: int) -> list[float]:
        trainer = Trainer(small(load_config(recipe)), block_store(), LABELS, seed, CPU)
        return [result.loss_supervised + result.loss_pseudo for result in trainer.run()]

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_learns_blocks_that_colour_and_depth_tell() -> None:
    schedule = {"steps": 60, "learning_rate": 1e-3, "warmup_steps": 5, "pseudo_start": 30, "pseudo_ramp": 10}
    config = small(load_config("m3l"), labelled_batch=4, **schedule)
    trainer = Trainer(config, block_store(count=24, labelled=20), LABELS, 0, CPU)
    results = list(trainer.run())
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
    store = block_store()
    batch = store.batch(torch.arange(8))
    batch.depth_m[:, :5] = 0
    disturbed = strong(batch, torch.Generator().manual_seed(0))
    assert torch.equal(disturbed.labels, batch.labels)
    assert (disturbed.depth_m[:, :5] == 0).all()
    assert (disturbed.depth_m[:, 5:] == 0).any()
    assert disturbed.rgb.min() >= 0
    assert disturbed.rgb.max() <= 255
    assert not torch.equal(disturbed.rgb, batch.rgb)


@given(count=st.integers(1, 9), size=st.integers(1, 12))
def test_every_index_comes_once_before_any_comes_again(count: int, size: int) -> None:
    batches = shuffled_batches(torch.arange(count) + 5, size, torch.Generator().manual_seed(0))
    drawn = torch.cat([next(batches) for _ in range(count)])
    assert torch.equal(drawn.bincount()[5:], torch.full((count,), size))


def test_frames_come_from_the_bag_at_the_network_s_size(block_bag: Path) -> None:
    frames = load_frames({block_bag: None}, small(load_config("m3l"), short_side=64).preprocessing(), LABELS)
    assert frames.rgb.shape == (8, 64, 96, 3)
    assert frames.labelled.nonzero().flatten().tolist() == [2, 4, 6]
    assert set(frames.labels[~frames.labelled].unique().tolist()) == {IGNORE_ID}
    assert frames.depth_m[3].unique().tolist() == pytest.approx([1.0, 3.0, 5.0])
    assert not frames.missing[1:].any()


def test_trains_from_a_bag_and_scores_on_one(tmp_path: Path, block_bag: Path) -> None:
    out = tmp_path / "run"
    checkpoint = train(small(load_config("m3l")), {block_bag: None}, LABELS, out, seed=3, device="cpu")
    facts = json.loads((out / "run.json").read_text())
    assert (facts["labelled_frames"], facts["unlabelled_frames"], facts["seed"]) == (3, 5, 3)
    assert len(facts["log"]) == 4
    metadata = load_checkpoint(checkpoint).metadata
    assert metadata is not None
    assert metadata.labels == LABELS
    scores = evaluate(Predictor.from_checkpoint(checkpoint, "cpu"), labelled_frames(block_bag))
    assert scores.frames == 3
    assert 0 <= scores.both <= 1
    assert scores.robust == pytest.approx((scores.both + scores.rgb_only + scores.depth_only) / 3)
    with pytest.raises(M3LError, match="exists already"):
        train(small(load_config("m3l")), {block_bag: None}, LABELS, out, seed=3)


def test_scores_half_size_depth_and_frames_without_any(tmp_path: Path) -> None:
    rgb, depth, labels = blocks(4)
    depth[2] = 65535
    with BagWriter(tmp_path / "bag") as bag:
        for index in range(4):
            stamp_ns = 1_000_000_000 + index * 100_000_000
            bag.write_depth(str(DEFAULT_TOPICS.depth), stamp_ns, "camera", depth[index][::2, ::2])
            bag.write_rgb(DEFAULT_TOPICS.rgb, stamp_ns, "camera", rgb[index])
            bag.write_labels(str(DEFAULT_TOPICS.label), stamp_ns, "camera", labels[index])
    model = LinearFusionSegmenter(num_classes=3)
    model.metadata = Metadata(LABELS, Preprocessing(32))
    seen = list(labelled_frames(tmp_path / "bag"))
    scores = evaluate(Predictor(model, "cpu"), seen)
    assert scores.frames == 4
    with pytest.raises(M3LError, match="--depth-topic"):
        evaluate(Predictor(model, "cpu"), [frame._replace(depth=None) for frame in seen])
    with pytest.raises(M3LError, match="at least one"):
        evaluate(Predictor(model, "cpu"), [])


def test_a_label_set_s_own_ignore_id_is_ignored(block_bag: Path) -> None:
    labels = dataclasses.replace(LABELS, id_map={0: 0, 1: 1, 2: 200}, ignore_id=200)
    frames = load_frames({block_bag: None}, small(load_config("m3l")).preprocessing(), labels)
    assert set(frames.labels.unique().tolist()) == {0, 1, IGNORE_ID}


def test_what_was_trained_is_kept_when_interrupted(
    tmp_path: Path, block_bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Trainer._step

    def interrupted(self: Trainer, number: int) -> object:
        if number == 2:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(Trainer, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(small(load_config("m3l")), {block_bag: None}, LABELS, tmp_path / "run", seed=0, device="cpu")
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


def test_what_cannot_be_trained_is_named(tmp_path: Path) -> None:
    with pytest.raises(M3LError, match="no frame has labels"):
        Trainer(small(load_config("m3l")), block_store(4, 0), LABELS, 0, CPU)
    with pytest.raises(M3LError, match="--config supervised"):
        Trainer(small(load_config("m3l")), block_store(4, 4), LABELS, 0, CPU)
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
