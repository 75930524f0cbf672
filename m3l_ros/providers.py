# SPDX-License-Identifier: Apache-2.0
"""The one place that reaches for message_filters and cv_bridge: ROS 2's where they are installed, else equivalents.

``SimpleFilter``, ``Subscriber`` and ``to_rgb`` are what the node uses. Debian's python3-message-filters and
python3-cv-bridge, which are ROS 1, are never taken: only packages of a ROS 2 installation are in the ament index.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from m3l_model import images


def find_ros2_package(name: str, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The prefix of the ROS 2 installation that holds a Python package; None where it is not installed, or is ROS 1's.

    Args:
        name: of the package, which is also its Python module's.
        environ: the environment, for ``AMENT_PREFIX_PATH``.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        return None
    module = Path(spec.origin)
    for entry in environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        prefix = Path(entry)
        marker = prefix / "share" / "ament_index" / "resource_index" / "packages" / name
        if entry and marker.is_file() and module.is_relative_to(prefix):
            return prefix
    return None


to_rgb: Callable[[Any], npt.NDArray[np.uint8]]

if find_ros2_package("message_filters"):
    from message_filters import SimpleFilter, Subscriber

    MESSAGE_FILTERS = "message_filters"
else:
    from m3l_ros.filters import SimpleFilter, Subscriber

    MESSAGE_FILTERS = "built in"

to_rgb, CONVERSION = images.to_rgb, "rosbags-image"
if find_ros2_package("cv_bridge"):
    try:
        from cv_bridge import CvBridge

        from m3l_ros.conversion import CvBridgeConverter

        _bridge = CvBridge()
        _bridge.encoding_to_dtype_with_channels("rgb8")  # loads its compiled part
        to_rgb, CONVERSION = CvBridgeConverter(_bridge).to_rgb, "cv_bridge"
    except Exception as error:  # most often it was compiled for another NumPy
        CONVERSION += f" (cv_bridge is installed and does not work: {' '.join(str(error).split())})"

__all__ = ["CONVERSION", "MESSAGE_FILTERS", "SimpleFilter", "Subscriber", "find_ros2_package", "to_rgb"]
