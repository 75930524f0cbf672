# SPDX-License-Identifier: Apache-2.0
"""How torch's CPU threads wait for one another."""

from __future__ import annotations

from collections.abc import MutableMapping


def share_cores(environ: MutableMapping[str, str]) -> None:
    """Have OpenMP's threads sleep while they wait, unless the user has said how they should.

    By default they spin, which takes the cores from every other process, a camera driver for one, and makes torch
    itself many times slower as soon as those want the cores too. A program calls this before anything imports torch.

    Args:
        environ: the process's environment.
    """
    environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
