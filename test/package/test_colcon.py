# SPDX-License-Identifier: Apache-2.0
"""The package as colcon builds it for a robot, both ways, and as ros2 run and ros2 launch then look for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module", params=[(), ("--symlink-install",)], ids=["copied", "symlinked"])
def install(request, source_copy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The install folder of a colcon workspace."""
    workspace = tmp_path_factory.mktemp("workspace")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "colcon", "--log-base", workspace / "log", "build"),
            *("--base-paths", source_copy),
            *("--build-base", workspace / "build", "--install-base", workspace / "install"),
            *request.param,
        ],
        cwd=workspace,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return workspace / "install"


@pytest.fixture
def run_sourced(install: Path) -> Run:
    """Run a program after sourcing the workspace, as its user does."""

    def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", '. "$0/local_setup.sh" && exec "$@"', install, *command],
            cwd=install,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def test_the_node_is_where_ros2_run_looks_and_runs(install, run_sourced):
    program = install / "m3l_ros" / "lib" / "m3l_ros" / "segmentation_node"
    assert os.access(program, os.X_OK)
    result = run_sourced(program, "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: ")
    assert "rgb/image" in result.stdout


def test_the_ament_index_knows_the_package(install, run_sourced):
    result = run_sourced(
        sys.executable,
        "-c",
        "from ament_index_python import get_package_share_directory; print(get_package_share_directory('m3l_ros'))",
    )
    assert (result.stdout.strip(), result.stderr) == (str(install / "m3l_ros" / "share" / "m3l_ros"), "")


def test_share_holds_package_xml_launch_files_and_configuration(install, source_copy):
    share = install / "m3l_ros" / "share" / "m3l_ros"
    names = [
        path.relative_to(source_copy)
        for folder in ("launch", "config")
        for path in (source_copy / folder).rglob("*.*")
    ]
    assert Path("launch/segmentation.launch.py") in names
    assert Path("config/segmentation_node.yaml") in names
    for name in (Path("package.xml"), *names):
        assert (share / name).read_bytes() == (source_copy / name).read_bytes()


def test_the_workspace_s_code_runs_and_finds_its_files(install, run_sourced, repository):
    result = run_sourced(
        sys.executable,
        "-c",
        "from m3l_model import resources as r\n"
        "print(r.__file__, r.share_path('config/segmentation_node.yaml'), sep='\\n')",
    )
    code, file = (Path(line) for line in result.stdout.splitlines())
    assert not code.resolve().is_relative_to(repository)
    assert file.samefile(install / "m3l_ros" / "share" / "m3l_ros" / "config" / "segmentation_node.yaml")


def test_m3l_has_its_commands(install, run_sourced):
    result = run_sourced(install / "m3l_ros" / "lib" / "m3l_ros" / "m3l", "train", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("usage: m3l train ")
