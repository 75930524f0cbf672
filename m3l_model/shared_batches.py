# SPDX-License-Identifier: Apache-2.0
"""Brings batches from a ``DataLoader``'s workers to its process through memory that is shared once and used again.

PyTorch makes new shared memory for each batch; at the size of camera images, having the system clear and map those
pages takes several times as long as reading the images does. Here raw images are read from the bag right into it.
"""

from __future__ import annotations

import ctypes
import mmap
import multiprocessing
import os
import pickle
import weakref
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import get_worker_info

from m3l_model.allocator import keep_freed_memory
from m3l_model.bag_storage import Allocate, new_memory
from m3l_model.errors import M3LError

SLABS = 4
"""Batches a worker may have under way: two prefetched, one in use, one about to be given back."""

_ALIGNMENT = 64
_MARGIN_BYTES = 4096
"""More than what surrounds an image's pixels in its message."""


class CollateError(M3LError):
    """Samples that do not make a batch."""


class ReadableDataset(Protocol):
    """A data set that can read a sample, a named tuple of arrays and numbers, into memory that it is given."""

    def read(self, position: int, allocate: Allocate = ...) -> Any:
        """Read a sample."""


class LazySamples(Sequence[Any]):
    """Samples of a data set that are read when they are asked for, as its ``__getitems__`` may return them."""

    def __init__(self, dataset: ReadableDataset, positions: Sequence[int]) -> None:
        self._dataset = dataset
        self._positions = positions
        self._samples: list[Any] = []

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, index: Any) -> Any:
        if not self._samples:
            self._samples = list(self.stream(new_memory))
        return self._samples[index]

    def stream(self, allocate: Allocate) -> Iterator[Any]:
        """Read one sample after the other, keeping none."""
        return (self._dataset.read(position, allocate) for position in self._positions)


