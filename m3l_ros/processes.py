# SPDX-License-Identifier: Apache-2.0
"""Processes that this one starts, watches and ends."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from m3l_model.errors import M3LError

_STOP_TIMEOUT = 10.0


@contextmanager
def run_process(
    command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process while the context is open, and end it with SIGINT, as a user would.

    Args:
        command: program and arguments.
        log: file for what it prints.
        environment: of the process; None: this one's.

    Raises:
        M3LError: it ended with another exit code than 0.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(_STOP_TIMEOUT)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    if process.returncode != 0:
        raise M3LError(f"{' '.join(command[2:4])} ended with exit code {process.returncode}; see {log}")
