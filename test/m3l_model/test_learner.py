# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from training_samples import batches, blocks, small, views_of

from m3l_model import LinearFusionSegmenter, Predictor
from m3l_model.labels import LabelSet
from m3l_model.learner import Learner, StepResult, update_teacher
from m3l_model.preprocessing import Inputs
from m3l_model.recipe import TrainConfig, load_config
from m3l_model.training import learn, new_network
from m3l_model.views import View

LABELS = LabelSet.generic(3)


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


def learner_of(config: TrainConfig, seed: int = 0) -> tuple[Learner, Fabric]:
    fabric = Fabric(accelerator="cpu", devices=1)
    return Learner(config, new_network(config, LABELS, seed), fabric), fabric


def steps_of(config: TrainConfig, seed: int = 0, **samples: int) -> tuple[Learner, list[StepResult]]:
    learner, fabric = learner_of(config, seed)
    results = [result for result, _ in learn(learner, batches(config, seed, **samples), seed, 0, fabric)]
    return learner, results


@pytest.mark.parametrize(
    "recipe", ["m3l", "m3l_paper", "mean_teacher", "mean_teacher_dropout", "rgb_mean_teacher"]
)
def test_only_the_student_gets_gradients_and_losses_are_finite(recipe: str) -> None:
    learner, results = steps_of(small(load_config(recipe)))
    assert learner.teacher is not None
    assert learner.model is learner.teacher
    assert learner.network.training
    assert learner.teacher.training == (recipe == "m3l_paper")
    assert not learner.teacher.decoder.bn.training
    assert not any(p.requires_grad or p.grad is not None for p in learner.teacher.parameters())
    assert all(p.grad is not None for p in learner.network.parameters() if p.requires_grad)
    assert all(np.isfinite((r.loss_supervised, r.loss_pseudo)).all() and r.loss_pseudo > 0 for r in results)


@pytest.mark.parametrize("recipe", ["supervised", "supervised_dropout", "rgb_supervised"])
def test_without_a_teacher_the_student_is_kept(recipe: str) -> None:
    learner, results = steps_of(small(load_config(recipe)))
    assert learner.teacher is None
    assert learner.model is learner.network
    assert all(result.loss_pseudo == 0 for result in results)


def test_batch_norm_learns_or_is_frozen_and_the_teacher_s_follows() -> None:
    for recipe, learns in (("m3l", True), ("m3l_paper", False)):
        learner, _ = steps_of(small(load_config(recipe)))
        assert learner.teacher is not None
        for network in (learner.network, learner.teacher):
            mean = network.decoder.bn.running_mean
            assert mean is not None
            assert bool(mean.any()) == learns


def test_a_model_of_colour_answers_by_its_rgb_branch() -> None:
    learner, _ = steps_of(small(load_config("rgb_mean_teacher")))
    images = torch.randn(2, 3, 32, 48)
    outputs = learner.model.eval()(images, images, torch.tensor([[False, True]] * 2))
    torch.testing.assert_close(outputs.fused, outputs.rgb)
    other = learner.model(images, -images, torch.tensor([[False, False]] * 2))
    torch.testing.assert_close(other.rgb, outputs.rgb)


@pytest.mark.parametrize("recipe", ["m3l", "supervised"])
def test_the_seed_decides_everything(recipe: str) -> None:
    config = small(load_config(recipe))
    assert steps_of(config, 1)[1] == steps_of(config, 1)[1]
    assert steps_of(config, 1)[1] != steps_of(config, 2)[1]


def test_soft_pseudo_labels_are_probabilities_of_which_the_hard_ones_are_the_greatest() -> None:
    inputs = Inputs(torch.randn(2, 3, 32, 48), torch.randn(2, 3, 32, 48), None)
    view = View(inputs, torch.zeros(2, 2, dtype=torch.bool), torch.arange(2))
    found = {
        kind: learner_of(small(load_config("m3l"), pseudo_labels=kind))[0].pseudo_labels(view)
        for kind in ("soft", "hard")
    }
    assert found["soft"].shape == (2, 3, 32, 48)
    torch.testing.assert_close(found["soft"].sum(1), torch.ones(2, 32, 48))
    assert torch.equal(found["soft"].argmax(1), found["hard"])


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_pseudo_labels_are_pasted_as_their_images_are(kind: str) -> None:
    sizes = {"labelled_batch": 4, "unlabelled_batch": 4}
    config = small(load_config("m3l"), pseudo_labels=kind, pseudo_frames="all", **sizes)
    learner, _ = learner_of(config)
    views = views_of(config)
    assert views.teacher is not None
    assert views.cut is not None
    plain = learner.pseudo_labels(views.teacher)[views.pseudo_of]
    found = learner.losses(0, views).pseudo_labels
    assert found is not None
    assert torch.equal(found, views.cut.paste(plain))
    moved = found != plain if kind == "hard" else (found != plain).any(1)
    assert moved.any()
    assert not (moved & ~views.cut.inside).any()


