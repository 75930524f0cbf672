# SPDX-License-Identifier: Apache-2.0
"""Train Linear Fusion from few labelled and many unlabelled frames: M3L (arXiv 2304.10756, section 3.2).

One loop; a recipe says whether the student loses modalities and whether a mean teacher labels what has no labels.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import torch
import yaml
from torch import Tensor
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm

from m3l_model import augment
from m3l_model.augment import Batch
from m3l_model.checkpoint import Metadata, save_checkpoint
from m3l_model.data import NetworkFrame, StepFrames, StepSampler, default_workers, read_batches
from m3l_model.errors import M3LError
from m3l_model.labels import IGNORE_ID, LabelSet
from m3l_model.losses import pseudo_loss, supervised_loss
from m3l_model.mit import BACKBONES, ModalityLayerNorm
from m3l_model.predictor import choose_device
from m3l_model.preprocessing import Inputs, Preprocessing
from m3l_model.resources import share_path
from m3l_model.segmenter import MIN_SIZE, LinearFusionSegmenter, SegmenterOutput
from m3l_model.training_frames import TrainingFrames

OHEM_SHARE = 0.08
"""Share of a labelled batch's pixels that OHEM keeps at least."""


@dataclass(frozen=True)
class TrainConfig:
    """A recipe, as written in config/train/NAME.yaml.

    Attributes:
        modality_dropout: the student sees one labelled batch whole, and a second one and the unlabelled batch with RGB,
            depth or nothing missing, a third each.
        mean_teacher: an exponential moving average of the student labels the whole frames for the student that sees
            less; the teacher is the model that is kept.
        backbone: ``mit_b0`` to ``mit_b5``.
        fusion_ratio: r of Linear Fusion.
        short_side: shorter side of the network's input, in pixels.
        depth_range: metres mapped to the input's range.
        mask_holes: patches without valid depth get the mask token.
        steps: optimiser steps.
        labelled_batch: labelled frames a step.
        unlabelled_batch: unlabelled frames a step (with a mean teacher).
        learning_rate: peak, reached after ``warmup_steps``, then decayed polynomially (power 0.9).
        weight_decay: of AdamW; norms and biases have none.
        warmup_steps: linear rise of the learning rate.
        pseudo_weight: final weight of the pseudo-label loss.
        pseudo_start: steps before that loss begins to rise from zero; until then unlabelled frames are left out.
        pseudo_ramp: steps it takes to rise.
        pseudo_threshold: teacher probability below which a pixel gets no pseudo label.
        ema_decay: of the teacher; the running mean starts short and never exceeds it.
        crop: sides of the windows trained on, as a share of the frame's.
        scales: least and greatest magnification of a frame before its window is cut.
    """

    modality_dropout: bool
    mean_teacher: bool
    backbone: str = "mit_b0"
    fusion_ratio: float = 0.8
    short_side: int = 96
    depth_range: tuple[float, float] = (0.0, 10.0)
    mask_holes: bool = True
    steps: int = 1000
    labelled_batch: int = 4
    unlabelled_batch: int = 4
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    warmup_steps: int = 30
    pseudo_weight: float = 1.0
    pseudo_start: int = 0
    pseudo_ramp: int = 1
    pseudo_threshold: float = 0.0
    ema_decay: float = 0.99
    crop: float = 2 / 3
    scales: tuple[float, float] = (0.75, 1.5)

    def __post_init__(self) -> None:
        for name in ("depth_range", "scales"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("steps", "labelled_batch", "unlabelled_batch", "pseudo_ramp"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.backbone not in BACKBONES:
            raise ValueError(f"backbone {self.backbone!r} is unknown; choose one of {', '.join(BACKBONES)}")
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        for name in ("fusion_ratio", "ema_decay", "pseudo_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in 0..1")
        if not 0 < self.scales[0] <= self.scales[1]:
            raise ValueError(f"scales {list(self.scales)} must be two rising magnifications")
        if not 0 < self.crop <= 1 or round(self.crop * self.short_side) < MIN_SIZE:
            raise ValueError(
                f"crop {self.crop} of short_side {self.short_side}: windows need {MIN_SIZE} pixels"
            )

    def preprocessing(self) -> Preprocessing:
        """Give what is done to images before this recipe's network."""
        return Preprocessing(self.short_side, "metric", self.depth_range, self.mask_holes)

    def pseudo_weight_at(self, step: int) -> float:
        """Give the weight of the pseudo-label loss in a step."""
        if not self.mean_teacher:
            return 0.0
        risen = (step + 1 - self.pseudo_start) / self.pseudo_ramp
        return self.pseudo_weight * min(1.0, max(0.0, risen))

    def step_frames(self, step: int) -> StepFrames:
        """Give the number of frames of a step: two labelled batches where the student loses modalities in one."""
        labelled = self.labelled_batch * (2 if self.modality_dropout else 1)
        return StepFrames(labelled, self.unlabelled_batch if self.pseudo_weight_at(step) > 0 else 0)


def load_config(name_or_path: str, **overrides: Any) -> TrainConfig:
    """Read a recipe by name (config/train/NAME.yaml) or path.

    Args:
        name_or_path: ``m3l``, ``supervised``, or a YAML file.
        overrides: fields to replace.

    Raises:
        M3LError: no such recipe, or a field that is unknown or out of range.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = share_path(f"config/train/{name_or_path}.yaml")
    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise M3LError(f"{path}: cannot read the recipe: {' '.join(str(error).split())}") from error
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    if not isinstance(fields, dict) or fields.keys() - known:
        unknown = ", ".join(sorted(fields.keys() - known)) if isinstance(fields, dict) else "no mapping"
        raise M3LError(f"{path}: unknown recipe fields ({unknown}); known are {', '.join(sorted(known))}")
    for name, value in fields.items():
        if not _fits(value, get_type_hints(TrainConfig)[name]):
            raise M3LError(f"{path}: {name} cannot be {value!r} (YAML takes 2e-3 for text; write 0.002)")
    try:
        config = TrainConfig(**{**fields, **overrides})
        config.preprocessing()
    except (TypeError, ValueError) as error:
        raise M3LError(f"{path}: {error}") from error
    return config


def _fits(value: Any, hint: Any) -> bool:
    """Tell whether a value read from YAML is of a field's type; a whole number also serves as a float."""
    if get_origin(hint) is tuple:
        parts = get_args(hint)
        return isinstance(value, list) and len(value) == len(parts) and all(map(_fits, value, parts))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


class StepResult(NamedTuple):
    """Losses of one step; ``loss_pseudo`` is 0 without a teacher, ``pseudo_share`` the share of pixels it labelled."""

    step: int
    loss_supervised: float
    loss_pseudo: float
    pseudo_share: float
    learning_rate: float


class Trainer:
    """One training run in memory: networks, optimiser and the M3L step.

    Args:
        config: the recipe.
        labels: class names and colours, kept in the model's metadata.
        seed: decides initial weights, augmentation and masks.
        device: where the networks run.
    """

    def __init__(self, config: TrainConfig, labels: LabelSet, seed: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        self.config = config
        self.preprocessing = config.preprocessing()
        self.student = LinearFusionSegmenter(config.backbone, len(labels.classes), config.fusion_ratio).to(
            device
        )
        self.student.metadata = Metadata(labels, self.preprocessing)
        self.teacher = (
            copy.deepcopy(self.student).eval().requires_grad_(False) if config.mean_teacher else None
        )
        self._device = device
        self._generator = torch.Generator().manual_seed(seed)
        self._optimizer = AdamW(_parameter_groups(self.student, config.weight_decay), config.learning_rate)
        self._schedule = LambdaLR(self._optimizer, lambda step: _learning_rate_factor(step, config))

    @property
    def model(self) -> LinearFusionSegmenter:
        """The network to keep: the teacher where there is one."""
        return self.teacher or self.student

    def run(self, batches: Iterable[NetworkFrame]) -> Iterator[StepResult]:
        """Train, yielding after every step.

        Args:
            batches: for each step of the recipe its frames, as many as ``TrainConfig.step_frames`` says: the labelled
                ones, then those of which no label is used.
        """
        for step, frames in enumerate(batches):
            yield self._step(step, frames)

    def _step(self, step: int, frames: NetworkFrame) -> StepResult:
        """Do one step: student on masked, disturbed frames, teacher on whole ones (the paper's figure 3).

        Unlike the paper's, the second labelled batch is another draw, and pseudo labels serve unlabelled frames only.
        """
        config = self.config
        batch = augment.weak(_to_batch(frames), config.crop, config.scales, self._generator)
        missing = batch.missing
        if config.modality_dropout:
            missing = draw_missing(missing, config.labelled_batch, self._generator)

        self.student.train()
        outputs = self._forward(self.student, augment.strong(batch, self._generator), missing)
        count = config.step_frames(step).labelled
        labels = batch.labels[:count].to(self._device)
        min_kept = int(OHEM_SHARE * labels[: config.labelled_batch].numel())
        loss_supervised = supervised_loss(_select(outputs, slice(count)), labels, min_kept)
        loss_pseudo = torch.zeros((), device=self._device)
        pseudo_share = 0.0
        if len(missing) > count:
            pseudo = self._pseudo_labels(Batch(*(column[count:] for column in batch)))
            loss_pseudo = pseudo_loss(_select(outputs, slice(count, None)), pseudo)
            pseudo_share = float((pseudo != IGNORE_ID).float().mean())

        self._optimizer.zero_grad()
        (loss_supervised + config.pseudo_weight_at(step) * loss_pseudo).backward()
        self._optimizer.step()
        learning_rate = float(self._schedule.get_last_lr()[0])
        self._schedule.step()
        if self.teacher:
            update_teacher(self.teacher, self.student, step, config.ema_decay)
        return StepResult(step, loss_supervised.item(), loss_pseudo.item(), pseudo_share, learning_rate)

    def _forward(self, model: LinearFusionSegmenter, batch: Batch, missing: Tensor) -> SegmenterOutput:
        inputs: Inputs = self.preprocessing.encode(batch.rgb.to(self._device), batch.depth_m.to(self._device))
        outputs: SegmenterOutput = model(
            inputs.rgb, inputs.depth, missing.to(self._device), inputs.depth_valid
        )
        return outputs

    @torch.no_grad()
    def _pseudo_labels(self, batch: Batch) -> Tensor:
        """Let the teacher label whole frames: (B, H, W) int64, ``IGNORE_ID`` where it is not sure enough."""
        assert self.teacher is not None
        confidence, labels = self._forward(self.teacher, batch, batch.missing).fused.softmax(1).max(1)
        return torch.where(confidence >= self.config.pseudo_threshold, labels, IGNORE_ID)


def draw_missing(recorded: Tensor, whole: int, generator: torch.Generator) -> Tensor:
    """Draw which modality each sample loses: RGB, depth or nothing, a third each; the first ``whole`` samples nothing.

    Args:
        recorded: (B, 2) bool, what the recording itself lacks; such a sample loses nothing more.
        whole: number of samples left as recorded.
        generator: source of the draws.

    Returns:
        (B, 2) bool; never both modalities of a sample.
    """
    draws = torch.randint(3, (len(recorded),), generator=generator)
    drawn = torch.stack((draws == 0, draws == 1), dim=1)
    drawn[:whole] = False
    return torch.where(recorded.any(1, keepdim=True), recorded, drawn)


@torch.no_grad()
def update_teacher(
    teacher: LinearFusionSegmenter, student: LinearFusionSegmenter, step: int, decay: float
) -> None:
    """Move the teacher's parameters towards the student's by ``1 - min(1 - 1/(step+1), decay)``; buffers likewise."""
    keep = min(1 - 1 / (step + 1), decay)
    own, other = teacher.state_dict(), student.state_dict()
    for name, tensor in own.items():
        if tensor.is_floating_point():
            tensor.lerp_(other[name], 1 - keep)
        else:
            tensor.copy_(other[name])


def train(
    config: TrainConfig,
    frames: TrainingFrames,
    out: Path,
    seed: int,
    device: str = "auto",
    workers: int | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Path:
    """Train from bags, with a progress bar, and keep the result.

    Args:
        config: the recipe.
        frames: which frames of which bags.
        out: folder to create; gets ``checkpoint.safetensors`` and ``run.json`` (recipe, bags, seed, losses), or, where
            training ends early, ``interrupted.safetensors``.
        seed: of everything drawn at random.
        device: as for ``Predictor``.
        workers: processes that read the bags; None chooses by the cores. The result does not depend on it.
        notes: what else is to be kept in ``run.json``, in plain types.

    Returns:
        The checkpoint's path.

    Raises:
        M3LError: the folder exists, or a bag, label or device cannot be used.
    """
    if out.exists():
        raise M3LError(f"{out} exists already; choose another --out or remove it")
    if config.mean_teacher and not len(frames.unlabelled):
        raise M3LError("every frame has labels; use --config supervised, or add bags without labels")
    chosen = choose_device(device)
    workers = default_workers() if workers is None else workers
    frames.check_labels(workers)
    steps = [config.step_frames(step) for step in range(config.steps)]
    sampler = StepSampler(frames.labelled, frames.unlabelled, steps, seed)
    batches = read_batches(frames.at_network_size(config.preprocessing()), sampler, workers)
    trainer = Trainer(config, frames.label_set, seed, chosen)
    out.mkdir(parents=True)
    log: list[StepResult] = []
    try:
        with tqdm(
            trainer.run(batches), total=config.steps, desc=f"train {out.name}", mininterval=1
        ) as progress:
            for result in progress:
                log.append(result)
                progress.set_postfix(
                    supervised=f"{result.loss_supervised:.3f}",
                    pseudo=f"{result.loss_pseudo:.3f}",
                    refresh=False,
                )
    except BaseException:
        save_checkpoint(out / "interrupted.safetensors", trainer.model)
        raise
    checkpoint = out / "checkpoint.safetensors"
    save_checkpoint(checkpoint, trainer.model)
    facts = {
        "bags": [str(bag.index.path) for bag in frames.dataset.bags],
        "label_set": frames.label_set.name,
        "label_files": None if frames.label_files is None else str(frames.label_files.path),
        "labelled_frames": len(frames.labelled),
        "unlabelled_frames": len(frames.unlabelled),
        **(notes or {}),
        "seed": seed,
        "device": str(chosen),
        "workers": workers,
        "torch": torch.__version__,
        "config": dataclasses.asdict(config),
        "log": [result._asdict() for result in log],
    }
    (out / "run.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return checkpoint


def _select(outputs: SegmenterOutput, samples: slice) -> SegmenterOutput:
    return SegmenterOutput(*(x[samples] for x in outputs))


def _to_batch(frames: NetworkFrame) -> Batch:
    return Batch(frames.rgb.float(), frames.depth_m, frames.labels.long(), frames.missing)


def _parameter_groups(model: LinearFusionSegmenter, weight_decay: float) -> list[dict[str, Any]]:
    norms = {id(p) for m in model.modules() if isinstance(m, ModalityLayerNorm) for p in m.parameters()}
    decayed = [p for p in model.parameters() if p.ndim > 1 and id(p) not in norms]
    others = [p for p in model.parameters() if p.ndim <= 1 or id(p) in norms]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _learning_rate_factor(step: int, config: TrainConfig) -> float:
    return min(1.0, (step + 1) / max(1, config.warmup_steps)) * (1 - step / config.steps) ** 0.9
