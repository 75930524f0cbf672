# SPDX-License-Identifier: Apache-2.0
"""``m3l split``: set blocks of seconds of bags apart for validation."""

from __future__ import annotations

import argparse
from pathlib import Path

from m3l_model.commands.bag_options import add_bag_arguments, add_label_arguments, open_bag, open_labels
from m3l_model.errors import M3LError

HELP = "set blocks of seconds of bags apart for validation, in a file to commit"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_bag_arguments(parser)
    add_label_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="YAML file to create")
    parser.add_argument(
        "--validation", type=float, default=0.15, metavar="SHARE", help="of each bag (default: %(default)s)"
    )
    parser.add_argument(
        "--gap",
        type=float,
        default=2.0,
        metavar="S",
        help="left out between validation and training (default: %(default)s)",
    )
    parser.add_argument(
        "--block",
        type=float,
        default=5.0,
        metavar="S",
        help="length of a block, about (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=int, help="draw the places of the blocks (default: the middles of equal stretches)"
    )


def run(args: argparse.Namespace) -> int:
    """Write the splits and say how many frames are in each part."""
    from m3l_model.bag_dataset import RgbdBagDataset
    from m3l_model.splits import PARTS, split_bags

    if args.out.exists():
        raise M3LError(f"{args.out} exists already; remove it or choose another name")
    label_set, label_files = open_labels(args)
    bags = [open_bag(bag, args, labels_read=label_set is not None) for bag in args.bags]
    dataset = RgbdBagDataset(bags, label_set, label_files)
    splits = split_bags(
        [(bag.index.path, bag.index.end_ns - bag.index.start_ns) for bag in dataset.bags],
        args.validation,
        args.gap,
        args.block,
        args.seed,
    )
    positions = {part: splits.select(dataset, part) for part in PARTS}
    splits.save(args.out)
    counts = ", ".join(f"{len(positions[part])} {part}" for part in PARTS)
    unused = len(dataset) - sum(map(len, positions.values()))
    print(f"{args.out}: {counts}, {unused} unused of {len(dataset)} frames")
    if label_set is None:
        print("frames with labels are not counted without --label-set, but the file serves them too")
    else:
        in_validation = int(dataset.labelled[positions["validation"]].sum())
        remedy = "" if in_validation else "; to have some, draw other places with --seed, or edit the file"
        print(f"labelled frames in validation: {in_validation}{remedy}")
    return 0
