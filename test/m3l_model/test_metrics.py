# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassCalibrationError,
    MulticlassConfusionMatrix,
    MulticlassJaccardIndex,
)

from m3l_model import metrics

ids = npst.arrays(np.uint8, (6, 5), elements=st.sampled_from([0, 1, 2, 255]))
classes = npst.arrays(np.uint8, (6, 5), elements=st.sampled_from([0, 1, 2, 3]))


@given(truth=ids, prediction=classes)
def test_iou_is_intersection_over_union_of_each_class(truth: np.ndarray, prediction: np.ndarray) -> None:
    counts = metrics.confusion(truth, prediction, 4)
    known = truth != 255
    for index, iou in enumerate(metrics.iou(counts)):
        inter = int(((truth == index) & (prediction == index)).sum())
        union = int((((truth == index) | (prediction == index)) & known).sum())
        assert iou == inter / union if union else math.isnan(iou)
    assert counts.sum() == known.sum()


@given(truth=ids, prediction=classes)
def test_counts_add_up_over_frames(truth: np.ndarray, prediction: np.ndarray) -> None:
    rows = sum(
        metrics.confusion(truth[row : row + 1], prediction[row : row + 1], 4) for row in range(len(truth))
    )
    np.testing.assert_array_equal(rows, metrics.confusion(truth, prediction, 4))


@given(truth=npst.arrays(np.uint8, (6, 5)), prediction=npst.arrays(np.uint8, (6, 5)))
def test_a_device_counts_the_same(truth: np.ndarray, prediction: np.ndarray) -> None:
    found = metrics.confusion(truth, prediction, 13, torch.device("cpu"))
    np.testing.assert_array_equal(found, metrics.confusion(truth, prediction, 13))


@settings(deadline=None)
@given(seed=st.integers(0, 1000), num_classes=st.sampled_from([2, 13, 40]))
def test_torchmetrics_agrees(seed: int, num_classes: int) -> None:
    rng = np.random.default_rng(seed)
    frames = 3
    truth = rng.integers(0, num_classes, (frames, 24, 32), np.uint8)
    prediction = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, num_classes, truth.shape))
    prediction = prediction.astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    confidence = rng.uniform(1 / num_classes, 1, truth.shape).astype(np.float32)
    counts, calibration = (
        sum(parts)
        for parts in zip(
            *(
                (
                    metrics.confusion(truth[frame], prediction[frame], num_classes),
                    metrics.calibration(truth[frame], prediction[frame], confidence[frame], num_classes),
                )
                for frame in range(frames)
            ),
            strict=True,
        )
    )
    pixels = torch.from_numpy(prediction.astype(np.int64)), torch.from_numpy(truth.astype(np.int64))
    np.testing.assert_array_equal(counts, MulticlassConfusionMatrix(num_classes, 255)(*pixels).numpy())
    jaccard = MulticlassJaccardIndex(num_classes, average="none", ignore_index=255)(*pixels).numpy()
    np.testing.assert_allclose(np.nan_to_num(metrics.iou(counts)), jaccard, rtol=1e-5)
    accuracy = MulticlassAccuracy(num_classes, average="micro", ignore_index=255)(*pixels)
    assert metrics.pixel_accuracy(counts) == pytest.approx(float(accuracy), rel=1e-5)
    # torchmetrics wants all probabilities: what is left of the best class's is spread over the others
    probability = np.repeat(((1 - confidence) / (num_classes - 1))[..., None], num_classes, -1)
    np.put_along_axis(probability, prediction[..., None].astype(np.int64), confidence[..., None], -1)
    known = truth.ravel() != 255
    ece = MulticlassCalibrationError(num_classes, n_bins=metrics.CALIBRATION_BINS)(
        torch.from_numpy(probability.reshape(-1, num_classes)[known]),
        pixels[1].flatten()[torch.from_numpy(known)],
    )
    assert metrics.expected_calibration_error(calibration) == pytest.approx(float(ece), abs=0.01)


@given(truth=ids)
def test_majority_miou_is_that_of_answering_the_most_frequent_class(truth: np.ndarray) -> None:
    majority = metrics.majority_miou(metrics.confusion(truth, np.zeros_like(truth), 4))
    known = truth[truth != 255]
    if not len(known):
        assert math.isnan(majority)
        return
    most = np.full_like(truth, np.bincount(known).argmax())
    assert majority == pytest.approx(metrics.miou(metrics.confusion(truth, most, 4)))


