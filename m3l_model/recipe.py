# SPDX-License-Identifier: Apache-2.0
"""Training recipes: what is masked, who teaches, which losses, read from YAML and checked once."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, Literal, NamedTuple, cast, get_args, get_origin, get_type_hints

import yaml

from m3l_model.errors import M3LError
from m3l_model.mit import BACKBONES
from m3l_model.preprocessing import Preprocessing
from m3l_model.resources import share_path
from m3l_model.segmenter import MIN_SIZE

_FOLDER = "config/train"


class StepFrames(NamedTuple):
    """How many frames of each kind a step takes, over all processes: labelled, labelled once more, unlabelled."""

    labelled: int
    second: int
    unlabelled: int

    def of_rank(self, rank: int, ranks: int) -> tuple[list[int], list[int], list[int]]:
        """Give the numbers, in the step's batch, of the samples of one process, kind by kind."""
        starts = (0, self.labelled, self.labelled + self.second)
        shares = (count // ranks for count in self)
        first, second, third = (
            list(range(start + rank * share, start + (rank + 1) * share))
            for start, share in zip(starts, shares, strict=True)
        )
        return first, second, third


@dataclass(frozen=True)
class TrainConfig:
    """A recipe, as written in config/train/NAME.yaml.

    Attributes:
        task: ``segment``; or ``reconstruct``, to pretrain without labels: every sample lacks one modality, and the
            network tells its input from the other's (``m3l_model/reconstruction.py``).
        mean_teacher: an exponential moving average of the student labels frames for the student; the teacher is the
            model that is kept.
        masking: who loses RGB, depth or nothing, a third each, sample by sample: ``none`` nobody, ``student`` the
            student (with a teacher that sees everything: M3L), ``both`` also the teacher, by draws of its own.
        second_labelled: where there is masking, a first labelled batch is left whole and what is masked is a second
            one: the ``same`` frames, or ``another`` draw; ``none``: the one labelled batch is masked.
        modalities: ``both``; or ``rgb``, for a model of colour alone: depth is always missing, and with
            ``fusion_ratio`` 1 and ``skip_missing`` the RGB branch is a plain SegFormer.
        pseudo_frames: ``unlabelled`` frames get the teacher's labels, or ``all``.
        pseudo_labels: of a pixel, ``hard``: the teacher's likeliest class; ``soft``: its probabilities of all.
        train_fused: the fused output is trained; else, as in the reference, it sends no gradient into the branches and
            its two weights stay as they are.
        teacher_noise: the teacher keeps its dropout and DropPath, as the reference's does.
        batch_norm: ``learn``, or ``frozen`` at its first statistics.
        strong_augmentation: the student sees light, noise and holes that the teacher does not.
        cutmix: half of the student's samples get a rectangle of another one of their kind, with its labels; an even
            number of each kind has to fall to each process.
        backbone: ``mit_b0`` to ``mit_b5``.
        fusion_ratio: r of Linear Fusion.
        skip_missing: of ``LinearFusionSegmenter``: what is missing takes no part, a whole image, whose branch is not
            computed then, or, with ``mask_holes``, a patch without valid depth.
        short_side: shorter side of the network's input, in pixels; null: the images' own.
        depth_encoding: of ``Preprocessing``.
        depth_range: metres mapped to the input's range.
        mask_holes: patches without valid depth get the mask token, and with ``skip_missing`` take no part.
        steps: optimiser steps.
        labelled_batch: labelled frames a step, over all processes.
        unlabelled_batch: unlabelled frames a step (with a mean teacher), over all processes; all frames of a step
            that reconstructs.
        learning_rate: peak of the encoder's, reached after ``warmup_steps``, then decayed polynomially (power 0.9).
        decoder_rate: the decoder's learning rate as a multiple of the encoder's.
        weight_decay: of AdamW.
        decay: ``weights`` decays matrices and kernels only; ``reference`` everything but the encoder's norms.
        warmup_steps: linear rise of the learning rate.
        ohem_share: share of a labelled batch's pixels that OHEM keeps at least.
        pseudo_weight: final weight of the pseudo-label loss.
        pseudo_start: steps before that loss begins to rise from zero; until then unlabelled frames are left out.
        pseudo_ramp: steps it takes to rise.
        ema_decay: of the teacher; the running mean starts short and never exceeds it.
        augmentation: ``window``: flip, scale within ``scales``, a window within the frame; ``reference``: flip, scales
            and padded squares of ``crop_pixels`` as the reference has them.
        crop: sides of the windows trained on, as a share of the frame's.
        scales: least and greatest magnification of a frame before its window is cut.
        crop_pixels: side of the reference's squares.
    """

    mean_teacher: bool
    task: Literal["segment", "reconstruct"] = "segment"
    masking: Literal["none", "student", "both"] = "none"
    second_labelled: Literal["none", "same", "another"] = "none"
    modalities: Literal["both", "rgb"] = "both"
    pseudo_frames: Literal["unlabelled", "all"] = "unlabelled"
    pseudo_labels: Literal["hard", "soft"] = "hard"
    train_fused: bool = True
    teacher_noise: bool = False
    batch_norm: Literal["learn", "frozen"] = "learn"
    strong_augmentation: bool = True
    cutmix: bool = False
    backbone: str = "mit_b0"
    fusion_ratio: float = 0.8
    skip_missing: bool = False
    short_side: int | None = 96
    depth_encoding: Literal["metric", "minmax", "normals"] = "metric"
    depth_range: tuple[float, float] = (0.0, 10.0)
    mask_holes: bool = True
    steps: int = 1000
    labelled_batch: int = 4
    unlabelled_batch: int = 4
    learning_rate: float = 1e-3
    decoder_rate: float = 1.0
    weight_decay: float = 0.01
    decay: Literal["weights", "reference"] = "weights"
    warmup_steps: int = 30
    ohem_share: float = 0.08
    pseudo_weight: float = 1.0
    pseudo_start: int = 0
    pseudo_ramp: int = 1
    ema_decay: float = 0.99
    augmentation: Literal["window", "reference"] = "window"
    crop: float = 2 / 3
    scales: tuple[float, float] = (0.75, 1.5)
    crop_pixels: int = 500

    def __post_init__(self) -> None:
        for name in ("depth_range", "scales"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("steps", "labelled_batch", "unlabelled_batch", "pseudo_ramp"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("warmup_steps", "pseudo_start", "pseudo_weight", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be below 0")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            numbers = value if isinstance(value, tuple) else (value,)
            if any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
                raise ValueError(f"{field.name} is {value}; it must be finite")
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone {self.backbone!r} is unknown; choose one of {', '.join(BACKBONES)}")
        for name in ("learning_rate", "decoder_rate"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        for name in ("fusion_ratio", "ema_decay", "ohem_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in 0..1")
        self._check_task()
        self._check_masking()
        self._check_pseudo_labels()
        self._check_windows()

    def _check_task(self) -> None:
        plain = {"mean_teacher": False, "masking": "none", "modalities": "both", "cutmix": False}
        for name, value in plain.items():
            if self.task == "reconstruct" and getattr(self, name) != value:
                raise ValueError(
                    f"task reconstruct has no labels, and takes a modality from every sample; set {name} to "
                    f"{str(value).lower()}"
                )

    def _check_masking(self) -> None:
        if self.masking == "none" and self.second_labelled != "none":
            raise ValueError("second_labelled is what masking masks; without masking it must be none")
        if self.masking == "both" and not self.mean_teacher:
            raise ValueError("masking both masks a teacher, but mean_teacher is false; choose student")
        if self.modalities == "rgb" and self.masking != "none":
            raise ValueError("modalities rgb leaves nothing to mask; set masking to none")

    def _check_pseudo_labels(self) -> None:
        if self.mean_teacher and self.pseudo_weight > 0 and self.pseudo_start >= self.steps:
            raise ValueError(
                f"pseudo_start is {self.pseudo_start}, but steps {self.steps}: nothing would be learnt from pseudo "
                "labels; make it less than steps"
            )

    def _check_windows(self) -> None:
        if self.augmentation == "reference":
            if self.crop_pixels < MIN_SIZE:
                raise ValueError(f"crop_pixels is {self.crop_pixels}; windows need {MIN_SIZE} pixels")
            return
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError(f"scales {list(self.scales)} must be two rising magnifications")
        if not 0 < self.crop <= 1 or (self.short_side and round(self.crop * self.short_side) < MIN_SIZE):
            raise ValueError(
                f"crop {self.crop} of short_side {self.short_side}: windows need {MIN_SIZE} pixels"
            )

    def in_steps(self, steps: int) -> TrainConfig:
        """Give the same recipe in another number of steps.

        Warm-up and the start and rise of the pseudo-label loss keep their share of the run, rounded down.
        """

        def scaled(value: int) -> int:
            return value * steps // self.steps

        return replace(
            self,
            steps=steps,
            warmup_steps=scaled(self.warmup_steps),
            pseudo_start=scaled(self.pseudo_start),
            pseudo_ramp=max(1, scaled(self.pseudo_ramp)),
        )

    def preprocessing(self) -> Preprocessing:
        """Give what is done to images before this recipe's network."""
        return Preprocessing(self.short_side, self.depth_encoding, self.depth_range, self.mask_holes)

    def window(self, height: int, width: int) -> tuple[int, int]:
        """Give height and width of what is trained on, for frames of a size at the network's input.

        Raises:
            M3LError: that is less than the network takes.
        """
        if self.augmentation == "reference":
            return self.crop_pixels, self.crop_pixels
        window = round(self.crop * height), round(self.crop * width)
        if min(window) < MIN_SIZE:
            raise M3LError(
                f"crop {self.crop} of frames of {width}x{height} leaves windows of {window[1]}x{window[0]}, but the "
                f"network takes {MIN_SIZE} pixels or more; make crop or short_side larger"
            )
        return window

    def pseudo_weight_at(self, step: int) -> float:
        """Give the weight of the pseudo-label loss in a step."""
        if not self.mean_teacher:
            return 0.0
        risen = (step + 1 - self.pseudo_start) / self.pseudo_ramp
        return self.pseudo_weight * min(1.0, max(0.0, risen))

    def learning_rate_at(self, step: int) -> float:
        """Give the encoder's learning rate in a step."""
        risen = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return self.learning_rate * risen * float((1 - step / self.steps) ** 0.9)

    def step_frames(self, step: int) -> StepFrames:
        """Give the frames that a step reads; the second copy of the ``same`` labelled frames is not read again."""
        if self.task == "reconstruct":
            return StepFrames(0, 0, self.unlabelled_batch)
        second = self.labelled_batch if self.second_labelled == "another" else 0
        unlabelled = self.unlabelled_batch if self.pseudo_weight_at(step) > 0 else 0
        return StepFrames(self.labelled_batch, second, unlabelled)


def load_config(name_or_path: str, **overrides: Any) -> TrainConfig:
    """Read a recipe by name (config/train/NAME.yaml) or path.

    Args:
        name_or_path: ``m3l``, ``supervised``, or a YAML file.
        overrides: fields to replace, each as it is given; ``TrainConfig.in_steps`` makes a recipe shorter.

    Raises:
        M3LError: no such recipe, or a field that is unknown or out of range.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        recipes = {each.stem: each for each in share_path(_FOLDER).glob("*.yaml")}
        if name_or_path not in recipes:
            raise M3LError(
                f"recipe {name_or_path!r} is unknown: choose {', '.join(sorted(recipes))}, or give the path of a "
                "YAML file, *.yaml"
            )
        path = recipes[name_or_path]
    try:
        text = path.read_text(encoding="utf-8")
        fields, node = yaml.safe_load(text), cast(yaml.MappingNode, yaml.compose(text, yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise M3LError(f"{path}: cannot read the recipe: {' '.join(str(error).split())}") from error
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    if not isinstance(fields, dict):
        raise M3LError(
            f"{path}: not a recipe: it holds no fields such as mean_teacher: true; copy one of {_FOLDER}"
        )
    if unknown := fields.keys() - known:
        raise M3LError(
            f"{path}: unknown recipe fields ({', '.join(sorted(map(str, unknown)))}); known are "
            f"{', '.join(sorted(known))}"
        )
    needed = [each.name for each in dataclasses.fields(TrainConfig) if each.default is dataclasses.MISSING]
    if missing := [name for name in needed if name not in fields]:
        raise M3LError(f"{path}: lacks {', '.join(missing)}; copy one of {_FOLDER}")
    hints = get_type_hints(TrainConfig)
    for name, value in fields.items():
        if not _fits(value, hints[name]):
            raise M3LError(f"{path}: {name} cannot be {value!r}{_expected(hints[name])}")
    twice = [name for name, count in Counter(key.value for key, _ in node.value).items() if count > 1]
    if twice:
        raise M3LError(f"{path}: {twice[0]} is there twice; leave one")
    try:
        config = TrainConfig(**{**fields, **overrides})
        config.preprocessing()
    except (TypeError, ValueError) as error:
        raise M3LError(f"{path}: {error}") from error
    return config


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value read from YAML is of a field's type; a whole number also serves as a float."""
    if get_origin(hint) is UnionType:
        return any(_fits(value, part) for part in get_args(hint))
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        return isinstance(value, list) and len(value) == len(parts) and all(map(_fits, value, parts))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _expected(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"; choose one of {', '.join(get_args(hint))}"
    if get_origin(hint) is tuple:
        return "; give two numbers, as in [0.5, 2.0]"
    if hint is float:
        return "; give a number (YAML takes 2e-3 for text; write 0.002)"
    return {bool: "; give true or false", str: "; give a name"}.get(hint, "; give a whole number")
