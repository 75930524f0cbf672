# SPDX-License-Identifier: Apache-2.0
"""The part of ``m3l eval --live`` that needs ROS; an entry point of the group ``m3l.live``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def load_check() -> Callable[..., Any]:
    """``m3l_ros.live.check_live``.

    Raises:
        M3LError: ROS is not there.
    """
    from m3l_ros.availability import require_ros

    require_ros()
    from m3l_ros.live import check_live

    return check_live
