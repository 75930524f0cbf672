# SPDX-License-Identifier: Apache-2.0
"""Segment one frame of plain NumPy images with a trained model; hides resizing, normalisation and the device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from m3l_model import processor
from m3l_model.checkpoint import Metadata, load_checkpoint
from m3l_model.engine import CpuEngine, Engine, Request, Result
from m3l_model.errors import M3LError
from m3l_model.labels import LabelSet
from m3l_model.preprocessing import Preprocessing, has_reading
from m3l_model.segmenter import LinearFusionSegmenter
from m3l_model.shipped import model_file

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Prediction(NamedTuple):
    """Segmentation of one frame.

    Attributes:
        labels: (H, W) uint8 class ids, of the size of the colour image (of the depth image where there is no colour).
        confidence: (H, W) float32 in 0..1, the probability of the class; None where it was not asked for.
        used: the modalities that had data, of "rgb" and "depth".
    """

    labels: npt.NDArray[np.uint8]
    confidence: npt.NDArray[np.float32] | None
    used: tuple[str, ...]


class Predictor:
    """A model ready for inference on one device.

    Args:
        model: the network, with metadata. It is rearranged at once: what is trained further must be prepared anew.
        device: ``auto`` (the GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``...
        precision: ``auto`` (the GPU: bf16 where it has it, else fp16; the CPU: bf16 where its vector or matrix unit
            computes with it, else fp32), ``fp32``, ``bf16``, ``fp16``. In fp32 a GPU's convolutions are in TF32 where
            ``torch.backends.cudnn.allow_tf32`` is on, as it is unless it was changed.
        threads: of the CPU; 0 leaves it to torch.
        compile: let torch.compile fuse the network's operators, which takes minutes at the first frame of a size and
            needs a C++ compiler. On the CPU it is slower than without (docs/performance.md); on a GPU it was never
            measured.

    Attributes:
        image_size: (H, W) of the only images it takes; None: it takes any.

    Raises:
        M3LError: no such device or precision.
        ValueError: the model has no metadata.
    """

    def __init__(
        self,
        model: LinearFusionSegmenter,
        device: str = "auto",
        precision: str = "auto",
        threads: int = 0,
        compile: bool = False,
    ) -> None:
        metadata = model.metadata
        if metadata is None:
            raise ValueError("the model has no metadata; set model.metadata or load it with load_checkpoint")
        chosen = choose_device(device)
        dtype = _choose_precision(precision, chosen)
        _set_threads(threads)
        model = model.to(chosen).eval()
        engine: Engine
        if chosen.type == "cuda":
            from m3l_model.cuda_engine import CudaEngine

            engine = CudaEngine(model, metadata.preprocessing, dtype, compile)
        else:
            engine = CpuEngine(model, metadata.preprocessing, dtype, compile)
        self._set(engine, metadata)

    def _set(self, engine: Engine, metadata: Metadata, image_size: tuple[int, int] | None = None) -> None:
        self._engine = engine
        self.image_size = image_size
        self.device = engine.device
        self.precision = engine.precision
        self.labels: LabelSet = metadata.labels
        self.preprocessing: Preprocessing = metadata.preprocessing

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: str = "auto",
        precision: str = "auto",
        threads: int = 0,
        compile: bool = False,
        confidence_needed: bool = True,
    ) -> Predictor:
        """Load a checkpoint (ours or the reference implementation's) or an ONNX file of ours for inference.

        Args:
            path: the file, or the name of a model that comes with the package, such as ``nyu13_b0``; an ONNX file's
                name ends in .onnx, and it computes in fp32.
            device, precision, threads, compile: as for ``Predictor``; an ONNX file is not compiled.
            confidence_needed: a frame that asks for confidence is an error where an ONNX file gives no logits; else it
                goes without, which is logged once.

        Raises:
            M3LError: the file cannot be read, or there is no such device or precision.
        """
        path = model_file(path)
        if path.suffix != ".onnx":
            return cls(load_checkpoint(path), device, precision, threads, compile)
        from m3l_model.onnx_engine import OnnxEngine

        _set_threads(threads)
        engine = OnnxEngine.open(path, device, precision, threads, confidence_needed)
        predictor = cls.__new__(cls)
        predictor._set(engine, engine.header.metadata, engine.header.size)
        return predictor

    def predict(
        self,
        rgb: npt.NDArray[np.uint8] | None,
        depth: npt.NDArray[np.uint16] | npt.NDArray[np.float32] | None,
        with_confidence: bool = True,
    ) -> Prediction:
        """Segment one frame.

        Args:
            rgb: (H, W, 3) uint8 RGB, or None where colour is missing.
            depth: (H', W') uint16 millimetres or float32 metres, registered to the colour image and, where its size
                differs, resampled to it; or None where depth is missing. 0, NaN and 65535 are holes; an image of
                nothing but holes counts as missing.
            with_confidence: compute ``Prediction.confidence``.

        Raises:
            M3LError: an ONNX file takes no images of that size, or gives no confidence.
            ValueError: both images are missing, one has the wrong type or shape, or colour has no pixels.
        """
        return self.submit(rgb, depth, with_confidence).result()

    def submit(
        self,
        rgb: npt.NDArray[np.uint8] | None,
        depth: npt.NDArray[np.uint16] | npt.NDArray[np.float32] | None,
        with_confidence: bool = True,
    ) -> PendingPrediction:
        """Start on a frame as ``predict`` does, and do not wait for it: a GPU takes the next while it has one in hand.

        At most two frames are in flight; a third waits for the first. The images may be overwritten at once.
        """
        if depth is not None and not has_reading(depth):
            depth = None
        shape = _image_shape(rgb, depth)
        used = tuple(name for name, image in (("rgb", rgb), ("depth", depth)) if image is not None)
        if not used:
            raise ValueError("neither colour nor a single valid depth reading; there is nothing to segment")
        return PendingPrediction(self._engine.submit(Request(rgb, depth, shape, with_confidence)), used)


class PendingPrediction:
    """A frame that was handed to the device."""

    def __init__(self, wait: Callable[[], Result], used: tuple[str, ...]) -> None:
        self._wait = wait
        self._used = used

    def result(self) -> Prediction:
        """Wait for the frame; to be called once."""
        return Prediction(*self._wait(), self._used)


def choose_device(name: str) -> torch.device:
    """Turn ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` into a device that is there.

    Raises:
        M3LError: it is unknown or absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise M3LError(f"device {name!r} is unknown; choose auto, cpu, cuda or cuda:N") from error
    if device.type not in ("cpu", "cuda"):
        raise M3LError(f"device {name!r} is not supported; choose auto, cpu, cuda or cuda:N")
    if device.type == "cpu" and device.index:
        raise M3LError(
            f"device {name!r} is not there: there is one cpu; how many threads it takes is set elsewhere"
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise M3LError(
            f"device {name!r} is not there: torch {torch.__version__} sees {torch.cuda.device_count()} GPUs; "
            "choose auto or cpu, or install a CUDA build of torch"
        )
    return device


def _image_shape(
    rgb: npt.NDArray[np.uint8] | None, depth: npt.NDArray[np.uint16] | npt.NDArray[np.float32] | None
) -> tuple[int, int]:
    if rgb is not None:
        if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
            raise ValueError(f"rgb must be HxWx3 uint8, got {rgb.dtype} {rgb.shape}")
        if rgb.size == 0:
            raise ValueError(f"rgb has no pixels, it is {rgb.shape}")
        return rgb.shape[0], rgb.shape[1]
    if depth is None:
        raise ValueError("rgb and depth are both None; there is nothing to segment")
    return depth.shape[0], depth.shape[1]


def _choose_precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        if device.type == "cpu":
            return torch.bfloat16 if processor.multiplies_bf16() else torch.float32
        return torch.bfloat16 if _multiplies_bf16(device) else torch.float16
    if name not in PRECISIONS:
        raise M3LError(f"precision {name!r} is unknown; choose auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def _multiplies_bf16(gpu: torch.device) -> bool:
    """Tell whether a GPU has units for bf16; torch.cuda.is_bf16_supported also counts those that emulate it, slowly."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(gpu) >= (8, 0)


def _set_threads(threads: int) -> None:
    if threads < 0:
        raise M3LError(f"threads is {threads}; choose 0 (torch's choice) or more")
    if threads:
        torch.set_num_threads(threads)
