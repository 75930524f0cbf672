# SPDX-License-Identifier: Apache-2.0
"""``m3l node``: runs the segmentation node."""

from __future__ import annotations

import argparse

HELP = "run the ROS 2 node that segments live images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "--checkpoint", metavar="FILE", help="a model's file; short for the parameter checkpoint"
    )
    parser.add_argument(
        "--ros-args",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="ARG",
        help="what follows goes to ROS: -p slop:=0.05, -r rgb/image:=/camera/color/image_raw, --params-file FILE ...",
    )


def run(args: argparse.Namespace) -> int:
    """Run it until it is interrupted."""
    from m3l_ros.availability import require_ros
    from m3l_ros.segmentation_node import main

    require_ros()
    parameters = ["-p", f"checkpoint:={args.checkpoint}"] if args.checkpoint else []
    return main(["--ros-args", *args.ros_args, *parameters])
