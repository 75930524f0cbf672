# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_samples import block_frames, blocks, draws_of, small, views_of

from m3l_model import ranks
from m3l_model.augment import REFERENCE_SCALES, Batch, reference_weak, strong, weak
from m3l_model.data import NetworkFrame
from m3l_model.draws import Purpose, StepDraws
from m3l_model.labels import IGNORE_ID
from m3l_model.preprocessing import depth_limits
from m3l_model.recipe import load_config
from m3l_model.views import draw_missing, make_views

CPU = torch.device("cpu")


def block_batch(count: int) -> Batch:
    rgb, depth, labels = map(torch.from_numpy, blocks(count))
    depth_m = depth.float() / 1000
    whole = torch.zeros(count, 2, dtype=torch.bool)
    return Batch(rgb.float(), depth_m, labels.long(), whole, depth_limits(depth_m))


@given(
    recorded=st.lists(
        st.sampled_from([(False, False), (True, False), (False, True)]), min_size=1, max_size=12
    ),
    whole=st.integers(0, 12),
    seed=st.integers(-9, 999),
)
def test_draws_never_take_both_modalities(recorded: list[tuple[bool, bool]], whole: int, seed: int) -> None:
    given_missing = torch.tensor(recorded)
    missing = draw_missing(given_missing, whole, draws_of(len(recorded), seed), Purpose.MISSING)
    assert not missing.all(1).any()
    assert torch.equal(missing[:whole], given_missing[:whole])
    lacking = given_missing.any(1)
    assert torch.equal(missing[lacking], given_missing[lacking])


def test_draws_are_a_third_each() -> None:
    missing = draw_missing(torch.zeros(9000, 2, dtype=torch.bool), 0, draws_of(9000), Purpose.MISSING)
    assert ((missing.float().mean(0) - 1 / 3).abs() < 0.02).all()


def test_a_draw_depends_on_seed_step_sample_and_purpose_alone() -> None:
    draws = StepDraws(1, 2, (3, 4))
    one = draws.uniform(Purpose.WEAK, 2)
    draws.normal(Purpose.STRONG, (3,), CPU)
    assert torch.equal(draws.uniform(Purpose.WEAK, 2), one)
    assert torch.equal(StepDraws(1, 2, (9, 4)).uniform(Purpose.WEAK, 2)[1], one[1])
    others = (StepDraws(0, 2, (3, 4)), StepDraws(1, 3, (3, 4)), StepDraws(1, 2, (4, 3)))
    assert not any((other.uniform(Purpose.WEAK, 2) == one).any() for other in others)
    assert not (draws.uniform(Purpose.STRONG, 2) == one).any()


def test_what_a_sample_becomes_does_not_depend_on_the_others() -> None:
    batch, draws = block_batch(4), StepDraws(0, 5, (0, 1, 2, 3))
    part, of_part = Batch(*(column[2:] for column in batch)), StepDraws(0, 5, (2, 3))
    for whole, half in (
        (weak(batch, 1.0, (1.0, 1.5), draws), weak(part, 1.0, (1.0, 1.5), of_part)),
        (strong(batch, draws), strong(part, of_part)),
        (reference_weak(batch, 40, draws), reference_weak(part, 40, of_part)),
    ):
        for column, other in zip(whole, half, strict=True):
            torch.testing.assert_close(column[2:], other)


def test_the_edge_of_a_window_does_not_depend_on_windows_that_are_padded() -> None:
    batch = block_batch(16)
    for step in range(4):
        whole = reference_weak(batch, 32, draws_of(16, step=step))
        for sample in range(16):
            alone = Batch(*(column[sample : sample + 1] for column in batch))
            one = reference_weak(alone, 32, StepDraws(0, step, (sample,)))
            for column, other in zip(whole, one, strict=True):
                torch.testing.assert_close(column[sample : sample + 1], other)


