# SPDX-License-Identifier: Apache-2.0
"""The segmentation node with a model that costs nothing, to see what all the rest costs.

The stand-in's mask is 0 but for the first five pixels. Into four it copies the first four bytes of the image: who
numbers images there finds the numbers in the masks. The fifth is 1 where there is depth. ``STANDIN_SECONDS`` in the
environment makes it slow. With ``STANDIN_STALL`` all of Python stands still for so many seconds at the first image, as
where no core is free.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from typing import Any

import numpy as np

from m3l_model.labels import LabelSet
from m3l_ros import node, segmentation_node
from m3l_ros.parameters import NodeParameters


class StandIn:
    """What the node needs of a `m3l_model.predictor.Predictor`."""

    def __init__(self, seconds: float) -> None:
        import torch

        self.labels = LabelSet.generic(5)
        self.device = torch.device("cpu")
        self.precision = torch.float32
        self._seconds = seconds
        self._stall = float(os.environ.get("STANDIN_STALL", "0"))

    def predict(self, rgb: Any, depth: Any, with_confidence: bool = True) -> Any:
        """A mask of the image's size that bears its number."""
        from m3l_model.predictor import Prediction

        if self._stall:
            ctypes.PyDLL(None).usleep(round(self._stall * 1e6))  # PyDLL keeps the interpreter's lock
            self._stall = 0.0
        if self._seconds:
            time.sleep(self._seconds)
        labels = np.zeros(rgb.shape[:2], np.uint8)
        labels[0, :4] = rgb[0, :2].reshape(-1)[:4]
        labels[0, 4] = depth is not None
        confidence = np.ones(labels.shape, np.float32) if with_confidence else None
        return Prediction(
            labels, confidence, ("rgb",) if depth is None or not depth.any() else ("rgb", "depth")
        )


def load_model(parameters: NodeParameters) -> Any:
    """In the place of the node's own."""
    return StandIn(float(os.environ.get("STANDIN_SECONDS", "0")))


if __name__ == "__main__":
    node.load_model = load_model
    sys.exit(segmentation_node.main())
