# SPDX-License-Identifier: Apache-2.0
"""The launch files: as text everywhere, loaded where ROS 2's launch is installed."""

from __future__ import annotations

import ast

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
    assert topic.text == DEFAULT_TOPICS.rgb


def load(path):
    """The launch description; skips the test where ROS 2's launch is not installed."""
    pytest.importorskip("launch_ros", reason="ROS 2's launch_ros is not installed")
    sources = pytest.importorskip("launch.launch_description_sources")
    return sources.PythonLaunchDescriptionSource(str(path)).try_get_launch_description_without_context()
