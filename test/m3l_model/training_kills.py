# SPDX-License-Identifier: Apache-2.0
"""Kills training runs at random moments, some while they write their state, and sees that they end as one left alone.

    python test/m3l_model/training_kills.py --kills 20 --writing 5 --seed 0

Every life of a run takes its number of loader workers at random. Prints each kill; exits 1 where a result differs.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

# Before anything imports torch: processes that share few cores, with threads that wait by spinning, are slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from m3l_model.bag_writer import BagWriter
from m3l_model.bags import BagFrames
from m3l_model.checkpoint import read_tensors
from m3l_model.labels import LabelSet
from m3l_model.recipe import load_config
from m3l_model.run_log import read_log
from m3l_model.run_state import STATE_FILE
from m3l_model.training import CHECKPOINT_FILE, Intervals, Machine, train
from m3l_model.training_frames import TrainingFrames

STEPS = 12
LABELLED = (2, 4, 6)
_PART = STATE_FILE + ".part"
_LIFE_LIMIT_S = 120.0


class Kill(NamedTuple):
    """A life that was ended: in which run, after how many seconds, how many workers, and whether while writing."""

    run: int
    seconds: float
    workers: int
    writing: bool


def write_bag(path: Path, seed: int = 0) -> None:
    """Write eight frames of noise, of which three are labelled."""
    generator = np.random.default_rng(seed)
    with BagWriter(path) as bag:
        for index in range(8):
            labels = generator.integers(0, 3, (32, 48), np.uint8)
            rgb = generator.integers(0, 256, (32, 48, 3), np.uint8)
            depth = generator.integers(500, 5000, (32, 48), np.uint16)
            truth = labels if index in LABELLED else None
            bag.write_frame(1_000_000_000 + index * 100_000_000, "camera", rgb, depth, truth, np.eye(3))


def run(bag: Path, out: Path, workers: int) -> None:
    """Train a small M3L to its end, from its last state where there is one."""
    small = {"short_side": 32, "crop": 1.0, "steps": STEPS, "labelled_batch": 2, "unlabelled_batch": 2}
    schedule = {"pseudo_start": 3, "pseudo_ramp": 2, "warmup_steps": 2}
    config = dataclasses.replace(load_config("m3l"), **small, **schedule)  # type: ignore[arg-type]
    frames = TrainingFrames.select([BagFrames.open(bag)], LabelSet.generic(3))
    machine = Machine("cpu", workers=workers)
    train(config, frames, out, seed=5, machine=machine, intervals=Intervals(2, 0), resume=True)


def kill_at_random(folder: Path, kills: int, writing: int, seed: int) -> list[Kill]:
    """Kill lives of runs until there were enough, and compare every run's end with one that was left alone.

    Args:
        folder: to work in.
        kills: how many.
        writing: how many of them are to be inside the writing of a state.
        seed: of moments and numbers of workers.

    Raises:
        AssertionError: a run ended otherwise.
    """
    draw = random.Random(seed)
    bag = folder / "bag"
    write_bag(bag)
    whole = folder / "whole"
    began = time.monotonic()
    _live(bag, whole, 0, None)
    duration = time.monotonic() - began
    when = [True] * writing + [False] * (kills - writing)
    draw.shuffle(when)
    done: list[Kill] = []
    number = 0
    while when or (folder / f"run_{number}").exists():
        out = folder / f"run_{number}"
        workers = draw.choice((0, 1, 2))
        ended = None
        if when:
            ended = _live(bag, out, workers, (when[0], draw.uniform(0.1, 0.8) * duration))
        else:
            _live(bag, out, workers, None)
        if ended is None:
            assert_same_end(whole, out)
            shutil.rmtree(out)
            number += 1
        elif ended.writing == when[0]:
            when.pop(0)
            done.append(ended._replace(run=number))
            print(f"kill {len(done)} of {kills}: {done[-1]}", flush=True)
    return done


def assert_same_end(whole: Path, other: Path) -> None:
    """See that two runs ended with the same bits: student, teacher, optimiser, BatchNorm, model and losses."""
    for name in (STATE_FILE, CHECKPOINT_FILE):
        expected, found = (read_tensors(folder / name)[0] for folder in (whole, other))
        assert expected.keys() == found.keys()
        for key, tensor in expected.items():
            assert torch.equal(tensor, found[key]), f"{other}/{name}: {key} differs"
    assert read_log(whole) == read_log(other)


def _live(bag: Path, out: Path, workers: int, death: tuple[bool, float] | None) -> Kill | None:
    """Let a run live in a process of its own, to its end or to its death; None where it came to its end."""
    part = out / _PART
    part.unlink(missing_ok=True)
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        status = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            run(bag, out, workers)
            status = 0
        finally:
            os._exit(status)
    began = time.monotonic()
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        elapsed = time.monotonic() - began
        if ended:
            assert os.waitstatus_to_exitcode(status) == 0, f"{out}: a life of the run failed"
            return None
        assert elapsed < _LIFE_LIMIT_S, f"{out}: a life of the run does not end"
        if death and elapsed >= death[1] and (not death[0] or part.exists()):
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return Kill(0, round(elapsed, 3), workers, part.exists())
        time.sleep(0 if death and death[0] else 0.002)


def main() -> int:
    """Run and report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--writing", type=int, default=5, help="of them while a state is written")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(f"seed {args.seed}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        done = kill_at_random(Path(folder), args.kills, args.writing, args.seed)
    print(
        f"{len(done)} kills, {sum(kill.writing for kill in done)} inside writing: every run ended with the same bits"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
