# SPDX-License-Identifier: Apache-2.0
"""Measure inference in turn: latency, memory and arithmetic of models, and of those they are compared with."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from m3l_model.errors import M3LError
from m3l_model.openmp import leave_cores_to_torch
from m3l_model.shipped import model_file

if TYPE_CHECKING:
    from m3l_model.segmenter import LinearFusionSegmenter

STATES = ("both", "rgb_only", "depth_only")
_WARM_UP = 3


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        model: a checkpoint, an ONNX file, or a backbone with random weights and 13 classes; of a baseline, whose
            backbone and number of classes it has.
        device, precision, threads: as for ``Predictor``; a baseline's precision is fp32 or fp16.
        size: (H, W) of the images.
        state: one of ``STATES``: which modalities the frames have; those of the reference have both, those of
            transformers' SegFormer colour.
        implementation: ours goes from uint8 and uint16 images to labels, baselines go from normalised tensors.
        reference: a clone of the reference implementation, where that is measured.
        compile: ours, but not an ONNX file, with torch.compile, whose own memory then counts too.
    """

    model: str
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0
    size: tuple[int, int] = (480, 640)
    state: str = "both"
    implementation: Literal["ours", "reference", "transformers"] = "ours"
    reference: Path | None = None
    compile: bool = False


@dataclass(frozen=True)
class Measurement:
    """Of one case.

    Attributes:
        device, precision: those that were chosen.
        latencies: of the frames, s, to NumPy labels.
        gflop: multiplications and additions of the network for one frame, in thousands of millions; None for ONNX.
        memory_mb: the peak of the GPU's memory, or of the process's above what it has after imports.
    """

    device: str
    precision: str
    latencies: tuple[float, ...]
    gflop: float | None
    memory_mb: float

    def percentile(self, percent: float) -> float:
        """Give a percentile of the latencies, s."""
        return float(np.percentile(self.latencies, percent))

    @property
    def rate(self) -> float:
        """Frames a second, one after the other."""
        return 1 / statistics.fmean(self.latencies)


class _Subject(NamedTuple):
    """A case that is ready: one frame of it, where it runs, and how its arithmetic is counted."""

    frame: Callable[[], object]
    device: Any
    precision: Any
    gflop: Callable[[], float | None]


def measure_in_turn(cases: Sequence[Case], frames: int) -> list[Measurement]:
    """Measure cases side by side: each in a process of its own, one frame of each in turn.

    So none finds another's memory or settings, and whatever else the machine does meets them all alike.

    Args:
        cases: what to measure.
        frames: how many of each, after a warm-up; before each goes one that is not timed.

    Raises:
        M3LError: a case cannot be measured, such as for want of its file, or its process died, as for want of memory.
    """
    context = multiprocessing.get_context("spawn")
    connections: list[Connection] = []
    processes = []
    try:
        for case in cases:
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs, case), daemon=True)
            with _environment(case):
                process.start()
            theirs.close()
            connections.append(ours)
            processes.append(process)
            _ask(ours, "load", case)  # one after the other: loading disturbs
        latencies: list[list[float]] = [[] for _ in cases]
        for number in range(frames):
            for i in range(len(cases)) if number % 2 else reversed(range(len(cases))):
                latencies[i].append(_ask(connections[i], "frame", cases[i]))
        results = []
        for case, connection, seconds in zip(cases, connections, latencies, strict=True):
            device, precision, gflop, memory = _ask(connection, "end", case)
            results.append(Measurement(device, precision, tuple(seconds), gflop, memory))
        return results
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.join()


@contextlib.contextmanager
def _environment(case: Case) -> Iterator[None]:
    """Have a process started here find the environment that users of the implementation have."""
    before = dict(os.environ)
    if case.implementation != "ours":
        leave_cores_to_torch(os.environ)
    try:
        yield
    finally:
        os.environ.update(before)


def _ask(connection: Connection, what: str, case: Case) -> Any:
    try:
        connection.send(what)
        answer = connection.recv()
    except (EOFError, ConnectionError):
        raise M3LError(
            f"the process that measured {case} died, as for want of memory: take a smaller size or network"
        ) from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def _serve(connection: Connection, case: Case) -> None:
    """Load, then time a frame whenever asked to, in this process, which should be a fresh one."""
    try:
        connection.recv()
        import torch

        import m3l_model.baselines
        import m3l_model.predictor  # noqa: F401

        if case.implementation == "transformers":
            with contextlib.suppress(ImportError):  # told when it is prepared
                import transformers.models.segformer.modeling_segformer  # noqa: F401
        before = memory_mb("VmRSS")
        subject = _prepare(case)
        for _ in range(_WARM_UP):
            subject.frame()
        connection.send("ready")
        while connection.recv() == "frame":
            subject.frame()
            begin = time.perf_counter()
            subject.frame()
            connection.send(time.perf_counter() - begin)
        if subject.device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(subject.device) / 1e6
        else:
            memory = memory_mb("VmHWM") - before
        precision = str(subject.precision).removeprefix("torch.")
        connection.send((str(subject.device), precision, subject.gflop(), memory))
    except (EOFError, ConnectionError):  # another case failed
        return
    except Exception as error:  # the parent tells the user
        connection.send(error)


