# SPDX-License-Identifier: Apache-2.0
"""Trains and validates in one of some processes, from the last state where there is one.

torchrun --nproc-per-node 2 test/m3l_model/ranks_validation.py BAG OUT [STEP|look]

With STEP, the last process gets a SIGTERM in that step; with ``look``, the first one in its first validation.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from training_samples import small

from m3l_model import training
from m3l_model.bags import BagFrames
from m3l_model.labels import LabelSet
from m3l_model.learner import Learner, StepResult
from m3l_model.recipe import load_config
from m3l_model.splits import BagSplits, Splits, TimeRange
from m3l_model.training import Intervals, Machine, train
from m3l_model.training_frames import TrainingFrames
from m3l_model.validation import validate
from m3l_model.views import Views

_step = Learner.step


def main() -> None:
    """Run."""
    torch.set_num_threads(1)
    bag, out, *stop = sys.argv[1:]
    last = int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1

    def step(self: Learner, index: int, views: Views) -> StepResult:
        if last and str(index) in stop:
            signal.raise_signal(signal.SIGTERM)
        return _step(self, index, views)

    def validated(model: Any, plan: Any, stopped: Callable[[], bool]) -> dict[str, float] | None:
        if "look" in stop:
            signal.raise_signal(signal.SIGTERM)
        return validate(model, plan, stopped)

    ranges = {"training": (TimeRange(0, 450_000_000),), "validation": (TimeRange(450_000_000, None),)}
    splits = Splits((BagSplits(Path(bag), **ranges),))
    frames = TrainingFrames.select([BagFrames.open(Path(bag))], LabelSet.generic(3), splits=splits)
    config = small(load_config("m3l"), cutmix=False, learning_rate=1e-4)
    with mock.patch.object(Learner, "step", step), mock.patch.object(training, "validate", validated):
        train(config, frames, Path(out), 3, Machine("cpu", workers=0), Intervals(0, 2), resume=True)


if __name__ == "__main__":
    main()
