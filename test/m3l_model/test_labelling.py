# SPDX-License-Identifier: Apache-2.0
"""Labels found band by band and cell by cell are those of the logits upsampled whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from m3l_model import labelling
from m3l_model.labelling import label
from m3l_model.segmenter import upsample


def logits(height: int, width: int, blobs: int, batch: int = 1) -> torch.Tensor:
    """Logits (B, 5, height, width) whose classes form regions of about ``blobs`` cells."""
    generator = torch.Generator().manual_seed(height * width + blobs)
    coarse = torch.randn(batch, 5, -(-height // blobs), -(-width // blobs), generator=generator)
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")


@settings(max_examples=60, deadline=None)
@given(
    source=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    target=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    blobs=st.sampled_from([1, 6, 15]),
    band=st.sampled_from([1, 4 << 20]),
)
def test_labels_are_those_of_logits_upsampled_whole(
    source: tuple[int, int], target: tuple[int, int], blobs: int, band: int
) -> None:
    quarter = logits(*source, blobs, batch=2)
    full = upsample(quarter, target)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(labelling, "_BAND_BYTES", band)
        labels = label(quarter.permute(0, 2, 3, 1), target).labels
        both = label(quarter.permute(0, 2, 3, 1), target, with_confidence=True)
    top = full.topk(2, dim=1).values
    decided = top[:, 0] - top[:, 1] > 1e-4
    for found in (labels, both.labels):
        assert found.dtype == torch.uint8
        assert found.shape == (2, *target)
        assert (found == full.argmax(1))[decided].all()
    torch.testing.assert_close(both.confidence, full.softmax(1).amax(1), rtol=0, atol=1e-5)


def test_few_pixels_are_interpolated_where_regions_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    points = []
    found = labelling._labels_at

    def counted(x: torch.Tensor, rows: tuple, columns: tuple) -> torch.Tensor:
        points.append(len(rows[0]))
        return found(x, rows, columns)

    monkeypatch.setattr(labelling, "_labels_at", counted)
    quarter = logits(60, 80, 20)
    labels = label(quarter.permute(0, 2, 3, 1), (240, 320)).labels
    assert 0 < points[0] < 0.3 * labels.numel()
    assert (labels == upsample(quarter, (240, 320)).argmax(1)).float().mean() > 0.9999


def test_labels_of_ties_are_those_of_the_first_class() -> None:
    tied = torch.zeros(1, 3, 4, 4)
    tied[:, 1:] = 1
    assert (label(tied.permute(0, 2, 3, 1), (9, 9)).labels == 1).all()


def test_tables_outlive_those_of_other_sizes() -> None:
    """A CUDA graph goes on using them by their addresses."""
    cpu = torch.device("cpu")
    first = labelling._positions(12, 48, cpu)
    for target in range(49, 120):
        labelling._positions(12, target, cpu)
    assert labelling._positions(12, 48, cpu) is first
