# SPDX-License-Identifier: Apache-2.0
"""What is known of a bag, as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timezone

from m3l_model.bag_info import BagInfo, PairFacts, TopicFacts

_ROLES = {
    "rgb": "colour",
    "depth": "depth",
    "label": "labels",
    "rgb_info": "colour's camera info",
    "depth_info": "depth's camera info",
}


def info_text(info: BagInfo, problems: Sequence[str]) -> str:
    """Lay out what is known of a bag and what would go wrong in training."""
    return "\n".join(_lines(info, problems))


def _lines(info: BagInfo, problems: Sequence[str]) -> Iterator[str]:
    size = sum(info.files.values())
    start = datetime.fromtimestamp(info.start_ns / 1e9, timezone.utc)
    yield info.path
    yield f"  {info.storage}, {_count(len(info.files), 'file')}, {_bytes(size)}"
    if len(info.files) > 1:
        yield from (f"    {name}  {_bytes(bytes_)}" for name, bytes_ in info.files.items())
    yield f"  {info.duration_s:.2f} s from {start:%Y-%m-%d %H:%M:%S} UTC on"
    yield ""
    yield "Topics"
    yield from _table([_topic_cells(topic) for topic in info.topics])
    if info.chosen:
        yield ""
        yield "In use"
        yield from _table(
            [
                [name, chosen.topic or "none", "" if chosen.topic is None else _how(role, chosen.given)]
                for role, name in _ROLES.items()
                for chosen in [info.chosen[role]]
            ]
        )
    if info.pairs:
        yield ""
        yield "Pairs"
        yield from _pair_lines(info, info.pairs)
    if info.stamps:
        yield ""
        yield "Clocks: log time minus header stamp, median (5 to 95 %)"
        yield from _table(
            [
                [_ROLES[role], "no stamps"]
                if (offset := stamps.log_minus_stamp) is None
                else [_ROLES[role], f"{offset.median_s:.4f} s ({offset.low_s:.4f} to {offset.high_s:.4f})"]
                for role, stamps in info.stamps.items()
            ]
        )
    if info.labels:
        yield ""
        yield "Labels"
        for labels in info.labels:
            yield f"  {labels.source}: {labels.labels}; frames that have one: {labels.frames}"
    yield ""
    yield "In training"
    yield from (f"  - {problem}" for problem in problems)
    if not problems:
        yield "  Nothing speaks against it."


def _topic_cells(topic: TopicFacts) -> list[str]:
    size = f"{topic.width}x{topic.height}" if topic.width else ""
    rate = "" if topic.rate_hz is None else f"{topic.rate_hz:.1f} Hz"
    return [
        topic.topic,
        topic.msgtype,
        str(topic.messages),
        rate,
        topic.encoding or "",
        size,
        topic.frame_id or "",
    ]


def _how(role: str, given: bool) -> str:
    if role.endswith("_info"):
        return "beside the images"
    return "given" if given else "guessed"


def _pair_lines(info: BagInfo, pairs: PairFacts) -> Iterator[str]:
    yield f"  {_count(pairs.frames, 'frame')}, {pairs.with_depth} with depth within {pairs.slop_s * 1e3:g} ms"
    without = pairs.frames - pairs.with_depth
    if without:
        reasons = ", ".join(f"{reason} {count}" for reason, count in pairs.without_depth.items())
        yield f"  {without} without depth: {reasons}"
    if pairs.dropped:
        yield f"  {_count(pairs.dropped, 'colour image')} dropped, repeated or late"
    if pairs.longest_outage:
        outage = pairs.longest_outage
        yield (
            f"  longest time without depth: {outage.duration_s:.2f} s from {outage.start_s:.2f} s on "
            f"({_count(outage.frames, 'frame')})"
        )
    if pairs.depth_minus_rgb:
        skew = pairs.depth_minus_rgb
        yield (
            f"  depth stamp minus colour stamp: {skew.median_s * 1e3:+.2f} ms median "
            f"({skew.low_s * 1e3:+.2f} to {skew.high_s * 1e3:+.2f})"
        )


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=False)]
    for row in rows:
        yield "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _bytes(size: int) -> str:
    amount = float(size)
    for unit in ("B", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.4g} {unit}"
        amount /= 1000
    return f"{amount:.4g} GB"
