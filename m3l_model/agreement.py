# SPDX-License-Identifier: Apache-2.0
"""Whether two passes over the same images, the live node's and the offline one, decided and segmented alike."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_EDGE_FRAMES = 2
"""Frames at each edge of an outage whose decision may depend on how fast the machine is."""


class Answer(NamedTuple):
    """What a pass made of a colour image.

    Attributes:
        stamp_ns: header stamp of the colour image.
        depth_stamp_ns: that of the depth image it was paired with; None where it went without.
        reason: the synchronizer's.
        mask: ``digest`` of the mask; None where there is none.
    """

    stamp_ns: int
    depth_stamp_ns: int | None
    reason: str
    mask: bytes | None


def digest(labels: npt.NDArray[np.uint8]) -> bytes:
    """Stand for a mask, (H, W) uint8: equal for equal bytes and sizes only."""
    return hashlib.blake2b(
        np.ascontiguousarray(labels).data, digest_size=16, key=repr(labels.shape).encode()
    ).digest()


@dataclass(frozen=True)
class Agreement:
    """How the live answers compare with the offline ones.

    Attributes:
        frames: offline.
        outage_edges: how often, offline, depth was lost or came back.
        unanswered: stamps of offline frames that there is no live decision on.
        surplus: stamps of live decisions that there is no offline frame of.
        decided_otherwise: offline and live answers whose decisions differ.
        masked_otherwise: stamps of frames with the same decision and another mask.
    """

    frames: int
    outage_edges: int
    unanswered: tuple[int, ...]
    surplus: tuple[int, ...]
    decided_otherwise: tuple[tuple[Answer, Answer], ...]
    masked_otherwise: tuple[int, ...]

    def holds(self, timed: bool) -> bool:
        """Whether live is offline.

        Args:
            timed: the images came at a rate, and near the edges of outages the machine's speed has a say in decisions;
                else none may differ.
        """
        tolerated = _EDGE_FRAMES * self.outage_edges if timed else 0
        return (
            not (self.unanswered or self.surplus or self.masked_otherwise)
            and len(self.decided_otherwise) <= tolerated
        )

    def __str__(self) -> str:
        parts = [f"{self.frames} frames"]
        if self.unanswered:
            parts.append(
                f"{len(self.unanswered)} without a live decision, the first at {self.unanswered[0]} ns"
            )
        if self.surplus:
            parts.append(f"{len(self.surplus)} live decisions too many, the first at {self.surplus[0]} ns")
        if self.decided_otherwise:
            offline, live = self.decided_otherwise[0]
            parts.append(
                f"{len(self.decided_otherwise)} decided otherwise at {self.outage_edges} edges of outages, the first "
                f"at {offline.stamp_ns} ns: offline {_decision(offline)}, live {_decision(live)}"
            )
        if self.masked_otherwise:
            parts.append(
                f"{len(self.masked_otherwise)} other masks, the first at {self.masked_otherwise[0]} ns"
            )
        if len(parts) == 1:
            parts.append("decisions and masks equal")
        return ", ".join(parts)


def compare(offline: Sequence[Answer], live: Iterable[Answer]) -> Agreement:
    """Compare answers on the same images; where a stamp comes again, by turns."""
    expected = _by_turn(offline)
    found = _by_turn(live)
    both = [(expected[key], found[key]) for key in expected if key in found]
    return Agreement(
        frames=len(offline),
        outage_edges=sum(
            (before.depth_stamp_ns is None) != (after.depth_stamp_ns is None)
            for before, after in pairwise(offline)
        ),
        unanswered=tuple(stamp for stamp, turn in expected if (stamp, turn) not in found),
        surplus=tuple(stamp for stamp, turn in found if (stamp, turn) not in expected),
        decided_otherwise=tuple(pair for pair in both if pair[0][:3] != pair[1][:3]),
        masked_otherwise=tuple(
            before.stamp_ns for before, after in both if before[:3] == after[:3] and before.mask != after.mask
        ),
    )


def _by_turn(answers: Iterable[Answer]) -> dict[tuple[int, int], Answer]:
    turns: Counter[int] = Counter()
    keyed = {}
    for answer in answers:
        keyed[answer.stamp_ns, turns[answer.stamp_ns]] = answer
        turns[answer.stamp_ns] += 1
    return keyed


def _decision(answer: Answer) -> str:
    depth = "" if answer.depth_stamp_ns is None else f" with {answer.depth_stamp_ns} ns"
    return f"{answer.reason}{depth}"
