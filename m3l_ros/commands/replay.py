# SPDX-License-Identifier: Apache-2.0
"""``m3l replay``: publishes a bag over ROS 2, with faults."""

from __future__ import annotations

import argparse
import os
import signal
from functools import partial
from pathlib import Path

HELP = "publish a bag's topics as recorded, and withhold depth when told to"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("bag", type=Path, metavar="BAG", help="rosbag2 folder, or file, in MCAP or SQLite")
    parser.add_argument(
        "--rate", type=float, default=1.0, help="seconds of the bag per second (default: %(default)s)"
    )
    parser.add_argument(
        "--drop-depth",
        action="append",
        default=[],
        metavar="BEGIN:END",
        help="withhold depth images then, in seconds from the bag's start; can be given again",
    )
    parser.add_argument(
        "--faults",
        type=int,
        metavar="SEED",
        help="put faults into colour and depth, one after another, the same for the same seed: lost, late, doubled, "
        "damaged and frozen images, jumping stamps, pauses, publishers replaced and more",
    )
    parser.add_argument(
        "--step",
        action="store_true",
        help="publish each image when the segmentation node has dealt with the one before, and drive its clock "
        "(it needs -p use_sim_time:=true): what it decides then depends on the bag alone",
    )
    for role in ("rgb", "depth"):
        parser.add_argument(
            f"--{role}-topic", metavar="TOPIC", help="default: guessed by type, encoding and name"
        )
    parser.add_argument("--topics", nargs="+", metavar="TOPIC", help="publish these only (default: all)")
    parser.add_argument("--clock", action="store_true", help="publish the bag's time on /clock")
    parser.add_argument("--loop", action="store_true", help="start over at the end, until interrupted")
    parser.add_argument(
        "--delay", type=float, default=0.0, metavar="SECONDS", help="wait before the first message"
    )
    parser.add_argument(
        "--wait-for-subscribers",
        type=float,
        metavar="SECONDS",
        help="start when somebody subscribes to colour and to depth; give up after so long",
    )
    parser.add_argument(
        "--ros-args",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="ARG",
        help="what follows goes to ROS, for instance -r /camera/color/image_raw:=/rgb/image",
    )


def run(args: argparse.Namespace) -> int:
    """Publish the bag; an interrupt is a normal end."""
    from m3l_model.errors import M3LError
    from m3l_ros.availability import require_ros, start_ros
    from m3l_ros.transport import fastdds_environment

    require_ros()
    os.environ.update(fastdds_environment(os.environ))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)

    import rclpy

    from m3l_ros.replay import BagPlayer, Interval, ReplayOptions

    try:
        drop_depth = tuple(Interval.parse(text) for text in args.drop_depth)
    except ValueError as error:
        raise M3LError(f"--drop-depth: {error}") from error
    options = ReplayOptions(
        rate=args.rate,
        topics=args.topics,
        drop_depth=drop_depth,
        rgb_topic=args.rgb_topic,
        depth_topic=args.depth_topic,
        clock=args.clock,
        step=args.step,
        loop=args.loop,
        delay=args.delay,
        wait_for_subscribers=args.wait_for_subscribers,
        faults=args.faults,
    )
    start_ros(["--ros-args", *args.ros_args])
    try:
        player = BagPlayer(rclpy.create_node("m3l_replay"), args.bag, options, partial(print, flush=True))
        try:
            player.play()
        except KeyboardInterrupt:
            print("interrupted")
        counts = player.counts()
        withheld = f", {counts.withheld} depth images withheld" if drop_depth else ""
        faults = f", {counts.faults} faults" if args.faults is not None else ""
        print(f"published {sum(counts.published.values())} messages{withheld}{faults}")
    finally:
        rclpy.shutdown()
    return 0
