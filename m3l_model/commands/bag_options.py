# SPDX-License-Identifier: Apache-2.0
"""The arguments that commands on the frames of bags share: bags, topics, pairing, cache and label files."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from m3l_model.commands.topics import add_topic_arguments, chosen_topics
from m3l_model.errors import M3LError

if TYPE_CHECKING:
    from m3l_model.bags import BagFrames, Pairing
    from m3l_model.label_files import LabelFiles
    from m3l_model.labels import LabelSet


def add_bag_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``BAG...``, the topics, ``--slop`` and ``--no-cache``."""
    parser.add_argument("bags", nargs="+", type=Path, metavar="BAG", help="rosbag2 folders or files")
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
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="PATH",
        help="labels beside the bags: a folder of PNGs, CVAT's zip or COCO's JSON; needs --label-set",
    )
    parser.add_argument(
        "--label-set", metavar="SET", help="demo, nyu13, nyu40 or another of config/labels, or a YAML file"
    )


def chosen_pairing(args: argparse.Namespace) -> Pairing:
    """The synchronizer's parameters, from arguments of ``add_bag_arguments``."""
    from m3l_model.bags import Pairing

    return Pairing() if args.slop is None else Pairing(slop=args.slop)


def open_bag(bag: Path, args: argparse.Namespace) -> BagFrames:
    """Open a bag as arguments of ``add_bag_arguments`` say.

    Raises:
        M3LError: the bag cannot be read or lacks a named topic.
    """
    from m3l_model.bags import BagFrames, open_index

    index = open_index(bag, args.cache)
    return BagFrames(index, chosen_topics(index, args), chosen_pairing(args), args.cache)


def open_labels(args: argparse.Namespace) -> tuple[LabelSet | None, LabelFiles | None]:
    """The label set and the label files that arguments of ``add_label_arguments`` name; None where they name none.

    Raises:
        M3LError: one of them cannot be read, or label files are given without a label set.
    """
    from m3l_model.label_files import open_label_files
    from m3l_model.labels import LabelSet

    if args.labels and not args.label_set:
        raise M3LError("--labels needs --label-set, which says what the ids or names in the files mean")
    label_set = LabelSet.load(args.label_set) if args.label_set else None
    return label_set, open_label_files(args.labels, label_set) if args.labels and label_set else None


def positive_seconds(text: str) -> float:
    """Read a finite number of seconds above 0."""
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return seconds
