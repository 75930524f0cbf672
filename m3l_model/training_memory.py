# SPDX-License-Identifier: Apache-2.0
"""How much memory a training step takes, about, and whether the machine has it."""

from __future__ import annotations

from pathlib import Path

import torch

from m3l_model.cgroup_memory import cgroup_room
from m3l_model.errors import M3LError
from m3l_model.recipe import TrainConfig

_MEMORY_INFO = Path("/proc/meminfo")

_BYTES_OF_PIXEL = {
    "mit_b0": 2620,
    "mit_b1": 4750,
    "mit_b2": 8260,
    "mit_b3": 12290,
    "mit_b4": 17300,
    "mit_b5": 20600,
}
"""What a sample's pixel takes, both modalities: twice what is kept for the gradients, as was measured of mit_b0."""

_COLOUR_ALONE = 2 / 3
"""Share of that where every sample's depth takes no part; of what is kept for the gradients it is 0.65 with mit_b0 and
0.56 with mit_b2 (by hand)."""

_BYTES_OF_PIXEL_AND_CLASS = 16
"""Of one output's logits at full size, their softmax and its gradient."""

_BYTES_OF_SOFT_LABEL = 8
"""Of a pixel and class: the teacher's probabilities, and the same after CutMix."""

_STATES = 5
"""Copies of the parameters: student, gradients, two moments, teacher."""

_HALF_PRECISION = 0.7
"""Share of a pixel's bytes in 16 bits, rounded up: of what is kept for the gradients it is 0.59 with mit_b0 and 0.60
with mit_b2 (by hand, bfloat16 on a CPU), as some layers go on in float32. The logits and all after them do, too."""

_BYTES_OF_HALF_PARAMETER = 2
"""Of the copies of the student's parameters that a step in 16 bits computes with."""


def step_bytes(
    config: TrainConfig,
    num_classes: int,
    parameters: int,
    size: tuple[int, int],
    processes: int = 1,
    precision: str = "32",
) -> int:
    """Estimate the memory of a step in one process.

    Args:
        config: the recipe.
        num_classes: C of the logits.
        parameters: of the network.
        size: height and width of what is trained on.
        processes: that share the samples; each has all parameters.
        precision: of the arithmetic, as ``training.Machine`` has it.
    """
    frames = config.step_frames(config.steps - 1)
    samples = sum(frames) + (config.labelled_batch if config.second_labelled == "same" else 0)
    share = _COLOUR_ALONE if config.modalities == "rgb" and config.skip_missing else 1
    half = precision != "32"
    share *= _HALF_PRECISION if half else 1
    pixel = round(share * _BYTES_OF_PIXEL[config.backbone]) + _BYTES_OF_PIXEL_AND_CLASS * num_classes
    soft = 0
    if config.pseudo_labels == "soft":
        pseudo = samples if config.pseudo_frames == "all" else frames.unlabelled
        soft = pseudo * _BYTES_OF_SOFT_LABEL * num_classes
    copies = 4 * _STATES + (_BYTES_OF_HALF_PARAMETER if half else 0)
    return size[0] * size[1] * (samples * pixel + soft) // processes + copies * parameters


def check_memory(needed: int, config: TrainConfig, device: torch.device, processes: int = 1) -> None:
    """See that a step fits into the memory that is free.

    Args:
        needed: bytes, of one process.
        config: names what could be smaller.
        device: where the step is to be done.
        processes: on this machine; on the CPU they share its memory.

    Raises:
        M3LError: it does not; says what would.
    """
    if device.type == "cpu":
        needed *= processes
    free = _free_bytes(device)
    if free is None or needed <= free:
        return
    share = free / needed
    side = f"short_side {config.short_side}" if config.short_side else "the images"
    raise M3LError(
        f"a training step takes about {needed / 2**30:.1f} GiB, and {device} has {free / 2**30:.1f} GiB free; scale "
        f"labelled_batch {config.labelled_batch} and unlabelled_batch {config.unlabelled_batch} by about "
        f"{share:.2f}, or {side} by {share**0.5:.2f}, or take a smaller backbone than {config.backbone}"
    )


def _free_bytes(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min((room for room in (_available_bytes(), cgroup_room()) if room is not None), default=None)


def _available_bytes() -> int | None:
    try:
        lines = _MEMORY_INFO.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)
