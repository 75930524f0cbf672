# SPDX-License-Identifier: Apache-2.0
"""How much memory a container, or whatever else Linux limits as a control group, leaves to this process."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class _Files(NamedTuple):
    """Where a version of control groups says what: folder, files, and the names of file cache that can be given up."""

    folder: str
    limit: str
    used: str
    cache: tuple[str, str]


_VERSION_1 = _Files(
    "sys/fs/cgroup/memory",
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    ("total_active_file", "total_inactive_file"),
)
_VERSION_2 = _Files("sys/fs/cgroup", "memory.max", "memory.current", ("active_file", "inactive_file"))


def cgroup_room(root: Path = Path("/")) -> int | None:
    """Give the bytes that are left to this process's control group and those around it; None where there is no limit.

    Files that are cached count as free, as they do in MemAvailable: the system gives them up first.

    Args:
        root: folder in which ``proc`` and ``sys`` lie.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    rooms = []
    for line in lines:
        _, controllers, own = line.split(":", 2)
        if controllers in ("", "memory"):
            files = _VERSION_1 if controllers else _VERSION_2
            rooms += [_room(folder, files) for folder in _groups(root / files.folder, own)]
    return min((room for room in rooms if room is not None), default=None)


def _groups(folder: Path, own: str) -> list[Path]:
    """Give a group's folder and those around it; in a container only some of them may be there."""
    group = folder / own.lstrip("/")
    return [group, *(parent for parent in group.parents if parent.is_relative_to(folder))]


def _room(folder: Path, files: _Files) -> int | None:
    try:
        limit = (folder / files.limit).read_text().strip()
        if limit == "max":
            return None
        used = int((folder / files.used).read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, int(limit) - used + sum(int(stat.get(name, 0)) for name in files.cache))
    except (OSError, ValueError):
        return None
