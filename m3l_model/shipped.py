# SPDX-License-Identifier: Apache-2.0
"""The models that come with the package, each by its name: m3l_model/weights/NAME.safetensors."""

from __future__ import annotations

from pathlib import Path

DEFAULT_MODEL = "nyu13_b0"
"""What the node runs where nothing else is asked for; its card is m3l_model/weights/README.md."""

_WEIGHTS = Path(__file__).resolve().parent / "weights"


def model_file(name_or_path: str | Path) -> Path:
    """Give the file of a model.

    Args:
        name_or_path: the name of a model that comes with the package, such as ``nyu13_b0``; or a path, which need not
            exist.
    """
    shipped = {path.stem: path for path in _WEIGHTS.glob("*.safetensors")}
    return shipped.get(str(name_or_path)) or Path(name_or_path)
