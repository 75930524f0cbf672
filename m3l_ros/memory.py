# SPDX-License-Identifier: Apache-2.0
"""Has the C library keep the memory of images that were freed for those that come, and give it back in the end."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT = 64 * 2**20
_LARGEST_IMAGE = 32 * 2**20  # the most that glibc allows
_ARENAS = 2  # each thread would have one, and keep there what others could use


def keep_freed_memory() -> None:
    """Take images from the heap and leave it as large as it was, where the C library is glibc.

    By default every image is mapped from the system and given back: its pages are cleared and faulted in one by one,
    hundreds for each image, which costs a node at 30 Hz more than all of its own code.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        library.mallopt(_M_MMAP_THRESHOLD, _LARGEST_IMAGE)
        library.mallopt(_M_ARENA_MAX, _ARENAS)


def give_back_freed_memory() -> None:
    """Return to the system what is not in use, where the C library is glibc."""
    library = ctypes.CDLL(None)
    if hasattr(library, "malloc_trim"):
        library.malloc_trim(0)
