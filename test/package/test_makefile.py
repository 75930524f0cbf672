# SPDX-License-Identifier: Apache-2.0
"""What `make` says, in one line, where it cannot make its environment."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")

WITHOUT_ENSUREPIP = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name == "ensurepip":
            raise ModuleNotFoundError("No module named 'ensurepip'", name=name)

sys.meta_path.insert(0, Blocker())
"""
TOO_OLD = "import sys; sys.version_info = (3, 9, 18)"
TOO_NEW = "import sys; sys.version_info = (3, 14, 0)"
VERSION = "{}.{}".format(*sys.version_info)


@pytest.fixture
def make(repository: Path, tmp_path: Path) -> Callable[[str], list[str]]:
    """Run `make lint` with this Python and the environment in tmp_path/venv; give stderr's lines but for make's own."""

    def run(python: str) -> list[str]:
        outer = {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "MAKELEVEL"}
        result = subprocess.run(
            ["make", "lint", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"],
            cwd=repository,
            env={name: value for name, value in os.environ.items() if name not in outer},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert result.returncode == 2
        assert result.stdout == ""
        return [line for line in result.stderr.splitlines() if not line.startswith("make: ***")]

    return run


@pytest.fixture
def altered_python(tmp_path: Path) -> Callable[[str], str]:
    """Write a program that is this Python, but for what a sitecustomize module does to it; give its path."""

    def write(sitecustomize: str) -> str:
        folder = tmp_path / "altered"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(sitecustomize)
        program = folder / "python"
        program.write_text(
            f'#!/bin/sh\nPYTHONPATH={shlex.quote(str(folder))} exec {shlex.quote(sys.executable)} "$@"\n'
        )
        program.chmod(0o755)
        return str(program)

    return write


def test_no_python(make):
    (line,) = make("no-such-python")
    assert line.startswith("no-such-python is not installed: apt install python3 ")


def test_no_venv(make, altered_python, tmp_path):
    (line,) = make(altered_python(WITHOUT_ENSUREPIP))
    assert f"has no ensurepip: apt install python{VERSION}-venv" in line
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(("python", "version"), [(TOO_OLD, "3.9"), (TOO_NEW, "3.14")], ids=["old", "new"])
def test_a_python_that_is_not_supported(make, altered_python, python, version):
    (line,) = make(altered_python(python))
    assert line.startswith("m3l needs Python 3.10 to 3.13")
    assert line.endswith(f" is {version}; make PYTHON=python3.12 chooses another")


def test_an_environment_of_the_user_s_own_is_left_alone(make, tmp_path):
    mine = tmp_path / "venv" / "mine"
    mine.parent.mkdir()
    mine.touch()
    (line,) = make(sys.executable)
    assert "exists and is not make's" in line
    assert mine.exists()
