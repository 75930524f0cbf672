# SPDX-License-Identifier: Apache-2.0
"""The report of an evaluation: one HTML file that opens without a network, on a phone too."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import numpy.typing as npt

from m3l_model.bag_frames import REASONS
from m3l_model.evaluation import Evaluation, picture_frames
from m3l_model.evaluation_pictures import Picture
from m3l_model.evaluation_store import EvaluationStore
from m3l_model.evaluation_summary import PROXIES, Figure, Summary, percent
from m3l_model.html_figures import STYLE, inline_svg, plt
from m3l_model.predictor import Predictor
from m3l_model.robustness import FAILURE_PROBABILITIES
from m3l_model.scenarios import ROBUST

WORST_FRAMES = 12
"""Listed, and shown in pictures, of each model and scenario of the robust mIoU."""

MODEL_COLORS = ("#1769aa", "#c77700", "#1b7f4d", "#8e44ad", "#b3261e", "#5b6b7b")

SCENARIO_FIGURES = {
    "miou": "mIoU",
    "pixel_accuracy": "pixels right",
    "boundary_f": "boundary F",
    "ece": "calibration error",
    "flicker": "flicker (proxy)",
    "agreement": "as with both (proxy)",
    "confidence": "confidence (proxy)",
}


def write_report(
    path: Path,
    evaluation: Evaluation,
    summary: Summary,
    facts: Mapping[str, Any],
    command: str,
    store: EvaluationStore,
    predictors: Mapping[str, Predictor],
) -> None:
    """Write the report.

    Args:
        path: the HTML file.
        evaluation, summary: what was measured.
        facts: what was evaluated, from ``evaluation_files.describe``.
        command: that does it again.
        store: has the pictures of the frames.
        predictors: the models, which segment those of the worst frames again that have no pictures.

    Raises:
        M3LError: a bag cannot be read any more.
    """
    worst = _worst(evaluation)
    places = {_place(evaluation, at) for listed in worst.values() for at in listed}
    places -= {(picture.bag, picture.position) for picture in store.pictures()}
    extra = picture_frames(evaluation.plan, predictors, sorted(places))
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("m3l_model"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    with plt.rc_context(STYLE):
        curve = _drop_curve(evaluation, summary) if evaluation.plan.labelled else None
    page = environment.get_template("evaluation.html").stream(
        facts=facts,
        command=command,
        models=list(zip(evaluation.models, _colors(evaluation), strict=True)),
        labelled=evaluation.plan.labelled,
        headline=list(_headline(evaluation, summary)),
        comparisons=summary.comparisons,
        comparison_frames=_changed_frames(evaluation, summary),
        curve=curve,
        drop_rates=list(_drop_rates(evaluation, summary)) if evaluation.plan.labelled else [],
        scenario_figures={
            key: title
            for key, title in SCENARIO_FIGURES.items()
            if evaluation.plan.labelled or key in PROXIES
        },
        scenarios=list(_scenario_rows(evaluation, summary)),
        classes=list(_class_rows(evaluation, summary)),
        robust=ROBUST,
        percent=percent,
        signed=_signed,
        finite=math.isfinite,
        color_of=lambda color: "rgb({}, {}, {})".format(*color),
        class_colors=dict(zip(evaluation.labels.classes, evaluation.labels.colors, strict=True)),
        unreadable=evaluation.unreadable,
        data=_script_json(_data(evaluation, worst)),
        pictures=_picture_scripts(evaluation, chain(store.pictures(), extra)),
    )
    page.dump(str(path), encoding="utf-8")


def _headline(evaluation: Evaluation, summary: Summary) -> Iterator[dict[str, Any]]:
    """Rows of the headline table: title, explanation, a figure of each model, differences of each comparison."""
    explained = {
        "robust": ("robust mIoU", "mean of both, colour only and depth only (arXiv 2304.10756)"),
        "clean": ("mIoU, both", "colour and depth as recorded"),
        "depth_missing": ("mIoU, colour only", "no depth image arrives"),
        "rgb_missing": ("mIoU, depth only", "colour withheld"),
    }
    for kind, what in (
        ("emm", "a modality missing entirely"),
        ("rmm", "regions of a modality missing"),
        ("nm", "a modality noisy"),
    ):
        explained[f"{kind}_avg"] = (f"{kind.upper()}, average", f"{what}: mean over the combinations")
        for p in FAILURE_PROBABILITIES:
            explained[f"{kind}_e_{p:g}"] = (
                f"{kind.upper()}, expected at p = {p:g}",
                f"{what}, each by itself with probability {p:g} (arXiv 2503.18445)",
            )
    names = list(summary.models)
    if evaluation.plan.labelled:
        for key, (title, what) in explained.items():
            if key in summary.models[names[0]].headline:
                yield {
                    "key": key,
                    "title": title,
                    "what": what,
                    "figures": [summary.models[name].headline[key] for name in names],
                    "differences": [comparison.headline[key] for comparison in summary.comparisons],
                }
    for key, what in (
        ("pixel_accuracy", "share of the labelled pixels, both modalities"),
        ("boundary_f", "F-score of the classes' boundaries, within 0.75 % of the diagonal, both modalities"),
        ("ece", "expected calibration error, both modalities: 0 is best"),
        ("flicker", "share of still pixels that change their label from frame to frame; needs no labels"),
        ("agreement", "share of pixels as with both modalities when depth is missing; needs no labels"),
        ("confidence", "mean confidence, both modalities; needs no labels"),
    ):
        scenario = "depth_missing" if key == "agreement" else "clean"
        figures = [summary.models[name].scenarios[scenario].figures.get(key) for name in names]
        if all(figure is not None and math.isfinite(figure.value) for figure in figures):
            yield {
                "key": key,
                "title": SCENARIO_FIGURES[key],
                "what": what,
                "figures": figures,
                "differences": [
                    comparison.headline.get(f"{scenario}: {key}") for comparison in summary.comparisons
                ],
            }


def _drop_rates(evaluation: Evaluation, summary: Summary) -> Iterator[dict[str, Any]]:
    """Share of frames without depth in each scenario that varies it, and in the clean one; and each model's mIoU."""
    for number, scenario in enumerate(evaluation.plan.scenarios):
        if scenario.drop_rate is None and scenario.name != "clean":
            continue
        frames = evaluation.frames[0, number]
        with_depth = float(np.mean(frames["depth_stamp_ns"] != 0))
        yield {
            "name": scenario.name,
            "lost": 1 - with_depth,
            "figures": [model.scenarios[scenario.name].figures["miou"] for model in summary.models.values()],
        }


