# SPDX-License-Identifier: Apache-2.0
"""RGB-D semantic segmentation that survives a missing modality: model, training from bags, evaluation. Free of ROS."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from m3l_model.checkpoint import load_checkpoint, save_checkpoint
    from m3l_model.errors import M3LError
    from m3l_model.predictor import Prediction, Predictor
    from m3l_model.segmenter import LinearFusionSegmenter
    from m3l_model.sync import RgbdSynchronizer

__version__ = "0.1.0"

_HOMES = {
    "LinearFusionSegmenter": "m3l_model.segmenter",
    "M3LError": "m3l_model.errors",
    "Prediction": "m3l_model.predictor",
    "Predictor": "m3l_model.predictor",
    "RgbdSynchronizer": "m3l_model.sync",
    "load_checkpoint": "m3l_model.checkpoint",
    "save_checkpoint": "m3l_model.checkpoint",
}

__all__ = [
    "LinearFusionSegmenter",
    "M3LError",
    "Prediction",
    "Predictor",
    "RgbdSynchronizer",
    "__version__",
    "load_checkpoint",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that a bag player need not load torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
