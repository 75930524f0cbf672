# SPDX-License-Identifier: Apache-2.0
"""The launch files: as text everywhere, loaded where ROS 2's launch is installed."""

from __future__ import annotations

import ast

import pytest

from m3l_model.bags import DEFAULT_TOPICS
from m3l_ros.parameters import parameter_infos
from m3l_ros.providers import find_ros2_package

FILES = ("segmentation.launch.py", "replay.launch.py")


@pytest.fixture(params=FILES)
def launch_file(request, repository):
    return repository / "launch" / request.param


def test_launch_file_compiles(launch_file):
    compile(launch_file.read_text(), str(launch_file), "exec")


def test_launch_arguments_that_set_parameters_are_parameters(repository):
    tree = ast.parse((repository / "launch" / "segmentation.launch.py").read_text())
    [names] = [
        [ast.literal_eval(key) for key in statement.value.keys]
        for statement in tree.body
        if isinstance(statement, ast.Assign) and statement.targets[0].id == "PARAMETERS"
    ]
    assert names
    assert set(names) <= {info.name for info in parameter_infos()} | {"use_sim_time"}


@pytest.fixture
def loaded(launch_file):
    pytest.importorskip("launch_ros", reason="ROS 2's launch_ros is not installed")
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    return PythonLaunchDescriptionSource(str(launch_file)).try_get_launch_description_without_context()


def test_arguments_are_described_and_have_defaults(loaded, launch_file):
    arguments = {argument.name: argument for argument in loaded.get_launch_arguments()}
    assert {"checkpoint", "rgb_topic", "depth_topic", "params_file", "namespace"} <= set(arguments)
    assert all(argument.description for argument in arguments.values())
    required = {name for name, argument in arguments.items() if argument.default_value is None}
    assert required == ({"bag", "checkpoint"} if launch_file.name == "replay.launch.py" else set())
    [topic] = arguments["rgb_topic"].default_value
    assert topic.text == DEFAULT_TOPICS.rgb


def test_node_is_started_with_what_was_given(repository):
    pytest.importorskip("launch_ros", reason="ROS 2's launch_ros is not installed")
    if find_ros2_package("m3l_ros") is None:
        pytest.skip("the package is not installed where ros2 launch finds it")
    from launch import LaunchContext
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    path = str(repository / "launch" / "segmentation.launch.py")
    description = PythonLaunchDescriptionSource(path).try_get_launch_description_without_context()
    context = LaunchContext()
    context.launch_configurations.update(checkpoint="m.safetensors", autostart="false", namespace="front")
    for entity in description.entities:
        actions = entity.visit(context) or []
    [node] = actions
    node._perform_substitutions(context)
    command = " ".join("".join(part.perform(context) for part in word) for word in node.cmd)
    for expected in ("__ns:=/front", f"rgb/image:={DEFAULT_TOPICS.rgb}", "--log-level info", "--params-file"):
        assert expected in command
