# SPDX-License-Identifier: Apache-2.0
"""``m3l train``: train a model from recorded bags."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from m3l_model.commands.bag_options import (
    add_label_arguments,
    add_split_bag_arguments,
    chosen_pairing,
    non_negative,
    open_bags_of_splits,
    open_labels,
    positive,
    seed,
)
from m3l_model.errors import M3LError

if TYPE_CHECKING:
    from m3l_model.training_frames import TrainingFrames

HELP = "train a model from bags with few labels"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_split_bag_arguments(parser, "its parts for training")
    add_label_arguments(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder to create for the result")
    parser.add_argument(
        "--config", default="m3l", help="recipe: a name of config/train or a YAML file (default: %(default)s)"
    )
    parser.add_argument(
        "--steps",
        type=positive,
        metavar="N",
        help="steps of the run; the recipe's warm-up and start of pseudo labels keep their share of it (default: the "
        "recipe's)",
    )
    parser.add_argument("--backbone", help="replaces the recipe's: mit_b0 to mit_b5")
    parser.add_argument(
        "--pretrained",
        metavar="FILE|NAME",
        help="weights to start from: a model of m3l train, or ImageNet's (SegFormer's or Hugging Face's file, or a "
        "name such as nvidia/mit-b0)",
    )
    parser.add_argument(
        "--allow-unlabelled-classes",
        action="store_true",
        help="train although some class of the label set is in no labelled frame",
    )
    parser.add_argument("--resume", action="store_true", help="go on in --out from its last state")
    parser.add_argument("--seed", type=seed, default=0, help="default: %(default)s")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--devices",
        type=positive,
        default=1,
        metavar="N",
        help="devices of this machine (default: %(default)s)",
    )
    parser.add_argument(
        "--nodes",
        type=positive,
        default=1,
        metavar="N",
        help="machines, under torchrun (default: %(default)s)",
    )
    parser.add_argument("--precision", default="32", help="32, bf16-mixed or 16-mixed (default: %(default)s)")
    parser.add_argument(
        "--workers",
        type=non_negative,
        metavar="N",
        help="processes that read the bags (default: one for each core, 4 at most); the result does not depend on it",
    )
    parser.add_argument(
        "--validate-every",
        type=non_negative,
        default=500,
        metavar="N",
        help="steps between validations, where --splits sets frames apart; 0: at the end only (default: %(default)s)",
    )
    parser.add_argument(
        "--save-every",
        type=non_negative,
        default=500,
        metavar="N",
        help="steps between states to resume from; 0: at the end and on SIGTERM and SIGINT only (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Train and write ``OUT/checkpoint.safetensors`` and ``OUT/run.json``."""
    from m3l_model.recipe import load_config
    from m3l_model.run_state import STATE_FILE
    from m3l_model.training import Intervals, Machine, is_first_process, train

    overrides = {} if args.backbone is None else {"backbone": args.backbone}
    config = load_config(args.config, **overrides)
    if args.steps is not None:
        config = config.in_steps(args.steps)
    frames = _unlabelled_frames(args) if config.task == "reconstruct" else _frames(args)
    if is_first_process():
        if args.resume and (args.out / STATE_FILE).is_file():
            print(f"goes on from {args.out / STATE_FILE}", file=sys.stderr)
        else:
            if args.resume:
                print(f"no {args.out / STATE_FILE} to go on from: starts anew", file=sys.stderr)
            if args.pretrained is None:
                print("no --pretrained weights: trains from scratch", file=sys.stderr)
    checkpoint = train(
        config,
        frames,
        args.out,
        seed=args.seed,
        machine=Machine(args.device, args.devices, args.nodes, args.precision, args.workers),
        intervals=Intervals(args.save_every, args.validate_every),
        pretrained=args.pretrained,
        resume=args.resume,
        notes={
            "splits": None if args.splits is None else str(args.splits),
            "pairing": asdict(chosen_pairing(args)),
        },
        allow_unlabelled_classes=args.allow_unlabelled_classes,
    )
    if is_first_process():
        print(f"wrote {checkpoint}" if checkpoint else f"stopped early; go on with --resume --out {args.out}")
    return 0


def _frames(args: argparse.Namespace) -> TrainingFrames:
    from m3l_model.training_frames import TrainingFrames

    label_set, label_files = open_labels(args)
    if label_set is None:
        raise M3LError(
            "training needs --label-set SET, which gives the ids in the labels their classes; without labels there is "
            "--config pretrain"
        )
    bags, splits = open_bags_of_splits(args)
    return TrainingFrames.select(bags, label_set, label_files, splits)


def _unlabelled_frames(args: argparse.Namespace) -> TrainingFrames:
    from m3l_model.training_frames import TrainingFrames

    for option in ("labels", "label_set", "label_topic"):
        if getattr(args, option) is not None:
            raise M3LError(
                f"--config {args.config} learns from images alone; leave --{option.replace('_', '-')} out"
            )
    bags, splits = open_bags_of_splits(args, labels_read=False)
    return TrainingFrames.without_labels(bags, splits)
