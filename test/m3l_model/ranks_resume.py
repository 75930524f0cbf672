# SPDX-License-Identifier: Apache-2.0
"""Goes on with a run in one of some processes, each of which has a folder of its own; prints what refuses it.

torchrun --nproc-per-node 2 test/m3l_model/ranks_resume.py BAG FOLDER
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from training_samples import small

from m3l_model import M3LError
from m3l_model.bags import BagFrames
from m3l_model.labels import LabelSet
from m3l_model.recipe import load_config
from m3l_model.training import Machine, train
from m3l_model.training_frames import TrainingFrames


def go_on(bag: Path, out: Path) -> None:
    """Train a small recipe of two steps, from its last state where there is one."""
    config = small(load_config("supervised"), steps=2)
    frames = TrainingFrames.select([BagFrames.open(bag)], LabelSet.generic(3))
    train(config, frames, out, seed=3, machine=Machine("cpu", workers=0), resume=True)


def main() -> None:
    """Run."""
    bag, folder, rank = Path(sys.argv[1]), Path(sys.argv[2]), os.environ["RANK"]
    try:
        go_on(bag, folder / rank)
    except M3LError as error:
        os.write(1, f"{rank}: {error}\n".encode())  # at once: both write to one pipe


if __name__ == "__main__":
    main()
