# SPDX-License-Identifier: Apache-2.0
"""What the CPU can multiply."""

from __future__ import annotations

import functools
import re
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")


def multiplies_bf16() -> bool:
    """Tell whether the processor multiplies bf16 itself: only then is it faster than fp32."""
    return not _flags().isdisjoint({"avx512_bf16", "amx_bf16"})


def multiplies_bf16_tiles() -> bool:
    """Tell whether it has a unit for products of bf16 matrices (AMX)."""
    return "amx_bf16" in _flags()


@functools.cache
def _flags() -> frozenset[str]:
    try:
        return frozenset(re.findall(r"\w+", _CPU_INFO.read_text()))
    except OSError:
        return frozenset()
