# SPDX-License-Identifier: Apache-2.0
"""Memory, open files and threads of a process, sampled while it works, and whether they grow."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_ENDS = 5


class Sample(NamedTuple):
    """What a process holds at one moment."""

    at: float
    memory: float
    """MiB that it shares with nobody."""
    shared: float
    """MiB of shared memory: the segments of Fast DDS, its own and those of the processes it hears."""
    files: int
    threads: int


class Growth(NamedTuple):
    """From the median of the first five samples to that of the last five, and per unit of ``at``."""

    memory: float
    memory_slope: float
    files: float
    files_slope: float
    threads: float
    threads_slope: float


def take(pid: int, at: float) -> Sample:
    """Sample a process.

    Args:
        pid: of the process.
        at: the time, or the number of cycles done.
    """
    proc = Path(f"/proc/{pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    memory, shared = (int(status[name].split()[0]) / 1024 for name in ("RssAnon", "RssShmem"))
    return Sample(at, memory, shared, len(list((proc / "fd").iterdir())), int(status["Threads"]))


def growth(samples: list[Sample]) -> Growth:
    """How much they rose, and their slopes.

    A slope is the median over all pairs of samples (Theil and Sen): a leak moves it, one step upwards does not.
    """
    values = np.array(samples, np.float64)
    at = values[:, 0]
    rises = np.median(values[-_ENDS:], axis=0) - np.median(values[:_ENDS], axis=0)
    figures = [
        (float(rises[column]), _slope(at, values[:, column]))
        for column in map(Sample._fields.index, ("memory", "files", "threads"))
    ]
    return Growth(*(value for pair in figures for value in pair))


def _slope(at: npt.NDArray[np.float64], values: npt.NDArray[np.float64]) -> float:
    earlier, later = np.triu_indices(len(at), k=1)
    return float(np.median((values[later] - values[earlier]) / (at[later] - at[earlier])))
