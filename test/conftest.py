# SPDX-License-Identifier: Apache-2.0
"""Fixtures for all tests."""

from __future__ import annotations

import os
import signal
import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest

# Before anything imports torch, and for the processes that tests start: several of them share few cores, and the
# threads of OpenMP, which wait by spinning, would take the time from one another.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell has what it runs in the background ignore SIGINT, which tests send.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Tests find no index that another run has left, and leave none.
_CACHE = tempfile.TemporaryDirectory(prefix="m3l_test_cache_")
os.environ["XDG_CACHE_HOME"] = _CACHE.name

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets and reference fixtures that lies beside the repository; skips where there is none."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the data sets and reference fixtures in {folder}")
    return folder


@pytest.fixture
def cuda_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the engine of GPUs run on the CPU: no streams, no pinned memory, and no graph is captured."""
    import torch

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("no capture on the CPU")

    monkeypatch.setattr("m3l_model.cuda_engine._pinned", torch.zeros)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda module: module)
    fakes: dict[str, Any] = {
        "Stream": lambda *_: MagicMock(),
        "Event": lambda **_: MagicMock(elapsed_time=lambda _: 1.0),
        "stream": MagicMock(),
        "current_stream": lambda *_: MagicMock(),
        "synchronize": lambda *_: None,
        "CUDAGraph": MagicMock(),
        "graph_pool_handle": lambda: (0, 0),
        "graph": refuse,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
