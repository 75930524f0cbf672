# SPDX-License-Identifier: Apache-2.0
"""What the tests of the package's outside share: a copy of the sources to build from, and runs of real processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Protocol

import pytest

# What the installed package is made from.
SOURCES = ("m3l_model", "m3l_ros", "config", "launch", "resource")
SOURCE_FILES = ("package.xml", "setup.py", "setup.cfg", "pyproject.toml", "LICENSE")


class RunPython(Protocol):
    """See the fixture ``run_python``."""

    def __call__(
        self, *arguments: str | Path, path: Path | None = None
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="session")
def source_copy(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package's sources: builds leave files beside what they build."""
    copy = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        shutil.copytree(repository / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in SOURCE_FILES:
        shutil.copy2(repository / name, copy)
    return copy


@pytest.fixture(scope="session")
def run_python(tmp_path_factory: pytest.TempPathFactory) -> RunPython:
    """Run this Python in a process of its own, in an empty folder; ``path`` goes first on its path."""
    empty = tmp_path_factory.mktemp("empty")
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
    }  # what runs is small: threads would only get in each other's way

    def run(*arguments: str | Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=empty,
            env=environment if path is None else {**environment, "PYTHONPATH": str(path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run
