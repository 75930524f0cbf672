# SPDX-License-Identifier: Apache-2.0
"""Segmentation metrics from one confusion matrix pooled over all frames."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class ConfusionMatrix:
    """Counts of (truth, prediction) over labelled pixels; ``counts`` is (C, C) int64, a row per true class."""

    def __init__(self, num_classes: int, ignore_id: int = 255) -> None:
        self.counts = np.zeros((num_classes, num_classes), np.int64)
        self._ignore_id = ignore_id

    def add(self, truth: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8]) -> None:
        """Count one frame.

        Args:
            truth: (H, W) class ids, the ignore id where unlabelled.
            prediction: (H, W) class ids.

        Raises:
            ValueError: the shapes differ.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"truth is {truth.shape}, prediction {prediction.shape}")
        known = truth != self._ignore_id
        classes = len(self.counts)
        cells = truth[known].astype(np.int64) * classes + prediction[known]
        self.counts += np.bincount(cells, minlength=classes**2).reshape(classes, classes)

    def iou(self) -> npt.NDArray[np.float64]:
        """Intersection over union of each class, (C,); NaN where a class is in neither truth nor prediction."""
        hits = np.diag(self.counts)
        union = self.counts.sum(0) + self.counts.sum(1) - hits
        return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)

    def miou(self) -> float:
        """Mean IoU over the classes that occur; NaN without any labelled pixel."""
        iou = self.iou()
        return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")

    def majority_miou(self) -> float:
        """Mean IoU of always answering the most frequent class: that class's share over the number of true classes."""
        frequency = self.counts.sum(1)
        present = int((frequency > 0).sum())
        return float(frequency.max() / frequency.sum() / present) if present else float("nan")
