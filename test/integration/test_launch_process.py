# SPDX-License-Identifier: Apache-2.0
"""`ros2 launch` of our launch files and of others', where ROS 2's launch is installed and colcon built this package."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from rcl_interfaces.srv import GetParameters

from m3l_model.bags import DEFAULT_TOPICS, BagWriter

pytest.importorskip("launch_ros", reason="ROS 2's launch_ros is not installed")
if shutil.which("ros2") is None:
    pytest.skip("ros2 is not installed", allow_module_level=True)
if not any(
    (Path(prefix) / "lib" / "m3l_ros" / "segmentation_node").exists()
    for prefix in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
):
    pytest.skip("m3l_ros is not built with colcon, or not sourced", allow_module_level=True)

PATIENCE = 240.0
FRAMES = 10

LIFECYCLE = """
from launch import LaunchDescription
from launch.actions import EmitEvent, RegisterEventHandler
from launch.events import matches_action
from launch_ros.actions import LifecycleNode
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition


def generate_launch_description():
    node = LifecycleNode(
        package="m3l_ros",
        executable="segmentation_node",
        name="segmentation_node",
        namespace="",
        parameters=[{"autostart": False, "checkpoint": "CHECKPOINT"}],
        output="screen",
    )

    def change(transition):
        return EmitEvent(
            event=ChangeState(lifecycle_node_matcher=matches_action(node), transition_id=transition)
        )

    activate = OnStateTransition(
        target_lifecycle_node=node,
        start_state="configuring",
        goal_state="inactive",
        entities=[change(Transition.TRANSITION_ACTIVATE)],
    )
    return LaunchDescription(
        [RegisterEventHandler(activate), node, change(Transition.TRANSITION_CONFIGURE)]
    )
"""


@pytest.fixture
def launch(environment, tmp_path):
    """Starts `ros2 launch`; ends it, where it has not ended, by SIGINT to itself alone."""
    processes = []

    def start(*arguments):
        with (tmp_path / "launch.log").open("w") as log:
            command = ["ros2", "launch", *map(str, arguments)]
            processes.append(
                subprocess.Popen(
                    command,
                    env={**environment, "PYTHONUNBUFFERED": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
        return processes[-1]

    yield start
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(60)
    print((tmp_path / "launch.log").read_text())


def log_of(tmp_path):
    return (tmp_path / "launch.log").read_text()


def test_node_gets_what_the_arguments_say_and_ends_with_the_launch(launch, start_robot, checkpoint, tmp_path):
    file = tmp_path / "parameters.yaml"
    file.write_text("/**:\n  ros__parameters:\n    slop: 0.07\n    device: cuda:99\n")
    process = launch(
        "m3l_ros",
        "segmentation.launch.py",
        f"params_file:={file}",
        *(f"checkpoint:={checkpoint}", "namespace:=left", "device:=cpu", "precision:=fp32", "anchor:=either"),
        *("rgb_topic:=/cam/color/image_raw", "depth_topic:=depth", "overload:=queue"),
    )
    robot = start_robot(namespace="/left", rgb_topic="/cam/color/image_raw", depth_topic="/left/depth")
    robot.wait_until_ready("mask")
    robot.publish(0)
    robot.wait_for_masks(1)
    assert robot.diagnostics["device"] == "cpu"
    answer = robot.call("get_parameters", GetParameters, GetParameters.Request(names=["slop"]))
    assert answer.values[0].double_value == 0.07
    assert robot.diagnostics["precision"] == "float32"
    infos = dict(robot.node.get_subscriber_names_and_types_by_node("segmentation_node", "/left"))
    assert {"/cam/color/camera_info", "/left/camera_info"} <= set(infos)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert "process has finished cleanly" in log_of(tmp_path)


def test_cameras_of_the_readme_have_a_namespace_each(launch, start_robot, checkpoint, repository, tmp_path):
    readme = (repository / "README.md").read_text(encoding="utf-8")
    [source] = re.findall(r"```python\n(from launch import .+?)```", readme, flags=re.DOTALL)
    file = tmp_path / "cameras.launch.py"
    file.write_text(source.replace("/path/to/checkpoint.safetensors", str(checkpoint)))
    launch(file)
    for camera in ("front", "rear"):
        robot = start_robot(
            namespace=f"/{camera}",
            rgb_topic=f"/{camera}/color/image_raw",
            depth_topic=f"/{camera}/aligned_depth_to_color/image_raw",
        )
        robot.wait_until_ready("mask")
        robot.publish(0)
        robot.wait_for_masks(1)


def test_lifecycle_node_of_launch_ros_brings_it_up(launch, start_robot, checkpoint, tmp_path):
    file = tmp_path / "lifecycle.launch.py"
    file.write_text(LIFECYCLE.replace("CHECKPOINT", str(checkpoint)))
    launch(file)
    robot = start_robot()
    robot.wait_until_ready("mask")
    assert robot.state() == "active"
    robot.publish(0)
    robot.wait_for_masks(1)


def test_replay_launch_file_segments_a_bag_and_ends(launch, start_robot, checkpoint, images_of, tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        for index in range(FRAMES):
            rgb, depth = images_of(index)
            k = [[50.0, 0.0, 32.0], [0.0, 50.0, 24.0], [0.0, 0.0, 1.0]]
            labels = np.zeros(depth.shape, np.uint8)
            writer.write_frame(10**18 + index * 10**8, "camera", rgb, depth, labels, k)
    robot = start_robot(rgb_topic="/unused/rgb", depth_topic="/unused/depth")
    robot.listen("mask")
    process = launch(
        "m3l_ros",
        "replay.launch.py",
        *(f"bag:={tmp_path / 'bag'}", f"checkpoint:={checkpoint}", "drop_depth:=0.35:0.65"),
    )
    assert process.wait(PATIENCE) == 0
    assert len(robot.masks) == FRAMES
    assert "3 depth images withheld" in log_of(tmp_path)
    assert f"colour from {DEFAULT_TOPICS.rgb}" in log_of(tmp_path)
