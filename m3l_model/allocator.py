# SPDX-License-Identifier: Apache-2.0
"""How the C library keeps the memory of images and of torch's temporaries that were freed."""

from __future__ import annotations

import ctypes
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_LARGEST_MMAP_THRESHOLD = 32 << 20  # the most that glibc allows
_KEPT = 256 << 20


def keep_freed_memory(arenas: int | None = None) -> bool:
    """Have glibc keep up to 256 MB of freed memory, instead of giving it back and asking for it again each time.

    By default images and a frame's temporaries are mapped and cleared anew by the kernel, page by page, which takes
    longer than reading or computing them. It is a setting of the whole process, for one that handles frame after frame.

    Args:
        arenas: heaps that the threads share; None leaves one to each thread, which keeps there what others could use.
            Of all but the first, `give_back_freed_memory` cannot return what lies at the end.

    Returns:
        Whether the C library has such a setting.
    """
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    kept = mallopt(_M_TRIM_THRESHOLD, _KEPT) and mallopt(_M_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    return bool(kept and (arenas is None or mallopt(_M_ARENA_MAX, arenas)))


def give_back_freed_memory() -> None:
    """Return to the system what is not in use, where the C library is glibc."""
    malloc_trim = _function("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def _function(name: str) -> Any:
    """A function of the C library; None where it is another than glibc."""
    try:
        return getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError):
        return None
