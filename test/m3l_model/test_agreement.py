# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest

from m3l_model.agreement import Answer, compare, digest

PAIRED, LOST = "paired", "depth_lost"


def answers(depth: str, masks: str = "") -> list[Answer]:
    """One for each letter of ``depth``: d with depth, - without; the letters of ``masks`` are the masks'."""
    return [
        Answer(stamp, stamp if letter == "d" else None, PAIRED if letter == "d" else LOST, mask.encode())
        for stamp, (letter, mask) in enumerate(zip(depth, masks or "m" * len(depth), strict=True), start=1)
    ]


def test_equal_answers_agree() -> None:
    agreement = compare(answers("dd--dd"), answers("dd--dd"))
    assert agreement.holds(timed=False)
    assert str(agreement) == "6 frames, decisions and masks equal"
    assert agreement.outage_edges == 2


@pytest.mark.parametrize(("depth", "edges"), [("", 0), ("dddd", 0), ("--dd", 1), ("d-d-", 3), ("----", 0)])
def test_depth_lost_and_found_again_is_an_edge(depth: str, edges: int) -> None:
    assert compare(answers(depth), answers(depth)).outage_edges == edges


def test_another_mask_after_the_same_decision_is_never_tolerated() -> None:
    agreement = compare(answers("dd--dd", "mmmmmm"), answers("dd--dd", "mmmmxm"))
    assert agreement.masked_otherwise == (5,)
    assert not agreement.holds(timed=True)
    assert "1 other masks, the first at 5 ns" in str(agreement)
    without = compare(answers("d"), [answers("d")[0]._replace(mask=None)])
    assert without.masked_otherwise == (1,)


def test_two_frames_at_each_edge_may_be_decided_otherwise_where_time_has_a_say() -> None:
    offline = answers("dddd----dddd", "abcdefghijkl")
    tolerable = compare(offline, answers("ddd-d---ddd-", "abcxxfghijkx"))
    assert len(tolerable.decided_otherwise) == 3
    assert not tolerable.masked_otherwise, "with another decision comes another mask"
    assert tolerable.holds(timed=True)
    assert not tolerable.holds(timed=False)
    assert "offline paired with 4 ns, live depth_lost" in str(tolerable)
    assert not compare(offline, answers("-------d-dd-", "xxxxxxxxxxxx")).holds(timed=True)


def test_frames_that_are_missing_or_too_many_are_never_tolerated() -> None:
    offline = answers("d--d")
    missing = compare(offline, offline[:3])
    assert (missing.unanswered, missing.holds(timed=True)) == ((4,), False)
    surplus = compare(offline, [*offline, offline[0]])
    assert (surplus.surplus, surplus.holds(timed=True)) == ((1,), False)
    assert "1 without a live decision, the first at 4 ns" in str(missing)
    assert "1 live decisions too many, the first at 1 ns" in str(surplus)


def test_a_stamp_that_comes_again_is_compared_by_turns() -> None:
    first, second = Answer(1, 1, PAIRED, b"a"), Answer(1, None, LOST, b"b")
    assert compare([first, second], [first, second]).holds(timed=False)
    assert len(compare([first, second], [second, first]).decided_otherwise) == 2


def test_digests_differ_with_a_pixel_and_with_the_shape() -> None:
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert digest(mask) == digest(np.asfortranarray(mask))
    assert len({digest(mask), digest(mask.reshape(4, 3)), digest(mask + np.uint8(1)), digest(mask.T)}) == 4
