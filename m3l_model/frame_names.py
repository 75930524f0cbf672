# SPDX-License-Identifier: Apache-2.0
"""How image files are named after a bag's frames: ``<bag>/<stamp_ns>.png``."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import NamedTuple

_STAMP = re.compile("0|[1-9][0-9]{0,18}")
_SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})
_MAX_STAMP_NS = 2**63 - 1


class FrameName(NamedTuple):
    """The frame that a file belongs to.

    Attributes:
        bag_name: the bag folder's name, or the stem of a bag that is one file; None where the file names no bag.
        stamp_ns: header stamp of the frame's colour image.
    """

    bag_name: str | None
    stamp_ns: int


def frame_file(bag_name: str, stamp_ns: int) -> str:
    """Name the file of a frame, relative to the folder of all frames."""
    return f"{bag_name}/{stamp_ns}.png"


def parse_frame_file(name: str) -> FrameName | None:
    """Tell which frame a file belongs to; the inverse of ``frame_file``.

    Args:
        name: a path with ``/``. The last folder is the bag's name; those above it do not matter. JPEG files are frames
            too, since annotation tools are given them.

    Returns:
        None where the file is not named by a stamp: digits alone, without zeros in front.
    """
    path = PurePosixPath(name)
    if path.suffix.lower() not in _SUFFIXES or not _STAMP.fullmatch(path.stem):
        return None
    stamp_ns = int(path.stem)
    return FrameName(path.parent.name or None, stamp_ns) if stamp_ns <= _MAX_STAMP_NS else None
