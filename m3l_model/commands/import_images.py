# SPDX-License-Identifier: Apache-2.0
"""``m3l import-images``: turn folders of images into a bag."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m3l_model.import_images import FrameFiles, ImportPlan

HELP = "turn folders of colour, depth and label images into a bag"

_EPILOG = """\
Files are matched by the name or number they share: frame-000000.color.jpg and frame-000000.depth.png, or
rgb/0001.jpg and depth/0001.png. Quote patterns, so that the shell leaves them alone.

  7-Scenes:  m3l import-images --color 'redkitchen/*.color.jpg' --depth 'redkitchen/*.depth.png' \\
                 --intrinsics redkitchen/camera-intrinsics.txt --out redkitchen_bag
  NYUv2:     m3l import-images --color rgb --depth depth --labels label40 --list train.txt --labelled 40 \\
                 --depth-scale 0.0392157 --depth-offset 0.5 --out nyu_train
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    where = "GLOB|DIR"
    parser.add_argument("--color", required=True, metavar=where, help="colour images")
    parser.add_argument("--depth", required=True, metavar=where, help="depth images, registered to colour")
    parser.add_argument("--labels", metavar=where, help="label images: one channel of 8 bits, holding ids")
    parser.add_argument("--out", required=True, type=Path, metavar="BAG", help="folder to create")
    parser.add_argument(
        "--list", type=Path, metavar="FILE", help="take only the frames named here, one a line"
    )
    parser.add_argument(
        "--rate", type=float, default=10.0, metavar="HZ", help="frames a second (default: %(default)s)"
    )
    parser.add_argument(
        "--start-stamp",
        type=float,
        default=1.0,
        metavar="S",
        help="stamp of the first frame (default: %(default)s)",
    )
    parser.add_argument(
        "--frame-id", default="camera_color_optical_frame", metavar="ID", help="default: %(default)s"
    )
    parser.add_argument(
        "--depth-scale", type=float, default=0.001, metavar="M", help="metres a unit (default: %(default)s)"
    )
    parser.add_argument(
        "--depth-offset",
        type=float,
        default=0.0,
        metavar="UNITS",
        help="metres = (value + offset) * scale (default: %(default)s)",
    )
    parser.add_argument(
        "--invalid-depth",
        type=int,
        nargs="*",
        default=[0, 65535],
        metavar="VALUE",
        help="depth values that are no reading (default: 0 65535)",
    )
    spread = parser.add_mutually_exclusive_group()
    spread.add_argument("--label-every", type=int, metavar="N", help="label one in N of the labelled frames")
    spread.add_argument(
        "--labelled", type=int, metavar="N", help="label N frames, spread evenly; leave the rest without"
    )
    parser.add_argument(
        "--intrinsics",
        type=Path,
        metavar="FILE",
        help="3x3 camera matrix as text (default: a guess, 60 degrees wide with its axis in the middle)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the bag and say what is in it."""
    from m3l_model.import_images import DepthUnits, plan_import, read_intrinsics, read_names, write_frames

    plan = plan_import(
        args.color,
        args.depth,
        args.labels,
        names=None if args.list is None else read_names(args.list),
        label_every=args.label_every,
        labelled=args.labelled,
    )
    write_frames(
        _with_progress(plan.frames),
        args.out,
        DepthUnits(args.depth_scale, args.depth_offset, tuple(args.invalid_depth)),
        rate_hz=args.rate,
        start_ns=round(args.start_stamp * 1_000_000_000),
        frame_id=args.frame_id,
        intrinsics=None if args.intrinsics is None else read_intrinsics(args.intrinsics),
    )
    print("\n".join(_summary(plan, args)))
    return 0


def _with_progress(frames: Sequence[FrameFiles]) -> Iterator[FrameFiles]:
    """Show a bar from the first frame on: not before the bag was found to be writable."""
    from tqdm import tqdm

    yield from tqdm(frames, desc="import", unit="frame")


def _summary(plan: ImportPlan, args: argparse.Namespace) -> list[str]:
    frames = len(plan.frames)
    lines = [
        f"{args.out}: {frames} frames, {frames / args.rate:.1f} s at {args.rate:g} Hz; "
        f"{plan.with_depth} with depth, {plan.labelled} labelled"
    ]
    if plan.labels_withheld:
        lines.append(f"labels left out as asked: {plan.labels_withheld}")
    if args.intrinsics is None:
        lines.append("camera matrix: guessed, since --intrinsics was not given")
    for what, unmatched in (
        ("colour images without depth, imported without", [f.color for f in plan.frames if f.depth is None]),
        ("depth images without colour, not imported", plan.depth_unused),
        ("label images without colour, not imported", plan.labels_unused),
        ("listed names without a colour image", plan.listed_missing),
    ):
        if unmatched:
            examples = ", ".join(map(str, unmatched[:3])) + (", ..." if len(unmatched) > 3 else "")
            lines.append(f"{what}: {len(unmatched)} ({examples})")
    return lines
