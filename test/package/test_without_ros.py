# SPDX-License-Identifier: Apache-2.0
"""m3l_model on a machine without ROS: everything imports, and what needs ROS says what to install."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from m3l_model.bag_writer import BagWriter

BLOCKED = (
    *(
        "action_msgs",
        "builtin_interfaces",
        "diagnostic_msgs",
        "geometry_msgs",
        "lifecycle_msgs",
        "rcl_interfaces",
    ),
    *("rosgraph_msgs", "sensor_msgs", "std_msgs", "std_srvs", "tf2_msgs", "vision_msgs"),
    *("ament_index_python", "cv_bridge", "launch", "launch_ros", "message_filters", "rclpy", "rosbag2_py"),
    *("rosidl_runtime_py", "rpyutils"),
)

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="module")
def without_ros(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that, on the path, hides ROS from a process."""
    folder = tmp_path_factory.mktemp("without_ros")
    (folder / "sitecustomize.py").write_text(BLOCKER.format(blocked=set(BLOCKED)))
    return folder


@pytest.fixture(scope="module")
def without_m3l_ros(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, and m3l_ros is hidden too."""
    folder = tmp_path_factory.mktemp("without_m3l_ros")
    (folder / "sitecustomize.py").write_text(BLOCKER.format(blocked={*BLOCKED, "m3l_ros"}))
    return folder


def test_ros_is_hidden(run_python, without_ros):
    result = run_python("-c", "import rclpy", path=without_ros)
    assert "No module named 'rclpy'" in result.stderr


def test_every_module_of_m3l_model_imports(run_python, without_m3l_ros, repository):
    names = [name for name, _ in _modules(repository / "m3l_model") if not name.endswith("__main__")]
    assert "m3l_model.commands.train" in names
    result = run_python("-c", "\n".join(f"import {name}" for name in names), path=without_m3l_ros)
    assert (result.returncode, result.stderr) == (0, "")


def test_m3l_model_names_no_module_of_ros(repository):
    forbidden = {*BLOCKED, "m3l_ros"}
    for name, path in _modules(repository / "m3l_model"):
        for node in ast.walk(ast.parse(path.read_text())):
            imported = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            if isinstance(node, ast.ImportFrom) and not node.level:
                imported = {node.module or ""}
            roots = {module.partition(".")[0] for module in imported}
            assert not roots & forbidden, f"{name} imports {roots & forbidden}"


def test_info_train_and_eval_run(run_python, without_m3l_ros, tmp_path):
    random = np.random.default_rng(0)
    bag, out, scores = tmp_path / "bag", tmp_path / "out", tmp_path / "scores"
    with BagWriter(bag) as writer:
        for frame in range(4):
            writer.write_frame(
                frame * 100_000_000 + 1,
                "camera",
                random.integers(0, 256, (48, 64, 3), np.uint8),
                random.integers(500, 5000, (48, 64), np.uint16),
                random.integers(0, 8, (48, 64), np.uint8) if frame % 2 else None,
                k=np.eye(3),
            )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "{mean_teacher: true, masking: student, short_side: 48, steps: 1, labelled_batch: 1, unlabelled_batch: 1}"
    )
    result = run_python("-m", "m3l_model", "info", bag, path=without_m3l_ros)
    assert result.returncode == 0, result.stderr
    assert "4 frames, 4 with depth" in result.stdout
    train = (
        "train",
        "--bag",
        bag,
        "--label-set",
        "demo",
        "--allow-unlabelled-classes",
        "--config",
        recipe,
        "--out",
        out,
        "--device",
        "cpu",
    )
    result = run_python("-m", "m3l_model", *train, path=without_m3l_ros)
    assert result.returncode == 0, result.stderr
    checkpoint = out / "checkpoint.safetensors"
    evaluation = ("eval", "--bag", bag, "--checkpoint", checkpoint, "--out", scores, "--device", "cpu")
    result = run_python("-m", "m3l_model", *evaluation, path=without_m3l_ros)
    assert result.returncode == 0, result.stderr
    assert (scores / "index.html").is_file()


def test_help_lists_all_commands(run_python, without_ros):
    result = run_python("-m", "m3l_model", "--help", path=without_ros)
    assert result.returncode == 0
    assert "cannot be loaded" not in result.stdout


@pytest.mark.parametrize(
    "command",
    [
        ("demo",),
        ("node",),
        ("replay", "no.mcap"),
        ("eval", "--live", "--checkpoint", "no.safetensors", "--bag", "no.mcap"),
    ],
    ids=lambda command: command[0],
)
def test_what_needs_ros_says_what_to_install(run_python, without_ros, command):
    result = run_python("-m", "m3l_model", *command, path=without_ros)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert "error: ROS 2 is not available" in line
    assert "pip install 'm3l_ros[ros]'" in line


def _modules(package: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path
