# SPDX-License-Identifier: Apache-2.0
"""Loads models for the node: checked, put on their device and warmed up, or refused with what to do."""

from __future__ import annotations

import gc
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from m3l_model.allocator import give_back_freed_memory
from m3l_model.errors import M3LError
from m3l_model.shipped import model_file
from m3l_ros.parameters import NodeParameters

if TYPE_CHECKING:
    import torch

    from m3l_model.engine import Depth
    from m3l_model.labels import LabelSet
    from m3l_model.predictor import Predictor

_logger = logging.getLogger(__name__)

_WARM_UP_SIZE = (480, 640)
_OUT_OF_MEMORY = ("out of memory", "allocate memory", "STATUS_ALLOC_FAILED")  # not all have a class for it


class ModelError(M3LError):
    """A model that the node cannot use."""


def check_model(checkpoint: str, num_classes: int) -> None:
    """Refuse what a glance at the file tells to be unfit; weights, and the reference's files, are left to loading.

    Args:
        checkpoint: the file.
        num_classes: classes it must have; 0: any number.

    Raises:
        M3LError: it is missing, no checkpoint, not for this m3l, or has other classes.
    """
    from m3l_model.checkpoint import read_metadata
    from m3l_model.onnx_engine import read_header

    path = _path(checkpoint)
    metadata = read_header(path).metadata if path.suffix == ".onnx" else read_metadata(path)
    if metadata is not None:
        _check_classes(checkpoint, metadata.labels, num_classes)


def load_model(parameters: NodeParameters) -> Predictor:
    """Load the model and run it, so that the first frame does not pay for what is prepared on first use.

    An ONNX file that gives no logits is taken too: confidence, where somebody subscribes to it, then stays away, which
    is logged once.

    Raises:
        M3LError: the checkpoint cannot be read, does not fit the parameters, or is too large for its device.
    """
    if not parameters.checkpoint:
        raise ModelError(
            "parameter checkpoint is empty; give a model file, as in --ros-args -p checkpoint:=model.safetensors"
        )
    # torch takes seconds to import: here the node is up by then, and answers.
    from m3l_model.predictor import Predictor

    check_model(parameters.checkpoint, parameters.num_classes)
    try:
        predictor = Predictor.from_checkpoint(
            _path(parameters.checkpoint),
            parameters.device,
            parameters.precision,
            parameters.num_threads,
            confidence_needed=False,
        )
        _warm_up(predictor)
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        release_memory()
        raise ModelError(
            f"{parameters.checkpoint}: no memory left for it on device {parameters.device}: free some, choose "
            "another with parameter device, precision fp16 on a GPU, or a smaller model"
        ) from error
    _check_classes(parameters.checkpoint, predictor.labels, parameters.num_classes)
    return predictor


def _warm_up(predictor: Predictor) -> None:
    """Segment frames as cameras send them: a GPU makes a graph for each size and type of depth, elsewhere one will do.

    Confidence, which few subscribe to, and other sizes get theirs with their first frame.
    """
    size = predictor.image_size or _WARM_UP_SIZE
    depths: list[Depth] = [np.ones(size, np.uint16)]
    if predictor.device.type == "cuda":
        depths.append(np.ones(size, np.float32))
    for depth in depths:
        predictor.predict(np.zeros((*size, 3), np.uint8), depth, with_confidence=False)


def release_memory() -> None:
    """Give back the memory of models that are no longer used; torch would keep a GPU's for itself."""
    import torch

    gc.collect()
    if torch.cuda.is_initialized():
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:  # of a GPU that has failed; the node goes on to release the rest
            _logger.warning("the GPU's memory cannot be given back: %s", " ".join(str(error).split()))
    give_back_freed_memory()


def device_memory(device: torch.device) -> int | None:
    """Bytes that torch holds of a GPU's memory; None on the CPU."""
    if device.type != "cuda":
        return None
    import torch

    return int(torch.cuda.memory_reserved(device))


def _path(checkpoint: str) -> Path:
    try:
        return model_file(checkpoint).expanduser()
    except RuntimeError as error:
        raise ModelError(f"{checkpoint}: {error}; give the whole path") from error


def _check_classes(checkpoint: str, labels: LabelSet, num_classes: int) -> None:
    if num_classes and len(labels.classes) != num_classes:
        raise ModelError(
            f"{checkpoint}: has {len(labels.classes)} classes, parameter num_classes asks for {num_classes}; choose "
            "another checkpoint, or set num_classes to 0 to take any"
        )


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, a GPU, one of its libraries or torch's allocator for the CPU ran out of memory."""
    return isinstance(error, MemoryError) or any(text in str(error) for text in _OUT_OF_MEMORY)
