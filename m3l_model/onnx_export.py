# SPDX-License-Identifier: Apache-2.0
"""Write a network as an ONNX file: uint8 colour and metric depth in, labels out."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from m3l_model import device_images
from m3l_model.errors import M3LError
from m3l_model.preprocessing import Preprocessing
from m3l_model.segmenter import MAX_SIZE, MIN_SIZE, LinearFusionSegmenter, upsample

INPUTS = ("rgb", "depth", "missing")
METADATA_KEY = "m3l"
OPSET = 18


class ExportedSegmenter(nn.Module):
    """What the file computes.

    Args:
        model: the network, with metadata.
        resize: scale the images to the network's size first; else they come at that size.
        with_logits: give the logits at a quarter of the network's size too.
    """

    def __init__(self, model: LinearFusionSegmenter, resize: bool, with_logits: bool) -> None:
        super().__init__()
        assert model.metadata is not None
        self.model = model
        self.preprocessing: Preprocessing = model.metadata.preprocessing
        self.resize = resize
        self.with_logits = with_logits

    def forward(self, rgb: Tensor, depth: Tensor, missing: Tensor) -> tuple[Tensor, ...]:
        """Segment a batch.

        Args:
            rgb: (B, H, W, 3) uint8.
            depth: (B, H, W) float32 metres; 0, negative values, NaN and infinity are holes.
            missing: (B, 2) bool, [rgb, depth].

        Returns:
            Labels (B, H, W) uint8 and, where asked for, logits (B, C, ceil(h/4), ceil(w/4)) of the network's size hxw.
        """
        size = rgb.shape[1:3]
        metres = device_images.metres(depth)
        colour = rgb
        if self.resize:
            network_size = self.preprocessing.input_size(*size)
            colour = device_images.resize_rgb(rgb, network_size)
            metres = device_images.resize_nearest(metres, network_size)
        inputs = self.preprocessing.encode(colour, metres)
        logits = self.model.quarter_logits(inputs.rgb, inputs.depth, missing, inputs.depth_valid).fused
        labels = upsample(logits, size).argmax(1).to(torch.uint8)
        return (labels, logits) if self.with_logits else (labels,)


def export_onnx(
    model: LinearFusionSegmenter,
    path: Path,
    size: tuple[int, int] | None = None,
    with_logits: bool = False,
) -> None:
    """Write a network as ONNX.

    Args:
        model: the network, in eval mode on the CPU, with metadata.
        path: file to write.
        size: (H, W) of the images, which the file then scales itself; None: images of any number and size from 32x32,
            which a network with a ``short_side`` wants scaled to it; then, since labels are to be upsampled from
            logits, these are given in any case.
        with_logits: the file gives logits too.

    Raises:
        M3LError: the size is too small.
        OSError: the file cannot be written.
    """
    if model.metadata is None:
        raise ValueError("the model has no metadata; set model.metadata or load it with load_checkpoint")
    if size is not None and not MIN_SIZE <= min(size) <= max(size) <= MAX_SIZE:
        raise M3LError(f"size {size[0]}x{size[1]}: height and width must be {MIN_SIZE} to {MAX_SIZE}")
    preprocessing = model.metadata.preprocessing
    scaled_before = size is None and preprocessing.short_side is not None
    with_logits = with_logits or scaled_before
    exported = ExportedSegmenter(model, size is not None, with_logits).eval()
    batch, example = (1, size) if size is not None else (2, (64, 96))
    inputs = (
        torch.zeros(batch, *example, 3, dtype=torch.uint8),
        torch.ones(batch, *example),
        torch.zeros(batch, 2, dtype=torch.bool),
    )
    with torch.no_grad():
        exported(*inputs)  # makes the tables that are constants of the file
    program = _export(exported, inputs, dynamic=size is None)
    header = {
        "backbone": model.backbone,
        "labels": json.loads(model.metadata.labels.to_json()),
        "preprocessing": asdict(preprocessing),
        "size": size,
    }
    program.model.metadata_props[METADATA_KEY] = json.dumps(header)
    program.save(path)


def _export(exported: ExportedSegmenter, inputs: tuple[Tensor, ...], dynamic: bool) -> torch.onnx.ONNXProgram:
    shapes = None
    if dynamic:
        batch = torch.export.Dim("batch", min=1, max=64)
        height = torch.export.Dim("height", min=MIN_SIZE, max=MAX_SIZE)
        width = torch.export.Dim("width", min=MIN_SIZE, max=MAX_SIZE)
        image = {0: batch, 1: height, 2: width}
        shapes = {"rgb": image, "depth": image, "missing": {0: batch}}
    outputs = ["labels", "logits"] if exported.with_logits else ["labels"]
    with warnings.catch_warnings(), _without_torchvision_s_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            exported,
            inputs,
            input_names=list(INPUTS),
            output_names=outputs,
            dynamic_shapes=shapes,
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None
    return program


@contextlib.contextmanager
def _without_torchvision_s_warnings() -> Iterator[None]:
    """Where torchvision is not installed, torch warns of each of its operators, none of which is exported."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
