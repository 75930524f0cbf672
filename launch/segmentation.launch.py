# SPDX-License-Identifier: Apache-2.0
"""Starts the segmentation node: ``ros2 launch m3l_ros segmentation.launch.py checkpoint:=model.safetensors``.

Include it in a launch file of your own, once for each camera, with a namespace each.
"""

import os

from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from m3l_model.bag_topics import DEFAULT_TOPICS
from m3l_model.resources import share_path
from m3l_ros.transport import fastdds_environment

# The node's inputs: launch argument, name in the node, topic.
TOPICS = [
    ("rgb_topic", "rgb/image", DEFAULT_TOPICS.rgb),
    ("depth_topic", "depth/image", DEFAULT_TOPICS.depth),
]

# Likewise the camera infos; the node finds those beside the images by itself.
INFOS = [
    ("rgb_info_topic", "rgb/camera_info"),
    ("depth_info_topic", "depth/camera_info"),
]

# Launch arguments that set the parameter of their name; empty ones leave it to the parameters file.
PARAMETERS = {
    "checkpoint": (str, "model file, as m3l train writes it, or nyu13_b0"),
    "device": (str, "auto, cpu, cuda or cuda:N"),
    "precision": (str, "auto, fp32, bf16 or fp16"),
    "rgb_transport": (str, "raw or compressed"),
    "depth_transport": (str, "raw, compressed or compressedDepth"),
    "input_qos": (str, "auto, reliable or best_effort"),
    "overload": (str, "newest or queue"),
    "anchor": (str, "rgb or either"),
    "autostart": (bool, "true, or false for a lifecycle manager"),
    "use_sim_time": (bool, "true to follow /clock"),
}


def generate_launch_description() -> LaunchDescription:
    """Declare the arguments, then start the node."""
    arguments = [
        ("namespace", "", "of the node and its outputs"),
        ("node_name", "segmentation_node", "name of the node"),
        ("params_file", str(share_path("config/segmentation_node.yaml")), "YAML file of parameters"),
        ("log_level", "info", "debug, info, warn or error"),
        *((argument, topic, f"what {name} is") for argument, name, topic in TOPICS),
        *((argument, "", f"what {name} is; empty: beside the images") for argument, name in INFOS),
        *((name, "", f"{text}; empty: as in params_file") for name, (_, text) in PARAMETERS.items()),
    ]
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(name, default_value=default, description=text)
                for name, default, text in arguments
            ),
            OpaqueFunction(function=start_node),
        ]
    )


def start_node(context: LaunchContext) -> list[Node]:
    """Start the node with what the arguments say."""

    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    topics = {name: value(argument) for argument, name, _ in TOPICS}
    infos = {name: value(argument) for argument, name in INFOS if value(argument)}
    given = {
        name: ParameterValue(LaunchConfiguration(name), value_type=kind)
        for name, (kind, _) in PARAMETERS.items()
        if value(name)
    }
    return [
        Node(
            package="m3l_ros",
            executable="segmentation_node",
            name=LaunchConfiguration("node_name"),
            namespace=LaunchConfiguration("namespace"),
            parameters=[LaunchConfiguration("params_file"), given],
            remappings=list({**topics, **infos}.items()),
            ros_arguments=["--log-level", LaunchConfiguration("log_level")],
            additional_env=fastdds_environment(os.environ),
            output="screen",
        )
    ]
