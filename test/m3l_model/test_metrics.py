# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from m3l_model.metrics import ConfusionMatrix

ids = npst.arrays(np.uint8, (6, 5), elements=st.sampled_from([0, 1, 2, 255]))
classes = npst.arrays(np.uint8, (6, 5), elements=st.sampled_from([0, 1, 2, 3]))


@given(truth=ids, prediction=classes)
def test_iou_is_intersection_over_union_of_each_class(truth: np.ndarray, prediction: np.ndarray) -> None:
    matrix = ConfusionMatrix(4)
    matrix.add(truth, prediction)
    known = truth != 255
    for index, iou in enumerate(matrix.iou()):
        inter = int(((truth == index) & (prediction == index)).sum())
        union = int((((truth == index) | (prediction == index)) & known).sum())
        assert iou == inter / union if union else math.isnan(iou)


@given(truth=ids, prediction=classes)
def test_counts_are_pooled_over_frames(truth: np.ndarray, prediction: np.ndarray) -> None:
    rows, whole = ConfusionMatrix(4), ConfusionMatrix(4)
    for row in range(len(truth)):
        rows.add(truth[row : row + 1], prediction[row : row + 1])
    whole.add(truth, prediction)
    assert (rows.counts == whole.counts).all()
    assert whole.counts.sum() == (truth != 255).sum()


@given(truth=ids)
def test_majority_miou_is_that_of_answering_the_most_frequent_class(truth: np.ndarray) -> None:
    counts = ConfusionMatrix(4)
    counts.add(truth, np.zeros_like(truth))
    known = truth[truth != 255]
    if not len(known):
        assert math.isnan(counts.majority_miou())
        return
    majority = ConfusionMatrix(4)
    majority.add(truth, np.full_like(truth, np.bincount(known).argmax()))
    assert counts.majority_miou() == pytest.approx(majority.miou())


def test_perfect_predictions_score_1_and_absent_classes_do_not_count() -> None:
    matrix = ConfusionMatrix(9)
    truth = np.array([[0, 1, 255]], np.uint8)
    matrix.add(truth, np.array([[0, 1, 5]], np.uint8))
    assert matrix.miou() == 1


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="truth is"):
        ConfusionMatrix(2).add(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8))
