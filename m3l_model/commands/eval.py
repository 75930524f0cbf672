# SPDX-License-Identifier: Apache-2.0
"""``m3l eval``: score a model on the labelled frames of bags."""

from __future__ import annotations

import argparse
from pathlib import Path

from m3l_model.commands.bag_options import (
    add_label_file_argument,
    add_split_bag_arguments,
    open_bags_of_splits,
    open_label_files,
)

HELP = "score a model on bags, with both modalities and with either missing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--checkpoint", type=Path, required=True)
    add_split_bag_arguments(parser, "its validation part")
    add_label_file_argument(parser)
    parser.add_argument("--out", type=Path, help="write the scores here as JSON")
    parser.add_argument(
        "--every", type=positive, default=1, metavar="N", help="score one labelled frame in N"
    )
    parser.add_argument("--frames", type=positive, metavar="N", help="stop after N scored frames")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")


def positive(text: str) -> int:
    """Read a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def run(args: argparse.Namespace) -> int:
    """Print a table of mIoU and, with ``--out``, write every class's IoU."""
    import json

    from tqdm import tqdm

    from m3l_model.bag_dataset import RgbdBagDataset
    from m3l_model.data import default_workers
    from m3l_model.errors import M3LError
    from m3l_model.evaluation import evaluate, labelled_positions, score_table
    from m3l_model.label_check import check_labels, require_labels_of
    from m3l_model.predictor import Predictor

    if args.out and not args.out.parent.is_dir():
        raise M3LError(f"{args.out}: its folder does not exist")
    predictor = Predictor.from_checkpoint(args.checkpoint, args.device)
    label_files = open_label_files(args.labels, predictor.labels)
    bags, splits = open_bags_of_splits(args)
    dataset = RgbdBagDataset(bags, predictor.labels, label_files)
    require_labels_of(dataset, label_files)
    positions = labelled_positions(dataset, splits)[:: args.every][: args.frames]
    check_labels(dataset, positions, predictor.labels, label_files, default_workers())
    scored = tqdm(positions.tolist(), desc="score", unit="frame", mininterval=1)
    scores = evaluate(predictor, (dataset[position] for position in scored))
    print(score_table({args.checkpoint.name: scores}))
    if args.out:
        args.out.write_text(json.dumps(scores.to_dict(), indent=1) + "\n", encoding="utf-8")
    return 0
