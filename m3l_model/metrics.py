# SPDX-License-Identifier: Apache-2.0
"""Segmentation metrics, each computed from counts that add up: over frames, blocks of frames, and the whole set.

Counts of a frame are made by ``confusion``, ``boundary_hits``, ``calibration`` and ``flicker``; figures are made of
their sums. Leading dimensions of counts are kept, so that a thousand resamples are computed at once.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from m3l_model.labels import IGNORE_ID

Labels = npt.NDArray[np.uint8]
Counts = npt.NDArray[Any]
"""Whole numbers, or their weighted sums."""
Figures = npt.NDArray[np.float64]

CONFIDENCE_LEVELS = 256
CALIBRATION_BINS = 15
BOUNDARY_TOLERANCE = 0.0075
"""Distance within which boundaries agree, as a share of the image's diagonal (Csurka et al., BMVC 2013)."""
STILL_LEVELS = 6
"""Change in grey levels up to which a pixel of a smoothed image counts as unchanged."""


def confusion(
    truth: Labels, prediction: Labels, num_classes: int, device: torch.device | None = None
) -> npt.NDArray[np.int64]:
    """Count the pixels of each (true, predicted) class: (C, C), a row per true class.

    Args:
        truth: (H, W) class ids; other ids are not counted.
        prediction: (H, W) class ids.
        num_classes: C.
        device: torch counts there; None: OpenCV here, which is several times as fast on a CPU.

    Raises:
        ValueError: the shapes differ.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"truth is {truth.shape}, prediction {prediction.shape}")
    if device is not None:
        true, predicted = (torch.from_numpy(ids).to(device, torch.int64) for ids in (truth, prediction))
        known = (true < num_classes) & (predicted < num_classes)
        counted = torch.bincount((true * num_classes + predicted)[known], minlength=num_classes**2)
        return np.asarray(counted.reshape(num_classes, num_classes).cpu().numpy())
    pairs = truth.astype(np.uint16)
    pairs *= np.uint16(num_classes)
    pairs += prediction
    unknown = (truth >= num_classes) | (prediction >= num_classes)
    return _histogram(pairs, unknown, num_classes * num_classes).reshape(num_classes, num_classes)


def iou(confusion: Counts) -> Figures:
    """Intersection over union of each class, (..., C) of (..., C, C); NaN where a class is in neither."""
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    union = confusion.sum(-1) + confusion.sum(-2) - hits
    return _ratio(hits, union)


def miou(confusion: Counts) -> Figures:
    """Mean IoU over the classes that occur, (...) of (..., C, C); NaN without any labelled pixel."""
    return _mean_of_known(iou(confusion))


def pixel_accuracy(confusion: Counts) -> Figures:
    """Share of the labelled pixels that are right, (...) of (..., C, C)."""
    return _ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1)))


def majority_miou(confusion: Counts) -> float:
    """Mean IoU of always answering the most frequent class: that class's share over the number of true classes."""
    frequency = confusion.sum(1)
    present = int((frequency > 0).sum())
    return float(frequency.max() / frequency.sum() / present) if present else float("nan")


def calibration(
    truth: Labels, prediction: Labels, confidence: npt.NDArray[np.float32], num_classes: int
) -> npt.NDArray[np.int64]:
    """Count the labelled pixels by confidence, in steps of 1/255, and by whether they are wrong or right: (256, 2).

    Args:
        truth, prediction: as for ``confusion``.
        confidence: (H, W), 0 to 1.
        num_classes: C.
    """
    pairs = cv2.convertScaleAbs(confidence, alpha=CONFIDENCE_LEVELS - 1).astype(np.uint16)
    pairs += (truth == prediction) * np.uint16(CONFIDENCE_LEVELS)
    counts = _histogram(pairs, truth >= num_classes, 2 * CONFIDENCE_LEVELS)
    return counts.reshape(2, CONFIDENCE_LEVELS).T


