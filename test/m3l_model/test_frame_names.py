# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3l_model.frame_names import frame_file, parse_frame_file

STAMPS = st.integers(0, 2**63 - 1)
BAG_NAMES = st.text(st.characters(exclude_characters="/\0", codec="utf-8"), min_size=1).filter(
    lambda name: name not in (".", "..")
)


@settings(deadline=None)
@given(BAG_NAMES, STAMPS)
def test_a_frame_is_found_again_from_the_name_of_its_file(bag_name: str, stamp_ns: int) -> None:
    assert parse_frame_file(frame_file(bag_name, stamp_ns)) == (bag_name, stamp_ns)
    assert parse_frame_file(f"a/color/{frame_file(bag_name, stamp_ns)}") == (bag_name, stamp_ns)


@pytest.mark.parametrize(
    ("name", "frame"),
    [
        ("5.png", (None, 5)),
        ("0.PNG", (None, 0)),
        ("./5.png", (None, 5)),
        ("drive/5.jpg", ("drive", 5)),
        ("drive.mcap/5.jpeg", ("drive.mcap", 5)),
        ("05.png", None),
        ("-5.png", None),
        ("5", None),
        ("5.txt", None),
        ("frame_5.png", None),
        ("5.color.png", None),
        ("٣.png", None),
        ("9223372036854775807.png", (None, 2**63 - 1)),
        ("9223372036854775808.png", None),
        ("", None),
    ],
)
def test_only_stamps_name_frames(name: str, frame: tuple[str | None, int] | None) -> None:
    assert parse_frame_file(name) == frame
