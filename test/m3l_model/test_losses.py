# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from m3l_model.labels import IGNORE_ID
from m3l_model.losses import WithGradient, pseudo_loss, supervised_loss


def logits_and_labels(seed: int, ignored: float = 0.1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(2, 5, 6, 7, generator=generator)
    labels = torch.randint(5, (2, 6, 7), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < ignored] = IGNORE_ID
    return logits, labels


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), min_kept=st.integers(0, 100), threshold=st.floats(0.05, 0.95))
def test_ohem_keeps_the_hard_pixels_and_at_least_min_kept(seed: int, min_kept: int, threshold: float) -> None:
    logits, labels = logits_and_labels(seed)
    entropies = functional.cross_entropy(logits, labels, ignore_index=IGNORE_ID, reduction="none")
    hardest_first = entropies[labels != IGNORE_ID].sort(descending=True).values
    if 0 < min_kept <= len(hardest_first):
        kept = max(min_kept, int(((-hardest_first).exp() <= threshold).sum()))
    else:
        kept = len(hardest_first)
    found = supervised_loss(logits.log_softmax(1), labels, min_kept, threshold)
    assert found.kept == kept
    torch.testing.assert_close(found.loss, hardest_first[:kept].mean())


def test_a_batch_without_labels_has_loss_0_and_finite_gradients() -> None:
    logits, labels = logits_and_labels(0, ignored=1.1)
    logits.requires_grad_()
    loss = supervised_loss(logits.log_softmax(1), labels, min_kept=3).loss
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("soft", [False, True])
def test_the_pseudo_loss_is_the_cross_entropy(soft: bool) -> None:
    logits, labels = logits_and_labels(9, ignored=0.0)
    targets = torch.randn(logits.shape).softmax(1) if soft else labels
    expected = functional.cross_entropy(logits, targets)
    torch.testing.assert_close(pseudo_loss(logits.log_softmax(1), targets), expected)


def test_a_known_gradient_goes_on_to_its_source() -> None:
    source = torch.tensor([1.0, 2.0], requires_grad=True)
    value = WithGradient.apply(3 * source, torch.tensor(7.0), torch.tensor([10.0, 20.0]))
    (2 * value).backward()
    assert value.item() == 7
    assert source.grad is not None
    assert source.grad.tolist() == [60.0, 120.0]


@pytest.mark.parametrize("min_kept", [0, 10_000])
def test_without_a_limit_all_labelled_pixels_count(min_kept: int) -> None:
    logits, labels = logits_and_labels(4)
    expected = functional.cross_entropy(logits, labels, ignore_index=IGNORE_ID)
    torch.testing.assert_close(supervised_loss(logits.log_softmax(1), labels, min_kept).loss, expected)
