# SPDX-License-Identifier: Apache-2.0
"""What a training run tells while it goes: its losses as JSON lines, and scalars and images for TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter

from m3l_model.errors import M3LError
from m3l_model.learner import StepResult

LOG_FILE = "log.jsonl"
VALIDATION_FILE = "validation.jsonl"
_BOARD = "tensorboard"


class RunLog:
    """Appends to a run's logs; a run that goes on drops what was logged after the step from which it does.

    Args:
        folder: of the run.
        start: steps that are done.
        look_due: whether the validation after these is still to be done, and logged.
    """

    def __init__(self, folder: Path, start: int, look_due: bool) -> None:
        self._file = _continued(folder / LOG_FILE, start - 1)
        self._validation = _continued(folder / VALIDATION_FILE, start - 1 if look_due else start)
        self._board = SummaryWriter(str(folder / _BOARD), purge_step=start)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._validation.close()
        self._board.close()

    def step(self, result: StepResult, seconds: float) -> None:
        """Log a step, and how long it took."""
        fields = {**result._asdict(), "seconds": round(seconds, 4)}
        self._file.write(json.dumps(fields) + "\n")
        step = int(fields.pop("step"))
        for name, value in fields.items():
            self._board.add_scalar(f"train/{name}", value, step)

    def validated(self, steps: int, miou: dict[str, float]) -> None:
        """Log validation scores after so many steps."""
        self._validation.write(json.dumps({"step": steps, **miou}) + "\n")
        for name, value in miou.items():
            self._board.add_scalar(f"validation/{name}", value, steps)

    def panel(self, name: str, image: npt.NDArray[np.uint8], step: int) -> None:
        """Show an image (H, W, 3) uint8."""
        self._board.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        """Have what was logged so far outlive the process."""
        self._file.flush()
        self._validation.flush()
        self._board.flush()


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Read the losses of a run, a ``StepResult`` as a dict for every step.

    Raises:
        M3LError: there is none.
    """
    if not (folder / LOG_FILE).is_file():
        raise M3LError(f"{folder}: no {LOG_FILE}; not the folder of a training run")
    return [{name: line[name] for name in StepResult._fields} for line in _lines(folder / LOG_FILE)]


def wall_seconds(folder: Path) -> float | None:
    """Give the seconds that the steps of a run took, over all its lives; None where it did not log some of them.

    A step that was done again after a kill counts once; validation and the writing of states are not counted.
    """
    lines = _lines(folder / LOG_FILE)
    return sum(line["seconds"] for line in lines) if all("seconds" in line for line in lines) else None


def _continued(path: Path, last: int) -> TextIO:
    """Open a log to append to, without what came after step ``last``."""
    kept = [line for line in _lines(path) if line["step"] <= last]
    partial = path.with_name(path.name + ".part")
    partial.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    partial.replace(path)
    return path.open("a", encoding="utf-8")


def _lines(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines; the last one may have been cut off."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
