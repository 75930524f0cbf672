# SPDX-License-Identifier: Apache-2.0
"""Which seconds of which bags are for training, with their labels or without, and which are for validation.

Seconds count from the bag's start by log time, as ``m3l info`` and ``m3l replay`` count them, from ``from`` up to, not
including, ``to``. No second is in two ranges of a bag, and validation keeps ``gap`` seconds from all others.
``training`` is for bags in which a few frames have labels: each labelled frame serves with its labels, each other frame
without. ``labelled`` takes labelled frames only, ``unlabelled`` takes all frames and uses no labels. Frames in no range
are not used.

    # kitchen.yaml
    gap: 2.0
    bags:
    - path: bags/kitchen                    # relative to this file
      training: [{from: 0, to: 300}]
      validation: [{from: 302}]
    - path: bags/hall
      unlabelled: all
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import yaml

from m3l_model.errors import M3LError

if TYPE_CHECKING:
    from m3l_model.bag_dataset import RgbdBagDataset

Part = Literal["labelled", "unlabelled", "validation", "trained_on"]
PARTS: tuple[Part, ...] = ("labelled", "unlabelled", "validation")
ROLES = ("training", *PARTS)
"""What a range may be for."""

_HEADER = """\
# What the frames of each bag serve for, by seconds from the bag's start (log time): from `from` up to, not including,
# `to`; without them from the start and to the end; `all` is the whole bag. In training, frames that have labels serve
# with them, the others without. Frames in no range are not used. Validation keeps `gap` seconds from the rest.
"""
_SECOND = 1_000_000_000
_MS = 1_000_000
_MAX_BYTES = 16 << 20
_FOREVER_NS = 1 << 62
_WHOLE = "all"


class SplitsError(M3LError):
    """A file of splits that cannot be used, or does not fit the bags."""


class TimeRange(NamedTuple):
    """Nanoseconds from the bag's start, ``end_ns`` excluded; None is the end of the bag."""

    begin_ns: int
    end_ns: int | None

    def __str__(self) -> str:
        return f"{_seconds(self.begin_ns)} to {'the end' if self.end_ns is None else f'{_seconds(self.end_ns)} s'}"


@dataclass(frozen=True)
class BagSplits:
    """What the frames of one bag serve for.

    Attributes:
        path: the bag.
        training, labelled, unlabelled, validation: the ranges of each role; no second is in two of them.
    """

    path: Path
    training: tuple[TimeRange, ...] = ()
    labelled: tuple[TimeRange, ...] = ()
    unlabelled: tuple[TimeRange, ...] = ()
    validation: tuple[TimeRange, ...] = ()

    @property
    def name(self) -> str:
        """What the bag is called, as ``BagIndex.name``."""
        path = self.path.resolve()
        is_file = path.is_file() or (path.suffix in (".mcap", ".db3") and not path.is_dir())
        return path.stem if is_file else path.name


