# SPDX-License-Identifier: Apache-2.0
"""Export a network, and compare the file with it before it takes its place."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import cv2
import numpy as np

from m3l_model.errors import M3LError
from m3l_model.onnx_engine import import_onnxruntime
from m3l_model.onnx_export import export_onnx
from m3l_model.predictor import Predictor
from m3l_model.segmenter import LinearFusionSegmenter

_ANY_SIZE = (240, 320)
_LEAST_AGREEMENT = 0.99
"""Random colour is the hardest case, and a file that scales images itself may round a grey level otherwise."""


class OnnxCheck(NamedTuple):
    """Frames compared, and the share of their pixels that got the same label."""

    frames: int
    agreement: float


def export_checked(
    model: LinearFusionSegmenter,
    path: Path,
    size: tuple[int, int] | None = None,
    with_logits: bool = False,
) -> OnnxCheck:
    """Write a network as ONNX, as ``export_onnx`` does; only a file that passes ``check_onnx`` replaces what is there.

    Raises:
        M3LError: as of both, the file cannot be written, or there is nothing to run it with.
    """
    import_onnxruntime(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".m3l_export_", dir=path.parent) as folder:
            unchecked = Path(folder) / path.name
            export_onnx(model, unchecked, size, with_logits)
            check = check_onnx(unchecked, model, size)
            unchecked.replace(path)
    except OSError as error:
        raise M3LError(f"{path}: cannot write the ONNX file: {error.strerror}") from error
    return check


def check_onnx(path: Path, model: LinearFusionSegmenter, size: tuple[int, int] | None) -> OnnxCheck:
    """Segment random colours before a random surface by both, whole and with either modality missing.

    Args:
        path: the file.
        model: the network, with metadata.
        size: the images' (H, W) where the file has one.

    Raises:
        M3LError: fewer than 99 % of the pixels agree.
    """
    plain = Predictor(model, "cpu", "fp32")
    exported = Predictor.from_checkpoint(path, "cpu")
    height, width = size or _ANY_SIZE
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (height, width, 3), np.uint8)
    depth = cv2.resize(rng.uniform(800, 6000, (4, 5)), (width, height)).astype(np.uint16)
    depth[: height // 4, : width // 4] = 0
    frames = [(rgb, depth), (rgb, None), (None, depth)]
    equal = [
        exported.predict(*frame, with_confidence=False).labels
        == plain.predict(*frame, with_confidence=False).labels
        for frame in frames
    ]
    agreement = float(np.mean(equal))
    if agreement < _LEAST_AGREEMENT:
        raise M3LError(
            f"{path.name}: only {100 * agreement:.1f} % of labels are torch's; the file is not to be used"
        )
    return OnnxCheck(len(frames), agreement)
