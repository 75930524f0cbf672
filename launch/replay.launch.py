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
    ("checkpoint", "", "model file, as m3l train writes it; empty: as in params_file"),
    ("out", "", "folder to record masks, colour and diagnostics into; empty: record nothing"),
    ("rate", "1.0", "seconds of the bag per second"),
    ("drop_depth", "", "BEGIN:END, seconds from the bag's start without depth"),
    ("rgb_topic", "", "as the bag has it, with /compressed where it is; empty: found in the bag"),
    ("depth_topic", "", "likewise"),
    ("rgb_info_topic", "", "of the bag; empty: beside rgb_topic"),
    ("depth_info_topic", "", "of the bag; empty: beside depth_topic"),
    ("device", "", "auto, cpu, cuda or cuda:N; empty: as in params_file"),
    ("overload", "queue", "queue: every frame gets its mask; newest: as on the robot"),
    ("params_file", str(share_path("config/segmentation_node.yaml")), "YAML file of the node's parameters"),
]

# Arguments that segmentation.launch.py has too.
SHARED = ["checkpoint", "rgb_info_topic", "depth_info_topic", "device", "overload", "params_file"]

COMPRESSED = ("compressed", "compressedDepth")


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments; start the node, the recorder and the replay; stop soon after the replay's end."""
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=text)
                for name, default, text in ARGUMENTS
            ),
            OpaqueFunction(function=start_replay),
        ]
    )


def start_replay(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Start the node on the bag's topics, the recorder, where one is asked for, and the replay."""

    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    from m3l_model.bags import BagReader  # needs rosbags, the arguments do not

    with BagReader(value("bag")) as bag:
        topics = bag.choose_topics(value("rgb_topic") or None, value("depth_topic") or None)
    rgb, rgb_transport = split_transport(topics.rgb)
    depth, depth_transport = split_transport(topics.depth or DEFAULT_TOPICS.depth)
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(share_path("launch/segmentation.launch.py"))),
        launch_arguments=[
            ("use_sim_time", "true"),
            ("rgb_topic", rgb),
            ("rgb_transport", rgb_transport),
            ("depth_topic", depth),
            ("depth_transport", depth_transport),
            *((name, LaunchConfiguration(name)) for name in SHARED),
        ],
    )
    environment = fastdds_environment(os.environ)
    out, drop_depth = value("out"), value("drop_depth")
    recorder = ExecuteProcess(
        cmd=[
            *("ros2", "bag", "record", "--output", out, "--use-sim-time"),
            *(topics.rgb, "/segmentation/mask", "/segmentation/color", "/segmentation/classes"),
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
            *("--wait-for-subscribers", SUBSCRIBERS_TIMEOUT, "--rgb-topic", topics.rgb),
            *(("--depth-topic", topics.depth) if topics.depth else ()),
            *(("--drop-depth", drop_depth) if drop_depth else ()),
        ],
        additional_env=environment,
        output="screen",
    )
    last = TimerAction(period=LAST_MASKS, actions=[Shutdown(reason="the replay is over")])
    return [
        node,
        *([recorder] if out else []),
        replay,
        RegisterEventHandler(OnProcessExit(target_action=replay, on_exit=[last])),
    ]


def split_transport(topic: str) -> tuple[str, str]:
    """Split a topic of a bag into what image_transport names it by, and the transport."""
    base, _, transport = topic.rpartition("/")
    return (base, transport) if transport in COMPRESSED else (topic, "raw")
