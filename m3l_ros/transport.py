# SPDX-License-Identifier: Apache-2.0
"""Gives Fast DDS a shared-memory segment large enough for images, unless the user has chosen otherwise."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

from m3l_model.resources import share_path

PROFILE = "config/fastdds_shm.xml"

PROFILE_VARIABLES = ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")
"""Name until Jazzy, name since Kilted."""

_DEFAULT_PROFILE_FILES = ("DEFAULT_FASTRTPS_PROFILES.xml", "DEFAULT_FASTDDS_PROFILES.xml")
_SHARED_MEMORY = Path("/dev/shm")
_NEEDED_BYTES = 2 * 70 * 2**20
"""A segment for this process, which Fast DDS takes whole when it starts, and one for the process it talks to."""

_logger = logging.getLogger(__name__)


def fastdds_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Environment variables to add, before ROS starts, so that Fast DDS does not lose images.

    Nothing is added for another middleware, where the user has a profile or a choice of transports of his own, or where
    shared memory is too small (a container started without ``--ipc=host`` or ``--shm-size``): there Fast DDS would be
    left without shared memory at all.

    Args:
        environ: the environment of the process that will use ROS.

    Raises:
        M3LError: the profile is not installed.
    """
    if not environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp").startswith("rmw_fastrtps"):
        return {}
    if any(environ.get(name) for name in (*PROFILE_VARIABLES, "FASTDDS_BUILTIN_TRANSPORTS")):
        return {}
    if any(Path(name).exists() for name in _DEFAULT_PROFILE_FILES):
        return {}
    free = _free_shared_memory()
    if free < _NEEDED_BYTES:
        _logger.warning(
            "%s has %d MiB free, %d are needed for %s: images may be lost; start the container with --ipc=host "
            "or --shm-size=1g",
            _SHARED_MEMORY,
            free >> 20,
            _NEEDED_BYTES >> 20,
            PROFILE,
        )
        return {}
    return dict.fromkeys(PROFILE_VARIABLES, str(share_path(PROFILE)))


def _free_shared_memory() -> int:
    return shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else 0
