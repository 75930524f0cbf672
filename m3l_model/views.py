# SPDX-License-Identifier: Apache-2.0
"""What student and teacher are shown of a step's frames (M3L, arXiv 2304.10756, figure 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from m3l_model import augment, ranks
from m3l_model.augment import Batch
from m3l_model.cutmix import CutMix
from m3l_model.data import NetworkFrame
from m3l_model.draws import Purpose, StepDraws
from m3l_model.preprocessing import Inputs, depth_limits
from m3l_model.recipe import TrainConfig


class View(NamedTuple):
    """Network input of B samples.

    Attributes:
        inputs: of the network.
        missing: (B, 2) bool, of which modality nothing is seen.
        samples: (B,) int64, places of the samples among those of all processes.
    """

    inputs: Inputs
    missing: Tensor
    samples: Tensor


class Views(NamedTuple):
    """One step, of which this process has its share.

    Attributes:
        student: all samples: labelled ones first, then, where a second copy is masked, that, then unlabelled ones.
        labels: (L, H, W) int64 of the labelled ones and their second copy.
        teacher: the samples that get pseudo labels; None where no sample does. Where the second copy is the same
            frames, whole for the teacher, they are there once.
        pseudo_of: (P,) for the last P samples of the student their position among the teacher's.
        first_batch: labelled samples without the second copy.
        cut: what the last P samples of the student, and so their pseudo labels, get of each other; None: nothing.
    """

    student: View
    labels: Tensor
    teacher: View | None
    pseudo_of: Tensor
    first_batch: int
    cut: CutMix | None


def make_views(
    config: TrainConfig, frames: NetworkFrame, draws: StepDraws, whole: int, device: torch.device
) -> Views:
    """Augment and mask a step's frames.

    Args:
        config: the recipe.
        frames: this process's, in the order of ``StepFrames``.
        draws: of these frames.
        whole: how many of them are the first labelled batch.
        device: where the views are to be.
    """
    weak = weakly_augmented(config, frames, draws, device)
    batch, source, samples = weak, torch.arange(len(weak.missing)), draws.samples
    if config.second_labelled == "same":
        batch, source = weak.repeated(whole), torch.cat((source[:whole], source))
        draws = _renumbered(draws, config.labelled_batch, whole)
    labelled = whole if config.second_labelled == "none" else 2 * whole

    seen = augment.strong(batch, draws) if config.strong_augmentation else batch
    left_whole = whole if config.second_labelled != "none" else 0
    recorded = batch.missing.cpu()
    missing = recorded
    if config.masking != "none":
        missing = draw_missing(recorded, left_whole, draws, Purpose.MISSING)
    student = view_of(config, seen, missing, torch.tensor(draws.samples))
    labels = batch.labels[:labelled]
    cut = None
    if config.cutmix:
        groups = (whole, labelled - whole, len(missing) - labelled)
        cut = CutMix.draw(groups, (labels.shape[1], labels.shape[2]), draws)
        student = student._replace(inputs=_pasted(cut, student.inputs))
        labels = cut.of(0, labelled).paste(labels)
    if config.pseudo_weight_at(draws.step) == 0:
        return Views(student, labels, None, source[:0], whole, None)

    shown, hidden = weak, weak.missing.cpu()
    if config.masking == "both":
        shown, source, samples = batch, torch.arange(len(batch.missing)), draws.samples
        hidden = draw_missing(recorded, left_whole, draws, Purpose.TEACHER_MISSING)
    start = labelled if config.pseudo_frames == "unlabelled" else 0
    wanted = source[start:]
    first = int(wanted.min())
    shown = Batch(*(column[first:] for column in shown))
    teacher = view_of(config, shown, hidden[first:], torch.tensor(samples[first:]) - first * ranks.count())
    return Views(student, labels, teacher, wanted - first, whole, cut and cut.of(start, len(source)))


def weakly_augmented(
    config: TrainConfig, frames: NetworkFrame, draws: StepDraws, device: torch.device
) -> Batch:
    """Cut the recipe's windows from a step's frames, on ``device``."""
    rgb, depth_m, labels, lacking = (tensor.to(device, non_blocking=True) for tensor in frames)
    batch = Batch(rgb.float(), depth_m, labels.long(), lacking, depth_limits(depth_m))
    if config.augmentation == "reference":
        return augment.reference_weak(batch, config.crop_pixels, draws)
    return augment.weak(batch, config.crop, config.scales, draws)


def draw_missing(recorded: Tensor, whole: int, draws: StepDraws, purpose: Purpose) -> Tensor:
    """Draw which modality each sample loses: RGB, depth or nothing, a third each; the first ``whole`` samples nothing.

    Args:
        recorded: (B, 2) bool, what the recording itself lacks; such a sample loses nothing more.
        whole: number of samples left as recorded.
        draws: source of the draws.
        purpose: of the draws.

    Returns:
        (B, 2) bool; never both modalities of a sample.
    """
    lost = draws.integers(purpose, 3)
    drawn = torch.stack((lost == 0, lost == 1), dim=1)
    drawn[:whole] = False
    return torch.where(recorded.any(1, keepdim=True), recorded, drawn)


def _renumbered(draws: StepDraws, shift: int, whole: int) -> StepDraws:
    """Number the samples anew with a second copy of the labelled frames between them and the unlabelled ones."""
    first, rest = draws.samples[:whole], draws.samples[whole:]
    samples = (*first, *(i + shift for i in first), *(i + shift for i in rest))
    return StepDraws(draws.seed, draws.step, samples)


def view_of(config: TrainConfig, batch: Batch, missing: Tensor, samples: Tensor) -> View:
    """Show a batch, without what is ``missing``, (B, 2) bool, to a network."""
    if config.modalities == "rgb":
        missing = torch.stack((torch.zeros_like(missing[:, 0]), torch.ones_like(missing[:, 1])), dim=1)
    inputs = config.preprocessing().encode(batch.rgb, batch.depth_m, batch.depth_limits)
    return View(inputs, missing, samples)


def _pasted(cut: CutMix, inputs: Inputs) -> Inputs:
    valid = None if inputs.depth_valid is None else cut.paste(inputs.depth_valid)
    return Inputs(cut.paste(inputs.rgb), cut.paste(inputs.depth), valid)