def expected_calibration_error(calibration: Counts) -> Figures:
    """Mean distance of confidence and accuracy over 15 equal bins of confidence, (...) of (..., 256, 2); Guo 2017."""
    levels = np.arange(CONFIDENCE_LEVELS) / (CONFIDENCE_LEVELS - 1)
    bins = np.clip(np.ceil(levels * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
    member = (bins[:, None] == np.arange(CALIBRATION_BINS)).astype(np.float64)
    pixels = calibration.sum(-1)
    gap = np.abs((calibration[..., 1] - pixels * levels) @ member)
    return _ratio(gap.sum(-1), pixels.sum(-1))


class Boundary:
    """The boundaries of one label image, to be compared with those of others of its size.

    A boundary pixel has a neighbour, of the eight, of another class. Next to pixels without a class there is none.

    Args:
        labels: (H, W) class ids, others where unknown.
        num_classes: C.
    """

    def __init__(self, labels: Labels, num_classes: int) -> None:
        self._num_classes = num_classes
        self._reach = max(1, round(BOUNDARY_TOLERANCE * float(np.hypot(*labels.shape))))
        _, known = cv2.threshold(labels, num_classes - 1, 0, cv2.THRESH_TOZERO_INV)
        highest, lowest = cv2.dilate(known, _NEIGHBOURS), cv2.erode(labels, _NEIGHBOURS)
        height, width = labels.shape
        self._rows, self._row = height, width + 2 * self._reach
        edge_ids = np.full((height, self._row), IGNORE_ID, np.uint8)
        edge_ids[:, :width] = ignored_where(highest == lowest, labels)
        self._pixels = np.flatnonzero(edge_ids < num_classes)
        self.ids = edge_ids.ravel()[self._pixels]
        self._near = [self._spread(number) for number in range(-(-num_classes // _WORD))]

    def counts(self, other: Boundary) -> npt.NDArray[np.int64]:
        """Count, per class, this one's boundary pixels and those of them near ``other``'s of that class: (C, 2)."""
        near = np.zeros(len(self.ids), bool)
        for number, bits in enumerate(other._near):
            ours = self._of_word(number)
            bit = (self.ids[ours] % _WORD).astype(bits.dtype)
            near[ours] = bits[self._pixels[ours]] >> bit & 1
        found = [np.bincount(ids, minlength=self._num_classes) for ids in (self.ids, self.ids[near])]
        return np.stack(found, -1)

    def _spread(self, number: int) -> npt.NDArray[Any]:
        """Give each pixel a bit for each of a word's classes that has a boundary within reach.

        Returns:
            By place in rows as long as the image's and twice the reach, so that no window goes on in the next row.
        """
        word = np.uint16 if self._num_classes <= 16 else np.uint64
        bits = np.zeros((self._rows + 2 * self._reach) * self._row, word)
        ours = self._of_word(number)
        middle = self._reach * self._row + self._reach
        bits[self._pixels[ours] + middle] = np.left_shift(word(1), (self.ids[ours] % _WORD).astype(word))
        for step in (1, self._row):
            _merge_following(bits, 2 * self._reach + 1, step)
        return bits

    def _of_word(self, number: int) -> slice | npt.NDArray[np.bool_]:
        """Which boundary pixels are of a word's classes."""
        return slice(None) if self._num_classes <= _WORD else self.ids // _WORD == number


def boundary_hits(truth: Boundary, prediction: Labels) -> npt.NDArray[np.int64]:
    """Count boundary pixels of each class: (C, 4) of the truth's, those found, the mask's, those that are true.

    Args:
        truth: the truth's boundaries.
        prediction: (H, W) class ids, unknown where the truth is.
    """
    found = Boundary(prediction, truth._num_classes)
    return np.concatenate((truth.counts(found), found.counts(truth)), -1)


def boundary_f(hits: Counts) -> Figures:
    """Mean over classes of the F-score of their boundaries, (...) of (..., C, 4); NaN where there are none."""
    true, found, drawn, right = np.moveaxis(hits, -1, 0)
    recall, precision = _ratio(found, true), _ratio(right, drawn)
    precision = np.where(drawn > 0, precision, 0.0)
    recall = np.where(true > 0, recall, 0.0)
    f = np.where(precision + recall > 0, _ratio(2 * precision * recall, precision + recall), 0.0)
    return _mean_of_known(np.where(true + drawn > 0, f, np.nan))


def ignored_where(unknown: npt.NDArray[np.bool_], labels: Labels) -> Labels:
    """Give labels with ``IGNORE_ID`` where they are unknown; several times as fast as ``numpy.where``."""
    return labels | -unknown.view(np.uint8)  # minus one is 255, every bit


def smoothed(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """A colour image as ``flicker`` compares it: (H, W) uint8 grey, its noise smoothed away."""
    return np.asarray(cv2.blur(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (5, 5)), np.uint8)


def flicker(
    before: npt.NDArray[np.uint8], now: npt.NDArray[np.uint8], labels_before: Labels, labels_now: Labels
) -> npt.NDArray[np.int64]:
    """Count the pixels whose image did not change between two frames, and those of them whose label did: (2,).

    Args:
        before, now: (H, W) uint8, ``smoothed``.
        labels_before, labels_now: (H, W) class ids.
    """
    still = cv2.absdiff(before, now) <= STILL_LEVELS
    return np.array(
        [np.count_nonzero(still), np.count_nonzero(still & (labels_before != labels_now))], np.int64
    )


def share(counts: Counts) -> Figures:
    """The second count as a share of the first, (...) of (..., 2)."""
    return _ratio(counts[..., 1], counts[..., 0])


_NEIGHBOURS = np.ones((3, 3), np.uint8)
_WORD = 64
"""Classes whose boundaries fit into the bits of one pixel."""
_COUNTERS = 4


def _merge_following(bits: npt.NDArray[Any], count: int, step: int) -> None:
    """Give each word, in place, the bits of the ``count`` words that begin with it and lie ``step`` apart."""
    covered = 1
    while covered < count:  # each turn at most doubles what is covered
        more = min(covered, count - covered) * step
        np.bitwise_or(bits[:-more], bits[more:], out=bits[:-more])
        covered += more // step


def _histogram(
    values: npt.NDArray[np.uint16], left_out: npt.NDArray[np.bool_], size: int
) -> npt.NDArray[np.int64]:
    """Count each value below ``size``, (size,) of (H, W), which is overwritten; exact up to 16 million pixels an image.

    Columns next to one another have counters of their own: neighbours tend to be alike, and a processor that adds to
    one number again and again has to wait for itself.
    """
    columns = min(_COUNTERS, (1 << 16) // (size + 1))
    values += np.arange(values.shape[1], dtype=np.uint16) % np.uint16(columns) * np.uint16(size)
    values |= -left_out.astype(np.uint16)  # beyond all counters
    counts = cv2.calcHist([values], [0], None, [columns * size], [0, columns * size])
    return np.asarray(counts.astype(np.int64).reshape(columns, size).sum(0))


def _ratio(part: Counts, whole: Counts) -> Figures:
    part, whole = np.asarray(part, np.float64), np.asarray(whole, np.float64)
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean_of_known(values: Figures) -> Figures:
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0.0).sum(-1), known.sum(-1))
