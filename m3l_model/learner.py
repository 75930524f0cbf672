# SPDX-License-Identifier: Apache-2.0
"""The M3L step (arXiv 2304.10756, section 3.2): student, teacher, their losses, and what an optimiser step changes."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.optim import AdamW

from m3l_model import ranks
from m3l_model.dropout import take_rows
from m3l_model.losses import WithGradient, pseudo_loss, supervised_loss
from m3l_model.mit import MODALITIES, ModalityLayerNorm
from m3l_model.ranks import BatchNormOfAll
from m3l_model.recipe import TrainConfig
from m3l_model.reconstruction import ReconstructionViews, reconstruction_loss
from m3l_model.segmenter import RGB_ALONE, LinearFusionSegmenter, SegmenterOutput, upsample
from m3l_model.views import View, Views


class StepResult(NamedTuple):
    """Losses of one step; ``loss_pseudo`` is 0 without a teacher, ``loss_supervised`` may be that of reconstruction."""

    step: int
    loss_supervised: float
    loss_pseudo: float
    learning_rate: float


class Losses(NamedTuple):
    """This process's parts of a step's losses: their weighted sum, with gradients, and each by itself, without.

    ``pseudo_labels`` are the teacher's, if any, as ``pseudo_loss`` takes them.
    """

    total: Tensor
    supervised: Tensor
    pseudo: Tensor
    pseudo_labels: Tensor | None


class _Network(nn.Module):
    """A segmenter's logits at a quarter of the input size, as a module's forward pass.

    ``missing`` comes as a list, of which DistributedDataParallel makes no tensor of the GPU's.
    """

    def __init__(self, segmenter: LinearFusionSegmenter) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(
        self, rgb: Tensor, depth: Tensor, missing: list[list[bool]], depth_valid: Tensor | None
    ) -> SegmenterOutput:
        return self.segmenter.quarter_logits(rgb, depth, torch.tensor(missing), depth_valid)


class Learner:
    """Student, teacher and optimiser of one recipe.

    Args:
        config: the recipe.
        network: the student as it starts; the teacher starts as a copy.
        fabric: devices, processes and precision.
    """

    def __init__(self, config: TrainConfig, network: LinearFusionSegmenter, fabric: Fabric) -> None:
        self.config = config
        self.network = network
        self._fabric = fabric
        if config.modalities == "rgb":
            network.alpha.requires_grad_(False).copy_(torch.tensor(RGB_ALONE))
        if fabric.world_size > 1:
            _reduce_batch_norm(network)
        self.teacher = (
            copy.deepcopy(network).requires_grad_(False).to(fabric.device) if config.mean_teacher else None
        )
        optimizer = AdamW(_parameter_groups(network, config))
        self._student, self._optimizer = fabric.setup(_Network(network), optimizer)
        self._set_modes()

    @property
    def model(self) -> LinearFusionSegmenter:
        """The network to keep: the teacher where there is one."""
        return self.teacher or self.network

    def step(self, step: int, views: Views | ReconstructionViews) -> StepResult:
        """Do one optimiser step."""
        losses = self.losses(step, views)
        self._student.zero_grad()
        self._fabric.backward(losses.total * ranks.count())  # gradients are averaged over the processes
        rate = self.config.learning_rate_at(step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["rate"]
        self._optimizer.step()
        if self.teacher:
            update_teacher(self.teacher, self.network, step, self.config.ema_decay)
        supervised, pseudo = ranks.total(torch.stack((losses.supervised, losses.pseudo)).double()).tolist()
        return StepResult(step, supervised, pseudo, rate)

    def losses(self, step: int, views: Views | ReconstructionViews) -> Losses:
        """Compute a step's losses: the student's outputs against labels, and against what the teacher says.

        Where the recipe reconstructs there is one: the fused output against the images that were taken away.
        """
        config = self.config
        self._set_modes()
        if isinstance(views, ReconstructionViews):
            loss = reconstruction_loss(self._see(self._student, views.student).fused, views)
            return Losses(loss, loss.detach(), torch.zeros_like(loss.detach()), None)
        pseudo_labels = None if views.teacher is None else self.pseudo_labels(views.teacher)[views.pseudo_of]
        if pseudo_labels is not None and views.cut:
            pseudo_labels = views.cut.paste(pseudo_labels)
        outputs = self._see(self._student, views.student)
        if not config.train_fused:
            fused = self.network.fuse(outputs.rgb.detach(), outputs.depth.detach())
            outputs = outputs._replace(fused=fused)
        trained = outputs[:1] if config.modalities == "rgb" else outputs
        parts = [self._losses_of(output, step, views, pseudo_labels) for output in trained]
        total, supervised, pseudo = (torch.stack(column).mean() for column in zip(*parts, strict=True))
        return Losses(total, supervised, pseudo, pseudo_labels)

    def _losses_of(
        self, logits: Tensor, step: int, views: Views, pseudo_labels: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute one output's losses at full size; of that size nothing is kept for the gradients."""
        size = views.labels.shape[1:]
        labelled = len(views.labels)
        min_kept = int(size[0] * size[1] * self.config.ohem_share) * views.first_batch * ranks.count()
        source = logits.detach().requires_grad_()
        log_probabilities = upsample(source, size).log_softmax(1)
        supervised = supervised_loss(log_probabilities[:labelled], views.labels, min_kept).loss
        pseudo = torch.zeros_like(supervised)
        if pseudo_labels is not None:
            pseudo = pseudo_loss(log_probabilities[-len(pseudo_labels) :], pseudo_labels)
        total = supervised + self.config.pseudo_weight_at(step) * pseudo
        (gradient,) = torch.autograd.grad(total, source)
        kept: Tensor = WithGradient.apply(logits, total.detach(), gradient)
        return kept, supervised.detach(), pseudo.detach()

    @torch.no_grad()
    def pseudo_labels(self, view: View) -> Tensor:
        """Let the teacher label what it sees: (B, H, W) int64 class ids, or (B, C, H, W) probabilities."""
        assert self.teacher is not None
        with self._fabric.autocast():
            quarter = self._see(_Network(self.teacher), view).fused
        quarter = quarter.to(torch.promote_types(quarter.dtype, torch.float32))
        logits = upsample(quarter, view.inputs.rgb.shape[-2:])
        return logits.softmax(1) if self.config.pseudo_labels == "soft" else logits.argmax(1)

    @property
    def scaler(self) -> dict[str, float]:
        """State of the gradients' scale, for ``precision`` 16-mixed; else empty."""
        return dict(self._fabric.strategy.precision.state_dict())

    def state(self) -> dict[str, Tensor]:
        """Give all that a step changes, by name."""
        tensors = {f"student.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self.teacher:
            tensors |= {f"teacher.{name}": tensor for name, tensor in self.teacher.state_dict().items()}
        for index, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in values.items()}
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor], scaler: dict[str, float]) -> None:
        """Put back what ``state`` and ``scaler`` gave.

        Raises:
            RuntimeError: it is of another network.
        """

        def part(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): tensor
                for name, tensor in tensors.items()
                if name.startswith(prefix)
            }

        self.network.load_state_dict(part("student."))
        if self.teacher:
            self.teacher.load_state_dict(part("teacher."))
        values: dict[int, dict[str, Tensor]] = {}
        for name, tensor in part("optimizer.").items():
            index, _, key = name.partition(".")
            values.setdefault(int(index), {})[key] = tensor
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": values, "param_groups": groups})
        self._fabric.strategy.precision.load_state_dict(scaler)

    def _see(self, network: nn.Module, view: View) -> SegmenterOutput:
        total = len(view.samples) * ranks.count()
        rows = torch.cat([view.samples + modality * total for modality in range(len(MODALITIES))])
        take_rows(network, rows.to(self._fabric.device))
        inputs = self._fabric.strategy.precision.convert_input(view.inputs)
        output: SegmenterOutput = network(inputs.rgb, inputs.depth, view.missing.tolist(), inputs.depth_valid)
        return output

    def _set_modes(self) -> None:
        self._student.train()
        if self.config.batch_norm == "frozen":
            self.network.decoder.bn.eval()
        if self.teacher:
            self.teacher.train(self.config.teacher_noise)
            self.teacher.decoder.bn.eval()


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


def _reduce_batch_norm(network: LinearFusionSegmenter) -> None:
    own = network.decoder.bn
    network.decoder.bn = BatchNormOfAll(own.num_features, own.eps, own.momentum)
    network.decoder.bn.load_state_dict(own.state_dict())


def _parameter_groups(network: LinearFusionSegmenter, config: TrainConfig) -> list[dict[str, Any]]:
    """Group the parameters by learning rate (``rate`` times the encoder's) and decay."""
    norms = {
        id(parameter)
        for module in network.modules()
        if isinstance(module, ModalityLayerNorm)
        for parameter in module.parameters()
    }
    everything = config.decay == "reference"
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if (name == "alpha" and not config.train_fused) or not parameter.requires_grad:
            continue
        rate = config.decoder_rate if name.startswith("decoder.") else 1.0
        decays = id(parameter) not in norms and (everything or parameter.ndim > 1)
        groups.setdefault((rate, decays), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": rate * config.learning_rate,
            "rate": rate,
            "weight_decay": config.weight_decay if decays else 0.0,
        }
        for (rate, decays), parameters in groups.items()
    ]
