# SPDX-License-Identifier: Apache-2.0
"""The steps of a run, which differ in how many frames they take, by kind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from lightning_fabric import Fabric

from m3l_model.data import StepSampler, read_batches
from m3l_model.learner import Learner
from m3l_model.recipe import StepFrames, TrainConfig
from m3l_model.training import learn, new_network
from m3l_model.training_frames import TrainingFrames


class Kind(NamedTuple):
    """Steps that take the same number of frames.

    Attributes:
        number: how many a run has of them.
        steps: does them, from the first on, one for each ``next``, with a network of its own.
    """

    number: int
    steps: Iterator[object]


def kinds_of(config: TrainConfig, frames: TrainingFrames) -> dict[StepFrames, Kind]:
    """Give the kinds of a recipe's steps, on the CPU."""
    fabric = Fabric(accelerator="cpu", devices=1)
    all_steps = [config.step_frames(step) for step in range(config.steps)]
    kinds = {}
    for taken, count in Counter(all_steps).items():
        first = all_steps.index(taken)
        learner = Learner(config, new_network(config, frames.label_set, 0), fabric)
        sampler = StepSampler(frames.labelled, frames.unlabelled, all_steps, 0, first)
        batches = read_batches(frames.at_network_size(config.preprocessing()), sampler, 0)
        kinds[taken] = Kind(count, learn(learner, batches, 0, first, fabric))
    return kinds
