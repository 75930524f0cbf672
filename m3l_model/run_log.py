# SPDX-License-Identifier: Apache-2.0
"""What a training run tells while it goes: its losses as JSON lines, and scalars and images for TensorBoard."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
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

    Raises:
        M3LError: the folder takes no more; every method raises it then.
    """

    def __init__(self, folder: Path, start: int, look_due: bool) -> None:
        self._folder = folder
        with ExitStack() as opened, _logging(folder):
            opened.enter_context(_quiet_threads())
            self._file = opened.enter_context(_continued(folder / LOG_FILE, start - 1))
            self._validation = opened.enter_context(
                _continued(folder / VALIDATION_FILE, start - 1 if look_due else start)
            )
            looked = 0 if look_due or not start else 1  # what was shown after the last step is kept
            self._board = opened.enter_context(SummaryWriter(str(folder / _BOARD), purge_step=start + looked))
            self._opened = opened.pop_all()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            with _logging(self._folder):
                self._opened.close()
        else:
            with suppress(OSError):  # of what ended the run
                self._opened.close()

    def step(self, result: StepResult, seconds: float) -> None:
        """Log a step, and how long it took."""
        fields = {**result._asdict(), "seconds": round(seconds, 4)}
        with _logging(self._folder):
            self._file.write(json.dumps(fields) + "\n")
            step = int(fields.pop("step"))
            for name, value in fields.items():
                self._board.add_scalar(f"train/{name}", value, step)

    def validated(self, steps: int, miou: dict[str, float]) -> None:
        """Log validation scores after so many steps."""
        with _logging(self._folder):
            self._validation.write(json.dumps({"step": steps, **miou}) + "\n")
            for name, value in miou.items():
                self._board.add_scalar(f"validation/{name}", value, steps)

    def panel(self, name: str, image: npt.NDArray[np.uint8], step: int) -> None:
        """Show an image (H, W, 3) uint8."""
        with _logging(self._folder):
            self._board.add_image(name, image, step, dataformats="HWC")

    def flush(self) -> None:
        """Have what was logged so far outlive the process."""
        with _logging(self._folder):
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


@contextmanager
def _logging(folder: Path) -> Iterator[None]:
    """Name the folder in what the system says of its logs.

    Raises:
        M3LError: an OSError was raised meanwhile.
    """
    try:
        yield
    except OSError as error:
        cause = error.strerror or error
        raise M3LError(
            f"{folder}: the log cannot be written ({cause}); make room, and go on with --resume"
        ) from error


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Have no traceback of an OSError in a thread: TensorBoard's raises it again in whoever logs next."""
    before = threading.excepthook

    def say(failed: Any) -> None:
        if not issubclass(failed.exc_type, OSError):
            before(failed)

    threading.excepthook = say
    try:
        yield
    finally:
        threading.excepthook = before


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
