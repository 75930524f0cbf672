# SPDX-License-Identifier: Apache-2.0
"""Evaluate models on the frames of bags under many scenarios at once, through the node's own pairing and Predictor.

Frame by frame: each is read once and segmented once for each distinct input that a scenario makes of it; a reader
works ahead of models on a GPU, and the masks are scored behind them. Blocks of frames are kept as soon as they are
done, so that an evaluation that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from m3l_model import metrics
from m3l_model.errors import M3LError
from m3l_model.evaluation_pictures import Picture, PictureMaker
from m3l_model.evaluation_plan import Block, EvaluationPlan
from m3l_model.evaluation_store import EvaluationStore, MemoryStore
from m3l_model.labels import LabelSet
from m3l_model.offline import FrameSource, Recorded, can_be_segmented
from m3l_model.predictor import PendingPrediction, Prediction, Predictor
from m3l_model.scenarios import CLEAN, Seen

FRAME_SCORE = np.dtype(
    [
        ("bag", "<i4"),
        ("position", "<i4"),
        ("stamp_ns", "<i8"),
        ("log_ns", "<i8"),
        ("depth_stamp_ns", "<i8"),
        ("reason", "u1"),
        ("segmented", "?"),
        ("used_depth", "?"),
        ("accuracy", "<f4"),
        ("miou", "<f4"),
        ("agreement", "<f4"),
        ("confidence", "<f4"),
        ("flicker", "<f4"),
        ("seconds", "<f4"),
    ]
)
"""A frame under one model and scenario: where it is, what the synchronizer decided, whether there is a mask and whether
depth was used for it, share of labelled pixels right, mean IoU of the frame's classes, share of pixels as with both
modalities, mean confidence, share of still pixels that changed their label, and the time of inference. NaN where there
is none."""

_T = TypeVar("_T")
_U = TypeVar("_U")


@dataclass(frozen=True)
class Counts:
    """What is counted of M models, S scenarios and B blocks; all in pixels.

    Attributes:
        confusion: (M, S, B, C, C) as ``metrics.confusion``.
        calibration: (M, S, B, 256, 2) as ``metrics.calibration``.
        boundary: (M, S, B, C, 4) as ``metrics.boundary_hits``.
        flicker: (M, S, B, 2) as ``metrics.flicker``.
        agreement: (M, S, B, 2) compared with the mask of the clean scenario, and equal to it.
        confidence: (M, S, B, 2) segmented, and the sum of their confidences.
    """

    confusion: npt.NDArray[np.int64]
    calibration: npt.NDArray[np.int64]
    boundary: npt.NDArray[np.int64]
    flicker: npt.NDArray[np.int64]
    agreement: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]

    @classmethod
    def zeros(cls, models: int, scenarios: int, classes: int) -> Counts:
        """Of one block."""
        return cls(
            np.zeros((models, scenarios, 1, classes, classes), np.int64),
            np.zeros((models, scenarios, 1, metrics.CONFIDENCE_LEVELS, 2), np.int64),
            np.zeros((models, scenarios, 1, classes, 4), np.int64),
            np.zeros((models, scenarios, 1, 2), np.int64),
            np.zeros((models, scenarios, 1, 2), np.int64),
            np.zeros((models, scenarios, 1, 2), np.float64),
        )

    @classmethod
    def joined(cls, parts: Sequence[Counts]) -> Counts:
        """The counts of blocks one after the other."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts], 2) for f in fields(cls)))


@dataclass(frozen=True)
class BlockResult:
    """What came of one block: counts with B = 1, (M, S, n) of ``FRAME_SCORE``, pictures, damaged colour images."""

    counts: Counts
    frames: npt.NDArray[np.void]
    pictures: tuple[Picture, ...]
    unreadable: int


@dataclass(frozen=True)
class Evaluation:
    """What was measured.

    Attributes:
        models: M names.
        plan: the frames and scenarios.
        labels: the label set of truth and models.
        counts: by block.
        frames: (M, S, N) of ``FRAME_SCORE``, in the order of the plan.
        unreadable: frames whose colour image is damaged.
    """

    models: tuple[str, ...]
    plan: EvaluationPlan
    labels: LabelSet
    counts: Counts
    frames: npt.NDArray[np.void]
    unreadable: int


