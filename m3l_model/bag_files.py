# SPDX-License-Identifier: Apache-2.0
"""Which files make up a bag, and what kind each of them is."""

from __future__ import annotations

import shlex
from pathlib import Path

import yaml

from m3l_model import mcap_file, sqlite_file
from m3l_model.bag_storage import BagError, StorageFile

_ROS1_MAGIC = b"#ROSBAG"
_SUFFIXES = (".mcap", ".db3")
_METADATA = "metadata.yaml"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_METADATA_BYTES = 2 << 20
"""Twenty times what a long recording needs; parsing more would take minutes."""


def storage_paths(path: Path) -> tuple[list[Path], list[str]]:
    """Find the storage files of a bag, a folder with or without metadata.yaml, or a single file.

    Returns:
        The files, in the order of metadata.yaml, else of their names; and lines for people on what is wrong with it.

    Raises:
        BagError: there is no bag, it is of ROS 1, or a file that metadata.yaml names is missing.
    """
    if not path.exists():
        raise BagError(f"{path}: no such bag")
    if path.is_file():
        _refuse(path)
        return [path], []
    try:
        present = sorted(file for file in path.iterdir() if file.is_file())
    except OSError as error:
        raise BagError(f"{path}: cannot read the folder: {error.strerror}") from error
    found = [file for file in present if file.suffix in (*_SUFFIXES, ".bag")]
    named, warnings = _named_files(path)
    for file in present:
        storage = file.with_suffix("")
        compressed = file.suffix == ".zstd" and storage.suffix in _SUFFIXES
        if compressed and (file.name in named or storage not in present):
            _refuse(file)
    for name in named:
        if path / name not in present:
            raise BagError(
                f"{path / name}: missing, though {_METADATA} names it; put it back, or remove {_METADATA} to "
                "read the rest"
            )
    if not (named or found):
        raise BagError(f"{path} is no rosbag2 folder: it has no {_METADATA}, .mcap or .db3 file")
    files = [path / file for file in named] or found
    _refuse(files[0])
    unnamed = [file.name for file in found if file not in files]
    if unnamed:
        warnings.append(f"{path}: not read, as {_METADATA} does not name them: {', '.join(unnamed)}")
    return files, warnings


def open_storage(path: Path) -> StorageFile:
    """Open a storage file, by its first bytes.

    Raises:
        BagError: it cannot be read, or is neither MCAP nor SQLite.
    """
    magic = _first_bytes(path)
    if magic.startswith(mcap_file.MAGIC):
        return mcap_file.McapFile(path)
    if magic.startswith(sqlite_file.MAGIC):
        return sqlite_file.SqliteFile(path)
    if not magic:
        raise BagError(
            f"{path}: the file is empty; remove it, and {_METADATA} beside it, to read the rest of the bag"
        )
    raise BagError(f"{path}: cannot read the bag: the file begins neither as MCAP nor as SQLite does")


def _first_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(16)
    except OSError as error:
        raise BagError(f"{path}: cannot open the file: {error.strerror}") from error


def _named_files(path: Path) -> tuple[list[str], list[str]]:
    """The files that metadata.yaml names, all of them within the folder, and what is wrong with it."""
    metadata = path / _METADATA
    if not metadata.exists():
        return [], []
    try:
        if metadata.stat().st_size > _MAX_METADATA_BYTES:
            raise ValueError("it is too large")
        information = yaml.safe_load(metadata.read_text(encoding="utf-8"))["rosbag2_bagfile_information"]
        paths = information["relative_file_paths"]
        if not isinstance(paths, list) or not all(isinstance(name, str) for name in paths):
            raise ValueError("its relative_file_paths are no list of names")
        names = [Path(name).name for name in paths]
    except Exception as error:  # on damage, PyYAML raises anything from its own errors to AttributeError
        reason = " ".join(str(error).split()) or type(error).__name__
        return [], [f"{metadata}: not used, as it cannot be read: {reason}"]
    return list(dict.fromkeys(filter(None, names))), []


def _refuse(path: Path) -> None:
    """Refuse what has to be converted first."""
    magic = _first_bytes(path)
    if magic.startswith(_ZSTD_MAGIC):
        raise BagError(
            f"{path}: compressed as a whole; decompress it: `zstd -d --rm {shlex.quote(str(path))}`, "
            f"and remove {_METADATA} beside it, if there is one"
        )
    if path.suffix == ".bag" or magic.startswith(_ROS1_MAGIC):
        source, target = shlex.quote(str(path)), shlex.quote(str(path.with_suffix("")))
        raise BagError(
            f"{path} is a ROS 1 bag; convert it with: rosbags-convert --src {source} --dst {target} --dst-storage mcap"
        )
