# SPDX-License-Identifier: Apache-2.0
"""Plots and pictures as parts of one HTML file that opens without a network."""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
"""Of all plots, for ``pyplot.rc_context``."""


def inline_svg(figure: Any, description: str) -> str:
    """Turn a matplotlib figure into an SVG element with a description for screen readers, and close it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)


def data_uri(data: bytes, kind: str) -> str:
    """Turn an encoded image (``kind``: jpeg, png) into a URI that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