def evaluate(
    plan: EvaluationPlan,
    predictors: Mapping[str, Predictor],
    store: EvaluationStore | None = None,
    pictures: PictureMaker | None = None,
    report: Callable[[int], object] = lambda frames: None,
) -> Evaluation:
    """Evaluate models on the same frames.

    Args:
        plan: frames and scenarios.
        predictors: the models, by name; of one label set.
        store: where finished blocks are kept; those it has already are not done again.
        pictures: makes pictures of frames for a report, and decides of which.
        report: called with the number of frames that were finished.

    Raises:
        M3LError: the models' label sets differ, a bag is damaged, or the store cannot be written.
    """
    labels = common_labels(predictors)
    store = store if store is not None else MemoryStore()
    pass_ = _Pass(plan, predictors, len(labels.classes), pictures)
    unfinished = [number for number in range(len(plan.blocks)) if not store.has(number)]
    report(
        sum(len(block.positions) for block in plan.blocks)
        - sum(len(plan.blocks[n].positions) for n in unfinished)
    )
    for number, result in pass_.run(unfinished, report):
        store.save(number, result)
    results = [store.load(number) for number in range(len(plan.blocks))]
    return Evaluation(
        tuple(predictors),
        plan,
        labels,
        Counts.joined([result.counts for result in results]),
        np.concatenate([result.frames for result in results], 2),
        sum(result.unreadable for result in results),
    )


def picture_frames(
    plan: EvaluationPlan, predictors: Mapping[str, Predictor], frames: Sequence[tuple[int, int]]
) -> list[Picture]:
    """Make all pictures of some frames, given by bag and position, by segmenting them once more.

    Raises:
        M3LError: as ``evaluate``.
    """
    wanted = set(frames)
    places = [
        (number, index)
        for number, block in enumerate(plan.blocks)
        for index, position in enumerate(block.positions.tolist())
        if (block.bag, position) in wanted
    ]
    classes = len(common_labels(predictors).classes)
    return list(_Pass(plan, predictors, classes, PictureMaker(wanted, wanted)).pictures_of(places))


def common_labels(predictors: Mapping[str, Predictor]) -> LabelSet:
    """The label set that all models have.

    Raises:
        M3LError: they have different ones.
    """
    first, *others = predictors.items()
    for name, predictor in others:
        if predictor.labels.classes != first[1].labels.classes:
            raise M3LError(
                f"{name} has the classes of label set {predictor.labels.name!r}, {first[0]} those of "
                f"{first[1].labels.name!r}: models are compared on one label set; evaluate them one by one"
            )
    return first[1].labels


InputKey = tuple[int, str]
"""Of the inputs that scenarios make of one frame: row of the depth image, and the scenario where it changes images."""


class ReadFrame(NamedTuple):
    """A frame that is ready to be segmented.

    Attributes:
        block, place: where it belongs.
        recorded: as recorded; None where the colour image is damaged.
        keys: (S,) the input in each scenario; None where there is nothing to segment.
        inputs: the images of each.
        smoothed: for flicker, None where it is not measured.
        truth_boundary: of labelled frames.
    """

    block: int
    place: int
    recorded: Recorded | None
    keys: tuple[InputKey | None, ...]
    inputs: dict[InputKey, Seen]
    smoothed: npt.NDArray[np.uint8] | None
    truth_boundary: metrics.Boundary | None


class SegmentedFrame(NamedTuple):
    """A frame with the prediction of each model on each input, and the seconds it took."""

    read: ReadFrame
    predictions: list[dict[InputKey, tuple[Prediction, float]]]