def _drop_curve(evaluation: Evaluation, summary: Summary) -> str:
    points = sorted(_drop_rates(evaluation, summary), key=lambda point: point["lost"])
    figure, axes = plt.subplots(figsize=(9, 3.6), layout="constrained")
    lost = [100 * point["lost"] for point in points]
    for number, (name, color) in enumerate(zip(summary.models, _colors(evaluation), strict=True)):
        figures: list[Figure] = [point["figures"][number] for point in points]
        axes.plot(lost, [100 * found.value for found in figures], "o-", color=color, label=name)
        if all(found.interval for found in figures):
            low, high = zip(*(found.interval for found in figures if found.interval), strict=True)
            axes.fill_between(lost, 100 * np.array(low), 100 * np.array(high), color=color, alpha=0.15, lw=0)
    axes.set(xlabel="frames without depth, %", ylabel="mIoU, %", xlim=(-2, 102), ylim=(0, None))
    axes.legend(frameon=False)
    return inline_svg(
        figure, "Mean IoU against the share of frames without depth; the table below has the numbers"
    )


def _scenario_rows(evaluation: Evaluation, summary: Summary) -> Iterator[dict[str, Any]]:
    for number, scenario in enumerate(evaluation.plan.scenarios):
        for model, (name, found) in enumerate(summary.models.items()):
            row = found.scenarios[scenario.name]
            yield {
                "scenario": scenario.name,
                "what": scenario.description,
                "model": name,
                "figures": row.figures,
                "segmented": row.segmented,
                "with_depth": int(evaluation.frames[model, number]["used_depth"].sum()),
            }


def _class_rows(evaluation: Evaluation, summary: Summary) -> Iterator[dict[str, Any]]:
    shown = [name for name in ROBUST if any(name == s.name for s in evaluation.plan.scenarios)]
    for label in evaluation.labels.classes:
        yield {
            "name": label,
            "iou": [
                (name, scenario, model.scenarios[scenario].class_iou[label])
                for name, model in summary.models.items()
                for scenario in shown
            ],
            "differences": [comparison.classes.get(label) for comparison in summary.comparisons],
        }


def _changed_frames(evaluation: Evaluation, summary: Summary) -> list[list[tuple[int, float]]]:
    """Of each comparison the frames that changed most: their places among all frames, and the difference."""
    places = {_place(evaluation, at): at for at in range(evaluation.frames.shape[2])}
    return [
        [(places[bag, position], difference) for bag, position, difference in comparison.frames]
        for comparison in summary.comparisons
    ]