def test_a_learner_goes_on_from_its_state_to_the_same_bits() -> None:
    config = small(load_config("m3l"), steps=5)
    whole, _ = steps_of(config)
    first, fabric = learner_of(config)
    frames = list(batches(config))
    results = learn(first, iter(frames), 0, 0, fabric)
    for _ in range(2):
        next(results)
    second, fabric = learner_of(config, seed=9)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()}, first.scaler)
    list(learn(second, iter(frames[2:]), 0, 2, fabric))
    expected = whole.state()
    assert expected.keys() == second.state().keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second.state().items())


def test_half_precision_trains_too() -> None:
    config = small(load_config("m3l"))
    fabric = Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")
    learner = Learner(config, new_network(config, LABELS, 0), fabric)
    results = [result for result, _ in learn(learner, batches(config), 0, 0, fabric)]
    exact = steps_of(config)[1]
    assert all(p.dtype == torch.float32 for p in learner.network.parameters())
    assert results[0] != exact[0]
    assert results[0].loss_supervised == pytest.approx(exact[0].loss_supervised, rel=0.05)


def fp16_learner(config: TrainConfig, scale: float, seed: int = 0) -> tuple[Learner, Fabric]:
    """Fabric takes ``precision="16-mixed"`` for bf16 on a CPU; this is what it does on a GPU."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
    precision = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[precision])
    return Learner(config, new_network(config, LABELS, seed), fabric), fabric


def test_float16_goes_on_from_its_state_and_its_scale_to_the_same_bits() -> None:
    """With noise in the images: in patches of one value LayerNorm's gradients overflow at this scale."""
    config = small(load_config("m3l"), steps=5, strong_augmentation=True)
    whole, fabric = fp16_learner(config, scale=2.0**16)
    results = [result for result, _ in learn(whole, batches(config), 0, 0, fabric)]
    exact = steps_of(config)[1]
    assert [r.loss_supervised for r in results] == pytest.approx([r.loss_supervised for r in exact], rel=0.05)
    first, fabric = fp16_learner(config, scale=2.0**16)
    frames = list(batches(config))
    steps = learn(first, iter(frames), 0, 0, fabric)
    for _ in range(3):
        next(steps)
    second, fabric = fp16_learner(config, scale=1.0, seed=9)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()}, first.scaler)
    list(learn(second, iter(frames[3:]), 0, 3, fabric))
    assert second.scaler == whole.scaler
    assert whole.scaler["scale"] == 2.0**18
    expected = whole.state()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in second.state().items())


def test_float16_leaves_out_a_step_whose_gradients_overflow_and_lowers_the_scale() -> None:
    config = small(load_config("m3l"))
    learner, fabric = fp16_learner(config, scale=1e30)
    before = {name: tensor.clone() for name, tensor in learner.network.named_parameters()}
    next(learn(learner, batches(config), 0, 0, fabric))
    assert all(torch.equal(tensor, before[name]) for name, tensor in learner.network.named_parameters())
    assert learner.scaler["scale"] == pytest.approx(5e29)


def test_learns_blocks_that_colour_and_depth_tell() -> None:
    schedule = {"steps": 100, "learning_rate": 1e-3, "warmup_steps": 5, "pseudo_start": 60, "pseudo_ramp": 10}
    config = small(load_config("m3l"), labelled_batch=4, **schedule)
    learner, results = steps_of(config, count=24, labelled=20)
    assert results[-1].loss_supervised < results[0].loss_supervised
    predictor = Predictor(learner.network, "cpu")

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
