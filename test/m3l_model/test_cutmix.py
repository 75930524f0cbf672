# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from training_samples import draws_of, small, views_of

from m3l_model.cutmix import CutMix
from m3l_model.draws import StepDraws
from m3l_model.recipe import load_config

SIZE = (24, 40)


@given(groups=st.tuples(st.integers(1, 5), st.integers(0, 5), st.integers(0, 5)), step=st.integers(0, 99))
def test_a_sample_gets_only_of_its_neighbour_of_the_same_kind(
    groups: tuple[int, int, int], step: int
) -> None:
    count = sum(groups)
    cut = CutMix.draw(groups, SIZE, draws_of(count, step=step))
    numbers = torch.arange(count)[:, None, None].expand(count, *SIZE)
    first = 0
    for kind in groups:
        pasted = cut.paste(numbers)[first : first + kind]
        for i in range(kind):
            partner = first + (i ^ 1) if i ^ 1 < kind else first + i
            assert set(pasted[i].unique().tolist()) <= {first + i, partner}
        part = cut.of(first, first + kind)
        assert torch.equal(part.paste(numbers[first : first + kind]), pasted)
        first += kind


def test_half_of_the_samples_get_a_tenth_to_four_tenths() -> None:
    count = 2000
    cut = CutMix.draw((count,), SIZE, draws_of(count))
    share = cut.inside.float().mean((1, 2))
    assert (share > 0).float().mean() == pytest.approx(0.5, abs=0.04)
    assert share[share > 0].min() > 0.06
    assert 0.35 < share.max() < 0.46
    assert (cut.inside.any(0).float().mean()) > 0.95


def test_what_a_pair_gets_does_not_depend_on_who_else_is_in_the_process() -> None:
    whole = CutMix.draw((4,), SIZE, StepDraws(0, 3, (0, 1, 2, 3)))
    rest = CutMix.draw((2,), SIZE, StepDraws(0, 3, (2, 3)))
    assert torch.equal(whole.of(2, 4).inside, rest.inside)
    assert torch.equal(whole.of(2, 4).source, rest.source)


@pytest.mark.parametrize(("which", "count"), [("unlabelled", 4), ("all", 12)])
def test_colour_depth_and_labels_are_pasted_alike_and_the_teacher_sees_whole_images(
    which: str, count: int
) -> None:
    config = small(load_config("m3l"), labelled_batch=4, unlabelled_batch=4, pseudo_frames=which)
    plain, mixed = (views_of(dataclasses.replace(config, cutmix=cutmix)) for cutmix in (False, True))
    assert mixed.cut is not None
    assert mixed.teacher is not None
    for one, other in zip(plain.student.inputs[:2], mixed.student.inputs[:2], strict=True):
        one, other = one[-count:], other[-count:]
        moved = (one != other).any(1)
        assert moved.any()
        assert not (moved & ~mixed.cut.inside).any()
        assert torch.equal(mixed.cut.paste(one), other)
    changed = plain.labels != mixed.labels
    assert changed.any()
    assert not (changed & (plain.student.inputs.rgb == mixed.student.inputs.rgb).all(1)[:8]).any()
    assert plain.teacher is not None
    assert torch.equal(plain.teacher.inputs.rgb, mixed.teacher.inputs.rgb)