def test_weak_augmentation_moves_colour_depth_and_labels_together() -> None:
    batch = block_batch(6)
    moved = weak(batch, 1.0, (1.0, 1.5), draws_of(6))
    assert moved.rgb.shape == batch.rgb.shape
    assert not torch.equal(moved.labels, batch.labels)
    torch.testing.assert_close(moved.depth_m, torch.tensor([1.0, 3.0, 5.0])[moved.labels])
    pure = moved.rgb.amax(3) > 215
    assert pure.float().mean() > 0.7
    assert torch.equal(moved.rgb.argmax(3)[pure], moved.labels[pure])


def test_the_reference_s_windows_are_padded_and_of_its_scales() -> None:
    batch = block_batch(60)
    moved = reference_weak(batch, 40, draws_of(60))
    assert moved.labels.shape == (60, 40, 40)
    inside = moved.labels != IGNORE_ID
    assert (moved.depth_m[~inside] == 0).all()
    torch.testing.assert_close(moved.depth_m[inside], torch.tensor([1.0, 3.0, 5.0])[moved.labels[inside]])
    rows = inside.any(2).sum(1).tolist()
    seen = {min(40, round(32 * scale)) for scale in REFERENCE_SCALES}
    assert {min(seen, key=lambda known: abs(known - found)) for found in rows} == seen
    assert all(min(abs(known - found) for known in seen) <= 1 for found in rows)


def test_the_reference_s_padding_is_on_all_sides() -> None:
    inside = reference_weak(block_batch(60), 60, draws_of(60)).labels != IGNORE_ID
    for sides in (inside.any(2), inside.any(1)):
        before, after = (side.int().argmax(1) for side in (sides, sides.flip(1)))
        assert ((before - after).abs() <= 1).all()
        assert before.any()


def test_strong_augmentation_keeps_labels_range_and_holes() -> None:
    batch = block_batch(8)
    batch.depth_m[:, :5] = 0
    disturbed = strong(batch, draws_of(8))
    assert torch.equal(disturbed.labels, batch.labels)
    assert (disturbed.depth_m[:, :5] == 0).all()
    assert (disturbed.depth_m[:, 5:] == 0).any()
    assert disturbed.rgb.min() >= 0
    assert disturbed.rgb.max() <= 255
    assert not torch.equal(disturbed.rgb, batch.rgb)