def time_calls(call: Callable[[], object], count: int) -> list[float]:
    """Time calls one after the other, s, after some that are not counted."""
    for _ in range(_WARM_UP):
        call()
    latencies = []
    for _ in range(count):
        begin = time.perf_counter()
        call()
        latencies.append(time.perf_counter() - begin)
    return latencies


def random_frame(
    size: tuple[int, int], state: str
) -> tuple[npt.NDArray[np.uint8] | None, npt.NDArray[np.uint16] | None]:
    """Make a colour and a depth image without holes, of smooth regions as in real ones; None for what is missing."""
    rng = np.random.default_rng(0)
    coarse = (-(-size[0] // 32), -(-size[1] // 32))
    rgb = rng.integers(0, 256, (*coarse, 3), np.uint8)
    depth = rng.integers(500, 9000, coarse, np.uint16)
    blocks = np.ones((32, 32), np.uint8)
    depth = np.kron(depth, blocks)[: size[0], : size[1]].astype(np.uint16)
    rgb = np.kron(rgb, blocks[..., None])[: size[0], : size[1]].astype(np.uint8)
    return (
        None if state == "depth_only" else np.ascontiguousarray(rgb),
        None if state == "rgb_only" else np.ascontiguousarray(depth),
    )


def memory_mb(field: str) -> float:
    """Read this process's memory now (``VmRSS``) or at most (``VmHWM``); nan where /proc has none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":")), float("nan"))


def _prepare(case: Case) -> _Subject:
    """Load the model, or make one."""
    import torch

    from m3l_model.predictor import Predictor, choose_device

    images = random_frame(case.size, case.state)

    def subject_of(predictor: Predictor, gflop: Callable[[], float | None]) -> _Subject:
        def frame() -> object:
            return predictor.predict(*images, with_confidence=False)

        return _Subject(frame, predictor.device, predictor.precision, gflop)

    settings = (case.device, case.precision, case.threads)
    if case.implementation == "ours" and case.model.endswith(".onnx"):
        return subject_of(Predictor.from_checkpoint(case.model, *settings), lambda: None)
    model = load_model(case.model)
    if case.implementation == "ours":
        assert model.metadata is not None
        size = model.metadata.preprocessing.input_size(*case.size)
        predictor = Predictor(model, *settings, case.compile)
        one = model.skip_missing and case.state != "both" and predictor.device.type == "cpu"
        branches = 1 if one else 2
        return subject_of(
            predictor, lambda: count_gflop(model.backbone, model.num_classes, size) * branches / 2
        )

    from m3l_model.baselines import reference_frame, transformers_frame

    device = choose_device(case.device)
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[case.precision]
    if case.threads:
        torch.set_num_threads(case.threads)
    if case.implementation == "transformers":
        frame = transformers_frame(model.backbone, model.num_classes, case.size, device, dtype)
    else:
        assert case.reference is not None
        frame = reference_frame(case.reference, model.backbone, model.num_classes, case.size, device)
    return _Subject(frame, device, dtype, lambda: _counted(frame))


def load_model(name: str) -> LinearFusionSegmenter:
    """Read a checkpoint, or make a network of a backbone that skips what is missing, with metadata."""
    from m3l_model.checkpoint import Metadata, load_checkpoint
    from m3l_model.labels import LabelSet
    from m3l_model.mit import BACKBONES
    from m3l_model.preprocessing import Preprocessing
    from m3l_model.segmenter import LinearFusionSegmenter

    if name not in BACKBONES:
        if not (path := model_file(name)).exists():
            raise M3LError(
                f"{name}: no such checkpoint file, and no backbone: those are {', '.join(BACKBONES)}"
            )
        return load_checkpoint(path)
    model = LinearFusionSegmenter(name, 13, skip_missing=True)
    model.metadata = Metadata(LabelSet.generic(13), Preprocessing())
    return model


def count_gflop(backbone: str, num_classes: int, size: tuple[int, int]) -> float:
    """Count the multiplications and additions of the network on one frame of the network's size, in 10^9."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from m3l_model.segmenter import LinearFusionSegmenter

    # The counter follows the modules by autograd's hooks, which tensors of inference mode lack.
    with torch.inference_mode(False), torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model = LinearFusionSegmenter(backbone, num_classes).eval()
        image = torch.empty(1, 3, *size)
        return _counted(lambda: model.quarter_logits(image, image))


def _counted(call: Callable[[], object]) -> float:
    """Count the multiplications and additions of a call, in 10^9."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() / 1e9
