# SPDX-License-Identifier: Apache-2.0
"""Segment one frame of plain NumPy images with a trained model; hides resizing, normalisation and the device."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from m3l_model.checkpoint import load_checkpoint
from m3l_model.errors import M3LError
from m3l_model.labels import LabelSet
from m3l_model.preprocessing import Preprocessing, resize_nearest, resize_rgb, to_metres
from m3l_model.segmenter import LinearFusionSegmenter, upsample

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
        model: the network, with metadata.
        device: ``auto`` (the GPU where there is one), ``cpu``, ``cuda``, ``cuda:1``...
        precision: ``auto`` (bf16 on a GPU that has it, fp16 on another, fp32 on the CPU), ``fp32``, ``bf16``, ``fp16``.

    Raises:
        M3LError: no such device or precision.
        ValueError: the model has no metadata.
    """

    def __init__(self, model: LinearFusionSegmenter, device: str = "auto", precision: str = "auto") -> None:
        if model.metadata is None:
            raise ValueError("the model has no metadata; set model.metadata or load it with load_checkpoint")
        self.device = choose_device(device)
        self.precision = _choose_precision(precision, self.device)
        self.labels: LabelSet = model.metadata.labels
        self.preprocessing: Preprocessing = model.metadata.preprocessing
        self._model = model.to(self.device).eval()

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str = "auto", precision: str = "auto") -> Predictor:
        """Load a checkpoint (ours or the reference implementation's) for inference.

        Raises:
            M3LError: the checkpoint cannot be read, or there is no such device or precision.
        """
        return cls(load_checkpoint(path), device, precision)

    @torch.inference_mode()
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
            ValueError: both images are missing, or one has the wrong type or shape.
        """
        metres = None if depth is None else to_metres(depth)
        if metres is not None and not metres.any():
            metres = None
        shape = _image_shape(rgb, depth)
        size = self.preprocessing.input_size(*shape)
        rgb_hw3 = np.zeros((*size, 3), np.uint8) if rgb is None else resize_rgb(rgb, size)
        metres_hw = np.zeros(size, np.float32) if metres is None else resize_nearest(metres, size)
        missing = torch.tensor([[rgb is None, metres is None]])
        if missing.all():
            raise ValueError("neither colour nor a single valid depth reading; there is nothing to segment")

        inputs = self.preprocessing.encode(
            torch.from_numpy(np.require(rgb_hw3, requirements=["C", "W"]))[None].to(self.device),
            torch.from_numpy(np.require(metres_hw, requirements=["C", "W"]))[None].to(self.device),
        )
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            logits = self._model.quarter_logits(inputs.rgb, inputs.depth, missing, inputs.depth_valid).fused
        full = upsample(logits.float(), shape)[0]
        confidence = None
        if with_confidence:
            best, labels = full.softmax(0).max(0)
            confidence = best.cpu().numpy()
        else:
            labels = full.argmax(0)
        used = tuple(name for name, image in (("rgb", rgb), ("depth", metres)) if image is not None)
        return Prediction(labels.to(torch.uint8).cpu().numpy(), confidence, used)


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
        return rgb.shape[0], rgb.shape[1]
    if depth is None:
        raise ValueError("rgb and depth are both None; there is nothing to segment")
    return depth.shape[0], depth.shape[1]


def _choose_precision(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if name not in PRECISIONS:
        raise M3LError(f"precision {name!r} is unknown; choose auto, {', '.join(PRECISIONS)}")
    return PRECISIONS[name]
