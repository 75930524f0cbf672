# SPDX-License-Identifier: Apache-2.0
"""Where the finished blocks of an evaluation are kept: in memory, or in files from which an interrupted one goes on."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from m3l_model.errors import M3LError
from m3l_model.evaluation_pictures import Picture, pack_pictures, unpack_pictures

if TYPE_CHECKING:
    from m3l_model.evaluation import BlockResult


class EvaluationStore(Protocol):
    """Keeps results of blocks by their numbers."""

    def has(self, number: int) -> bool:
        """Whether a block is finished."""

    def save(self, number: int, result: BlockResult) -> None:
        """Keep a finished block."""

    def load(self, number: int) -> BlockResult:
        """Give a finished block, without its pictures."""

    def pictures(self) -> Iterator[Picture]:
        """Give the pictures of all blocks."""


class MemoryStore:
    """Keeps results until the process ends."""

    def __init__(self) -> None:
        self._results: dict[int, BlockResult] = {}

    def has(self, number: int) -> bool:
        return number in self._results

    def save(self, number: int, result: BlockResult) -> None:
        self._results[number] = result

    def load(self, number: int) -> BlockResult:
        return self._results[number]

    def pictures(self) -> Iterator[Picture]:
        for result in self._results.values():
            yield from result.pictures


class FileStore:
    """Keeps results in a folder, one file a block.

    Args:
        folder: created where it does not exist.
        facts: what the results depend on, in plain types: a folder with the results of other facts is refused.

    Raises:
        M3LError: the folder belongs to another evaluation, or cannot be written.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._folder = folder
        note = folder / "facts.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            before = json.loads(note.read_text(encoding="utf-8")) if note.exists() else None
            if before is None:
                note.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        except (OSError, ValueError) as error:
            raise M3LError(f"{folder}: cannot keep the progress: {' '.join(str(error).split())}") from error
        if before is not None and before != json.loads(json.dumps(facts)):
            changed = sorted(
                name for name in facts if before.get(name) != json.loads(json.dumps(facts[name]))
            )
            raise M3LError(
                f"{folder}: the progress of an evaluation that differs in {', '.join(changed) or 'its version'}; "
                "remove the folder, or choose another --out"
            )

    def has(self, number: int) -> bool:
        return self._file(number).exists()

    def save(self, number: int, result: BlockResult) -> None:
        index, data = pack_pictures(result.pictures)
        arrays = {field.name: getattr(result.counts, field.name) for field in fields(result.counts)}
        arrays |= {
            "frames": result.frames,
            "unreadable": np.array(result.unreadable),
            "picture_index": index,
            "picture_data": data,
        }
        part = self._file(number).with_suffix(".part")
        try:
            with part.open("wb") as file:
                np.savez(file, **arrays)
            os.replace(part, self._file(number))
        except OSError as error:
            raise M3LError(f"{part}: cannot keep the progress: {error.strerror}") from error

    def load(self, number: int) -> BlockResult:
        from m3l_model.evaluation import BlockResult, Counts

        with self._open(number) as arrays:
            counts = Counts(*(arrays[field.name] for field in fields(Counts)))
            return BlockResult(counts, arrays["frames"], (), int(arrays["unreadable"]))

    def pictures(self) -> Iterator[Picture]:
        for file in sorted(self._folder.glob("block_*.npz")):
            with self._open(int(file.stem.removeprefix("block_"))) as arrays:
                yield from unpack_pictures(arrays["picture_index"], arrays["picture_data"])

    def remove(self) -> None:
        """Remove the folder: the evaluation is done."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _open(self, number: int) -> Any:
        file = self._file(number)
        try:
            return np.load(file, allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise M3LError(f"{file}: damaged progress ({error}); remove the file and start again") from error

    def _file(self, number: int) -> Path:
        return self._folder / f"block_{number:06d}.npz"
