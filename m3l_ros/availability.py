# SPDX-License-Identifier: Apache-2.0
"""Starts ROS 2, and says in one line what to do where that fails."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from m3l_model.errors import M3LError


def require_ros() -> None:
    """Make sure that rclpy can be imported.

    Raises:
        M3LError: it cannot; the message says what to install.
    """
    try:
        importlib.import_module("rclpy")
    except ImportError as error:
        raise M3LError(
            f"ROS 2 is not available ({error}); on a machine with ROS: source /opt/ros/DISTRO/setup.bash, "
            "elsewhere: pip install 'm3l_ros[ros]'"
        ) from error


def start_ros(arguments: Sequence[str]) -> None:
    """Initialize rclpy, and leave the handling of signals to the program.

    Args:
        arguments: the program's; those after ``--ros-args`` count.

    Raises:
        M3LError: ROS does not understand them, or cannot be started for another reason.
    """
    require_ros()
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    try:
        rclpy.init(args=list(arguments), signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:  # rclpy's own classes for this are not public
        raise M3LError(f"ROS cannot be started: {' '.join(str(error).split())}") from error


def without_ros_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments that are not ROS's: those before ``--ros-args``, and those after the ``--`` that ends it."""
    own, in_ros = [], False
    for argument in arguments:
        if argument == "--ros-args":
            in_ros = True
        elif in_ros and argument == "--":
            in_ros = False
        elif not in_ros:
            own.append(argument)
    return own
