# SPDX-License-Identifier: Apache-2.0
"""``m3l train``: train a model from recorded bags."""

from __future__ import annotations

import argparse
from pathlib import Path

from m3l_model.commands.topics import add_topic_arguments, chosen_topics

HELP = "train a model from bags with few labels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--bag", nargs="+", type=Path, required=True, help="rosbag2 folders")
    parser.add_argument(
        "--labels", required=True, metavar="SET", help="label set: demo, nyu13, nyu40 or a YAML file"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to create for the result")
    parser.add_argument(
        "--config", default="m3l", help="recipe: m3l, supervised or a YAML file (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, help="replaces the recipe's number of steps")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add_topic_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Train and write ``OUT/checkpoint.safetensors`` and ``OUT/run.json``."""
    from m3l_model.labels import LabelSet
    from m3l_model.training import load_config, train

    overrides = {} if args.steps is None else {"steps": args.steps}
    config = load_config(args.config, **overrides)
    checkpoint = train(
        config,
        {bag: chosen_topics(bag, args, labels_required=False) for bag in args.bag},
        LabelSet.load(args.labels),
        args.out,
        seed=args.seed,
        device=args.device,
    )
    print(f"wrote {checkpoint}")
    return 0