def _worst(evaluation: Evaluation) -> dict[tuple[int, int], list[int]]:
    """For each model and scenario of the robust mIoU, the frames with the lowest accuracy, worst first."""
    by = "accuracy" if evaluation.plan.labelled else "agreement"
    worst = {}
    for model in range(len(evaluation.models)):
        for number, scenario in enumerate(evaluation.plan.scenarios):
            score = evaluation.frames[model, number][by]
            order = np.argsort(np.where(np.isfinite(score), score, np.inf), kind="stable")
            if scenario.name in ROBUST and np.isfinite(score).any():
                worst[model, number] = [int(at) for at in order[:WORST_FRAMES] if np.isfinite(score[at])]
    return worst


def _place(evaluation: Evaluation, at: int) -> tuple[int, int]:
    frame = evaluation.frames[0, 0, at]
    return int(frame["bag"]), int(frame["position"])


def _data(evaluation: Evaluation, worst: Mapping[tuple[int, int], list[int]]) -> dict[str, Any]:
    """What the page's script draws from: shares in thousandths, -1 where there is none."""
    frames, plan = evaluation.frames, evaluation.plan
    first = frames[0, 0]
    starts = {
        bag: int(first["log_ns"][first["bag"] == bag].min()) for bag in np.unique(first["bag"]).tolist()
    }
    return {
        "models": evaluation.models,
        "scenarios": [scenario.name for scenario in plan.scenarios],
        "classes": evaluation.labels.classes,
        "colors": evaluation.labels.colors,
        "labelled": plan.labelled,
        "bags": [bag.index.name for bag in plan.dataset.bags],
        "reasons": [str(reason) for reason in REASONS],
        "bag": first["bag"].tolist(),
        "stamp": [str(stamp) for stamp in first["stamp_ns"].tolist()],
        "time": [
            round((log - starts[bag]) * 1e-9, 3)
            for bag, log in zip(first["bag"].tolist(), first["log_ns"].tolist(), strict=True)
        ],
        "reason": frames[0]["reason"].tolist(),
        "paired": (frames[0]["depth_stamp_ns"] != 0).astype(int).tolist(),
        "accuracy": _thousandths(frames["accuracy"]),
        "miou": _thousandths(frames["miou"]),
        "agreement": _thousandths(frames["agreement"]),
        "flicker": _thousandths(frames["flicker"]),
        "milliseconds": _thousandths(frames["seconds"]),
        "confusion": evaluation.counts.confusion.sum(2).tolist() if plan.labelled else [],
        "worst": {f"{model},{scenario}": listed for (model, scenario), listed in worst.items()},
    }


def _thousandths(values: npt.NDArray[np.float32]) -> Any:
    return np.where(np.isfinite(values), np.rint(values * 1000), -1).astype(int).tolist()


def _picture_scripts(evaluation: Evaluation, pictures: Iterable[Picture]) -> Iterator[str]:
    """A part of the page's script for each frame that has pictures; those of a frame come one after the other."""
    places = {_place(evaluation, at): at for at in range(evaluation.frames.shape[2])}
    for _, of_frame in groupby(pictures, lambda picture: (picture.bag, picture.position)):
        yield _pictures_of_frame(places, list(of_frame))


def _pictures_of_frame(places: Mapping[tuple[int, int], int], pictures: list[Picture]) -> str:
    content = [
        [
            int(picture.kind),
            picture.model,
            [number for number in range(64) if picture.scenarios >> number & 1],
            base64.b64encode(picture.data).decode(),
        ]
        for picture in pictures
    ]
    return f"{places[pictures[0].bag, pictures[0].position]}:{_script_json(content)}"


def _script_json(content: Any) -> str:
    """JSON that cannot end the script element around it."""
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _colors(evaluation: Evaluation) -> list[str]:
    return [MODEL_COLORS[number % len(MODEL_COLORS)] for number in range(len(evaluation.models))]


def _signed(figure: Figure | None) -> str:
    """Format a difference and its interval in percentage points."""
    if figure is None or not math.isfinite(figure.value):
        return "–"
    if figure.interval is None:
        return f"{100 * figure.value:+.1f}"
    return (
        f"{100 * figure.value:+.1f} ({100 * figure.interval.low:+.1f} to {100 * figure.interval.high:+.1f})"
    )
