# SPDX-License-Identifier: Apache-2.0
"""Training frames from recorded bags, decoded once and held at the network's size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from m3l_model.augment import Batch
from m3l_model.bags import Topics, read_frames
from m3l_model.errors import M3LError
from m3l_model.labels import IGNORE_ID, LabelSet
from m3l_model.preprocessing import Preprocessing, resize_nearest, resize_rgb, to_metres


@dataclass(frozen=True)
class FrameStore:
    """Frames of one or more bags in memory: N of size (H, W).

    Attributes:
        rgb: (N, H, W, 3) uint8.
        depth_m: (N, H, W) float32 metres, 0 where there is no reading.
        labels: (N, H, W) uint8 class ids, ``IGNORE_ID`` where unknown.
        missing: (N, 2) bool, [rgb, depth] missing in the recording.
        labelled: (N,) bool, frames that have a label image.
    """

    rgb: Tensor
    depth_m: Tensor
    labels: Tensor
    missing: Tensor
    labelled: Tensor

    def batch(self, indices: Tensor) -> Batch:
        """Gather frames by index (B,)."""
        return Batch(
            self.rgb[indices].float(),
            self.depth_m[indices],
            self.labels[indices].long(),
            self.missing[indices],
        )


def load_frames(
    bags: Mapping[Path, Topics | None], preprocessing: Preprocessing, labels: LabelSet
) -> FrameStore:
    """Read bags through the synchronizer, as the node pairs them, and keep every frame at the network's size.

    Args:
        bags: rosbag2 folders or files, with the topics to read; guessed where None.
        preprocessing: gives the size; every bag must come out at the same.
        labels: maps the ids in the bags' label images to classes.

    Raises:
        M3LError: no frames, frames of different shapes, unknown label ids, or a bag that cannot be read.
    """
    columns: list[tuple[np.ndarray, ...]] = []
    size: tuple[int, int] | None = None
    for bag, topics in bags.items():
        for frame in tqdm(read_frames(bag, topics), desc=f"read {bag.name}", unit="frame", mininterval=1):
            wanted = preprocessing.input_size(*frame.rgb.shape[:2])
            size = size or wanted
            if wanted != size:
                raise M3LError(
                    f"{bag}: frames come out at {wanted}, earlier ones at {size}; train on one aspect ratio"
                )
            metres = (
                np.zeros(size, np.float32)
                if frame.depth is None
                else resize_nearest(to_metres(frame.depth), size)
            )
            ids = np.full(size, IGNORE_ID, np.uint8)
            if frame.labels is not None:
                ids = labels.decode(frame.labels, f"{bag} at {frame.stamp_ns}")
                ids = resize_nearest(np.where(ids == labels.ignore_id, np.uint8(IGNORE_ID), ids), size)
            columns.append(
                (
                    resize_rgb(frame.rgb, size),
                    metres,
                    ids,
                    np.array([False, not metres.any()]),
                    np.array(frame.labels is not None),
                )
            )
    if not columns:
        raise M3LError(f"{', '.join(map(str, bags))}: no colour images, so nothing to train on")
    return FrameStore(*(torch.from_numpy(np.stack(column)) for column in zip(*columns, strict=True)))


def shuffled_batches(indices: Tensor, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield batches of indices for ever; every index comes once before any comes again."""
    pool = indices[:0]
    while True:
        while len(pool) < batch_size:
            pool = torch.cat((pool, indices[torch.randperm(len(indices), generator=generator)]))
        yield pool[:batch_size]
        pool = pool[batch_size:]
