# SPDX-License-Identifier: Apache-2.0
"""Files in a folder or in a zip archive, read whole and only up to a size; nothing is unpacked to disk."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from m3l_model.labels import LabelError

_UNREADABLE_ZIP = (
    zipfile.BadZipFile,
    EOFError,
    KeyError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zlib.error,
)
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_ENCRYPTED = 0x1


class Storage(Protocol):
    """Named files; picklable, and usable in a process that was forked."""

    path: Path

    def names(self) -> list[str]:
        """Paths of all files, relative, with ``/``, sorted; hidden ones are left out."""

    def read(self, name: str, limit: int) -> bytes:
        """Read a file.

        Raises:
            LabelError: it cannot be read, or has more than ``limit`` bytes.
        """

    def locate(self, name: str) -> str:
        """Name a file in errors."""


class FolderStorage:
    """The files below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        found = []
        for folder, subfolders, files in os.walk(self.path):
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
            relative = Path(folder).relative_to(self.path)
            found += [(relative / name).as_posix() for name in files if not name.startswith(".")]
        return sorted(found)

    def read(self, name: str, limit: int) -> bytes:
        try:
            if not (self.path / name).is_file():
                raise LabelError(f"{self.locate(name)}: no such file")
            with (self.path / name).open("rb") as file:
                data = file.read(limit + 1)
        except OSError as error:
            raise LabelError(f"{self.locate(name)}: cannot read the file: {error.strerror}") from error
        _check_length(len(data), limit, self.locate(name))
        return data

    def locate(self, name: str) -> str:
        return str(self.path / name)


class ZipStorage:
    """The files in a zip archive, which each process opens for itself."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open: tuple[int, zipfile.ZipFile] | None = None

    def names(self) -> list[str]:
        found = [info.filename for info in self._archive().infolist() if not info.is_dir()]
        for name in found:
            if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
                raise LabelError(f"{self.path}: entry {name!r} points outside the archive; export it again")
        visible = [
            name for name in found if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))
        ]
        twice = [name for name, count in Counter(visible).items() if count > 1]
        if twice:
            raise LabelError(f"{self.path}: entry {twice[0]!r} is there twice; export the archive again")
        return sorted(visible)

    def read(self, name: str, limit: int) -> bytes:
        archive = self._archive()
        try:
            info = archive.getinfo(name)
            if info.flag_bits & _ENCRYPTED:
                raise LabelError(f"{self.locate(name)}: encrypted; export it without a password")
            if info.compress_type not in _METHODS:
                raise LabelError(f"{self.locate(name)}: only deflate and uncompressed entries are read")
            _check_length(info.file_size, limit, self.locate(name))
            return archive.read(info)
        except _UNREADABLE_ZIP as error:
            raise LabelError(f"{self.locate(name)}: cannot read the archive's entry: {error}") from error

    def locate(self, name: str) -> str:
        return f"{self.path}/{name}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def _archive(self) -> zipfile.ZipFile:
        if self._open is None or self._open[0] != os.getpid():  # a forked one would share the file's position
            try:
                self._open = os.getpid(), zipfile.ZipFile(self.path)
            except _UNREADABLE_ZIP as error:
                raise LabelError(f"{self.path}: cannot read the archive: {error}") from error
        return self._open[1]


def _check_length(length: int, limit: int, source: str) -> None:
    if length > limit:
        raise LabelError(f"{source}: larger than {limit >> 20} MiB, too large for what it should be")
