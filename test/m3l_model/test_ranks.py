# SPDX-License-Identifier: Apache-2.0
"""Two processes compute what one does: each test starts them as torchrun would, over gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

RANKS = Path(__file__).with_name("ranks_worker.py")


def run(ranks: int, *arguments: str) -> dict[str, object]:
    """Start the worker in so many processes; give what the first one prints."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    result = subprocess.run([*command, str(RANKS), *arguments], capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr[-3000:]
    found: dict[str, object] = json.loads(result.stdout.strip().splitlines()[-1])
    return found


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-4), ("64-true", 1e-9)])
@pytest.mark.parametrize("recipe", ["m3l", "m3l_paper"])
def test_two_processes_compute_the_same_losses_and_statistics(
    recipe: str, precision: str, tolerance: float
) -> None:
    one, two = (run(ranks, recipe, precision) for ranks in (1, 2))
    assert two["ranks"] == 2
    for name in ("losses", "running_mean", "running_var"):
        assert two[name] == pytest.approx(one[name], rel=tolerance, abs=tolerance * 1e-3), name
