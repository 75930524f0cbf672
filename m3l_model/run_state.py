# SPDX-License-Identifier: Apache-2.0
"""The state of a training run on the disk: one safetensors file, replaced whole, from which the run goes on."""

from __future__ import annotations

import dataclasses
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from m3l_model.checkpoint import TRAINING_FORMAT, CheckpointError, read_tensors, write_tensors
from m3l_model.learner import Learner
from m3l_model.recipe import TrainConfig

STATE_FILE = "state.safetensors"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunIdentity:
    """What must be the same for a run to go on.

    Attributes:
        config: the recipe.
        seed: of the run.
        classes: of the label set.
        frames: a digest of the frames that are trained on, and of the ids in their labels.
        weights: file or name of the weights it started from; None for none.
    """

    config: TrainConfig
    seed: int
    classes: tuple[str, ...]
    frames: str
    weights: str | None

    def plain(self) -> dict[str, Any]:
        """Give plain types for JSON."""
        fields: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return fields


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        steps: done.
        best_step: after how many steps the best model so far was validated; None before the first validation.
        best_miou: its mIoU, as ``validation.merit`` gives it.
        look_due: whether these steps are to be followed by a validation that has not been done.
    """

    steps: int = 0
    best_step: int | None = None
    best_miou: float | None = None
    look_due: bool = False


@dataclass(frozen=True)
class Surroundings:
    """What a run may go on with another of, but then ends with other figures.

    Attributes:
        precision: of the arithmetic, as ``training.Machine`` has it.
        device: its kind.
        processes: that share the steps.
    """

    precision: str = "32"
    device: str = "cpu"
    processes: int = 1

    def texts(self) -> dict[str, str]:
        """Give a text for each, with those of torch."""
        own = {"torch": torch.__version__, "threads": torch.get_num_threads()}
        return {name: str(value) for name, value in {**own, **dataclasses.asdict(self)}.items()}


def save_state(
    folder: Path, learner: Learner, identity: RunIdentity, progress: Progress, surroundings: Surroundings
) -> None:
    """Write the state; it is replaced whole or not at all.

    Raises:
        CheckpointError: it cannot be written; what was there is still there.
    """
    header = {
        "format": TRAINING_FORMAT,
        **surroundings.texts(),
        "identity": json.dumps(identity.plain()),
        "progress": json.dumps(dataclasses.asdict(progress)),
        "scaler": json.dumps(learner.scaler),
    }
    write_tensors(folder / STATE_FILE, learner.state(), header)


def load_state(
    folder: Path, learner: Learner, identity: RunIdentity, surroundings: Surroundings, warns: bool = True
) -> Progress:
    """Read the state into a learner.

    Args:
        folder: of the run.
        learner: of the same recipe.
        identity: of the run that is to go on.
        surroundings: in which it goes on.
        warns: whether to say where these are others, so that figures may differ.

    Raises:
        CheckpointError: it cannot be read, or is of another run.
    """
    path = folder / STATE_FILE
    try:
        tensors, header = read_tensors(path)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: not a readable state; remove {folder} and start anew") from error
    if header.get("format") != TRAINING_FORMAT:
        raise CheckpointError(f"{path}: not the state of a training run; remove {folder} and start anew")
    try:
        found = json.loads(header["identity"])
        progress = Progress(**json.loads(header["progress"]))
        scaler = json.loads(header["scaler"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged ({error}); remove {folder} and start anew") from error
    _require_same(path, found, identity.plain())
    if warns:
        _warn_of_changes(path, header, surroundings.texts())
    try:
        learner.load_state(tensors, scaler or learner.scaler)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: does not fit this recipe's network: {error}") from error
    return progress


def _warn_of_changes(path: Path, before: dict[str, str], now: dict[str, str]) -> None:
    """Say in one line what changed of what both name; older states name less."""
    changed = [name for name in now if before.get(name, now[name]) != now[name]]
    if not changed:
        return
    old, new = (", ".join(f"{name} {texts[name]}" for name in changed) for texts in (before, now))
    differs = "will differ" if "precision" in changed else "may differ in its last digits"
    _logger.warning("%s: written with %s, now %s: the result %s", path, old, new, differs)


def _require_same(path: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    # A field that is newer than the state was at its default.
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    flat = [({**defaults, **run, **run.get("config", {})}) for run in (found, asked)]
    for name in asked.keys() - {"config"} | asked["config"].keys():
        before, now = (run.get(name) for run in flat)
        if before != now:
            what = "the frames that are trained on, or what their labels mean," if name == "frames" else name
            values = "" if name in ("frames", "classes") else f" ({before}, now {now})"
            raise CheckpointError(
                f"{path}: {what} changed{values}; go on with what the run started with, or choose another --out"
            )
