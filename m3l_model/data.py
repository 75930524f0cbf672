# SPDX-License-Identifier: Apache-2.0
"""The batches of a training run: which frames each step takes, read from the bags at the network's size."""

from __future__ import annotations

import functools
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Sampler

from m3l_model.bag_dataset import RgbdBagDataset, Sample
from m3l_model.bag_storage import Allocate, new_memory
from m3l_model.draws import Purpose, entropy
from m3l_model.errors import M3LError
from m3l_model.preprocessing import Preprocessing, resize_nearest, resize_rgb, to_metres
from m3l_model.recipe import StepFrames
from m3l_model.shared_batches import ReadableDataset, SharedCollate

MOST_WORKERS = 4
"""Workers taken by default at most: enough for one GPU at the network's size."""


class NetworkFrame(NamedTuple):
    """A frame at the network's size (H, W), or as tensors a batch of B, with that dimension first.

    Attributes:
        rgb: (H, W, 3) uint8.
        depth_m: (H, W) float32 metres, 0 where there is no reading.
        labels: (H, W) uint8 class ids, ``IGNORE_ID`` where unknown.
        missing: (2,) bool, [rgb, depth] missing in the recording.
    """

    rgb: Any
    depth_m: Any
    labels: Any
    missing: Any


class ToNetworkSize:
    """The ``transform`` of a data set of bags that are all to come out at one size.

    Args:
        preprocessing: gives the network's size.
        dataset: names the bags in errors.
        example: position of a sample of the size that all are to have.
    """

    def __init__(self, preprocessing: Preprocessing, dataset: RgbdBagDataset, example: int) -> None:
        sample: Sample = dataset[example]
        self._preprocessing = preprocessing
        self._paths = [str(bag.index.path) for bag in dataset.bags]
        self._size = preprocessing.input_size(*sample.rgb.shape[:2])
        self._example = self._name(sample)

    def __call__(self, sample: Sample) -> NetworkFrame:
        """Scale a sample as it is scaled live.

        Raises:
            M3LError: it does not come out at the size of the example.
        """
        size = self._preprocessing.input_size(*sample.rgb.shape[:2])
        if size != self._size:
            raise M3LError(
                f"{self._name(sample)}, comes out at {_by(size)} for the network, but {self._example}, at "
                f"{_by(self._size)}; train on bags of one aspect ratio (m3l import-images --size brings images to one)"
            )
        metres = resize_nearest(to_metres(sample.depth), size)
        return NetworkFrame(
            resize_rgb(sample.rgb, size),
            metres,
            resize_nearest(sample.labels, size),
            np.array([False, not metres.any()]),
        )

    def _name(self, sample: Sample) -> str:
        return f"{self._paths[sample.bag]} at {sample.stamp_ns}, {_by(sample.rgb.shape)}"


class StepSampler(Sampler[list[int]]):
    """For each step of a run the positions of this process's frames, kind by kind as ``StepFrames`` has them.

    Every position comes once before any comes again; which comes when is decided by the seed alone.

    Args:
        labelled, unlabelled: positions in the data set.
        steps: of the run.
        seed: of the order.
        start: first step to give.
        rank, ranks: which of how many processes this is; each gets its share of every step.

    Raises:
        ValueError: a step takes frames of which there are none.
    """

    def __init__(
        self,
        labelled: Sequence[int] | npt.NDArray[np.intp],
        unlabelled: Sequence[int] | npt.NDArray[np.intp],
        steps: Sequence[StepFrames],
        seed: int,
        start: int = 0,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self._labelled = _Shuffled(np.asarray(labelled, np.intp), seed, Purpose.LABELLED_ORDER)
        self._unlabelled = _Shuffled(np.asarray(unlabelled, np.intp), seed, Purpose.UNLABELLED_ORDER)
        takes = [(step.labelled + step.second, step.unlabelled) for step in steps]
        for stream, counts in zip((self._labelled, self._unlabelled), zip(*takes, strict=True), strict=True):
            if any(counts) and not len(stream):
                raise ValueError("a step takes frames of a kind of which there are none")
        self._steps = steps
        self._start = start
        self._rank = (rank, ranks)

    def __len__(self) -> int:
        return len(self._steps) - self._start

    def __iter__(self) -> Iterator[list[int]]:
        labelled = unlabelled = 0
        for number, step in enumerate(self._steps):
            if number >= self._start:
                first, second, third = step.of_rank(*self._rank)
                yield [
                    *(self._labelled[labelled + sample] for sample in (*first, *second)),
                    *(
                        self._unlabelled[unlabelled + sample - step.labelled - step.second]
                        for sample in third
                    ),
                ]
            labelled += step.labelled + step.second
            unlabelled += step.unlabelled

    @property
    def batch_size(self) -> int:
        """Frames of the largest step."""
        return max(map(sum, self._steps))

    @property
    def example(self) -> int:
        """A position that is among those sampled."""
        return (self._labelled if len(self._labelled) else self._unlabelled)[0]


def read_batches(dataset: ReadableDataset, sampler: StepSampler, workers: int) -> Iterator[NetworkFrame]:
    """Read a run's batches, ahead of their use where there are workers; the batches do not depend on how many.

    Args:
        dataset: gives a ``NetworkFrame`` of arrays for each position.
        sampler: the positions of each batch.
        workers: processes that read; 0 reads where the batches are used.

    Yields:
        For each step a ``NetworkFrame`` of tensors.

    Raises:
        M3LError: a bag or label cannot be read.
    """
    collate = SharedCollate(_Example(dataset, sampler.example), sampler.batch_size, workers)
    yield from worker_loader(dataset, workers, batch_sampler=sampler, collate_fn=collate)


def worker_loader(dataset: Any, workers: int, **options: Any) -> DataLoader[Any]:
    """A ``DataLoader`` that leaves torch's global generator alone, and whose workers share this process's memory."""
    return _Loader(
        dataset,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,
        generator=torch.Generator(),
        worker_init_fn=_end_with_parent_only,
        **options,
    )


class _Loader(DataLoader[Any]):
    """Its workers end when their parent says so, not with a job's stop, which signals all processes of the job.

    The parent still needs them for the step that it finishes then.
    """

    def __iter__(self) -> Any:
        # Workers and their threads inherit it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            return super().__iter__()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent_only(worker: int) -> None:
    """Set up a worker of ``_Loader``."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def default_workers() -> int:
    """Workers for one training run that has the machine to itself; none where there is one core only."""
    cores = len(os.sched_getaffinity(0))
    return min(MOST_WORKERS, cores) if cores > 1 else 0


class _Example(NamedTuple):
    """Stands for a data set, of which the first sample need not be one that is read."""

    dataset: ReadableDataset
    position: int

    def read(self, position: int, allocate: Allocate = new_memory) -> Any:
        return self.dataset.read(self.position, allocate)


class _Shuffled:
    """Positions for ever, each once before any comes again, the n-th found without those before it."""

    def __init__(self, positions: npt.NDArray[np.intp], seed: int, purpose: Purpose) -> None:
        self._positions = positions
        self._seed = (seed, purpose)
        self._round = functools.lru_cache(maxsize=2)(self._shuffle)

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, number: int) -> int:
        turn, place = divmod(number, len(self._positions))
        return int(self._round(turn)[place])

    def _shuffle(self, turn: int) -> npt.NDArray[np.intp]:
        generator = np.random.default_rng(entropy(*self._seed, turn))
        return generator.permutation(self._positions)


def _by(shape: Sequence[int]) -> str:
    return f"{shape[1]}x{shape[0]}"
