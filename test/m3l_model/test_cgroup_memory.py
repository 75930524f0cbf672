# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from m3l_model.cgroup_memory import cgroup_room

VERSION_1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_active_file", "total_inactive_file")
VERSION_2 = ("memory.max", "memory.current", "active_file", "inactive_file")


def group(folder: Path, names: tuple[str, str, str, str], limit: str, used: int, active: int, inactive: int):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 7\n{names[2]} {active}\n{names[3]} {inactive}\n")


def own_group(root: Path, lines: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(lines)


@pytest.mark.parametrize(
    ("names", "lines", "mounted"),
    [
        (VERSION_1, "5:cpu:/\n4:memory:/box/one\n0::/\n", "sys/fs/cgroup/memory"),
        (VERSION_2, "0::/box/one\n", "sys/fs/cgroup"),
    ],
    ids=["version 1", "version 2"],
)
def test_the_narrowest_group_around_a_process_counts(
    tmp_path: Path, names: tuple[str, str, str, str], lines: str, mounted: str
) -> None:
    own_group(tmp_path, lines)
    folder = tmp_path / mounted
    assert cgroup_room(tmp_path) is None
    group(folder, names, "9000", 1000, 0, 0)  # a container sees its own group there
    assert cgroup_room(tmp_path) == 8000
    group(folder / "box", names, "5000", 4000, 200, 300)
    assert cgroup_room(tmp_path) == 1500
    group(folder / "box/one", names, "max" if names is VERSION_2 else "9223372036854771712", 10, 0, 0)
    assert cgroup_room(tmp_path) == 1500
    group(folder / "box/one", names, "100", 150, 0, 0)
    assert cgroup_room(tmp_path) == 0


def test_a_system_without_groups_has_no_limit_of_theirs(tmp_path: Path) -> None:
    assert cgroup_room(tmp_path) is None