def test_perfect_predictions_score_1_and_absent_classes_do_not_count() -> None:
    truth = np.array([[0, 1, 255]], np.uint8)
    assert metrics.miou(metrics.confusion(truth, np.array([[0, 1, 5]], np.uint8), 9)) == 1


def test_without_a_labelled_pixel_there_is_no_figure() -> None:
    nothing = np.zeros((3, 4, 4), np.int64)
    assert np.isnan(metrics.miou(nothing)).tolist() == [True] * 3
    assert np.isnan(metrics.pixel_accuracy(nothing)).all()
    assert math.isnan(metrics.boundary_f(np.zeros((4, 4), np.int64)))


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="truth is"):
        metrics.confusion(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), 2)


def test_sure_and_right_is_calibrated_and_sure_and_wrong_is_not() -> None:
    truth = np.zeros((10, 10), np.uint8)
    half = truth.copy()
    half[:5] = 1
    for confidence, prediction, expected in ((1.0, truth, 0.0), (1.0, 1 - truth, 1.0), (0.5, half, 0.0)):
        counts = metrics.calibration(truth, prediction, np.full(truth.shape, confidence, np.float32), 2)
        assert metrics.expected_calibration_error(counts) == pytest.approx(expected, abs=1 / 255)


def boundary_f_slowly(truth: np.ndarray, prediction: np.ndarray, num_classes: int, reach: int) -> float:
    """By the definition, pixel by pixel."""

    def edges(labels: np.ndarray, unknown: np.ndarray) -> set[tuple[int, int, int]]:
        height, width = labels.shape
        return {
            (int(labels[y, x]), y, x)
            for y in range(height)
            for x in range(width)
            if not unknown[y, x]
            and any(
                0 <= v < height and 0 <= u < width and not unknown[v, u] and labels[v, u] != labels[y, x]
                for v in (y - 1, y, y + 1)
                for u in (x - 1, x, x + 1)
            )
        }

    def near(some: set, others: set) -> int:
        return sum(
            any(c == d and abs(y - v) <= reach and abs(x - u) <= reach for d, v, u in others)
            for c, y, x in some
        )

    unknown = truth == 255
    scores = []
    for label in range(num_classes):
        true, drawn = ({e for e in edges(labels, unknown) if e[0] == label} for labels in (truth, prediction))
        if true or drawn:
            recall = near(true, drawn) / len(true) if true else 0.0
            precision = near(drawn, true) / len(drawn) if drawn else 0.0
            total = precision + recall
            scores.append(2 * precision * recall / total if total else 0.0)
    return float(np.mean(scores)) if scores else math.nan


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), num_classes=st.sampled_from([3, 20, 70]))
def test_boundary_f_is_that_of_its_definition(seed: int, num_classes: int) -> None:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, num_classes, (3, 4), np.uint8)
    truth = np.asarray(cv2.resize(coarse, (28, 21), interpolation=cv2.INTER_NEAREST), np.uint8)
    prediction = np.roll(truth, rng.integers(-3, 4, 2), (0, 1))
    truth[:5, :9] = 255
    reach = max(1, round(metrics.BOUNDARY_TOLERANCE * math.hypot(21, 28)))
    hits = metrics.boundary_hits(
        metrics.Boundary(truth, num_classes), np.where(truth == 255, 255, prediction).astype(np.uint8)
    )
    expected = boundary_f_slowly(truth, prediction, num_classes, reach)
    assert metrics.boundary_f(hits) == pytest.approx(expected, nan_ok=True)


def test_boundaries_within_the_tolerance_of_a_large_image_agree() -> None:
    truth = np.zeros((480, 640), np.uint8)
    truth[:, 300:] = 1
    reach = round(metrics.BOUNDARY_TOLERANCE * 800)
    for shift, expected in ((reach, 1.0), (reach + 1, 0.0)):
        moved = np.zeros_like(truth)
        moved[:, 300 + shift :] = 1
        hits = metrics.boundary_hits(metrics.Boundary(truth, 2), moved)
        assert metrics.boundary_f(hits) == expected


def test_flicker_counts_labels_that_change_where_the_image_does_not() -> None:
    image = np.full((20, 20, 3), 100, np.uint8)
    moved = image.copy()
    moved[:, 10:] = 200
    labels, other = np.zeros((20, 20), np.uint8), np.ones((20, 20), np.uint8)
    before, now = metrics.smoothed(image), metrics.smoothed(moved)
    still, changed = metrics.flicker(before, now, labels, other)
    assert 0 < still == changed < 200
    assert metrics.share(metrics.flicker(before, before, labels, other)) == 1
    assert metrics.share(metrics.flicker(before, before, labels, labels)) == 0
