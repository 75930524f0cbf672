# SPDX-License-Identifier: Apache-2.0
"""``m3l eval``: score a model on a bag's labelled frames."""

from __future__ import annotations

import argparse
from pathlib import Path

from m3l_model.commands.topics import add_topic_arguments, chosen_topics

HELP = "score a model on a bag, with both modalities and with either missing"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--bag", type=Path, required=True, help="rosbag2 folder with labelled frames")
    parser.add_argument("--out", type=Path, help="write the scores here as JSON")
    parser.add_argument(
        "--every", type=positive, default=1, metavar="N", help="score one labelled frame in N"
    )
    parser.add_argument("--frames", type=positive, metavar="N", help="stop after N scored frames")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    add_topic_arguments(parser)


def positive(text: str) -> int:
    """Read a whole number above 0."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def run(args: argparse.Namespace) -> int:
    """Print a table of mIoU and, with ``--out``, write every class's IoU."""
    import itertools
    import json

    from tqdm import tqdm

    from m3l_model.errors import M3LError
    from m3l_model.evaluation import evaluate, labelled_frames, score_table
    from m3l_model.predictor import Predictor

    if args.out and not args.out.parent.is_dir():
        raise M3LError(f"{args.out}: its folder does not exist")
    predictor = Predictor.from_checkpoint(args.checkpoint, args.device)
    frames = itertools.islice(
        labelled_frames(args.bag, chosen_topics(args.bag, args), args.every), args.frames
    )
    scores = evaluate(predictor, tqdm(frames, desc="score", unit="frame"))
    print(score_table({args.checkpoint.name: scores}))
    if args.out:
        args.out.write_text(json.dumps(scores.to_dict(), indent=1) + "\n", encoding="utf-8")
    return 0
