# SPDX-License-Identifier: Apache-2.0
"""A network on a GPU: raw images go over once, everything else is one CUDA graph, and two frames are in flight.

Where a step is not to be had (a graph that cannot be captured, a compiler that fails), the reason is logged and the
same network runs without it.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m3l_model import device_images
from m3l_model.engine import Compiled, Network, Request, Result, one_line, segment
from m3l_model.labelling import Labels
from m3l_model.prepared import PreparedSegmenter
from m3l_model.preprocessing import Preprocessing
from m3l_model.segmenter import LinearFusionSegmenter

_logger = logging.getLogger(__name__)

_T = TypeVar("_T")

IN_FLIGHT = 2
_SHAPES_KEPT = 4


class _Shapes(NamedTuple):
    """What a graph is captured for."""

    rgb: tuple[int, ...]
    depth: tuple[int, ...]
    depth_type: torch.dtype
    size: tuple[int, int]
    with_confidence: bool


@dataclass
class _Buffers:
    """Raw images and flags, in pinned memory or on the device."""

    rgb: Tensor
    depth: Tensor
    missing: Tensor

    @classmethod
    def empty(cls, shapes: _Shapes, device: torch.device) -> _Buffers:
        new = _pinned if device.type == "cpu" else partial(torch.zeros, device=device)
        return cls(
            new((1, *shapes.rgb), dtype=torch.uint8),
            new((1, *shapes.depth), dtype=shapes.depth_type),
            new((1, 2), dtype=torch.bool),
        )

    def copy_from(self, other: _Buffers) -> None:
        self.rgb.copy_(other.rgb, non_blocking=True)
        self.depth.copy_(other.depth, non_blocking=True)
        self.missing.copy_(other.missing, non_blocking=True)


class CudaEngine:
    """The prepared network on a GPU.

    Args:
        model: the network, in eval mode, on the GPU.
        preprocessing: what it expects.
        precision: of weights and activations.
        compile: have torch.compile fuse the network's operators first.
    """

    def __init__(
        self,
        model: LinearFusionSegmenter,
        preprocessing: Preprocessing,
        precision: torch.dtype,
        compile: bool = False,
    ) -> None:
        self.device = model.alpha.device
        self.precision = precision
        self._preprocessing = preprocessing
        network = PreparedSegmenter(model, precision)
        self._network: Network = Compiled(network) if compile else network
        self._programs: OrderedDict[_Shapes, _Program] = OrderedDict()
        self._upload = torch.cuda.Stream(self.device)
        self._compute = torch.cuda.Stream(self.device)
        self._in_flight: deque[_Frame] = deque()

    @torch.inference_mode()
    def submit(self, request: Request) -> Callable[[], Result]:
        program = self._program(request)
        if len(self._in_flight) == IN_FLIGHT:
            self._in_flight.popleft().result()
        slot = program.slots[0]
        slot.fill(request)
        with torch.cuda.stream(self._upload):
            self._upload.wait_event(slot.read)
            slot.device.copy_from(slot.host)
        self._compute.wait_stream(self._upload)
        with torch.cuda.stream(self._compute):
            program.inputs.copy_from(slot.device)
            slot.read.record()
            outputs = program.run()
            slot.take(outputs)
            slot.done.record()
        program.slots.rotate()  # only now: after a failure the other one may still be in flight
        self._in_flight.append(_Frame(slot))
        return self._in_flight[-1].result

    def _program(self, request: Request) -> _Program:
        """Find or make what runs frames of this shape; the least recently used gives way."""
        shapes = self._shapes(request)
        if shapes in self._programs:
            self._programs.move_to_end(shapes)
            return self._programs[shapes]
        while self._in_flight:
            self._in_flight.popleft().result()
        self._finish()  # nothing may run beside a capture, nor in memory that is given up
        if len(self._programs) == _SHAPES_KEPT:
            self._programs.popitem(last=False)
        self._programs[shapes] = _Program(
            shapes, self.device, self._compute, self._network, self._preprocessing
        )
        self._upload.wait_stream(torch.cuda.current_stream(self.device))  # which clears the buffers
        return self._programs[shapes]

    def _finish(self) -> None:
        """Wait for all that is under way, also for what a frame left that failed after its upload."""
        self._upload.synchronize()
        self._compute.synchronize()

    def __del__(self) -> None:
        with suppress(AttributeError, RuntimeError):  # one that was never whole, or a GPU that has failed
            self._finish()

    def _shapes(self, request: Request) -> _Shapes:
        """Give the shapes of a frame; a missing image takes those of the latest frame that had it, else the labels'."""
        known = next(
            (shapes for shapes in reversed(self._programs) if shapes.size == request.size),
            _Shapes((*request.size, 3), request.size, torch.int16, request.size, False),
        )
        depth, depth_type = known.depth, known.depth_type
        if request.depth is not None:
            depth = request.depth.shape
            depth_type = torch.int16 if request.depth.dtype == np.uint16 else torch.float32
        return _Shapes((*request.size, 3), depth, depth_type, request.size, request.with_confidence)


