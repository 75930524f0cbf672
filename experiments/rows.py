# SPDX-License-Identifier: Apache-2.0
"""The rows of the tables: what each recipe is in the common harness, as docs/experiments.md has it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from m3l_model.recipe import TrainConfig, load_config

Fields = dict[str, Any]

HARNESS: Fields = {
    "backbone": "mit_b0",
    "depth_encoding": "normals",
    "mask_holes": True,
    "labelled_batch": 4,
    "unlabelled_batch": 4,
    "warmup_steps": 50,
    "weight_decay": 0.01,
    "ema_decay": 0.99,
    "crop": 1.0,
    "scales": (1.0, 1.25),
}
"""The same for all rows but ``m3l_paper``: initialisation, preprocessing, weak augmentation, optimiser, schedule."""

NYUV2: Fields = {"short_side": 120, "steps": 1500, "depth_range": (0.0, 10.0)}
SYNTHETIC: Fields = {"short_side": 96, "steps": 500, "depth_range": (0.0, 6.0)}

_ALONE: Fields = {"labelled_batch": 8}
"""Without a teacher all images of a step are labelled ones."""

ROWS: dict[str, tuple[str, Fields]] = {
    "supervised": ("supervised", _ALONE),
    "supervised_dropout": ("supervised_dropout", _ALONE),
    "mean_teacher": ("mean_teacher", {}),
    "mean_teacher_dropout": ("mean_teacher_dropout", {}),
    "m3l_tuned": ("mean_teacher_dropout", {"masking": "student"}),
    "m3l_paper": ("m3l_paper", {}),
    "m3l": ("m3l", {}),
    "rgb_supervised": ("rgb_supervised", _ALONE),
    "rgb_mean_teacher": ("rgb_mean_teacher", {}),
}
"""Row by row the recipe of config/train and the fields that are replaced."""

ABLATIONS: dict[str, tuple[str, Fields]] = {
    "m3l_metric": ("m3l", {"depth_encoding": "metric"}),
    "m3l_tuned_pretrained": ("mean_teacher_dropout", {"masking": "student"}),
    "supervised_pretrained": ("supervised", _ALONE),
}
"""``m3l`` with depth in metres alone; and other rows from a network that was pretrained without labels."""

BURN_IN: dict[str, tuple[str, Fields]] = {
    "m3l_burn_in": ("m3l", {}),
    "m3l_token": ("m3l", {"skip_missing": False}),
    "m3l_token_strong": ("m3l", {"skip_missing": False, "strong_augmentation": True}),
    "m3l_no_cutmix": ("m3l", {"cutmix": False}),
    "m3l_hard_labels": ("m3l", {"pseudo_labels": "hard"}),
    "m3l_all_frames": ("m3l", {"pseudo_frames": "all"}),
    "m3l_no_burn_in": ("m3l", {"pseudo_start": 0}),
    "m3l_labelled_only": ("m3l", {"pseudo_weight": 0.0}),
    "m3l_frozen_norm": ("m3l", {"batch_norm": "frozen"}),
    "m3l_branches_alone": ("m3l", {"train_fused": False}),
    "m3l_teacher_noise": ("m3l", {"teacher_noise": True}),
    "m3l_pseudo_weight_3": ("m3l", {"pseudo_weight": 3.0}),
    "m3l_equal_time": ("m3l", {}),
    "m3l_pretrained": ("m3l", {}),
    "m3l_labelled_only_pretrained": ("m3l", {"pseudo_weight": 0.0}),
}
"""``m3l`` as it was before the ablations, with pseudo labels for unlabelled frames alone and after a burn-in
(``m3l_burn_in``), and the rows that were compared with it: with the mask token for a missing modality, the same with
strong augmentation, with a part left out, with a larger weight for what is learnt from unlabelled frames, in as many
steps as take about the wall time of ``m3l_tuned``, or from a network that was pretrained without labels."""

ALL_ROWS: dict[str, tuple[str, Fields]] = {**ROWS, **ABLATIONS, **BURN_IN}

_EQUAL_TIME = 4 / 3
"""Steps of ``m3l_burn_in`` in the time of one of ``m3l_tuned``."""

LEARNING_RATES = (0.0003, 0.0006, 0.001, 0.002)


def criterion(modalities: str) -> str:
    """Name the mIoU by which a row's learning rate is chosen: robust, or colour's where nothing else is trained on."""
    return "rgb_only" if modalities == "rgb" else "robust"


def config_of(setting: Fields, row: str, learning_rate: float) -> TrainConfig:
    """Give a row's recipe.

    Args:
        setting: ``NYUV2`` or ``SYNTHETIC``.
        row: of ``ALL_ROWS``; that of the paper keeps what is the reference's but for the sizes.
        learning_rate: of the other rows.
    """
    name, fields = ALL_ROWS[row]
    if row == "m3l_paper":
        sizes = {key: HARNESS[key] for key in ("backbone", "labelled_batch", "unlabelled_batch")}
        return load_config(name, **sizes, **setting, crop_pixels=setting["short_side"])
    if row in BURN_IN:
        start, ramp = setting["steps"] // 3, setting["steps"] // 6
        fields = {"pseudo_frames": "unlabelled", "pseudo_start": start, "pseudo_ramp": ramp, **fields}
    config = load_config(name, **{**HARNESS, **setting, **fields, "learning_rate": learning_rate})
    return config.in_steps(round(_EQUAL_TIME * config.steps)) if row == "m3l_equal_time" else config


def pretraining_of(setting: Fields, row: str) -> TrainConfig | None:
    """Give the recipe of what a row starts from, in as many steps as it has itself; None: it starts from scratch."""
    if not row.endswith("_pretrained"):
        return None
    return load_config("pretrain", **{**HARNESS, **setting, "unlabelled_batch": 8, "learning_rate": 0.001})


def digest(config: TrainConfig, pretraining: TrainConfig | None = None) -> str:
    """Give a short text that is another for another configuration; a field that is new and at its default is none."""
    changed = [_changed(each) for each in (config, pretraining) if each]
    text = json.dumps(changed if pretraining else changed[0], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _changed(config: TrainConfig) -> Fields:
    values = dataclasses.asdict(config)
    return {
        field.name: values[field.name]
        for field in dataclasses.fields(config)
        if values[field.name] != field.default
    }
