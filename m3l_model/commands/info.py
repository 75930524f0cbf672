# SPDX-License-Identifier: Apache-2.0
"""``m3l info``: say what is in bags, and what would go wrong in training."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from m3l_model.commands.bag_options import (
    add_bag_arguments,
    add_label_arguments,
    chosen_pairing,
    open_labels,
)
from m3l_model.commands.topics import named_topics

HELP = "say what is in bags, how they pair, and what would go wrong in training"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_bag_arguments(parser)
    add_label_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print a JSON list with an object for each bag")


def run(args: argparse.Namespace) -> int:
    """Print what is known of each bag."""
    from m3l_model.bag_info import describe_bag
    from m3l_model.bag_info_text import info_text
    from m3l_model.bag_problems import training_problems
    from m3l_model.bags import open_index

    label_set, label_files = open_labels(args)
    pairing = chosen_pairing(args)
    objects = []
    for position, bag in enumerate(args.bags):
        index = open_index(bag, args.cache)
        info = describe_bag(index, named_topics(args), pairing, label_set, label_files, args.cache)
        problems = training_problems(info)
        if args.json:
            objects.append({**asdict(info), "in_training": problems})
        else:
            print(("\n" if position else "") + info_text(info, problems))
    if args.json:
        print(json.dumps(objects, indent=1))
    return 0
