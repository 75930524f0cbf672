# SPDX-License-Identifier: Apache-2.0
"""Measure inference: latency, memory and arithmetic of a model on frames of one size."""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

STATES = ("both", "rgb_only", "depth_only")
_WARM_UP = 3


@dataclass(frozen=True)
class Case:
    """What is measured.

    Attributes:
        model: a checkpoint, an ONNX file, or a backbone with random weights and 13 classes.
        device, precision, threads: as for ``Predictor``.
        size: (H, W) of the images.
        state: one of ``STATES``: which modalities the frames have.
    """

    model: str
    device: str = "auto"
    precision: str = "auto"
    threads: int = 0
    size: tuple[int, int] = (480, 640)
    state: str = "both"


@dataclass(frozen=True)
class Measurement:
    """Of one case.

    Attributes:
        device, precision: those that were chosen.
        latencies: of the frames, s, from NumPy images to NumPy labels.
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


def measure_each(cases: Sequence[Case], frames: int) -> list[Measurement]:
    """Measure cases in a process of their own each, so that none finds another's memory or settings.

    Args:
        cases: what to measure.
        frames: how many, after a warm-up.
    """
    context = multiprocessing.get_context("spawn")
    results: list[Measurement] = []
    for case in cases:
        ours, theirs = context.Pipe()
        process = context.Process(target=_measure_in_child, args=(theirs, case, frames), daemon=True)
        process.start()
        theirs.close()
        try:
            answer = ours.recv()
        except EOFError:
            raise RuntimeError(f"the process that measured {case} died") from None
        finally:
            process.join()
        if isinstance(answer, Exception):
            raise answer
        results.append(answer)
    return results


def _measure_in_child(connection: Connection, case: Case, frames: int) -> None:
    try:
        connection.send(measure(case, frames))
    except Exception as error:  # the parent tells the user
        connection.send(error)


def measure(case: Case, frames: int) -> Measurement:
    """Measure in this process, which should be a fresh one."""
    import torch

    predictor_class: Any = _import_predictor()
    before = memory_mb("VmRSS")
    predictor, gflop = _prepare(case, predictor_class)
    rgb, depth = random_frame(case.size)
    images = {"both": (rgb, depth), "rgb_only": (rgb, None), "depth_only": (None, depth)}[case.state]
    latencies = time_calls(lambda: predictor.predict(*images, with_confidence=False), frames)
    if predictor.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated(predictor.device) / 1e6
    else:
        memory = memory_mb("VmHWM") - before
    precision = str(predictor.precision).removeprefix("torch.")
    return Measurement(str(predictor.device), precision, tuple(latencies), gflop, memory)


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


def random_frame(size: tuple[int, int]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """Make a colour image and a depth image without holes, of smooth regions as in real ones."""
    rng = np.random.default_rng(0)
    coarse = (-(-size[0] // 32), -(-size[1] // 32))
    rgb = rng.integers(0, 256, (*coarse, 3), np.uint8)
    depth = rng.integers(500, 9000, coarse, np.uint16)
    blocks = np.ones((32, 32), np.uint8)
    depth = np.kron(depth, blocks)[: size[0], : size[1]].astype(np.uint16)
    rgb = np.kron(rgb, blocks[..., None])[: size[0], : size[1]].astype(np.uint8)
    return np.ascontiguousarray(rgb), np.ascontiguousarray(depth)


def memory_mb(field: str) -> float:
    """Read this process's memory now (``VmRSS``) or at most (``VmHWM``); nan where /proc has none."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":")), float("nan"))


def _import_predictor() -> Any:
    from m3l_model.predictor import Predictor

    return Predictor


def _prepare(case: Case, predictor_class: Any) -> tuple[Any, float | None]:
    """Load the model, or make one, and count its arithmetic."""
    from m3l_model.checkpoint import Metadata, load_checkpoint
    from m3l_model.labels import LabelSet
    from m3l_model.mit import BACKBONES
    from m3l_model.preprocessing import Preprocessing
    from m3l_model.segmenter import LinearFusionSegmenter

    settings = (case.device, case.precision, case.threads)
    if case.model.endswith(".onnx"):
        return predictor_class.from_checkpoint(case.model, *settings), None
    if case.model in BACKBONES:
        model = LinearFusionSegmenter(case.model, 13)
        model.metadata = Metadata(LabelSet.generic(13), Preprocessing())
    else:
        model = load_checkpoint(case.model)
    assert model.metadata is not None
    size = model.metadata.preprocessing.input_size(*case.size)
    gflop = count_gflop(model.backbone, model.num_classes, size)
    return predictor_class(model, *settings), gflop


def count_gflop(backbone: str, num_classes: int, size: tuple[int, int]) -> float:
    """Count the multiplications and additions of the network on one frame of the network's size, in 10^9."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from m3l_model.segmenter import LinearFusionSegmenter

    with torch.device("meta"), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        model = LinearFusionSegmenter(backbone, num_classes).eval()
        image = torch.empty(1, 3, *size)
        with FlopCounterMode(display=False) as counter:
            model.quarter_logits(image, image)
    return counter.get_total_flops() / 1e9
