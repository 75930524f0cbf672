# SPDX-License-Identifier: Apache-2.0
"""What runs a network for ``Predictor``: one frame of NumPy images in, its labels out, later where that is faster."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m3l_model.allocator import keep_freed_memory
from m3l_model.labelling import Labels, label
from m3l_model.prepared import PreparedSegmenter
from m3l_model.preprocessing import Preprocessing, resize_nearest, resize_rgb, to_metres
from m3l_model.segmenter import LinearFusionSegmenter

_logger = logging.getLogger(__name__)

Depth = npt.NDArray[np.uint16] | npt.NDArray[np.float32]
Network = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""What ``PreparedSegmenter`` is, or what was made of one."""


class Request(NamedTuple):
    """A checked frame: at least one modality has data.

    Attributes:
        rgb: (H, W, 3) uint8, or None.
        depth: (H', W') uint16 millimetres or float32 metres with at least one reading, or None.
        size: (H, W) of the labels.
        with_confidence: give the class's probability too.
    """

    rgb: npt.NDArray[np.uint8] | None
    depth: Depth | None
    size: tuple[int, int]
    with_confidence: bool


class Result(NamedTuple):
    """Class ids (H, W) uint8 and their probabilities (H, W) float32, or None."""

    labels: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32] | None


class Engine(Protocol):
    """Runs one network on one device; used from one thread at a time."""

    device: torch.device
    precision: torch.dtype

    def submit(self, request: Request) -> Callable[[], Result]:
        """Start on a frame; what is returned waits for its result, and is called once for each, in order."""


class CpuEngine:
    """The prepared network on the CPU; a frame is done when it was submitted.

    Args:
        model: the network, in eval mode.
        preprocessing: what it expects.
        precision: of weights and activations.
        compile: have torch.compile fuse the network's operators first; slower than without, where it was measured.
    """

    def __init__(
        self,
        model: LinearFusionSegmenter,
        preprocessing: Preprocessing,
        precision: torch.dtype,
        compile: bool = False,
    ) -> None:
        keep_freed_memory()
        self.device = torch.device("cpu")
        self.precision = precision
        self._preprocessing = preprocessing
        network = PreparedSegmenter(model, precision)
        self._network: Network = Compiled(network) if compile else network

    @torch.inference_mode()
    def submit(self, request: Request) -> Callable[[], Result]:
        size = self._preprocessing.input_size(*request.size)
        rgb, metres = network_images(request, size)
        missing = torch.tensor([[request.rgb is None, request.depth is None]])
        labels = segment(
            self._network,
            self._preprocessing,
            torch.from_numpy(np.require(rgb, requirements=["C", "W"]))[None],
            torch.from_numpy(np.require(metres, requirements=["C", "W"]))[None],
            missing,
            request.size,
            request.with_confidence,
        )
        result = to_result(labels)
        return lambda: result


class Compiled:
    """A network whose operators torch.compile fuses; once that fails, the network as it is.

    Images and labels are left out: there the compiler would make the tables of their sizes anew for every frame.

    Args:
        network: the network.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._fused: Network = torch.compile(network, dynamic=False)

    def __call__(self, rgb: Tensor, depth: Tensor, missing: Tensor, depth_valid: Tensor | None) -> Tensor:
        try:
            return self._fused(rgb, depth, missing, depth_valid)
        except Exception as error:  # the compiler's errors are of many kinds
            if rgb.is_cuda and torch.cuda.is_current_stream_capturing():  # it is the capture that failed
                raise
            _logger.warning("torch.compile failed, going on without it: %s", one_line(error))
            self._fused = self._network
            return self._network(rgb, depth, missing, depth_valid)


def segment(
    network: Network,
    preprocessing: Preprocessing,
    rgb_BHW3: Tensor,
    metres_BHW: Tensor,
    missing: Tensor,
    size: tuple[int, int],
    with_confidence: bool,
) -> Labels:
    """Encode images of the network's size, (B, H, W, 3) uint8 and (B, H, W) metres, segment, label at ``size``."""
    inputs = preprocessing.encode(rgb_BHW3, metres_BHW)
    depth = inputs.depth[:, : preprocessing.depth_channels]
    logits_BhwC = network(inputs.rgb, depth, missing, inputs.depth_valid)
    return label(logits_BhwC, size, with_confidence)


def network_images(
    request: Request, size: tuple[int, int]
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """Resize a frame to the network's size: colour (*size, 3), depth in metres; zeros for what is missing."""
    rgb = np.zeros((*size, 3), np.uint8) if request.rgb is None else resize_rgb(request.rgb, size)
    if request.depth is None:
        return rgb, np.zeros(size, np.float32)
    return rgb, resize_nearest(to_metres(request.depth), size)


def to_result(labels: Labels) -> Result:
    """Take a batch of one to NumPy."""
    confidence = None if labels.confidence is None else labels.confidence[0].cpu().numpy()
    return Result(labels.labels[0].cpu().numpy(), confidence)


def one_line(error: BaseException) -> str:
    """Give an error's message in one line, for the log."""
    return " ".join(str(error).split())[:300]
