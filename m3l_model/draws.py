# SPDX-License-Identifier: Apache-2.0
"""Every random draw of a training run, as a function of seed, step, sample and purpose, and of nothing else.

So a run does not depend on the number of processes or workers, nor on what was drawn before, and goes on from any step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """What is drawn; a number never gets another meaning, since it is part of the seed."""

    LABELLED_ORDER = 0
    UNLABELLED_ORDER = 1
    WEAK = 2
    STRONG = 3
    COLOUR_NOISE = 4
    DEPTH_NOISE = 5
    MISSING = 6
    TEACHER_MISSING = 7
    NETWORK = 8
    CUTMIX = 9


def entropy(seed: int, purpose: Purpose, *numbers: int) -> np.random.SeedSequence:
    """Give the seed of one draw; ``numbers`` are not negative, ``seed`` may be."""
    return np.random.SeedSequence((seed % (1 << 64), purpose, *numbers))


def torch_seed(sequence: np.random.SeedSequence) -> int:
    """Give the seed as ``torch.manual_seed`` takes it."""
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


@dataclass(frozen=True)
class StepDraws:
    """The draws of one step, for the samples that this process has.

    Attributes:
        seed: of the run.
        step: counted from 0.
        samples: numbers of the samples in the step's batch over all processes.
    """

    seed: int
    step: int
    samples: tuple[int, ...]

    def uniform(self, purpose: Purpose, count: int) -> Tensor:
        """Draw (B, count) float32 in [0, 1)."""
        return self._each(
            purpose, torch.device("cpu"), lambda g: torch.rand(count, generator=g, dtype=torch.float32)
        )

    def integers(self, purpose: Purpose, high: int) -> Tensor:
        """Draw (B,) int64 in [0, high)."""
        return self._each(purpose, torch.device("cpu"), lambda g: torch.randint(high, (), generator=g))

    def normal(self, purpose: Purpose, shape: Sequence[int], device: torch.device) -> Tensor:
        """Draw (B, *shape) float32 on the device; devices differ in what they draw."""
        return self._each(
            purpose, device, lambda g: torch.randn(*shape, generator=g, device=device, dtype=torch.float32)
        )

    def seed_network(self) -> None:
        """Seed torch's own generators, which ``SampleDropout`` draws from, for this step, in every process alike."""
        torch.manual_seed(torch_seed(entropy(self.seed, Purpose.NETWORK, self.step, 0)))

    def _each(
        self, purpose: Purpose, device: torch.device, draw: Callable[[torch.Generator], Tensor]
    ) -> Tensor:
        seeds = (torch_seed(entropy(self.seed, purpose, self.step, sample)) for sample in self.samples)
        return torch.stack([draw(torch.Generator(device).manual_seed(seed)) for seed in seeds])
