# SPDX-License-Identifier: Apache-2.0
"""``m3l train``: train a model from recorded bags."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from m3l_model.commands.bag_options import (
    add_label_arguments,
    add_split_bag_arguments,
    chosen_pairing,
    non_negative,
    open_bags_of_splits,
    open_labels,
)
from m3l_model.errors import M3LError

HELP = "train a model from bags with few labels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_split_bag_arguments(parser, "its parts for training")
    add_label_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to create for the result")
    parser.add_argument(
        "--config", default="m3l", help="recipe: m3l, supervised or a YAML file (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, help="replaces the recipe's number of steps")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--workers",
        type=non_negative,
        metavar="N",
        help="processes that read the bags (default: one for each core, 4 at most); the result does not depend on it",
    )


def run(args: argparse.Namespace) -> int:
    """Train and write ``OUT/checkpoint.safetensors`` and ``OUT/run.json``."""
    from m3l_model.training import load_config, train
    from m3l_model.training_frames import TrainingFrames

    overrides = {} if args.steps is None else {"steps": args.steps}
    config = load_config(args.config, **overrides)
    label_set, label_files = open_labels(args)
    if label_set is None:
        raise M3LError("training needs --label-set SET, which gives the ids in the labels their classes")
    bags, splits = open_bags_of_splits(args)
    checkpoint = train(
        config,
        TrainingFrames.select(bags, label_set, label_files, splits),
        args.out,
        seed=args.seed,
        device=args.device,
        workers=args.workers,
        notes={
            "splits": None if args.splits is None else str(args.splits),
            "pairing": asdict(chosen_pairing(args)),
        },
    )
    print(f"wrote {checkpoint}")
    return 0
