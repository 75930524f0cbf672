# SPDX-License-Identifier: Apache-2.0
"""Keeps what was found out about bags in the user's cache directory, by what is in the bag: made once, found again.

A bag that has changed has another key. Entries appear whole or not at all, so that two processes may make one at once;
one that is damaged, or a directory that cannot be written, costs time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from m3l_model.bag_files import storage_paths
from m3l_model.bag_index import MESSAGE, BagIndex, BagTopic, build_index
from m3l_model.bag_storage import BagError
from m3l_model.bag_topics import ImageTopic
from m3l_model.sqlite_file import unfinished_journals

_FORMAT = 2
"""Raise when what is kept changes its meaning."""

_SAMPLE_BYTES = 64 << 10
_PROGRESS_AFTER_S = 0.5

_log = logging.getLogger(__name__)


def open_index(path: str | Path, cache: bool = True) -> BagIndex:
    """Find the index of a bag, or make it, with a progress bar where that takes a while.

    Args:
        path: a rosbag2 folder or storage file.
        cache: else neither look into the cache directory nor write there.

    Raises:
        BagError: the bag cannot be read.
    """
    path = Path(path)
    files, notes = storage_paths(path)
    key = bag_key(path, files)
    index = _load_index(key, path, files) if cache else None
    if index is None:
        index = _build(path, files)
        if cache and bag_key(path, files) == key:  # else the bag is being recorded
            index = replace(index, key=key)
            save(key, "index", _to_arrays(index))
    index = replace(index, warnings=(*notes, *index.warnings))
    for warning in index.warnings:
        _log.warning("%s", warning)
    return index


def bag_key(path: Path, files: Sequence[Path]) -> str:
    """What tells a bag from any other without reading it all: names, sizes, times of change, beginnings and ends.

    Raises:
        BagError: a file cannot be read.
    """
    digest = hashlib.blake2b(f"{_FORMAT} {path.name}".encode(errors="surrogateescape"), digest_size=16)
    for file in files:
        for part in (file, *unfinished_journals(file)):
            try:
                facts = part.stat()
                name = part.name.encode(errors="surrogateescape")
                digest.update(b"\0%s\0%d\0%d\0" % (name, facts.st_size, facts.st_mtime_ns))
                with part.open("rb") as opened:
                    digest.update(opened.read(_SAMPLE_BYTES))
                    opened.seek(max(facts.st_size - _SAMPLE_BYTES, 0))
                    digest.update(opened.read(_SAMPLE_BYTES))
            except OSError as error:
                raise BagError(f"{part}: cannot read the file: {error.strerror}") from error
    return digest.hexdigest()


def load(key: str, name: str) -> Mapping[str, npt.NDArray[Any]] | None:
    """Find arrays kept under a bag's key; None where there are none, or damaged ones."""
    try:
        with np.load(_folder() / key / f"{name}.npz", allow_pickle=False) as kept:
            return {field: kept[field] for field in kept.files}
    except Exception:  # whatever is wrong with it, it is made anew
        return None


def save(key: str, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Keep arrays under a bag's key, if the directory can be written."""
    try:
        folder = _folder() / key
        folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]
            os.replace(temporary, folder / f"{name}.npz")
        except BaseException:
            os.unlink(temporary)
            raise
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        _log.warning("cannot keep the bag's index, so it is made anew each time: %s", error)


def _build(path: Path, files: Sequence[Path]) -> BagIndex:
    with tqdm(
        total=sum(file.stat().st_size for file in files),
        desc=f"index {path.name}",
        unit="B",
        unit_scale=True,
        delay=_PROGRESS_AFTER_S,
    ) as progress:
        return build_index(path, files, lambda passed: progress.update(passed - progress.n))


def _load_index(key: str, path: Path, files: Sequence[Path]) -> BagIndex | None:
    kept = load(key, "index")
    try:
        return None if kept is None else _from_arrays(key, path, files, kept)
    except Exception:  # whatever is wrong with it, it is made anew
        return None


def _folder() -> Path:
    """The user's cache directory, by the XDG Base Directory Specification."""
    configured = Path(os.environ.get("XDG_CACHE_HOME") or "")
    base = configured if configured.is_absolute() else Path.home() / ".cache"
    return base / "m3l_ros" / "bags"


def _to_arrays(index: BagIndex) -> dict[str, npt.NDArray[Any]]:
    facts = {
        "path": str(index.path),
        "topics": index.topics,
        "images": index.images,
        "span": (index.start_ns, index.end_ns),
        "warnings": index.warnings,
    }
    return {"messages": index.messages, "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8)}


def _from_arrays(
    key: str, path: Path, files: Sequence[Path], kept: Mapping[str, npt.NDArray[Any]]
) -> BagIndex:
    facts = json.loads(kept["facts"].tobytes())
    messages = kept["messages"]
    topics = tuple(BagTopic(*fields) for fields in facts["topics"])
    if messages.dtype != MESSAGE or messages.ndim != 1:
        raise ValueError("not an index")
    if len(messages) and (messages["file"].max() >= len(files) or messages["topic"].max() >= len(topics)):
        raise ValueError("not the index of this bag")
    start_ns, end_ns = facts["span"]
    images = tuple(ImageTopic(*fields) for fields in facts["images"])
    warnings = tuple(
        line.replace(facts["path"], str(path)) for line in facts["warnings"]
    )  # it may have moved
    return BagIndex(path, tuple(files), topics, images, messages, start_ns, end_ns, warnings, key)
