# SPDX-License-Identifier: Apache-2.0
"""How torch's CPU threads wait for one another."""

from __future__ import annotations

from collections.abc import MutableMapping

_SPINS = "20000"
"""Rounds of GNU OpenMP's waiting loop, a few tenths of a millisecond: longer than between two operators of a frame."""


def share_cores(environ: MutableMapping[str, str]) -> None:
    """Have OpenMP's threads sleep when they have waited for a moment, unless the user has said how they should wait.

    By default they spin for long, which takes the cores from every other process, a camera driver for one, and makes
    torch itself many times slower as soon as those want the cores too. Threads that sleep at once must be woken at each
    of the hundreds of operators of a frame. A program calls this before anything imports torch.

    Args:
        environ: the process's environment.
    """
    if "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", _SPINS)
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def leave_cores_to_torch(environ: MutableMapping[str, str]) -> None:
    """Take back what ``share_cores`` has set, for a program that is measured as its users run it.

    Args:
        environ: the environment of the process that starts that program.
    """
    if environ.get("GOMP_SPINCOUNT") == _SPINS and environ.get("OMP_WAIT_POLICY") == "PASSIVE":
        del environ["GOMP_SPINCOUNT"], environ["OMP_WAIT_POLICY"]
