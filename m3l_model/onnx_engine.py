# SPDX-License-Identifier: Apache-2.0
"""Run an exported ONNX file by onnxruntime, for ``Predictor``."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from m3l_model.checkpoint import Metadata
from m3l_model.engine import Request, Result, network_images, to_result
from m3l_model.errors import M3LError
from m3l_model.labelling import label
from m3l_model.labels import LabelSet
from m3l_model.onnx_export import INPUTS, METADATA_KEY
from m3l_model.preprocessing import Preprocessing

_logger = logging.getLogger(__name__)

_CUDA = "CUDAExecutionProvider"
_Provider = str | tuple[str, dict[str, int]]
"""An execution provider of onnxruntime, with its options."""


class OnnxHeader(NamedTuple):
    """What a file says of itself.

    Attributes:
        metadata: of its network.
        size: (H, W) of the images it takes, and scales itself; None: images of the network's size, any.
        gives_logits: beside labels.
    """

    metadata: Metadata
    size: tuple[int, int] | None
    gives_logits: bool


class OnnxEngine:
    """An exported network in an onnxruntime session; a frame is done when it was submitted.

    Args:
        path: the file, for messages.
        session: an ``onnxruntime.InferenceSession`` of it.
        device: where the session runs.
        confidence_needed: a frame that asks for confidence is an error where the file gives no logits; else it goes
            without, which is logged once.
    """

    def __init__(
        self, path: Path, session: Any, device: torch.device, confidence_needed: bool = True
    ) -> None:
        self.device = device
        self.precision = torch.float32
        self.header = _header(path, session)
        self._path = path
        self._session = session
        self._confidence_needed = confidence_needed
        self._said = False

    @classmethod
    def open(
        cls, path: Path, device: str, precision: str, threads: int, confidence_needed: bool
    ) -> OnnxEngine:
        """Open a file that ``m3l export`` wrote.

        Raises:
            M3LError: no such file, not one of ours, another precision than auto or fp32, or onnxruntime is not there or
                cannot use the device; ``auto`` then takes the CPU, which is logged.
        """
        if precision not in ("auto", "fp32"):
            raise M3LError(
                f"{path}: computes in fp32, not {precision!r}; choose precision auto or fp32, or run the checkpoint"
            )
        options = import_onnxruntime(path).SessionOptions()
        options.intra_op_num_threads = threads
        chosen, providers = _providers(device, import_onnxruntime(path).get_available_providers())
        session = _session(path, options, providers)
        return cls(path, session, _used(session, chosen, device), confidence_needed)

    def submit(self, request: Request) -> Callable[[], Result]:
        if self.header.size is not None and request.size != self.header.size:
            raise M3LError(
                f"{self._path}: takes images of {_text(self.header.size)}, not {_text(request.size)}; export it for "
                "that size, or without --size"
            )
        preprocessing = self.header.metadata.preprocessing
        size = self.header.size or preprocessing.input_size(*request.size)
        with_confidence = request.with_confidence and self._gives_confidence()
        wanted = "logits" if with_confidence or size != request.size else "labels"
        if wanted == "logits" and not self.header.gives_logits:
            raise M3LError(
                f"{self._path}: images of {_text(request.size)} are too small; export it with --logits"
            )
        rgb, metres = network_images(request, size)
        missing = np.array([[request.rgb is None, request.depth is None]])
        images = dict(zip(INPUTS, (rgb[None], metres[None], missing), strict=True))
        (output,) = self._session.run([wanted], images)
        if wanted == "labels":
            result = Result(output[0], None)
        else:
            logits_BhwC = torch.from_numpy(output).permute(0, 2, 3, 1)
            result = to_result(label(logits_BhwC, request.size, with_confidence))
        return lambda: result

    def _gives_confidence(self) -> bool:
        if self.header.gives_logits:
            return True
        if self._confidence_needed:
            raise M3LError(
                f"{self._path}: gives no logits, which confidence needs; export it with --logits, or "
                "ask Predictor for labels alone, with_confidence=False"
            )
        if not self._said:
            _logger.warning(
                "%s: gives no logits, so there are labels but no confidence; export it with --logits",
                self._path,
            )
        self._said = True
        return False


def read_header(path: Path) -> OnnxHeader:
    """Read what a file says of itself, without making it ready to run.

    Raises:
        M3LError: no such file, not one of ours, or onnxruntime is not there.
    """
    options = import_onnxruntime(path).SessionOptions()
    options.graph_optimization_level = import_onnxruntime(path).GraphOptimizationLevel.ORT_DISABLE_ALL
    return _header(path, _session(path, options, ["CPUExecutionProvider"]))


def import_onnxruntime(path: Path) -> Any:
    """Import what runs a file.

    Raises:
        M3LError: it is not installed.
    """
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise M3LError(
            f"{path}: needs onnxruntime, which is not installed: pip install 'm3l_ros[onnx]', or on a robot "
            "pip install onnxruntime"
        ) from error
    return onnxruntime


def _session(path: Path, options: Any, providers: list[_Provider]) -> Any:
    if not path.is_file():
        raise M3LError(f"{path}: no such ONNX file")
    try:
        return import_onnxruntime(path).InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no other base
        raise M3LError(f"{path}: not a readable ONNX file ({' '.join(str(error).split())})") from error


def _header(path: Path, session: Any) -> OnnxHeader:
    try:
        header = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
        labels = LabelSet.from_json(json.dumps(header["labels"]))
        preprocessing = Preprocessing(**header["preprocessing"])
        size = None if header["size"] is None else (int(header["size"][0]), int(header["size"][1]))
    except (KeyError, TypeError, ValueError, M3LError) as error:
        raise M3LError(f"{path}: not an ONNX file of m3l; write one with `m3l export`") from error
    gives_logits = "logits" in [output.name for output in session.get_outputs()]
    return OnnxHeader(Metadata(labels, preprocessing), size, gives_logits)


def _providers(device: str, available: list[str]) -> tuple[torch.device, list[_Provider]]:
    """Choose onnxruntime's execution providers for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    has_cuda = _CUDA in available
    name, _, index = device.partition(":")
    if name == "cpu" or (name == "auto" and not has_cuda):
        return torch.device("cpu"), ["CPUExecutionProvider"]
    if name not in ("auto", "cuda") or not (index or "0").isdecimal():
        raise M3LError(f"device {device!r} is unknown; choose auto, cpu, cuda or cuda:N")
    if not has_cuda:
        raise M3LError(f"device {device!r}: this onnxruntime has no CUDA; pip install onnxruntime-gpu")
    number = int(index or 0)
    return torch.device("cuda", number), [(_CUDA, {"device_id": number}), "CPUExecutionProvider"]


def _used(session: Any, chosen: torch.device, asked: str) -> torch.device:
    """Give the device that a session runs on: onnxruntime takes the CPU by itself where it cannot use the GPU."""
    if chosen.type == "cpu" or _CUDA in session.get_providers():
        return chosen
    if asked != "auto":
        raise M3LError(
            f"device {asked!r}: onnxruntime cannot use it, and says above why; choose auto or cpu, or install the "
            "CUDA and cuDNN that this onnxruntime-gpu was built for"
        )
    _logger.warning("onnxruntime cannot use the GPU, and says above why; going on with the CPU")
    return torch.device("cpu")


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
