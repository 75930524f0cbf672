# SPDX-License-Identifier: Apache-2.0
"""An evaluation as JSON and CSV, for programs and spreadsheets."""

from __future__ import annotations

import csv
import hashlib
import importlib.metadata
import json
import math
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from m3l_model.bag_frames import REASONS
from m3l_model.bootstrap import LEAST_BLOCKS, LEVEL, RESAMPLES
from m3l_model.errors import M3LError
from m3l_model.evaluation import FRAME_SCORE, Evaluation
from m3l_model.evaluation_plan import BLOCK_FRAMES, BLOCK_SECONDS, EvaluationPlan
from m3l_model.evaluation_summary import Summary
from m3l_model.predictor import Predictor

PACKAGES = ("m3l_ros", "torch", "numpy")
SCORES_CSV, FRAMES_CSV, JSON = "scores.csv", "frames.csv", "evaluation.json"

_MEASURED = ("accuracy", "miou", "agreement", "confidence", "flicker", "seconds")


def describe(
    plan: EvaluationPlan, predictors: Mapping[str, Predictor], checkpoints: Mapping[str, Path]
) -> dict[str, Any]:
    """Say what is evaluated: all that its results depend on, in plain types.

    Args:
        plan: frames and scenarios.
        predictors: the models by name.
        checkpoints: their files.
    """
    return {
        "models": {
            name: {
                "checkpoint": str(path),
                "sha256": _sha256(path),
                "device": str(predictors[name].device),
                "precision": str(predictors[name].precision).removeprefix("torch."),
            }
            for name, path in checkpoints.items()
        },
        "label_set": next(iter(predictors.values())).labels.name,
        "bags": [
            {
                "path": str(bag.index.path),
                "frames": len(bag),
                "start_ns": bag.index.start_ns,
                "end_ns": bag.index.end_ns,
                "pairing": vars(bag.pairing),
                "topics": vars(bag.topics),
            }
            for bag in plan.dataset.bags
        ],
        "frames": plan.frames,
        "frames_sha256": hashlib.sha256(
            b"".join(block.positions.tobytes() for block in plan.blocks)
        ).hexdigest(),
        "labelled": plan.labelled,
        "seed": plan.seed,
        "scenarios": [
            {"name": scenario.name, "description": scenario.description, "drop_rate": scenario.drop_rate}
            for scenario in plan.scenarios
        ],
        "bootstrap": {
            "blocks": len(plan.blocks),
            "block": f"{BLOCK_SECONDS:g} s"
            if any(block.video for block in plan.blocks)
            else f"{BLOCK_FRAMES} frames",
            "least_blocks": LEAST_BLOCKS,
            "resamples": RESAMPLES,
            "level": LEVEL,
        },
        "versions": {
            "python": platform.python_version(),
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
    }


def refuse_other_report(path: Path, facts: Mapping[str, Any]) -> None:
    """See that a finished report, if there is one, is of the same models, bags, frames and scenarios.

    Args:
        path: its JSON.
        facts: as ``describe`` gives them.

    Raises:
        M3LError: it is of others, or no report.
    """
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["evaluated"]
        now = json.loads(json.dumps(facts))
        changed = [name for name in now if name != "versions" and before.get(name) != now[name]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise M3LError(f"{path}: no report of m3l eval; remove it, or choose another --out") from error
    if changed:
        raise M3LError(
            f"{path.parent}: holds the report of an evaluation that differs in {', '.join(changed)}; choose another "
            "--out, or remove the folder"
        )


def write_json(path: Path, facts: Mapping[str, Any], summary: Summary, command: str) -> None:
    """Write all figures, and what they were measured on."""
    content = {"command": command, "evaluated": facts, **summary.to_dict()}
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_scores_csv(path: Path, summary: Summary) -> None:
    """Write one line for each figure: model, scenario, figure, value and its interval's ends; IoU of classes too."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "scenario", "figure", "value", "low", "high"))
        for name, model in summary.models.items():
            rows = [("", key, figure) for key, figure in model.headline.items()]
            rows += [
                (scenario, key, figure)
                for scenario, found in model.scenarios.items()
                for key, figure in found.figures.items()
            ]
            for scenario, key, figure in rows:
                writer.writerow((name, scenario, key, _number(figure.value), *(figure.interval or ("", ""))))
            for scenario, found in model.scenarios.items():
                for key, iou in found.class_iou.items():
                    writer.writerow((name, scenario, f"iou of {key}", _number(iou), "", ""))


def write_frames_csv(path: Path, evaluation: Evaluation) -> None:
    """Write one line for each frame in each scenario under each model."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("model", "scenario", *(name for name in FRAME_SCORE.names or ())))
        writer.writerows(_frame_rows(evaluation))


def _frame_rows(evaluation: Evaluation) -> Iterator[tuple[Any, ...]]:
    bags = [str(bag.index.path) for bag in evaluation.plan.dataset.bags]
    for model, of_model in zip(evaluation.models, evaluation.frames, strict=True):
        for scenario, frames in zip(evaluation.plan.scenarios, of_model, strict=True):
            for frame in frames:
                cells = {name: frame[name].item() for name in FRAME_SCORE.names or ()}
                cells["bag"] = bags[cells["bag"]]
                cells["reason"] = str(REASONS[cells["reason"]])
                cells |= {name: _number(cells[name]) for name in _MEASURED}
                yield (model, scenario.name, *cells.values())


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