@dataclass(frozen=True)
class Splits:
    """The parts of all bags; a bag is known by its name.

    Attributes:
        bags: of each bag.
        gap_ns: validation's distance from the other parts, in nanoseconds.

    Raises:
        SplitsError: a bag is there twice, ranges of a bag overlap, or validation comes too near to others.
    """

    bags: tuple[BagSplits, ...]
    gap_ns: int = 0

    def __post_init__(self) -> None:
        if self.gap_ns < 0:
            raise SplitsError(f"gap is {_seconds(self.gap_ns)} s; it cannot be negative")
        names = [bag.name for bag in self.bags]
        for bag in self.bags:
            if names.count(bag.name) > 1:
                paths = ", ".join(str(each.path) for each in self.bags if each.name == bag.name)
                raise SplitsError(
                    f"two bags are called {bag.name} ({paths}), and a bag is known by its name; list one bag once, "
                    "with all its ranges, and give another one's folder another name"
                )
            self._check(bag)

    @classmethod
    def load(cls, path: str | Path) -> Splits:
        """Read splits from YAML.

        Raises:
            SplitsError: the file cannot be read, or holds no valid splits.
        """
        path = Path(path)
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise SplitsError(f"{path}: too large for a file of splits")
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise SplitsError(f"{path}: cannot read the splits: {error}") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            raise SplitsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
        try:
            return _from_yaml(content, path.parent)
        except SplitsError as error:
            raise SplitsError(f"{path}: {error}") from None

    def save(self, path: str | Path) -> None:
        """Write YAML that ``load`` reads, with bag paths relative to it.

        Raises:
            SplitsError: the file cannot be written.
        """
        path = Path(path)
        content = {
            "gap": self.gap_ns / _SECOND,
            "bags": [
                {
                    "path": Path(os.path.relpath(bag.path.resolve(), path.parent.resolve())).as_posix(),
                    **{role: _to_yaml(getattr(bag, role)) for role in ROLES if getattr(bag, role)},
                }
                for bag in self.bags
            ],
        }
        text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True)
        try:
            path.write_text(_HEADER + text, encoding="utf-8")
        except OSError as error:
            raise SplitsError(f"{path}: cannot write the splits: {error.strerror}") from error

    def select(self, dataset: RgbdBagDataset, part: Part) -> npt.NDArray[np.intp]:
        """Find the samples of one part.

        Args:
            dataset: of exactly these bags, in any order.
            part: ``labelled``: labelled samples within training and labelled ranges; ``unlabelled``: the other samples
                within training ranges, and all within unlabelled ranges, whose labels, if there are any, are not to be
                used; ``trained_on``: all samples within any of these ranges, labelled or not; ``validation``: all
                within validation ranges, likewise.

        Returns:
            (N,) positions in the data set, ascending.

        Raises:
            SplitsError: the bags are not those of the data set, or a range lies outside its bag.
        """
        found = {bag.index.name: bag for bag in dataset.bags}
        if len(found) < len(dataset.bags):
            raise SplitsError(
                "two bags of the data set have one name; splits know bags by name, so rename a folder"
            )
        known = {bag.name: bag for bag in self.bags}
        for there, missing, where in ((known, found, "data set"), (found, known, "splits")):
            unknown = sorted(set(there) - set(missing))
            if unknown:
                raise SplitsError(
                    f"not in the {where}: bag {', '.join(unknown)}; it has {', '.join(sorted(missing)) or 'none'}"
                )
        chosen = []
        first = 0
        for frames in dataset.bags:
            index = frames.index
            offsets = frames.frames["log_ns"] - index.start_ns
            labelled = dataset.labelled[first : first + len(frames)]
            selected = _select(known[index.name], part, offsets, labelled, index.end_ns - index.start_ns)
            chosen.append(first + selected)
            first += len(frames)
        return np.concatenate([np.empty(0, np.intp), *chosen])

    def _check(self, bag: BagSplits) -> None:
        ranges = sorted(
            (
                _Extent(begin, _FOREVER_NS if end is None else end, role)
                for role in ROLES
                for begin, end in getattr(bag, role)
            )
        )
        for begin, end, role in ranges:
            if not 0 <= begin < end:
                raise SplitsError(f"bag {bag.name}: {role} {_extent(begin, end)} is no range of seconds")
        for one, other in pairwise(ranges):
            if other.begin_ns < one.end_ns:
                overlap = _extent(other.begin_ns, min(one.end_ns, other.end_ns))
                both = f"{one.role} and in {other.role}" if one.role != other.role else f"{one.role} twice"
                raise SplitsError(f"bag {bag.name}: {overlap} is in {both}")
            distance = other.begin_ns - one.end_ns
            if "validation" in (one.role, other.role) and one.role != other.role and distance < self.gap_ns:
                raise SplitsError(
                    f"bag {bag.name}: {other.role} {_extent(other.begin_ns, other.end_ns)} comes within "
                    f"{_seconds(distance)} s of {one.role} {_extent(one.begin_ns, one.end_ns)}; the gap is "
                    f"{_seconds(self.gap_ns)} s"
                )


def split_bags(
    bags: Iterable[tuple[Path, int]],
    validation: float,
    gap_s: float = 2.0,
    block_s: float = 5.0,
    seed: int | None = None,
) -> Splits:
    """Take blocks of seconds from each bag for validation; what is left, but for the gaps, trains.

    Each bag is cut into equal stretches, and a block is taken from each: from its middle, or from a place drawn at
    random. The number of blocks is that which makes them nearest to ``block_s``; their sum is the share asked for.

    Args:
        bags: paths, each with the bag's duration in nanoseconds.
        validation: share of each bag, 0 to 1, both excluded.
        gap_s: seconds between validation and training, in which nothing is used.
        block_s: seconds of a block, about.
        seed: of the places; None takes the middles.

    Raises:
        SplitsError: a value is out of range, or a bag is too short for blocks and gaps.
    """
    if not 0 < validation < 1:
        raise SplitsError(f"validation share {validation:g} is not between 0 and 1")
    if not (0 <= gap_s < float("inf") and 0 < block_s < float("inf")):
        raise SplitsError(
            f"gap {gap_s:g} s and block {block_s:g} s: neither may be negative, nor the block 0"
        )
    draw = random.Random(seed)
    gap_ns = round(gap_s * _SECOND)
    splits = []
    for path, duration_ns in bags:
        count = max(1, round(validation * duration_ns / (block_s * _SECOND)))
        stretch_ns = duration_ns / count
        block_ns = validation * stretch_ns
        if stretch_ns - block_ns <= 2 * gap_ns:
            raise SplitsError(
                f"{path}: lasts {_seconds(duration_ns)} s, too short for {count} blocks of "
                f"{block_ns / _SECOND:.3g} s and gaps of {gap_s:g} s: nothing would be left to train on; make the "
                "gap or the share smaller, the blocks longer, or give whole bags to validation in the file"
            )
        blocks = []
        for number in range(count):
            place = 0.5 if seed is None else draw.random()
            begin = number * stretch_ns + place * (stretch_ns - block_ns)
            blocks.append(TimeRange(_whole_ms(begin), _whole_ms(begin + block_ns)))
        if blocks[0].begin_ns == blocks[0].end_ns:
            raise SplitsError(f"{path}: lasts {_seconds(duration_ns)} s, too short to be split")
        training = tuple(_complement(blocks, gap_ns, duration_ns))
        splits.append(BagSplits(path, training, validation=tuple(blocks)))
    return Splits(tuple(splits), gap_ns)