class _Pass:
    """Reads, segments and scores the frames of a plan.

    Beside models on a GPU each stage works in a thread of its own. Models on the CPU take turns with the others, in one
    thread: theirs wait at each operator for the last of them, and whatever runs beside one holds up all.
    """

    def __init__(
        self,
        plan: EvaluationPlan,
        predictors: Mapping[str, Predictor],
        classes: int,
        pictures: PictureMaker | None,
    ) -> None:
        self._plan = plan
        self._predictors = list(predictors.values())
        self._classes = classes
        self._pictures = pictures
        self._take_turns = any(p.device.type == "cpu" for p in self._predictors)
        names = [scenario.name for scenario in plan.scenarios]
        self._clean = names.index(CLEAN.name) if CLEAN.name in names else None
        self._sources = [FrameSource(plan.dataset, bag) for bag in range(len(plan.dataset.bags))]
        self._before: SegmentedFrame | None = None

    def run(
        self, blocks: Sequence[int], report: Callable[[int], object]
    ) -> Iterator[tuple[int, BlockResult]]:
        """Do these blocks, one after the other."""
        work = [
            (number, index) for number in blocks for index in range(len(self._plan.blocks[number].positions))
        ]
        with _thread() as reader, _thread() as scorer:
            if self._take_turns:
                scored: Iterator[BlockResult] = map(
                    self._score, map(self._segment, itertools.starmap(self._read, work))
                )
            else:
                read = _ahead(reader, lambda place: self._read(*place), work)
                scored = _ahead(scorer, self._score, map(self._segment, read))
            result: BlockResult | None = None
            for (number, index), part in zip(work, scored, strict=True):
                result = part if result is None else _added(result, part)
                report(1)
                if index == len(self._plan.blocks[number].positions) - 1:
                    yield number, result
                    result = None

    def _read(self, number: int, index: int) -> ReadFrame:
        plan, block = self._plan, self._plan.blocks[number]
        source = self._sources[block.bag]
        recorded = source.read(int(self._frame(block, index)["rgb"]))
        keys: list[InputKey | None] = []
        inputs: dict[InputKey, Seen] = {}
        depths: dict[int, Any] = {}
        empty: set[InputKey] = set()
        for scenario, decision, accepted in zip(
            plan.scenarios, block.decisions[:, index], block.accepted[:, index], strict=True
        ):
            key = (int(decision["depth"]), scenario.name if scenario.images else "")
            if recorded is None or not accepted:
                keys.append(None)
                continue
            if key not in inputs and key not in empty:
                if key[0] not in depths:
                    depths[key[0]] = source.read_depth(key[0])
                seen = scenario.see(
                    Seen(recorded.frame.rgb, depths[key[0]]),
                    plan.seed,
                    (recorded.frame.stamp_ns, int(decision["depth_stamp_ns"])),
                    source.start_ns,
                )
                if can_be_segmented(seen):
                    inputs[key] = seen
                else:
                    empty.add(key)
            keys.append(None if key in empty else key)
        truth = recorded.truth if recorded else None
        return ReadFrame(
            number,
            index,
            recorded,
            tuple(keys),
            inputs,
            metrics.smoothed(recorded.frame.rgb) if recorded and block.video else None,
            metrics.Boundary(truth, self._classes) if truth is not None else None,
        )

    def _segment(self, read: ReadFrame) -> SegmentedFrame:
        predictions: list[dict[InputKey, tuple[Prediction, float]]] = []
        for predictor in self._predictors:
            done: dict[InputKey, tuple[Prediction, float]] = {}
            pending: deque[tuple[InputKey, PendingPrediction, float]] = deque()
            for key, seen in read.inputs.items():
                submitted = time.perf_counter()
                pending.append((key, predictor.submit(seen.rgb, seen.depth), submitted))
                if len(pending) > 1:
                    _finish(pending, done)
            while pending:
                _finish(pending, done)
            predictions.append(done)
        return SegmentedFrame(read, predictions)

    def pictures_of(self, places: Sequence[tuple[int, int]]) -> Iterator[Picture]:
        """Make the pictures of some frames, given by block and place in it."""
        assert self._pictures is not None
        for place in places:
            segmented = self._segment(self._read(*place))
            yield from self._pictures.make(segmented.read, segmented.predictions, self._plan)

    def _score(self, segmented: SegmentedFrame) -> BlockResult:
        """Score one frame in all scenarios, as a block of one frame."""
        read = segmented.read
        plan, block = self._plan, self._plan.blocks[read.block]
        counts = Counts.zeros(len(self._predictors), len(plan.scenarios), self._classes)
        frames = np.zeros((len(self._predictors), len(plan.scenarios), 1), FRAME_SCORE)
        for name in ("accuracy", "miou", "agreement", "confidence", "flicker", "seconds"):
            frames[name] = np.nan
        frame = self._frame(block, read.place)
        frames["bag"], frames["position"] = block.bag, block.positions[read.place]
        frames["stamp_ns"], frames["log_ns"] = frame["stamp_ns"], frame["log_ns"]
        for name in ("depth_stamp_ns", "reason"):
            frames[name] = block.decisions[name][None, :, read.place, None]
        before = self._before if self._follows(segmented) else None
        for model, predictions in enumerate(segmented.predictions):
            device = self._predictors[model].device
            gpu = None if device.type == "cpu" else device
            scores: dict[InputKey, _Score] = {}
            changes: dict[tuple[InputKey, InputKey], npt.NDArray[np.int64]] = {}
            clean_key = read.keys[self._clean] if self._clean is not None else None
            clean = predictions[clean_key][0].labels if clean_key is not None else None
            for number, key in enumerate(read.keys):
                if key is None:
                    continue
                if key not in scores:
                    scores[key] = self._score_of(read, *predictions[key], clean, gpu)
                scores[key].add_to(counts, frames, model, number)
                if before is None or before.read.smoothed is None or read.smoothed is None:
                    continue
                if (key_before := before.read.keys[number]) is not None:
                    pair = (key_before, key)
                    if pair not in changes:
                        changes[pair] = metrics.flicker(
                            before.read.smoothed,
                            read.smoothed,
                            before.predictions[model][key_before][0].labels,
                            predictions[key][0].labels,
                        )
                    counts.flicker[model, number, 0] += changes[pair]
                    frames["flicker"][model, number] = metrics.share(changes[pair])
        pictures = self._pictures.make(read, segmented.predictions, self._plan) if self._pictures else ()
        self._before = segmented
        return BlockResult(counts, frames, pictures, int(read.recorded is None))

    def _score_of(
        self,
        read: ReadFrame,
        prediction: Prediction,
        seconds: float,
        clean: npt.NDArray[np.uint8] | None,
        gpu: torch.device | None,
    ) -> _Score:
        labels, confidence = prediction.labels, prediction.confidence
        assert confidence is not None
        truth = read.recorded.truth if read.recorded else None
        agreement = np.zeros(2, np.int64)
        if clean is not None:
            agreement[:] = labels.size, np.count_nonzero(labels == clean)
        confidences = np.array([confidence.size, float(confidence.sum(dtype=np.float64))])
        score = _Score(prediction.used, seconds, None, None, None, agreement, confidences)
        if truth is None or read.truth_boundary is None:
            return score
        known = metrics.ignored_where(truth >= self._classes, labels)
        return score._replace(
            confusion=metrics.confusion(truth, labels, self._classes, gpu),
            calibration=metrics.calibration(truth, labels, confidence, self._classes),
            boundary=metrics.boundary_hits(read.truth_boundary, known),
        )

    def _follows(self, segmented: SegmentedFrame) -> bool:
        """Whether the frame comes right after the one that was scored before, in one block of a recording."""
        if self._before is None or segmented.read.smoothed is None:
            return False
        before, now = self._before.read, segmented.read
        positions = self._plan.blocks[now.block].positions
        return (
            before.block == now.block
            and before.smoothed is not None
            and before.smoothed.shape == segmented.read.smoothed.shape
            and bool(positions[now.place] == positions[before.place] + 1)
        )

    def _frame(self, block: Block, index: int) -> np.void:
        frame: np.void = self._plan.dataset.bags[block.bag].frames[block.positions[index]]
        return frame


