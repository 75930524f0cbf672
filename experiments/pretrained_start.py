# SPDX-License-Identifier: Apache-2.0
"""What rows start from that were pretrained without labels: trained once for each draw, then shared by the rows."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from nyuv2_data import NyuBags
from rows import digest

from m3l_model.recipe import TrainConfig
from m3l_model.training import Intervals, Machine, train
from m3l_model.training_frames import TrainingFrames


class PretrainedStart(NamedTuple):
    """A pretraining: the frames that it reads, its folder, and its network's file, None where a signal ended it."""

    frames: TrainingFrames
    folder: Path
    weights: Path | None


def pretrain(config: TrainConfig, bags: NyuBags, work: Path, draw: int, machine: Machine) -> PretrainedStart:
    """Pretrain, unless that has been done, on the usable frames; the seed is the draw's."""
    frames = bags.pretraining_frames()
    folder = work / "runs" / f"pretraining-{draw}-{digest(config)}"
    weights = train(config, frames, folder, draw, machine, Intervals(100, 0), resume=True)
    return PretrainedStart(frames, folder, weights)
