# SPDX-License-Identifier: Apache-2.0
"""Pretraining without labels: of every sample one modality is missing, and the network tells it from the other.

So the encoder and all of the decoder but its classifier learn from every recorded frame what surfaces look like, before
there is a label. It is not of the paper; what it brings is measured in docs/experiments.md.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from m3l_model import augment, ranks
from m3l_model.data import NetworkFrame
from m3l_model.draws import Purpose, StepDraws
from m3l_model.preprocessing import Inputs
from m3l_model.recipe import TrainConfig
from m3l_model.views import View, view_of, weakly_augmented

DEPTH_WEIGHT = 2.0
"""Of the error in depth's channels, of which colour alone tells more than depth tells of colour."""

_BETA = 0.5
"""Error, in units of the normalised inputs, from which on the loss is linear."""


class ReconstructionViews(NamedTuple):
    """One step, of which this process has its share.

    Attributes:
        student: all samples, each without one modality, and where the recipe says so strongly augmented.
        whole: the same samples with both, only weakly augmented.
        seen: (B, 1, H, W) float, 1 where depth has a reading in ``whole``.
    """

    student: View
    whole: Inputs
    seen: Tensor


def make_reconstruction_views(
    config: TrainConfig, frames: NetworkFrame, draws: StepDraws, device: torch.device
) -> ReconstructionViews:
    """Augment a step's frames and take from each sample one modality, either as likely.

    Args:
        config: the recipe.
        frames: this process's.
        draws: of these frames.
        device: where the views are to be.
    """
    weak = weakly_augmented(config, frames, draws, device)
    shown = augment.strong(weak, draws) if config.strong_augmentation else weak
    recorded = weak.missing.cpu()
    lost = draws.integers(Purpose.MISSING, 2)
    drawn = torch.stack((lost == 0, lost == 1), dim=1)
    missing = torch.where(recorded.any(1, keepdim=True), recorded, drawn)
    whole = view_of(config, weak, recorded, torch.tensor(draws.samples)).inputs
    student = view_of(config, shown, missing, torch.tensor(draws.samples))
    return ReconstructionViews(student, whole, (weak.depth_m > 0).to(whole.rgb.dtype)[:, None])


def reconstruction_loss(output_B6HW: Tensor, views: ReconstructionViews) -> Tensor:
    """Smooth L1 between what the network says of a missing modality and what it was, in the normalised inputs' units.

    Colour counts where it was missing; depth where it was missing and has a reading. Each is a mean over the samples of
    all processes, of which this is one process's part.

    Args:
        output_B6HW: the fused output, at a quarter of the images' size: three channels of colour, three of depth.
        views: of the step.
    """
    size = (output_B6HW.shape[2], output_B6HW.shape[3])
    seen = functional.adaptive_avg_pool2d(views.seen, size)
    colour = functional.adaptive_avg_pool2d(views.whole.rgb, size)
    depth = functional.adaptive_avg_pool2d(views.whole.depth, size) / seen.clamp(min=1e-3)
    exact = output_B6HW.to(torch.promote_types(output_B6HW.dtype, torch.float32))
    told_colour, told_depth = exact.chunk(2, 1)
    no_rgb, no_depth = views.student.missing.to(seen.device, seen.dtype).T[:, :, None, None, None]
    return _mean_error(told_colour, colour, no_rgb) + DEPTH_WEIGHT * _mean_error(
        told_depth, depth, no_depth * seen
    )


def _mean_error(told: Tensor, was: Tensor, weight: Tensor) -> Tensor:
    weight = weight.expand_as(was)
    errors = functional.smooth_l1_loss(told, was.to(told.dtype), reduction="none", beta=_BETA)
    return (errors * weight).sum() / ranks.total(weight.sum()).clamp(min=1)
