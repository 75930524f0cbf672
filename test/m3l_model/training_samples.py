# SPDX-License-Identifier: Apache-2.0
"""Small frames to train on, in memory: blocks whose class colour and distance tell."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from m3l_model.data import NetworkFrame, StepSampler, read_batches
from m3l_model.draws import StepDraws
from m3l_model.recipe import TrainConfig
from m3l_model.shared_batches import LazySamples
from m3l_model.views import Views, make_views


def small(config: TrainConfig, **changes: object) -> TrainConfig:
    """The recipe on 32-pixel images, with pseudo labels from the first step."""
    sizes = {
        "short_side": 32,
        "crop": 1.0,
        "crop_pixels": 32,
        "steps": 4,
        "labelled_batch": 2,
        "unlabelled_batch": 2,
    }
    schedule = {"warmup_steps": 2, "pseudo_start": 0, "pseudo_ramp": 1}
    return dataclasses.replace(config, **(sizes | schedule | {"backbone": "mit_b0"} | changes))  # type: ignore[arg-type]


def blocks(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images of 32x48 in 16x16 blocks; a class is a colour and a distance: rgb, depth in mm, labels."""
    labels = np.random.default_rng(seed).integers(0, 3, (count, 2, 3)).astype(np.uint8)
    labels = labels.repeat(16, 1).repeat(16, 2)
    rgb = np.array([[220, 30, 30], [30, 220, 30], [30, 30, 220]], np.uint8)[labels]
    return rgb, np.array([1000, 3000, 5000], np.uint16)[labels], labels


class MemoryFrames(list[NetworkFrame]):
    """Frames in the place of a data set of bags."""

    def __getitems__(self, positions: list[int]) -> LazySamples:
        return LazySamples(self, positions)

    def read(self, position: int, allocate: object = None) -> NetworkFrame:
        return self[position]


def block_frames(count: int = 8) -> MemoryFrames:
    whole = np.zeros(2, bool)
    return MemoryFrames(
        NetworkFrame(rgb, (depth / 1000).astype(np.float32), labels, whole)
        for rgb, depth, labels in zip(*blocks(count), strict=True)
    )


def batches(
    config: TrainConfig, seed: int = 0, count: int = 8, labelled: int = 4, rank: int = 0, ranks: int = 1
) -> Iterator[NetworkFrame]:
    """A run's batches of block frames, of which the first are labelled."""
    steps = [config.step_frames(step) for step in range(config.steps)]
    sampler = StepSampler(range(labelled), range(labelled, count), steps, seed, 0, rank, ranks)
    return read_batches(block_frames(count), sampler, 0)


def draws_of(count: int, seed: int = 0, step: int = 0) -> StepDraws:
    return StepDraws(seed, step, tuple(range(count)))


def views_of(config: TrainConfig, step: int = 0, seed: int = 0) -> Views:
    counts = config.step_frames(step)
    columns = zip(*block_frames(sum(counts)), strict=True)
    frames = NetworkFrame(*(torch.from_numpy(np.stack(column)) for column in columns))
    return make_views(config, frames, draws_of(sum(counts), seed, step), counts.labelled, torch.device("cpu"))
