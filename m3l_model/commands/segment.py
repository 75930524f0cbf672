# SPDX-License-Identifier: Apache-2.0
"""``m3l segment``: segments a bag into a new one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from m3l_model.commands.bag_options import add_reading_arguments, open_bag
from m3l_model.shipped import DEFAULT_MODEL, model_file

HELP = "segment a bag as the node would, into a bag of masks, overlays and diagnostics beside the originals"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("--checkpoint", type=model_file, required=True, help=f"file, or {DEFAULT_MODEL}")
    parser.add_argument("--bag", type=Path, required=True, help="rosbag2 folder or file")
    parser.add_argument("--out", type=Path, required=True, metavar="BAG", help="folder to create")
    parser.add_argument(
        "--alone", action="store_true", help="write the new topics alone, without the bag's messages"
    )
    parser.add_argument(
        "--video", type=Path, metavar="FILE", help="write the overlays as MP4 too, as fast as they were taken"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--precision", default="auto", help="auto, fp32, bf16 or fp16, as the node's parameter of that name"
    )
    add_reading_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write the bag, and say what is in it."""
    from contextlib import ExitStack

    import numpy as np
    from tqdm import tqdm

    from m3l_model.bag_dataset import RgbdBagDataset
    from m3l_model.bags import BagReader
    from m3l_model.errors import M3LError
    from m3l_model.offline import run_offline
    from m3l_model.predictor import Predictor
    from m3l_model.segmented_bag import SegmentedBag, caption
    from m3l_model.video import VideoWriter

    predictor = Predictor.from_checkpoint(args.checkpoint, args.device, args.precision)
    frames = open_bag(args.bag, args, labels_read=False)
    if not len(frames):
        raise M3LError(f"{args.bag}: no colour image to segment")
    masks = without_depth = 0
    with ExitStack() as stack:
        video = None
        if args.video:
            period_ns = int(np.median(np.diff(frames.frames["log_ns"]))) if len(frames) > 1 else 10**9
            video = stack.enter_context(VideoWriter(args.video, period_ns))
        bag = stack.enter_context(
            SegmentedBag(args.out, predictor.labels, f"{predictor.device} {args.checkpoint.name}")
        )
        if not args.alone:
            bag.take_originals(stack.enter_context(BagReader(args.bag)), tqdm.write)
        segmented = run_offline(RgbdBagDataset([frames], None), predictor)
        for frame in tqdm(segmented, total=len(frames), desc="segment", unit="frame", mininterval=1):
            overlay = bag.add(frame)
            masks += overlay is not None
            without_depth += overlay is not None and "depth" not in frame.used
            if video is not None and overlay is not None:
                video.add(caption(overlay, frame), frame.log_ns)
        bag.finish()
    among = f", {without_depth} of them without depth" if without_depth else ""
    print(f"{args.out}: {masks} masks of {len(frames)} colour images{among}")
    if masks and without_depth == masks:
        print(f"{args.bag}: no image had depth; m3l info says why", file=sys.stderr)
    if args.video:
        print(f"{args.video}: their overlays")
    return 0
