# SPDX-License-Identifier: Apache-2.0
"""Run an exported ONNX file by onnxruntime, for ``Predictor``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3l_model.checkpoint import Metadata
from m3l_model.engine import Request, Result, network_images, to_result
from m3l_model.errors import M3LError
from m3l_model.labelling import label
from m3l_model.labels import LabelSet
from m3l_model.onnx_export import INPUTS, METADATA_KEY
from m3l_model.preprocessing import Preprocessing


class OnnxEngine:
    """An exported network in an onnxruntime session; a frame is done when it was submitted.

    Args:
        path: the file, for messages.
        session: an ``onnxruntime.InferenceSession``.
        preprocessing: what the network expects.
        size: (H, W) of the images the file takes, and scales itself; None: images of the network's size, any.
        device: where the session runs.
    """

    def __init__(
        self,
        path: Path,
        session: Any,
        preprocessing: Preprocessing,
        size: tuple[int, int] | None,
        device: torch.device,
    ) -> None:
        self.device = device
        self.precision = torch.float32
        self._path = path
        self._session = session
        self._preprocessing = preprocessing
        self._size = size
        self._outputs = [output.name for output in session.get_outputs()]

    @classmethod
    def open(cls, path: Path, device: str, threads: int) -> tuple[OnnxEngine, Metadata]:
        """Open a file that ``m3l export`` wrote.

        Raises:
            M3LError: no such file, not one of ours, or onnxruntime has no support of the device.
            ModuleNotFoundError: onnxruntime is not installed.
        """
        import onnxruntime

        if not path.is_file():
            raise M3LError(f"{path}: no such ONNX file")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        chosen, providers = _providers(device, onnxruntime.get_available_providers())
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=providers)
        except Exception as error:  # onnxruntime's errors share no other base
            raise M3LError(f"{path}: not a readable ONNX file ({' '.join(str(error).split())})") from error
        try:
            header = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
            labels = LabelSet.from_json(json.dumps(header["labels"]))
            preprocessing = Preprocessing(**header["preprocessing"])
            size = None if header["size"] is None else (int(header["size"][0]), int(header["size"][1]))
        except (KeyError, TypeError, ValueError, M3LError) as error:
            raise M3LError(f"{path}: not an ONNX file of m3l; write one with `m3l export`") from error
        return cls(path, session, preprocessing, size, chosen), Metadata(labels, preprocessing)

    def submit(self, request: Request) -> Callable[[], Result]:
        if self._size is not None and request.size != self._size:
            raise M3LError(
                f"{self._path}: takes images of {_text(self._size)}, not {_text(request.size)}; export it for that "
                "size, or without --size"
            )
        size = self._size or self._preprocessing.input_size(*request.size)
        rgb, metres = network_images(request, size)
        missing = np.array([[request.rgb is None, request.depth is None]])
        wanted = "logits" if request.with_confidence or size != request.size else "labels"
        if wanted not in self._outputs:
            raise M3LError(f"{self._path}: gives no logits, which confidence needs; export it with --logits")
        images = dict(zip(INPUTS, (rgb[None], metres[None], missing), strict=True))
        (output,) = self._session.run([wanted], images)
        if wanted == "labels":
            result = Result(output[0], None)
        else:
            logits_BhwC = torch.from_numpy(output).permute(0, 2, 3, 1)
            result = to_result(label(logits_BhwC, request.size, request.with_confidence))
        return lambda: result


def _providers(device: str, available: list[str]) -> tuple[torch.device, list[str]]:
    """Choose onnxruntime's execution providers for ``auto``, ``cpu``, ``cuda`` or ``cuda:N``."""
    has_cuda = "CUDAExecutionProvider" in available
    name, _, index = device.partition(":")
    if name == "cpu" or (name == "auto" and not has_cuda):
        return torch.device("cpu"), ["CPUExecutionProvider"]
    if name not in ("auto", "cuda"):
        raise M3LError(f"device {device!r} is unknown; choose auto, cpu, cuda or cuda:N")
    if not has_cuda:
        raise M3LError(f"device {device!r}: this onnxruntime has no CUDA; pip install onnxruntime-gpu")
    return torch.device("cuda", int(index or 0)), ["CUDAExecutionProvider", "CPUExecutionProvider"]


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