def segment_raw(
    network: Network,
    preprocessing: Preprocessing,
    inputs: _Buffers,
    size: tuple[int, int],
    with_confidence: bool,
) -> Labels:
    """Segment raw images on the device they are on, by tensor operations alone; labels of ``size``."""
    network_size = preprocessing.input_size(*size)
    return segment(
        network,
        preprocessing,
        device_images.resize_rgb(inputs.rgb, network_size),
        device_images.resize_nearest(device_images.metres(inputs.depth), network_size),
        inputs.missing,
        size,
        with_confidence,
    )


class _Program:
    """The network for frames of one shape, as a CUDA graph where it can be captured.

    It does not refer to its engine: in a cycle, the GPU's memory would wait for the garbage collector.
    """

    def __init__(
        self,
        shapes: _Shapes,
        device: torch.device,
        stream: torch.cuda.Stream,
        network: Network,
        preprocessing: Preprocessing,
    ) -> None:
        self.inputs = _Buffers.empty(shapes, device)
        self.segment: Callable[[], Labels] = partial(
            segment_raw, network, preprocessing, self.inputs, shapes.size, shapes.with_confidence
        )
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: Labels | None = None
        self.slots = deque(_Slot(shapes, device) for _ in range(IN_FLIGHT))
        stream.wait_stream(torch.cuda.current_stream(device))  # which makes weights and clears buffers
        with torch.cuda.stream(stream):
            for _ in range(3):  # cuDNN chooses its algorithms, and tables are made, before the capture
                self.segment()
        stream.synchronize()
        try:
            self._graph, self._outputs = capture(self.segment, stream)
        except RuntimeError as error:
            # What ends a failed capture says only that it failed; a name for what caused it would make a cycle.
            _logger.warning(
                "no CUDA graph of %s, going on without: %s", shapes.size, one_line(error.__context__ or error)
            )

    def run(self) -> Labels:
        """Label what is in ``inputs``; what is returned holds until the next call."""
        if self._graph is None or self._outputs is None:
            return self.segment()
        self._graph.replay()
        return self._outputs


def capture(call: Callable[[], _T], stream: torch.cuda.Stream) -> tuple[torch.cuda.CUDAGraph, _T]:
    """Capture a call as a graph; other threads may use the GPU meanwhile.

    torch 2.13 does not end a capture that failed midway: its allocator goes on taking it for one under way, keeps its
    memory and gives none back to the system, the stream stays the current one, and random numbers cannot be drawn any
    more. Here all three are put right.

    Args:
        call: what to capture; it ran before, so that what it makes once is made.
        stream: a stream other than the default one.

    Returns:
        The graph and what the call returned, which each replay overwrites.

    Raises:
        RuntimeError: the call cannot be captured.
    """
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    capturing = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
    try:
        with torch.cuda.stream(stream), capturing:
            outputs = call()
    except RuntimeError:
        with suppress(AttributeError, RuntimeError):  # a torch without these, or the capture was ended
            torch._C._cuda_endAllocateToPool(stream.device_index, pool)
            torch._C._cuda_releasePool(stream.device_index, pool)
        with suppress(AttributeError, IndexError, RuntimeError):
            generator = torch.cuda.default_generators[stream.device_index]
            generator.graphsafe_set_state(generator.clone_state())  # the clone is in no capture
        raise
    return graph, outputs


class _Slot:
    """Host and device memory of one frame in flight."""

    def __init__(self, shapes: _Shapes, device: torch.device) -> None:
        self.host = _Buffers.empty(shapes, torch.device("cpu"))
        self.device = _Buffers.empty(shapes, device)
        self.read = torch.cuda.Event()
        self.done = torch.cuda.Event(blocking=True)
        self._labels = _pinned(shapes.size, dtype=torch.uint8)
        self._confidence = _pinned(shapes.size, dtype=torch.float32) if shapes.with_confidence else None

    def fill(self, request: Request) -> None:
        """Copy a frame to pinned memory; the images are the caller's again."""
        self.host.missing[0] = torch.tensor([request.rgb is None, request.depth is None])
        if request.rgb is not None:
            _copy(request.rgb, self.host.rgb)
        if request.depth is not None:
            depth = request.depth.view(np.int16) if request.depth.dtype == np.uint16 else request.depth
            _copy(depth, self.host.depth)

    def take(self, outputs: Labels) -> None:
        """Have the results copied to pinned memory."""
        self._labels.copy_(outputs.labels[0], non_blocking=True)
        if self._confidence is not None and outputs.confidence is not None:
            self._confidence.copy_(outputs.confidence[0], non_blocking=True)

    def result(self) -> Result:
        self.done.synchronize()
        confidence = None if self._confidence is None else self._confidence.numpy().copy()
        return Result(self._labels.numpy().copy(), confidence)


class _Frame:
    """A frame in flight; its result is kept once it was waited for, since its slot then serves another."""

    def __init__(self, slot: _Slot) -> None:
        self._slot: _Slot | None = slot
        self._result: Result | None = None

    def result(self) -> Result:
        if self._slot is not None:
            self._result, self._slot = self._slot.result(), None
        assert self._result is not None
        return self._result


def _pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.zeros(shape, dtype=dtype, pin_memory=True)


def _copy(image: npt.NDArray[np.generic], pinned_1: Tensor) -> None:
    np.copyto(pinned_1[0].numpy(), image)