def seen(recipe: str, steps: int = 12) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What student and teacher miss over some steps: (steps, B, 2) each."""
    views = [views_of(small(load_config(recipe), steps=steps), step) for step in range(steps)]
    student = torch.stack([view.student.missing for view in views])
    taught = [view.teacher.missing for view in views if view.teacher]
    return student, torch.stack(taught) if taught else None


@pytest.mark.parametrize(
    ("recipe", "samples", "whole"),
    [
        ("supervised", 2, 2),
        ("supervised_dropout", 2, 0),
        ("mean_teacher", 4, 4),
        ("m3l", 6, 2),
        ("m3l_paper", 6, 2),
    ],
)
def test_the_student_loses_what_the_recipe_says(recipe: str, samples: int, whole: int) -> None:
    student, teacher = seen(recipe)
    assert student.shape == (12, samples, 2)
    assert not student[:, :whole].any()
    assert student[:, whole:].any(0).all()
    assert not student.all(2).any()
    assert teacher is None or not teacher.any()


def test_with_dropout_the_teacher_loses_modalities_of_its_own() -> None:
    student, teacher = seen("mean_teacher_dropout")
    assert teacher is not None
    assert student.shape == teacher.shape == (12, 6, 2)
    for missing in (student, teacher):
        assert not missing[:, :2].any()
        assert missing[:, 2:].any(0).all()
    assert not torch.equal(student, teacher)


@pytest.mark.parametrize("recipe", ["rgb_supervised", "rgb_mean_teacher"])
def test_a_model_of_colour_never_sees_depth(recipe: str) -> None:
    student, teacher = seen(recipe)
    assert student[..., 1].all()
    assert not student[..., 0].any()
    assert teacher is None or torch.equal(teacher, student)


def test_the_paper_s_second_copy_is_the_same_images_and_goes_to_the_teacher_once() -> None:
    views = views_of(small(load_config("m3l_paper")))
    for images in views.student.inputs[:2]:
        assert torch.equal(images[:2], images[2:4])
    assert torch.equal(views.labels[:2], views.labels[2:])
    assert views.teacher is not None
    assert torch.equal(views.teacher.inputs.rgb, views.student.inputs.rgb[2:])
    assert views.pseudo_of.tolist() == [0, 1, 0, 1, 2, 3]


def test_the_paper_s_crops_have_the_depth_of_their_whole_frame_and_0_as_padding() -> None:
    config = small(load_config("m3l_paper"), labelled_batch=8, unlabelled_batch=8)
    low, high = depth_limits(block_batch(16).depth_m)[:8, :, None, None].unbind(1)
    for step in range(3):
        views = views_of(config, step)
        labels, padding = views.labels[:8], views.labels[:8] == IGNORE_ID
        metres = torch.tensor([1.0, 3.0, 5.0])[labels.where(~padding, 0)]
        expected = torch.where(padding, 0, (metres - low) / (high - low))
        assert padding.any()
        assert views.teacher is not None
        for view in (views.student, views.teacher):
            torch.testing.assert_close(view.inputs.depth[:8, 0], expected)


def test_the_second_batch_may_be_another_draw_and_only_unlabelled_frames_get_pseudo_labels() -> None:
    views = views_of(small(load_config("m3l"), second_labelled="another", pseudo_frames="unlabelled"))
    assert not torch.equal(views.student.inputs.rgb[:2], views.student.inputs.rgb[2:4])
    assert views.teacher is not None
    assert len(views.teacher.missing) == 2
    assert views.pseudo_of.tolist() == [0, 1]
    assert len(views.labels) == 4


@pytest.mark.parametrize("recipe", ["m3l", "m3l_paper", "mean_teacher", "mean_teacher_dropout"])
def test_all_processes_samples_are_those_of_one(monkeypatch: pytest.MonkeyPatch, recipe: str) -> None:
    config = small(load_config(recipe), labelled_batch=4, unlabelled_batch=4)
    one, shares = views_of(config), []
    columns = [torch.from_numpy(np.stack(column)) for column in zip(*block_frames(12), strict=True)]
    monkeypatch.setattr(ranks, "count", lambda: 2)
    for rank in range(2):
        first, second, third = config.step_frames(0).of_rank(rank, 2)
        numbers = (*first, *second, *third)
        frames = NetworkFrame(*(column[list(numbers)] for column in columns))
        shares.append(make_views(config, frames, StepDraws(0, 0, numbers), len(first), CPU))
    for own, parts in (
        (one.student, [share.student for share in shares]),
        (one.teacher, [share.teacher for share in shares]),
    ):
        assert own is not None
        assert own.samples.tolist() == list(range(len(own.missing)))
        found = torch.cat([part.samples for part in parts if part])
        assert sorted(found.tolist()) == own.samples.tolist()
        for part in parts:
            assert part is not None
            torch.testing.assert_close(part.inputs.rgb, own.inputs.rgb[part.samples])
            assert torch.equal(part.missing, own.missing[part.samples])


def test_what_the_recording_lacks_stays_lacking() -> None:
    config = small(load_config("m3l"), second_labelled="another")
    frames = block_frames(6)
    columns = [torch.from_numpy(np.stack(column)) for column in zip(*frames, strict=True)]
    columns[3][1, 1] = columns[3][5, 1] = True
    views = make_views(config, NetworkFrame(*columns), draws_of(6), 2, CPU)
    assert views.student.missing[[1, 5]].tolist() == [[False, True]] * 2
    assert views.teacher is not None
    assert torch.equal(views.teacher.missing, columns[3])
