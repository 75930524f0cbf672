# SPDX-License-Identifier: Apache-2.0
"""Replays a bag to the segmentation node, and records the masks where ``out`` names a folder.

``ros2 launch m3l_ros replay.launch.py bag:=recording checkpoint:=model.safetensors drop_depth:=10:20 out:=masks``
"""

import os

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
    TimerAction,
)
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from m3l_model.bag_topics import DEFAULT_TOPICS
from m3l_model.resources import share_path
from m3l_ros.transport import fastdds_environment

SUBSCRIBERS_TIMEOUT = "120"
LAST_MASKS = 3.0

ARGUMENTS = [
    ("bag", None, "rosbag2 folder, or file, in MCAP or SQLite"),
    ("checkpoint", None, "model file, as m3l train writes it"),
    ("out", "", "folder to record masks, colour and diagnostics into; empty: record nothing"),
    ("rate", "1.0", "seconds of the bag per second"),
    ("drop_depth", "", "BEGIN:END, seconds from the bag's start without depth"),
    ("rgb_topic", DEFAULT_TOPICS.rgb, "of the bag"),
    ("depth_topic", DEFAULT_TOPICS.depth, "of the bag"),
    ("rgb_info_topic", "", "of the bag; empty: camera_info beside rgb_topic"),
    ("depth_info_topic", "", "of the bag; empty: camera_info beside depth_topic"),
    ("rgb_transport", "raw", "raw or compressed; rgb_topic is named without it"),
    ("depth_transport", "raw", "raw, compressed or compressedDepth; depth_topic is named without it"),
    ("device", "", "auto, cpu, cuda or cuda:N; empty: as in params_file"),
    ("overload", "queue", "queue: every frame gets its mask; newest: as on the robot"),
    ("params_file", str(share_path("config/segmentation_node.yaml")), "YAML file of the node's parameters"),
]

# Arguments that segmentation.launch.py has too.
SHARED = [
    *("checkpoint", "rgb_topic", "depth_topic", "rgb_info_topic", "depth_info_topic"),
    *("rgb_transport", "depth_transport", "device", "overload", "params_file"),
]


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments; start the node, the recorder and the replay; stop soon after the replay's end."""
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=text)
                for name, default, text in ARGUMENTS
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(str(share_path("launch/segmentation.launch.py"))),
                launch_arguments=[
                    ("use_sim_time", "true"),
                    *((name, LaunchConfiguration(name)) for name in SHARED),
                ],
            ),
            OpaqueFunction(function=start_replay),
        ]
    )


def start_replay(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Start the recorder, where one is asked for, and the replay."""

    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    environment = fastdds_environment(os.environ)
    out, drop_depth = value("out"), value("drop_depth")
    recorder = ExecuteProcess(
        cmd=[
            *("ros2", "bag", "record", "--output", out, "--use-sim-time"),
            *(value("rgb_topic"), "/segmentation/mask", "/segmentation/color", "/segmentation/classes"),
            "/diagnostics",
        ],
        additional_env=environment,
        output="screen",
    )
    replay = Node(
        package="m3l_ros",
        executable="m3l",
        arguments=[
            *("replay", value("bag"), "--clock", "--rate", value("rate")),
            *("--wait-for-subscribers", SUBSCRIBERS_TIMEOUT),
            *(("--drop-depth", drop_depth) if drop_depth else ()),
        ],
        additional_env=environment,
        output="screen",
    )
    last = TimerAction(period=LAST_MASKS, actions=[Shutdown(reason="the replay is over")])
    return [
        *([recorder] if out else []),
        replay,
        RegisterEventHandler(OnProcessExit(target_action=replay, on_exit=[last])),
    ]
