# SPDX-License-Identifier: Apache-2.0
"""``m3l frames``: export frames of bags to annotate."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from m3l_model.commands.bag_options import add_bag_arguments, chosen_pairing, positive_seconds
from m3l_model.commands.topics import chosen_topics

HELP = "export frames of bags, chosen by time or by how they differ, to annotate"

_EPILOG = """\
Put a mask back as LABELS/BAG/STAMP.png or LABELS/STAMP.png, or export the annotated images as CVAT's "Segmentation mask
1.1" or COCO: under the names of the exported images, masks are found as the frames' labels (m3l info --labels).
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    add_bag_arguments(parser)
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder to create; one made by this command is completed",
    )
    choice = parser.add_mutually_exclusive_group(required=True)
    choice.add_argument(
        "--every", type=positive_seconds, metavar="S", help="seconds from frame to frame, by header stamp"
    )
    choice.add_argument(
        "--count", type=int, metavar="N", help="frames of each bag, those that show the most different views"
    )


def run(args: argparse.Namespace) -> int:
    """Export the frames and say how many there are."""
    from m3l_model.bags import BagFrames, open_index
    from m3l_model.frame_export import Choice, export_frames

    choice = Choice(args.every, args.count)
    pairing = chosen_pairing(args)
    bags = []
    for path in args.bags:
        index = open_index(path, args.cache)
        topics = replace(
            chosen_topics(index, args), label=None
        )  # labels are not exported, so they may be wrong
        bags.append(BagFrames(index, topics, pairing, args.cache))
    for name, count in export_frames(bags, args.out, choice, pairing).items():
        print(f"{args.out}: {count} frames of {name}")
    return 0