def _complement(blocks: Sequence[TimeRange], gap_ns: int, duration_ns: int) -> Iterable[TimeRange]:
    """What is left of a bag beside blocks, in order, and gaps around them."""
    begin_ns = 0
    for block in blocks:
        if block.begin_ns - gap_ns > begin_ns:
            yield TimeRange(begin_ns, block.begin_ns - gap_ns)
        begin_ns = (block.end_ns or 0) + gap_ns
    if begin_ns < duration_ns:
        yield TimeRange(begin_ns, None)


def _select(
    bag: BagSplits,
    part: Part,
    offsets: npt.NDArray[np.int64],
    labelled: npt.NDArray[np.bool_],
    duration_ns: int,
) -> npt.NDArray[np.intp]:
    for name in ROLES:
        for asked in getattr(bag, name):
            if asked.begin_ns > duration_ns or (asked.end_ns or 0) > duration_ns + _SECOND:
                raise SplitsError(
                    f"bag {bag.name}: {name} {asked} lies outside the bag, which lasts {_seconds(duration_ns)} s; draw "
                    "the splits anew with m3l split, or edit the file"
                )
    within = {role: _within(getattr(bag, role), offsets) for role in ROLES}
    if part == "labelled":
        return np.flatnonzero((within["training"] | within["labelled"]) & labelled)
    if part == "unlabelled":
        return np.flatnonzero((within["training"] & ~labelled) | within["unlabelled"])
    if part == "trained_on":
        return np.flatnonzero(within["training"] | within["labelled"] | within["unlabelled"])
    return np.flatnonzero(within["validation"])


def _within(ranges: Iterable[TimeRange], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    inside = np.zeros(len(offsets), bool)
    for begin_ns, end_ns in ranges:
        inside |= (offsets >= begin_ns) & (offsets < (_FOREVER_NS if end_ns is None else end_ns))
    return inside


class _Extent(NamedTuple):
    """A range with its role; sorts by begin."""

    begin_ns: int
    end_ns: int
    role: str


def _extent(begin_ns: int, end_ns: int) -> str:
    return str(TimeRange(begin_ns, None if end_ns == _FOREVER_NS else end_ns))


def _to_yaml(ranges: Sequence[TimeRange]) -> Any:
    if list(ranges) == [TimeRange(0, None)]:
        return _WHOLE
    return [
        {"from": begin / _SECOND, **({} if end is None else {"to": end / _SECOND})} for begin, end in ranges
    ]


def _from_yaml(content: Any, folder: Path) -> Splits:
    _fields(content, "the file", {"bags"}, {"gap"})
    if not isinstance(content["bags"], list):
        raise SplitsError("bags is not a list")
    bags = []
    for entry in content["bags"]:
        _fields(entry, "a bag", {"path"}, set(ROLES))
        if not isinstance(entry["path"], str) or not entry["path"]:
            raise SplitsError(f"path {entry['path']!r} of a bag is not text")
        path = folder / Path(entry["path"]).expanduser()
        ranges = {role: _ranges(entry.get(role), f"bag {entry['path']}: {role}") for role in ROLES}
        bags.append(BagSplits(path, **ranges))
    return Splits(tuple(bags), _nanoseconds(content.get("gap", 0), "gap"))


def _ranges(content: Any, where: str) -> tuple[TimeRange, ...]:
    if content is None:
        return ()
    if content == _WHOLE:
        return (TimeRange(0, None),)
    if not isinstance(content, list):
        raise SplitsError(f"{where}: neither `{_WHOLE}` nor a list of ranges")
    ranges = []
    for entry in content:
        _fields(entry, where, set(), {"from", "to"})
        end = entry.get("to")
        ranges.append(
            TimeRange(
                _nanoseconds(entry.get("from", 0), where), None if end is None else _nanoseconds(end, where)
            )
        )
    return tuple(ranges)


def _fields(content: Any, where: str, required: set[str], optional: set[str]) -> None:
    if not isinstance(content, dict):
        raise SplitsError(
            f"{where}: {content!r} has no fields; expected {', '.join(sorted(required | optional))}"
        )
    unknown = [str(field) for field in content if field not in required | optional]
    missing = sorted(required - set(content))
    if unknown or missing:
        problem = f"unknown field {unknown[0]}" if unknown else f"no field {missing[0]}"
        raise SplitsError(f"{where}: {problem}; expected {', '.join(sorted(required | optional))}")


def _nanoseconds(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise SplitsError(f"{where}: {value!r} is not a number of seconds")
    return round(value * _SECOND)


def _whole_ms(ns: float) -> int:
    return round(ns / _MS) * _MS


def _seconds(ns: float) -> str:
    return f"{ns / _SECOND:.3f}".rstrip("0").rstrip(".")
