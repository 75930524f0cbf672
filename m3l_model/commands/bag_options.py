# SPDX-License-Identifier: Apache-2.0
"""The arguments that commands on the frames of bags share: bags, topics, pairing, cache and label files."""

from __future__ import annotations

import argparse
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from m3l_model.commands.topics import add_topic_arguments, chosen_topics
from m3l_model.errors import M3LError

if TYPE_CHECKING:
    from m3l_model.bags import BagFrames, Pairing
    from m3l_model.label_files import LabelFiles
    from m3l_model.labels import LabelSet
    from m3l_model.splits import Splits

_LABELS_HELP = "labels beside the bags: a folder of PNGs, CVAT's zip or COCO's JSON"


def add_bag_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``BAG...``, the topics, ``--slop`` and ``--no-cache``."""
    parser.add_argument("bags", nargs="+", type=Path, metavar="BAG", help="rosbag2 folders or files")
    add_reading_arguments(parser)


def add_split_bag_arguments(parser: argparse.ArgumentParser, part: str) -> None:
    """Add ``--bag BAG...`` and ``--splits FILE``, of which one is needed, the topics, ``--slop`` and ``--no-cache``.

    Args:
        parser: gets the arguments.
        part: what the command takes of the splits.
    """
    parser.add_argument(
        "--bag",
        nargs="+",
        type=Path,
        default=[],
        dest="bags",
        metavar="BAG",
        help="rosbag2 folders or files (default: those that --splits names)",
    )
    parser.add_argument(
        "--splits", type=Path, metavar="FILE", help=f"made by m3l split: take {part}, rather than all frames"
    )
    add_reading_arguments(parser)


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the topics, ``--slop`` and ``--no-cache``."""
    add_topic_arguments(parser)
    parser.add_argument(
        "--slop",
        type=positive_seconds,
        metavar="S",
        help="greatest difference of the stamps of a pair (default: the node's, 0.02)",
    )
    parser.add_argument(
        "--no-cache",
        dest="cache",
        action="store_false",
        help="neither look for the bags' indices in the cache directory nor keep them there",
    )


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--labels`` and ``--label-set``."""
    parser.add_argument("--labels", type=Path, metavar="PATH", help=f"{_LABELS_HELP}; needs --label-set")
    parser.add_argument(
        "--label-set", metavar="SET", help="demo, nyu13, nyu40 or another of config/labels, or a YAML file"
    )


def add_label_file_argument(parser: argparse.ArgumentParser) -> None:
    """Add ``--labels`` alone, where the label set is known."""
    parser.add_argument("--labels", type=Path, metavar="PATH", help=_LABELS_HELP)


def chosen_pairing(args: argparse.Namespace) -> Pairing:
    """The synchronizer's parameters, from arguments of ``add_bag_arguments``."""
    from m3l_model.bags import Pairing

    return Pairing() if args.slop is None else Pairing(slop=args.slop)


def open_bag(
    bag: Path, args: argparse.Namespace, labels_required: bool = True, labels_read: bool = True
) -> BagFrames:
    """Open a bag as arguments of ``add_bag_arguments`` or ``add_split_bag_arguments`` say.

    Args:
        bag: a rosbag2 folder or file.
        args: the parsed arguments.
        labels_required: as for ``chosen_topics``.
        labels_read: else nobody looks at the label images, which may be wrong or damaged.

    Raises:
        M3LError: the bag cannot be read or lacks a named topic.
    """
    from m3l_model.bags import BagFrames, open_index

    index = open_index(bag, args.cache)
    topics = chosen_topics(index, args, labels_required)
    if not labels_read:
        topics = replace(topics, label=None)
    return BagFrames(index, topics, chosen_pairing(args), args.cache)


def open_bags_of_splits(
    args: argparse.Namespace, labels_read: bool = True
) -> tuple[list[BagFrames], Splits | None]:
    """Open bags and splits as arguments of ``add_split_bag_arguments`` say; a bag may lack the named label topic.

    Args:
        args: the parsed arguments.
        labels_read: as for ``open_bag``.

    Raises:
        M3LError: neither bags nor splits are named, a bag is named twice, one of them cannot be read, or no bag has
            the named label topic.
    """
    from m3l_model.splits import Splits

    splits = Splits.load(args.splits) if args.splits else None
    paths = args.bags or ([bag.path for bag in splits.bags] if splits else [])
    if not paths:
        raise M3LError("no bags: name them with --bag, or with --splits a file that names them")
    resolved = [path.resolve() for path in paths]
    for path in paths:
        if resolved.count(path.resolve()) > 1:
            raise M3LError(f"{path}: named twice, and its frames would count twice; name each bag once")
    bags = [open_bag(path, args, False, labels_read) for path in paths]
    if labels_read and args.label_topic and not any(bag.topics.label for bag in bags):
        raise M3LError(f"{', '.join(map(str, paths))}: none has a topic {args.label_topic}; see m3l info")
    return bags, splits


def open_labels(args: argparse.Namespace) -> tuple[LabelSet | None, LabelFiles | None]:
    """The label set and the label files that arguments of ``add_label_arguments`` name; None where they name none.

    Raises:
        M3LError: one of them cannot be read, or label files are given without a label set.
    """
    from m3l_model.labels import LabelSet

    _refuse_label_set(args.labels, "use --label-set")
    if args.labels and not args.label_set:
        raise M3LError("--labels needs --label-set, which says what the ids or names in the files mean")
    label_set = LabelSet.load(args.label_set) if args.label_set else None
    return label_set, open_label_files(args.labels, label_set) if label_set else None


def open_label_files(path: Path | None, label_set: LabelSet) -> LabelFiles | None:
    """The label files that ``--labels`` names; None where it is not given.

    Raises:
        M3LError: they cannot be read.
    """
    from m3l_model import label_files

    _refuse_label_set(path, f"the model has its own, {label_set.name!r}")
    return label_files.open_label_files(path, label_set) if path else None


def _refuse_label_set(labels: Path | None, remedy: str) -> None:
    """See that ``--labels`` is no label set, which some commands take by the like name of ``--label-set``."""
    from m3l_model.labels import label_set_names

    if (
        labels
        and not labels.is_dir()
        and (labels.suffix in (".yaml", ".yml") or str(labels) in label_set_names())
    ):
        raise M3LError(
            f"--labels {labels}: that is a label set; {remedy}. --labels is for label files beside the bags"
        )


def non_negative(text: str) -> int:
    """Read a whole number of 0 or more."""
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return number


def positive(text: str) -> int:
    """Read a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def seed(text: str) -> int:
    """Read a seed, a whole number that 64 bits hold, with a sign or without."""
    number = int(text)
    if not -(1 << 63) <= number < 1 << 64:
        raise argparse.ArgumentTypeError(f"{text} needs more than 64 bits")
    return number


def positive_seconds(text: str) -> float:
    """Read a finite number of seconds above 0."""
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return seconds
