# SPDX-License-Identifier: Apache-2.0
"""The demo's report: one HTML file that opens without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np
import numpy.typing as npt

from m3l_model.html_figures import STYLE, data_uri, inline_svg, plt
from m3l_model.labels import LabelSet

MODELS = (("m3l", "with M3L"), ("supervised", "supervised, no modality dropout"))
COLORS = {"m3l": "#1769aa", "supervised": "#c77700"}
NO_DEPTH = 90
"""Gray of depth that did not come."""


@dataclass(frozen=True)
class StripFrame:
    """One column of the strip: images (H, W, 3) uint8 but depth (H, W) uint16 mm, None where it was switched off."""

    time_s: float
    rgb: npt.NDArray[np.uint8]
    depth_mm: npt.NDArray[np.uint16] | None
    mask: npt.NDArray[np.uint8]
    truth: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class LiveFrame:
    """One live mask: seconds from the start, share of pixels right, seconds from image to mask."""

    time_s: float
    accuracy: float
    latency_s: float


def write_report(
    path: Path,
    metrics: dict[str, Any],
    live: Sequence[LiveFrame],
    strip: Sequence[StripFrame],
    logs: dict[str, list[dict[str, float]]],
    labels: LabelSet,
) -> None:
    """Write the report.

    Args:
        path: the HTML file.
        metrics: what goes into metrics.json.
        live: the live masks, in order.
        strip: frames to show.
        logs: each model's training log, from run.json.
        labels: names and colours of the classes.
    """
    with plt.rc_context(STYLE):
        plots = {
            "timeline": _timeline(live, metrics["live"]["outage"]),
            "conditions": _conditions(metrics["offline"]),
            "losses": _losses(logs),
        }
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("m3l_ros"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    html = environment.get_template("demo_report.html").render(
        m=metrics,
        models=MODELS,
        strip=[_strip_column(frame, labels) for frame in strip],
        legend=list(zip(labels.classes, labels.colors, strict=True)),
        **plots,
    )
    path.write_text(html, encoding="utf-8")


def _timeline(live: Sequence[LiveFrame], outage: dict[str, float]) -> str:
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(10, 4.2), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    times = [frame.time_s for frame in live]
    for axes in (above, below):
        axes.axvspan(outage["start_s"], outage["end_s"], color="#b3261e", alpha=0.12, lw=0)
    above.plot(times, [100 * frame.accuracy for frame in live], color=COLORS["m3l"], lw=1.5)
    above.set(ylabel="pixels right, %", ylim=(0, 100))
    above.text(
        (outage["start_s"] + outage["end_s"]) / 2, 6, "no depth", ha="center", color="#b3261e", fontsize=11
    )
    below.plot(times, [1000 * frame.latency_s for frame in live], color="#5b6b7b", lw=1.2)
    below.set(xlabel="seconds of the bag", ylabel="latency, ms", ylim=(0, None))
    return inline_svg(figure, "Accuracy and latency of the live masks over time")


def _conditions(offline: dict[str, Any]) -> str:
    figure, axes = plt.subplots(figsize=(10, 3.4), layout="constrained")
    conditions = {
        "both": "both",
        "rgb_only": "colour only",
        "depth_only": "depth only",
        "robust": "mean of the three",
    }
    for offset, (name, title) in zip((-0.2, 0.2), MODELS, strict=True):
        values = [100 * offline[name][condition] for condition in conditions]
        bars = axes.bar(np.arange(len(values)) + offset, values, 0.38, color=COLORS[name], label=title)
        axes.bar_label(bars, fmt="%.1f", padding=2)
    axes.axhline(100 * offline["m3l"]["majority"], color="#5b6b7b", ls="--", lw=1)
    axes.set(ylabel="mIoU, %", ylim=(0, 100))
    axes.set_xticks(range(len(conditions)), list(conditions.values()))
    axes.legend(frameon=False, loc="upper right")
    return inline_svg(figure, "Mean IoU of both models with both modalities, colour only and depth only")


def _losses(logs: dict[str, list[dict[str, float]]]) -> str:
    figure, axes = plt.subplots(figsize=(10, 3), layout="constrained")
    for name, title in MODELS:
        for field, style in (("loss_supervised", "-"), ("loss_pseudo", ":")):
            values = np.array([step[field] for step in logs[name]])
            if values.any():
                smooth = np.convolve(values, np.ones(10) / 10, mode="valid")
                what = "supervised loss" if field == "loss_supervised" else "pseudo-label loss"
                axes.plot(smooth, style, color=COLORS[name], label=f"{title}: {what}")
    axes.set(xlabel="step", ylabel="loss", ylim=(0, None))
    axes.legend(frameon=False)
    return inline_svg(figure, "Training losses over the steps")


def _strip_column(frame: StripFrame, labels: LabelSet) -> dict[str, Any]:
    return {
        "time_s": frame.time_s,
        "depth": frame.depth_mm is not None,
        "images": {
            "colour": _data_uri(frame.rgb, ".jpg"),
            "depth": _data_uri(_show_depth(frame.depth_mm, frame.rgb.shape[:2]), ".png"),
            "mask": _data_uri(labels.colorize(frame.mask), ".png"),
            "truth": _data_uri(labels.colorize(frame.truth), ".png"),
        },
    }


def _show_depth(
    depth_mm: npt.NDArray[np.uint16] | None, shape: tuple[int, int], far_mm: int = 6000
) -> npt.NDArray[np.uint8]:
    """Colour depth from near (warm) to far (cold); holes black; a gray field where there is no depth."""
    if depth_mm is None:
        return np.full((*shape, 3), NO_DEPTH, np.uint8)
    nearness = 255 - np.clip(depth_mm.astype(np.float32) / far_mm * 255, 0, 255).astype(np.uint8)
    shown = cv2.cvtColor(cv2.applyColorMap(nearness, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    shown[depth_mm == 0] = 0
    return np.asarray(shown, np.uint8)


def _data_uri(rgb: npt.NDArray[np.uint8], suffix: str) -> str:
    _, encoded = cv2.imencode(suffix, cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    return data_uri(encoded.tobytes(), "jpeg" if suffix == ".jpg" else "png")
