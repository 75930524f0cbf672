# SPDX-License-Identifier: Apache-2.0
"""The launch files: as text everywhere, loaded where ROS 2's launch is installed."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from m3l_model.bags import DEFAULT_TOPICS
from m3l_ros.parameters import parameter_infos

FILES = ("segmentation.launch.py", "replay.launch.py")


@pytest.fixture(params=FILES)
def launch_file(request, repository):
    return repository / "launch" / request.param


def test_launch_file_compiles(launch_file):
    compile(launch_file.read_text(), str(launch_file), "exec")


def test_launch_arguments_that_set_parameters_are_parameters(repository):
    tree = ast.parse((repository / "launch" / "segmentation.launch.py").read_text())
    [table] = [
        statement.value
        for statement in tree.body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "PARAMETERS"
    ]
    assert isinstance(table, ast.Dict)
    names = [ast.literal_eval(key) for key in table.keys if key is not None]
    assert names
    assert set(names) <= {info.name for info in parameter_infos()} | {"use_sim_time"}


@pytest.fixture
def loaded(launch_file):
    return load(launch_file)


def test_arguments_are_described_and_have_defaults(loaded, launch_file):
    arguments = {argument.name: argument for argument in loaded.get_launch_arguments()}
    assert {"checkpoint", "rgb_topic", "depth_topic", "params_file", "namespace"} <= set(arguments)
    assert all(argument.description for argument in arguments.values())
    required = {name for name, argument in arguments.items() if argument.default_value is None}
    assert required == ({"bag", "checkpoint"} if launch_file.name == "replay.launch.py" else set())
    [topic] = arguments["rgb_topic"].default_value
    assert topic.text == ("" if launch_file.name == "replay.launch.py" else DEFAULT_TOPICS.rgb)


def test_launch_file_of_several_cameras_compiles(readme):
    [source] = re.findall(r"```python\n(from launch import .+?)```", readme, flags=re.DOTALL)
    compile(source, "README.md", "exec")


DRIVER = r"^\| ([\w ]+) \| `ros2 launch (\w+) (\S+) ([^`]+)` \| `(/\S+)` \| `(/\S+)` \|$"
"""A row of the README's table: camera, package, launch file, arguments, colour, depth."""


def test_drivers_of_four_makers_are_named(readme):
    rows = re.findall(DRIVER, readme, flags=re.MULTILINE)
    assert {maker for maker, *_ in rows} == {"RealSense", "Orbbec", "ZED", "OAK"}


@pytest.mark.parametrize("maker", ["RealSense", "Orbbec", "ZED", "OAK"])
def test_driver_has_the_arguments_that_the_readme_gives_it(readme, maker):
    rows = re.findall(DRIVER, readme, flags=re.MULTILINE)
    [(package, file, arguments)] = [row[1:4] for row in rows if row[0] == maker]
    pytest.importorskip("launch_ros", reason="ROS 2's launch_ros is not installed")
    index = pytest.importorskip("ament_index_python.packages")
    try:
        share = Path(index.get_package_share_directory(package))
    except index.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    [path] = share.rglob(file)
    declared = {argument.name for argument in load(path).get_launch_arguments()}
    assert {argument.partition(":=")[0] for argument in arguments.split()} <= declared


@pytest.fixture(scope="module")
def readme(repository):
    return (repository / "README.md").read_text(encoding="utf-8")


def load(path):
    """The launch description; skips the test where ROS 2's launch is not installed."""
    pytest.importorskip("launch_ros", reason="ROS 2's launch_ros is not installed")
    sources = pytest.importorskip("launch.launch_description_sources")
    return sources.PythonLaunchDescriptionSource(str(path)).try_get_launch_description_without_context()
