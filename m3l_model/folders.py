# SPDX-License-Identifier: Apache-2.0
"""Folders for results that cannot be written are refused in one line, before work is spent on what goes into them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from m3l_model.errors import M3LError


def check_folder(folder: Path) -> None:
    """Refuse a folder in which nothing can be written, or that cannot be made; where there is none, none is made.

    Raises:
        M3LError: the folder, or the nearest above it that there is, takes no file.
    """
    with writing(folder):
        nearest = next(each for each in (folder, *folder.parents) if each.exists())
        with tempfile.TemporaryFile(dir=nearest):
            pass


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Name the folder in what the system says of it.

    Raises:
        M3LError: an OSError was raised meanwhile.
    """
    try:
        yield
    except OSError as error:
        raise M3LError(f"{folder}: cannot be written ({error.strerror}); choose another --out") from error
