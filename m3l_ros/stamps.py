# SPDX-License-Identifier: Apache-2.0
"""Times of messages as whole nanoseconds, and back."""

from __future__ import annotations

from typing import Any

from rclpy.time import Time

_SECOND = 1_000_000_000


def to_ns(time: Any) -> int:
    """A builtin_interfaces/Time in nanoseconds."""
    return int(time.sec) * _SECOND + int(time.nanosec)


def to_time(nanoseconds: int) -> Any:
    """The inverse of ``to_ns``, for times that are not negative."""
    return Time(nanoseconds=nanoseconds).to_msg()
