# SPDX-License-Identifier: Apache-2.0
"""Says what to install where ROS 2's Python packages are missing."""

from __future__ import annotations

import importlib

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