class _Score(NamedTuple):
    """Of one prediction; confusion, calibration and boundary are None without truth."""

    used: tuple[str, ...]
    seconds: float
    confusion: npt.NDArray[np.int64] | None
    calibration: npt.NDArray[np.int64] | None
    boundary: npt.NDArray[np.int64] | None
    agreement: npt.NDArray[np.int64]
    confidence: npt.NDArray[np.float64]

    def add_to(self, counts: Counts, frames: npt.NDArray[np.void], model: int, scenario: int) -> None:
        place = (model, scenario, 0)
        for name in ("confusion", "calibration", "boundary", "agreement", "confidence"):
            if (counted := getattr(self, name)) is not None:
                getattr(counts, name)[place] += counted
        score = frames[place]
        score["segmented"], score["used_depth"] = True, "depth" in self.used
        score["seconds"] = self.seconds
        score["agreement"] = metrics.share(self.agreement)
        score["confidence"] = metrics.share(self.confidence)
        if self.confusion is not None:
            score["accuracy"], score["miou"] = (
                metrics.pixel_accuracy(self.confusion),
                metrics.miou(self.confusion),
            )


def _added(one: BlockResult, other: BlockResult) -> BlockResult:
    """The result of the frames of both."""
    for field in fields(Counts):
        getattr(one.counts, field.name)[...] += getattr(other.counts, field.name)
    return BlockResult(
        one.counts,
        np.concatenate((one.frames, other.frames), 2),
        one.pictures + other.pictures,
        one.unreadable + other.unreadable,
    )


def _finish(
    pending: deque[tuple[InputKey, PendingPrediction, float]],
    done: dict[InputKey, tuple[Prediction, float]],
) -> None:
    key, prediction, submitted = pending.popleft()
    done[key] = prediction.result(), time.perf_counter() - submitted


_IN_FLIGHT = 2
"""Frames that a stage may be ahead of the one that takes them."""


def _ahead(pool: ThreadPoolExecutor, function: Callable[[_T], _U], items: Iterable[_T]) -> Iterator[_U]:
    """Do as ``map`` does, but in a thread that works ahead by a few items."""
    pending: deque[Future[_U]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > _IN_FLIGHT:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


@contextmanager
def _thread() -> Iterator[ThreadPoolExecutor]:
    """A thread that is not waited for longer than the item in hand takes, whatever happens."""
    pool = ThreadPoolExecutor(1)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
