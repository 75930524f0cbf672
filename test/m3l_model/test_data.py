# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_samples import MemoryFrames, block_frames

from m3l_model.bags import BagError
from m3l_model.data import NetworkFrame, StepSampler, read_batches, worker_loader
from m3l_model.recipe import StepFrames


@given(
    labelled=st.integers(1, 9),
    unlabelled=st.integers(1, 9),
    steps=st.lists(
        st.tuples(st.integers(1, 5), st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=20
    ),
    seed=st.integers(-5, 5),
)
def test_every_position_comes_once_before_any_comes_again(
    labelled: int, unlabelled: int, steps: list[tuple[int, int, int]], seed: int
) -> None:
    pools = [set(range(labelled)), set(range(50, 50 + unlabelled))]
    sampler = StepSampler(list(pools[0]), list(pools[1]), [StepFrames(*step) for step in steps], seed)
    drawn = list(sampler)
    assert drawn == list(sampler)
    assert len(drawn) == len(sampler) == len(steps)
    streams: list[list[int]] = [[], []]
    for positions, (first, second, rest) in zip(drawn, steps, strict=True):
        assert len(positions) == first + second + rest <= sampler.batch_size
        streams[0] += positions[: first + second]
        streams[1] += positions[first + second :]
    for stream, pool in zip(streams, pools, strict=True):
        for start in range(0, len(stream), len(pool)):
            part = stream[start : start + len(pool)]
            assert len(set(part)) == len(part)
            assert set(part) <= pool


@given(
    start=st.integers(0, 8),
    halves=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=8, max_size=8),
)
def test_any_step_and_any_process_s_share_are_found_without_the_rest(
    start: int, halves: list[tuple[int, int]]
) -> None:
    steps = [StepFrames(2, 2 * second, 2 * rest) for second, rest in halves]
    whole = list(StepSampler(range(7), range(7, 20), steps, 3))
    assert list(StepSampler(range(7), range(7, 20), steps, 3, start)) == whole[start:]
    shares = [list(StepSampler(range(7), range(7, 20), steps, 3, start, rank, 2)) for rank in (0, 1)]
    for step, positions, first, second in zip(steps[start:], whole[start:], *shares, strict=True):
        for rank, share in enumerate((first, second)):
            assert share == [positions[sample] for kind in step.of_rank(rank, 2) for sample in kind]


def test_one_kind_of_frames_does_not_change_the_order_of_the_other() -> None:
    some = StepSampler(range(9), range(9, 30), [StepFrames(3, 0, 0)] * 5, seed=1)
    more = StepSampler(range(9), range(9, 30), [StepFrames(3, 0, 4)] * 5, seed=1)
    assert list(some) == [positions[:3] for positions in more]
    assert list(some) != list(StepSampler(range(9), range(9, 30), [StepFrames(3, 0, 0)] * 5, seed=2))


def test_a_worker_ends_on_its_parents_sigterm_and_on_no_other() -> None:
    batches = iter(worker_loader(range(1000), 1))
    next(batches)
    (worker,) = batches._workers  # type: ignore[attr-defined]
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    worker.join(0.5)
    assert worker.is_alive()
    for _ in range(20):
        next(batches)
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_an_error_in_a_worker_arrives_as_it_is() -> None:
    class Broken(MemoryFrames):
        def read(self, position: int, allocate: object = None) -> NetworkFrame:
            if position == 3:
                raise BagError("bag: frame 3 is damaged")
            return self[position]

    sampler = StepSampler(range(4), [], [StepFrames(4, 0, 0)], seed=0)
    sampler_of_others = StepSampler(range(3), [], [StepFrames(3, 0, 0)], seed=0)
    for workers in (0, 2):
        frames = Broken(block_frames(4))
        assert len(list(read_batches(frames, sampler_of_others, workers))) == 1
        with pytest.raises(BagError, match=r"^bag: frame 3 is damaged$"):
            list(read_batches(frames, sampler, workers))
