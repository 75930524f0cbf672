# SPDX-License-Identifier: Apache-2.0
"""The figures of an evaluation, with their confidence intervals, and how two models differ."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from m3l_model import metrics
from m3l_model.bootstrap import BlockBootstrap, Interval
from m3l_model.evaluation import Evaluation
from m3l_model.robustness import failure_metrics, robust
from m3l_model.scenarios import CLEAN

MOST_CHANGED = 10
"""Frames that are listed of a comparison."""

_FIGURES: dict[str, tuple[str, Callable[[Any], npt.NDArray[np.float64]]]] = {
    "miou": ("confusion", metrics.miou),
    "pixel_accuracy": ("confusion", metrics.pixel_accuracy),
    "boundary_f": ("boundary", metrics.boundary_f),
    "ece": ("calibration", metrics.expected_calibration_error),
    "flicker": ("flicker", metrics.share),
    "agreement": ("agreement", metrics.share),
    "confidence": ("confidence", metrics.share),
}
"""Each figure of a scenario: what it is computed of, and how."""

PROXIES = ("flicker", "agreement", "confidence")
"""Figures that need no labels, and say nothing about right or wrong."""


class Figure(NamedTuple):
    """A figure and its 95 % interval, None where the blocks are too few; NaN where it could not be measured."""

    value: float
    interval: Interval | None

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        value = self.value if math.isfinite(self.value) else None
        return {"value": value, "interval": list(self.interval) if self.interval else None}


@dataclass(frozen=True)
class ScenarioSummary:
    """One model in one scenario.

    Attributes:
        figures: by name; those that need labels only where there are some.
        class_iou: of each class by name, NaN where it does not occur.
        confusion: (C, C) pixels, a row per true class.
        segmented: frames that got a mask.
        with_depth: frames of which the model used depth.
    """

    figures: dict[str, Figure]
    class_iou: dict[str, float]
    confusion: npt.NDArray[np.int64]
    segmented: int
    with_depth: int


@dataclass(frozen=True)
class ModelSummary:
    """One model.

    Attributes:
        scenarios: by name.
        headline: robust mIoU, the mIoU of each scenario, and the metrics of ``robustness.failure_metrics``; empty
            without labels.
        majority: mIoU of always answering the most frequent class; NaN without labels.
    """

    scenarios: dict[str, ScenarioSummary]
    headline: dict[str, Figure]
    majority: float


@dataclass(frozen=True)
class Comparison:
    """How model ``b`` differs from model ``a``, each figure's difference from the same resamples.

    Attributes:
        a, b: their names.
        headline: differences b - a of the headline figures, and of the others of each scenario.
        classes: difference of each class's IoU in the clean scenario.
        frames: (bag, position, difference) of the frames that changed most: of their share of right pixels.
    """

    a: str
    b: str
    headline: dict[str, Figure]
    classes: dict[str, Figure]
    frames: tuple[tuple[int, int, float], ...]


@dataclass(frozen=True)
class Summary:
    """All of an evaluation's figures."""

    models: dict[str, ModelSummary]
    comparisons: tuple[Comparison, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain types for JSON."""
        return {
            "models": {name: _model_dict(model) for name, model in self.models.items()},
            "comparisons": [
                {
                    "a": comparison.a,
                    "b": comparison.b,
                    "headline": _figures_dict(comparison.headline),
                    "classes": _figures_dict(comparison.classes),
                    "frames": [
                        {"bag": bag, "position": position, "difference": difference}
                        for bag, position, difference in comparison.frames
                    ],
                }
                for comparison in self.comparisons
            ],
        }


def summarise(evaluation: Evaluation, seed: int = 0) -> Summary:
    """Compute all figures.

    Args:
        evaluation: what was measured.
        seed: of the resamples.
    """
    bootstrap = BlockBootstrap(len(evaluation.plan.blocks), seed)
    samples = {name: _Samples(evaluation, number, bootstrap) for number, name in enumerate(evaluation.models)}
    return Summary(
        {name: _summarise_model(evaluation, name, samples[name], bootstrap) for name in evaluation.models},
        tuple(
            _compare(evaluation, a, b, samples[a], samples[b], bootstrap)
            for a, b in combinations(evaluation.models, 2)
        ),
    )


class _Sampled(NamedTuple):
    """A figure, and what it is in each resample, (1000,)."""

    value: float
    resampled: npt.NDArray[np.float64]

    def figure(self, bootstrap: BlockBootstrap) -> Figure:
        return Figure(self.value, bootstrap.interval(self.resampled))

    def minus(self, other: _Sampled) -> _Sampled:
        return _Sampled(self.value - other.value, self.resampled - other.resampled)


class _Samples:
    """The figures of one model, resampled once for all uses."""

    def __init__(self, evaluation: Evaluation, model: int, bootstrap: BlockBootstrap) -> None:
        plan = evaluation.plan
        self.scenarios: dict[str, dict[str, _Sampled]] = {}
        for number, scenario in enumerate(plan.scenarios):
            figures = {}
            for name, (source, compute) in _FIGURES.items():
                counts = getattr(evaluation.counts, source)[model, number]
                if name in PROXIES or plan.labelled:
                    figures[name] = _Sampled(
                        float(compute(counts.sum(0))), compute(bootstrap.resample(counts))
                    )
            self.scenarios[scenario.name] = figures
        self.headline = self._headline() if plan.labelled else {}

    def compared(self) -> dict[str, _Sampled]:
        """The headline, and as ``scenario: figure`` what is not in it."""
        others = {
            f"{scenario}: {name}": sampled
            for scenario, figures in self.scenarios.items()
            for name, sampled in figures.items()
            if name != "miou"
        }
        return self.headline | others

    def _headline(self) -> dict[str, _Sampled]:
        values = {name: figures["miou"].value for name, figures in self.scenarios.items()}
        resampled = {name: figures["miou"].resampled for name, figures in self.scenarios.items()}
        headline = {}
        value, values_resampled = robust(values), robust(resampled)
        if value is not None and values_resampled is not None:
            headline["robust"] = _Sampled(value, values_resampled)
        headline |= {name: _Sampled(values[name], resampled[name]) for name in values}
        failures, failures_resampled = failure_metrics(values), failure_metrics(resampled)
        return headline | {name: _Sampled(failures[name], failures_resampled[name]) for name in failures}


def _summarise_model(
    evaluation: Evaluation, name: str, samples: _Samples, bootstrap: BlockBootstrap
) -> ModelSummary:
    model = evaluation.models.index(name)
    classes = evaluation.labels.classes
    confusion = evaluation.counts.confusion[model].sum(1)
    scenarios = {}
    for number, scenario in enumerate(evaluation.plan.scenarios):
        frames = evaluation.frames[model, number]
        scenarios[scenario.name] = ScenarioSummary(
            {key: sampled.figure(bootstrap) for key, sampled in samples.scenarios[scenario.name].items()},
            dict(zip(classes, metrics.iou(confusion[number]).tolist(), strict=True)),
            confusion[number],
            int(frames["segmented"].sum()),
            int(frames["used_depth"].sum()),
        )
    headline = {key: sampled.figure(bootstrap) for key, sampled in samples.headline.items()}
    return ModelSummary(scenarios, headline, metrics.majority_miou(confusion[0]))


def _compare(
    evaluation: Evaluation, a: str, b: str, of_a: _Samples, of_b: _Samples, bootstrap: BlockBootstrap
) -> Comparison:
    clean = _number_of_clean(evaluation)
    figures_a, figures_b = of_a.compared(), of_b.compared()
    numbers = [evaluation.models.index(name) for name in (a, b)]
    confusion_a, confusion_b = (evaluation.counts.confusion[number, clean] for number in numbers)
    value = metrics.iou(confusion_b.sum(0)) - metrics.iou(confusion_a.sum(0))
    resampled = metrics.iou(bootstrap.resample(confusion_b)) - metrics.iou(bootstrap.resample(confusion_a))
    classes = {
        name: Figure(float(value[at]), bootstrap.interval(resampled[:, at]))
        for at, name in enumerate(evaluation.labels.classes)
        if math.isfinite(value[at])
    }
    frames_a, frames_b = (evaluation.frames[number, clean] for number in numbers)
    difference = frames_b["accuracy"].astype(float) - frames_a["accuracy"]
    order = [at for at in np.argsort(-np.abs(difference)) if np.isfinite(difference[at])][:MOST_CHANGED]
    return Comparison(
        a,
        b,
        {name: figures_b[name].minus(figures_a[name]).figure(bootstrap) for name in figures_a},
        classes,
        tuple(
            (int(frames_a["bag"][at]), int(frames_a["position"][at]), float(difference[at])) for at in order
        ),
    )


def _number_of_clean(evaluation: Evaluation) -> int:
    names = [scenario.name for scenario in evaluation.plan.scenarios]
    return names.index(CLEAN.name)


def _model_dict(model: ModelSummary) -> dict[str, Any]:
    return {
        "headline": _figures_dict(model.headline),
        "majority": model.majority if math.isfinite(model.majority) else None,
        "scenarios": {
            name: {
                "figures": _figures_dict(scenario.figures),
                "class_iou": {
                    key: value if math.isfinite(value) else None for key, value in scenario.class_iou.items()
                },
                "confusion": scenario.confusion.tolist(),
                "segmented": scenario.segmented,
                "with_depth": scenario.with_depth,
            }
            for name, scenario in model.scenarios.items()
        },
    }


def _figures_dict(figures: Mapping[str, Figure]) -> dict[str, Any]:
    return {name: figure.to_dict() for name, figure in figures.items()}


def score_table(summary: Summary) -> str:
    """Format the headline as a text table, a column for each model, in percent."""
    names = list(summary.models)
    columns = [max(len(name) + 2, 22) for name in names]
    rows: dict[str, list[str]] = {}
    for name, model in summary.models.items():
        figures = dict(model.headline)
        if figures:
            figures["majority class"] = Figure(model.majority, None)
        else:
            for scenario, found in model.scenarios.items():
                figures |= {f"{scenario}: {proxy} (proxy)": found.figures[proxy] for proxy in PROXIES}
        for key, figure in figures.items():
            rows.setdefault(key, ["-"] * len(names))[names.index(name)] = percent(figure)
    width = max(map(len, rows), default=0)
    lines = [" " * width + "".join(f"{name:>{column}}" for name, column in zip(names, columns, strict=True))]
    lines += [
        f"{key:<{width}}" + "".join(f"{text:>{column}}" for text, column in zip(row, columns, strict=True))
        for key, row in rows.items()
    ]
    return "\n".join(lines)


def percent(figure: Figure) -> str:
    """Format a figure and its interval in percent."""
    if not math.isfinite(figure.value):
        return "-"
    if figure.interval is None:
        return f"{100 * figure.value:.1f}"
    return f"{100 * figure.value:.1f} ({100 * figure.interval.low:.1f} to {100 * figure.interval.high:.1f})"
