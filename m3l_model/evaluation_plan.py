# SPDX-License-Identifier: Apache-2.0
"""What an evaluation does: which frames, in which blocks, and what the synchronizer decides in each scenario."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.bag_frames import BagFrames
from m3l_model.errors import M3LError
from m3l_model.import_plan import OWN_START_NS
from m3l_model.offline import DECISION, decide
from m3l_model.scenarios import CLEAN, Scenario
from m3l_model.splits import Splits

BLOCK_SECONDS = 5.0
BLOCK_FRAMES = 10

NO_FRAME = np.zeros(1, DECISION)[0]
"""Stands for the decision where the synchronizer drops the colour image."""


@dataclass(frozen=True)
class Block:
    """Consecutive frames of a bag.

    Attributes:
        bag: its position in the data set.
        positions: (n,) of the frames in the bag.
        decisions: (S, n) of ``DECISION`` on them in each scenario.
        accepted: (S, n) whether the synchronizer takes the colour image.
        video: whether the frames follow one another in a recording.
    """

    bag: int
    positions: npt.NDArray[np.intp]
    decisions: npt.NDArray[np.void]
    accepted: npt.NDArray[np.bool_]
    video: bool


@dataclass(frozen=True)
class EvaluationPlan:
    """Frames of a data set, and what happens to them.

    Attributes:
        dataset: of the frames.
        scenarios: S conditions.
        seed: of the scenarios.
        blocks: the frames.
        labelled: whether they have labels: otherwise nothing but proxies can be measured.
    """

    dataset: RgbdBagDataset
    scenarios: tuple[Scenario, ...]
    seed: int
    blocks: tuple[Block, ...]
    labelled: bool

    @property
    def frames(self) -> int:
        """How many there are."""
        return sum(len(block.positions) for block in self.blocks)


def evaluated_positions(dataset: RgbdBagDataset, splits: Splits | None = None) -> npt.NDArray[np.intp]:
    """Give the positions of the labelled samples, of all where none is; with splits, of those in validation only.

    Raises:
        M3LError: there is no frame at all, the splits do not fit the bags, or they hold no labelled frame.
    """
    paths = ", ".join(str(bag.index.path) for bag in dataset.bags)
    if not len(dataset):
        raise M3LError(f"{paths}: no colour images; see m3l info")
    every = np.arange(len(dataset)) if splits is None else splits.select(dataset, "validation")
    labelled = every[dataset.labelled[every]]
    if len(labelled) or (splits is None and not dataset.labelled.any()):
        return labelled if len(labelled) else every
    raise M3LError(
        f"none of the {len(every)} frames that the splits set apart for validation has labels; draw other seconds with "
        "m3l split --seed, or edit the file"
    )


def plan_evaluation(
    dataset: RgbdBagDataset,
    positions: npt.NDArray[np.intp],
    scenarios: Sequence[Scenario],
    seed: int = 0,
) -> EvaluationPlan:
    """Plan the evaluation of some samples of a data set.

    Raises:
        M3LError: there are none, none has depth although the scenarios have ``CLEAN``, or a bag cannot be read.
    """
    if not len(positions):
        raise M3LError("no frame to evaluate; ask for at least one")
    blocks: list[Block] = []
    located = np.array([dataset.locate(int(position)) for position in positions], np.intp)
    for bag in np.unique(located[:, 0]).tolist():
        of_bag = located[located[:, 0] == bag, 1]
        frames = dataset.bags[bag]
        decisions, accepted = _decisions(frames, of_bag, scenarios, seed)
        for part in np.split(np.arange(len(of_bag)), _block_starts(frames, of_bag)):
            if len(part):
                block = Block(
                    bag, of_bag[part], decisions[:, part], accepted[:, part], not _is_image_set(frames)
                )
                blocks.append(block)
    recorded = [number for number, scenario in enumerate(scenarios) if scenario.name == CLEAN.name]
    if recorded and not any((block.decisions["depth"][recorded] >= 0).any() for block in blocks):
        raise M3LError(
            f"none of {len(positions)} frames has depth; name the depth topic with --depth-topic, or see with m3l info "
            "why nothing pairs"
        )
    labelled = bool(dataset.labelled[positions].all())
    return EvaluationPlan(dataset, tuple(scenarios), seed, tuple(blocks), labelled)


def _decisions(
    frames: BagFrames, positions: npt.NDArray[np.intp], scenarios: Sequence[Scenario], seed: int
) -> tuple[npt.NDArray[np.void], npt.NDArray[np.bool_]]:
    """What the synchronizer decides on some frames, (S, n) of ``DECISION``, and whether it takes them."""
    rows = frames.frames["rgb"][positions]
    decisions = np.zeros((len(scenarios), len(rows)), DECISION)
    accepted = np.zeros(decisions.shape, bool)
    undisturbed = decide(frames)
    for number, scenario in enumerate(scenarios):
        made = undisturbed if scenario.stream is None else decide(frames, scenario, seed)
        order = np.argsort(made["rgb"], kind="stable")
        at = np.searchsorted(made["rgb"][order], rows)
        at = order[np.minimum(at, len(made) - 1)]
        accepted[number] = made["rgb"][at] == rows
        decisions[number] = np.where(accepted[number], made[at], NO_FRAME)
    return decisions, accepted


def _block_starts(frames: BagFrames, positions: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Where blocks start among some frames of a bag."""
    if _is_image_set(frames):
        return np.arange(BLOCK_FRAMES, len(positions), BLOCK_FRAMES)
    log_ns = frames.frames["log_ns"]
    numbers = (log_ns[positions] - log_ns[0]) // round(BLOCK_SECONDS * 1e9)
    return np.flatnonzero(np.diff(numbers)) + 1


def _is_image_set(frames: BagFrames) -> bool:
    """Whether the images were imported and had no stamps of their own."""
    return bool(frames.frames["stamp_ns"][0] == OWN_START_NS)