class SharedCollate:
    """The ``collate_fn`` of a ``DataLoader`` whose samples are named tuples of arrays and numbers, such as ``Sample``.

    A batch is the same named tuple of tensors, with one dimension more; where its samples share one read-only array,
    such as the labels of frames without labels, the tensor repeats that one. Its memory goes back to the worker when
    the last tensor of it is gone; as long as one is kept, it stays as it is. Where that memory does not serve (many
    batches kept, larger ones, workers that were not forked), batches come as PyTorch brings them.

    Args:
        dataset: whose first sample tells the size of the others.
        batch_size: of the loader.
        workers: of the loader.
    """

    def __init__(self, dataset: ReadableDataset, batch_size: int, workers: int) -> None:
        self._workers = workers
        if workers:
            sizes = [np.asarray(value).nbytes + _MARGIN_BYTES for value in dataset.read(0)]
            # Twice: messages as they were read, and what they were decoded to. Memory that is not used takes none.
            # Whole pages: arrays then lie alike in all slabs.
            self._slab_bytes = -(-2 * batch_size * sum(sizes) // mmap.PAGESIZE) * mmap.PAGESIZE
            self._memory = mmap.mmap(-1, workers * SLABS * self._slab_bytes)
            self._state = np.frombuffer(mmap.mmap(-1, workers * _STATE.itemsize), _STATE)
            self._lock = multiprocessing.get_context("fork").Lock()
            self._claim = (os.getpid(), -1)
            self._number = len(_COLLATES)
            _COLLATES.append(weakref.ref(self))

    def __getstate__(self) -> dict[str, int]:
        return {"_workers": 0}  # in a process that was not forked, the memory is another's

    def __call__(self, samples: Sequence[Any]) -> Any:
        """Make a batch of samples.

        Raises:
            CollateError: they differ in size or type.
            M3LError: a sample cannot be read.
        """
        try:
            return self._collate(samples)
        except M3LError as error:
            if get_worker_info() is None:
                raise
            return _Failure(error)

    def _collate(self, samples: Sequence[Any]) -> Any:
        number = self._free_slab()
        batch = None
        try:
            batch = self._fill(samples, number)
        finally:
            if number is not None and not isinstance(batch, _SharedBatch):
                self.give_back(number)
        return batch

    def _fill(self, samples: Sequence[Any], number: int | None) -> Any:
        slab = None if number is None else _Slab(self._slab(number))
        allocate = new_memory if slab is None else slab.allocate
        # One after the other: what must be copied is copied while it still lies in the processor's cache.
        stream = samples.stream(allocate) if isinstance(samples, LazySamples) else iter(samples)
        first = next(stream)
        columns = [
            (_Numbers if np.isscalar(value) else _Arrays)(name, value, len(samples), slab)
            for name, value in zip(first._fields, first, strict=True)
        ]
        for sample in chain([first], stream):
            for column, value in zip(columns, sample, strict=True):
                column.append(value)
        parts = [column.part() for column in columns]
        shared = [part for part in parts if isinstance(part, _Part)]
        if number is not None and len(shared) == len(parts):
            return _SharedBatch(self._number, number, _describe(type(first), tuple(shared)))  # type: ignore[arg-type]
        return type(first)(*(torch.from_numpy(column.copy()) for column in columns))

    def take(self, number: int, kind: type, parts: Sequence[_Part]) -> Any:
        """Make a batch of what a worker has put into a slab."""
        slab = self._slab(number)
        weakref.finalize(slab, self.give_back, number)
        return kind(*(torch.from_numpy(part.of(slab)) for part in parts))

    def give_back(self, number: int) -> None:
        """Let the worker use a slab again."""
        self._state["used"][number // SLABS, number % SLABS] = 0

    def _slab(self, number: int) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self._memory, np.uint8, self._slab_bytes, number * self._slab_bytes)

    def _free_slab(self) -> int | None:
        """A slab of this worker's that nobody uses; None where there is none, or this is no worker."""
        if not self._workers:
            return None
        if self._claim[0] != os.getpid():
            self._claim = (os.getpid(), self._claim_slabs())
            keep_freed_memory()
        worker = self._claim[1]
        if worker < 0:
            return None
        used = self._state["used"][worker]
        free = int(used.argmin())
        if used[free]:
            return None
        used[free] = 1
        return worker * SLABS + free

    def _claim_slabs(self) -> int:
        """Claim the slabs of a worker that is no more, or never was; -1 where there are none."""
        with self._lock:
            for worker, process in enumerate(self._state["process"]):
                if process == 0 or not _is_alive(int(process)):
                    self._state["process"][worker] = os.getpid()
                    return worker
        return -1


_STATE = np.dtype([("process", "<i8"), ("used", "u1", (SLABS,))])
"""Of each worker: its process, 0 before there is one, and which of its slabs are in use."""

_COLLATES: list[weakref.ref[SharedCollate]] = []
"""Those made in this process, by number: what a batch from a worker refers to."""


class _Part(NamedTuple):
    """Where in a slab an array lies."""

    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]

    def of(self, slab: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
        return np.ndarray(self.shape, self.dtype, slab, self.offset, self.strides)


@lru_cache(maxsize=64)
def _describe(kind: type, parts: tuple[_Part, ...]) -> bytes:
    """What a batch is and where it lies, pickled; mostly it is the same as of a batch before."""
    return pickle.dumps((kind, parts))


@lru_cache(maxsize=64)
def _described(description: bytes) -> tuple[type, tuple[_Part, ...]]:
    """The inverse of ``_describe``."""
    kind, parts = pickle.loads(description)
    return kind, parts


class _SharedBatch:
    """A batch in shared memory, on its way: in the process that receives it, it turns into tensors."""

    def __init__(self, collate: int, slab: int, description: bytes) -> None:
        self._arguments = (collate, slab, description)

    def __reduce__(self) -> tuple[Any, ...]:
        return _take, self._arguments


class _Failure:
    """An error on its way from a worker: raised as it is where it arrives, not as the text of PyTorch's traceback."""

    def __init__(self, error: M3LError) -> None:
        self._error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise, (self._error,)


def _raise(error: M3LError) -> None:
    raise error


def _take(collate: int, slab: int, description: bytes) -> Any:
    found = _COLLATES[collate]()
    assert found is not None, "a batch came from a loader that is no more"
    return found.take(slab, *_described(description))


class _Slab:
    """Memory for one batch, given out piece by piece."""

    def __init__(self, whole: npt.NDArray[np.uint8]) -> None:
        self._whole = memoryview(whole)  # type: ignore[arg-type]
        self._begin = _address(whole)
        self._used = 0
        self._end = len(whole)

    def allocate(self, size: int, aligned: int) -> memoryview:
        """The ``Allocate`` of this memory, and of new memory once it is used up."""
        start = self._used + -(self._begin + self._used + aligned) % _ALIGNMENT
        if start + size > self._end:
            return new_memory(size, aligned)
        self._used = start + size
        return self._whole[start : start + size]

    def allocate_rows(self, size: int) -> int | None:
        """Where there is memory at the end, so that what ``allocate`` gives lies at even distances; None if nowhere."""
        start = self._end - size
        start -= (self._begin + start) % _ALIGNMENT
        if start < self._used:
            return None
        self._end = start
        return start

    def piece(self, start: int, size: int) -> memoryview:
        """Memory that was allocated."""
        return self._whole[start : start + size]

    def offset(self, array: npt.NDArray[Any]) -> int | None:
        """Where in this memory an array begins; None where it lies elsewhere."""
        offset = _address(array) - self._begin
        return offset if 0 <= offset < len(self._whole) else None


class _Column:
    """One field of all samples of a batch."""

    def __init__(self, name: str, first: Any, count: int, slab: _Slab | None) -> None:
        self._name = name
        self._first = np.asarray(first)
        self._count = count
        self._slab = slab

    def append(self, value: Any) -> None:
        """Add the next sample's."""
        raise NotImplementedError

    def part(self) -> _Part | None:
        """Where in the slab the column lies; None where it lies elsewhere."""
        raise NotImplementedError

    def copy(self) -> npt.NDArray[Any]:
        """The column in memory of its own."""
        raise NotImplementedError

    def _new_rows(self, count: int) -> tuple[npt.NDArray[Any], int | None]:
        """Memory for arrays like the first, and where in the slab it lies, None where it lies elsewhere."""
        first = self._first
        size = count * first.nbytes
        start = self._slab.allocate_rows(size) if self._slab else None
        memory = new_memory(size, 0) if self._slab is None or start is None else self._slab.piece(start, size)
        return np.frombuffer(memory, first.dtype).reshape(count, *first.shape), start

    def _part_of(self, row: npt.NDArray[Any], start: int | None, step: int) -> _Part | None:
        if start is None:
            return None
        return _Part(start, (self._count, *row.shape), (step, *row.strides), row.dtype)


class _Numbers(_Column):
    """A field that holds numbers."""

    def __init__(self, name: str, first: Any, count: int, slab: _Slab | None) -> None:
        super().__init__(name, first, count, slab)
        self._kind = type(first)
        self._values: list[Any] = []

    def append(self, value: Any) -> None:
        if type(value) is not self._kind:
            raise CollateError(
                f"samples differ in {self._name}: {self._kind.__name__} and {type(value).__name__}"
            )
        self._values.append(value)

    def part(self) -> _Part | None:
        rows, start = self._new_rows(self._count)
        rows[:] = self._values
        return self._part_of(self._first, start, self._first.nbytes)

    def copy(self) -> npt.NDArray[Any]:
        return np.array(self._values, self._first.dtype)


class _Arrays(_Column):
    """A field that holds arrays, which stay where they are, or else are copied into one.

    They stay where they lie in the slab at even distances, or are one and the same array that is read-only.
    """

    def __init__(self, name: str, first: Any, count: int, slab: _Slab | None) -> None:
        super().__init__(name, first, count, slab)
        start = slab.offset(self._first) if slab else None
        self._start = None if start is None or start % _ALIGNMENT % self._first.itemsize else start
        self._is_constant = slab is not None and not self._first.flags.writeable
        self._step = 0
        self._arrays: list[npt.NDArray[Any]] = []
        self._rows: npt.NDArray[Any] | None = None
        self._rows_start: int | None = None
        self._filled = 0

    def append(self, value: Any) -> None:
        array, first = np.asarray(value), self._first
        if array is not first and (array.shape != first.shape or array.dtype != first.dtype):
            raise CollateError(
                f"samples differ in {self._name}: {first.dtype} {first.shape} and {array.dtype} {array.shape}; "
                "bring them to one size and type with a transform, or batch bags of one camera"
            )
        if self._rows is None and self._stays(array):
            self._arrays.append(array)
            return
        self._copied()[self._filled] = array
        self._filled += 1

    def part(self) -> _Part | None:
        if self._rows is not None:
            return self._part_of(self._rows[0], self._rows_start, self._first.nbytes)
        if self._start is not None:
            return self._part_of(self._first, self._start, self._step)
        row, start = self._new_rows(1)
        row[0] = self._first
        return self._part_of(row[0], start, 0)

    def copy(self) -> npt.NDArray[Any]:
        return self._copied().copy() if self._slab else self._copied()

    def _stays(self, array: npt.NDArray[Any]) -> bool:
        """Whether an array lies as far from the one before as the second did from the first, as tensors need it."""
        if self._slab is None or self._start is None:
            return self._is_constant and array is self._first
        offset = self._slab.offset(array)
        if offset is None or array.strides != self._first.strides:
            return False
        if len(self._arrays) == 1 and offset > self._start and (offset - self._start) % array.itemsize == 0:
            self._step = offset - self._start
        return offset == self._start + len(self._arrays) * self._step

    def _copied(self) -> npt.NDArray[Any]:
        """The rows to copy to; what was left in its place is copied first."""
        if self._rows is None:
            self._rows, self._rows_start = self._new_rows(self._count)
            for array in self._arrays:
                self._rows[self._filled] = array
                self._filled += 1
            self._arrays.clear()
        return self._rows


def _address(array: npt.NDArray[Any]) -> int:
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(array))  # type: ignore[arg-type]
    except (TypeError, ValueError, BufferError):  # read-only, not contiguous, or empty: four times as slow
        return int(array.__array_interface__["data"][0])


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
