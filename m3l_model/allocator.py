# SPDX-License-Identifier: Apache-2.0
"""How the C library keeps memory that torch's CPU operators free."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_MMAP_THRESHOLD = 32 << 20
_KEPT = 256 << 20


def keep_freed_memory() -> bool:
    """Have glibc keep up to 256 MB of freed memory, instead of giving it back and asking for it again at each operator.

    By default the temporaries of a frame are mapped and cleared anew by the kernel, page by page, which takes longer
    than computing them. It is a setting of the whole process, for one that segments frame after frame.

    Returns:
        Whether the C library has such a setting.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(_M_TRIM_THRESHOLD, _KEPT) and mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD))
