# SPDX-License-Identifier: Apache-2.0
"""Which files make up a bag, and what kind each of them is."""

from __future__ import annotations

import shlex
from pathlib import Path

import yaml

from m3l_model import mcap_file, sqlite_file
from m3l_model.bag_storage import BagError, StorageFile

_ROS1_MAGIC = b"#ROSBAG"
_METADATA = "metadata.yaml"
_MAX_METADATA_BYTES = 64 << 20


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
        _refuse_ros1(path)
        return [path], []
    found = sorted(
        file for file in path.iterdir() if file.suffix in (".mcap", ".db3", ".bag") and file.is_file()
    )
    named, warnings = _named_files(path)
    for file in named:
        if not (path / file).is_file():
            raise BagError(
                f"{path / file}: missing, though {_METADATA} names it; put it back, or remove {_METADATA} to "
                "read the rest"
            )
        if file.endswith(".zstd"):
            raise BagError(
                f"{path / file}: compressed as a whole; decompress it: `zstd -d --rm {shlex.quote(str(path / file))}`, "
                f"and remove {_METADATA}"
            )
    if not (named or found):
        if any(file.suffix == ".zstd" for file in path.iterdir()):
            raise BagError(
                f"{path}: its files are compressed as a whole; decompress them: `zstd -d --rm *.zstd`"
            )
        raise BagError(f"{path} is no rosbag2 folder: it has no {_METADATA}, .mcap or .db3 file")
    files = [path / file for file in named] or found
    _refuse_ros1(files[0])
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
        names = [Path(str(name)).name for name in information["relative_file_paths"]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return [], [f"{metadata}: not used, as it cannot be read: {reason}"]
    return list(dict.fromkeys(filter(None, names))), []


def _refuse_ros1(path: Path) -> None:
    if path.suffix == ".bag" or _first_bytes(path).startswith(_ROS1_MAGIC):
        source, target = shlex.quote(str(path)), shlex.quote(str(path.with_suffix("")))
        raise BagError(
            f"{path} is a ROS 1 bag; convert it with: rosbags-convert --src {source} --dst {target} --dst-storage mcap"
        )
