# SPDX-License-Identifier: Apache-2.0
"""``m3l import-images``: turn folders of images into a bag."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from m3l_model.errors import M3LError

if TYPE_CHECKING:
    from m3l_model.import_images import ImageSize, ImportCounts
    from m3l_model.import_plan import ImageFile, ImportPlan

HELP = "turn a data set of colour, depth and label images into a bag"

_LAYOUTS = ("nyuv2", "sunrgbd", "tum")
_RATE_HZ = 10.0
_START_S = 1.0

_EPILOG = """\
A folder's layout is recognised by what lies in it:
  nyuv2    rgb/ depth/ label40/, files matched by their names. Depth of 16 bits is in mm; of 8 bits it is
           (value + 0.5) / 25.5 m.
  sunrgbd  As published, a folder a frame with image/, depth_bfx/ or depth/ (their bits rotated by three), and
           intrinsics.txt, which is kept. Labels are the 37-class PNG or .npy in label/ or label37/, or, with --labels
           DIR and --list FILE, numbered images in the order of the list; seg.mat is not read. Or as prepared for
           segmentation: image/ depth/ label37/ with numbered files. Sensors differ in image size: see --size.
  tum      rgb.txt and depth.txt, all images with their own stamps; or only the pairs of associations.txt or of
           --list. Depth is in 1/5000 m.

Without a folder, --color and --depth name the images. They are matched by the name or number they share:
frame-000000.color.jpg and frame-000000.depth.png, or rgb/0001.jpg and depth/0001.png. Quote patterns, so that the shell
leaves them alone.

  NYUv2:     m3l import-images nyuv2 --list train.txt --labelled 40 --out nyu_train
  SUN RGB-D: m3l import-images SUNRGBD --size 640x480 --out sun
  TUM:       m3l import-images rgbd_dataset_freiburg1_desk --out desk
  7-Scenes:  m3l import-images --color 'redkitchen/*.color.jpg' --depth 'redkitchen/*.depth.png' \\
                 --intrinsics redkitchen/camera-intrinsics.txt --out redkitchen_bag
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    where = "GLOB|DIR"
    parser.add_argument("folder", nargs="?", type=Path, metavar="DIR", help="a data set of a known layout")
    parser.add_argument("--layout", choices=_LAYOUTS, help="of the data set (default: recognised)")
    parser.add_argument("--color", metavar=where, help="colour images")
    parser.add_argument("--depth", metavar=where, help="depth images, registered to colour")
    parser.add_argument("--labels", metavar=where, help="label images: one channel of 8 bits, holding ids")
    parser.add_argument("--out", required=True, type=Path, metavar="BAG", help="folder to create")
    parser.add_argument(
        "--list",
        type=Path,
        metavar="FILE",
        help="take only the frames named here, one a line; found in DIR too",
    )
    parser.add_argument(
        "--rate",
        type=float,
        metavar="HZ",
        help=f"frames a second, where none is recorded (default: {_RATE_HZ:g})",
    )
    parser.add_argument(
        "--start-stamp",
        type=float,
        metavar="S",
        help=f"stamp of the first frame, where none is recorded (default: {_START_S:g})",
    )
    parser.add_argument(
        "--frame-id", default="camera_color_optical_frame", metavar="ID", help="default: %(default)s"
    )
    parser.add_argument(
        "--depth-scale", type=float, metavar="M", help="metres a unit (default: the layout's, or 0.001)"
    )
    parser.add_argument(
        "--depth-offset",
        type=float,
        metavar="UNITS",
        help="metres = (value + offset) * scale (default: the layout's, or 0)",
    )
    parser.add_argument(
        "--invalid-depth",
        type=int,
        nargs="*",
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
        help="3x3 camera matrix as text (default: the data set's, or a guess, 60 degrees wide with its axis in the "
        "middle)",
    )
    parser.add_argument(
        "--size", metavar="WxH", help="crop every image in the middle to this shape and scale it to this size"
    )


def run(args: argparse.Namespace) -> int:
    """Write the bag and say what is in it."""
    from m3l_model.import_images import read_intrinsics, write_images
    from m3l_model.import_plan import keep_labels

    plan = keep_labels(_plan(args), args.label_every, args.labelled)
    if plan.has_stamps and (args.rate is not None or args.start_stamp is not None):
        raise M3LError(
            f"{args.folder} has stamps of its own, which are kept; leave --rate and --start-stamp out"
        )
    rate_hz = _RATE_HZ if args.rate is None else args.rate
    start_s = _START_S if args.start_stamp is None else args.start_stamp
    images = plan.images(rate_hz, round(start_s * 1_000_000_000))
    counts = write_images(
        _with_progress(images),
        args.out,
        plan.units,
        frame_id=args.frame_id,
        intrinsics=None if args.intrinsics is None else read_intrinsics(args.intrinsics),
        size=None if args.size is None else _size(args.size),
    )
    head = _recorded(plan, images) if plan.has_stamps else _timed(plan, rate_hz)
    print("\n".join([f"{args.out}: {head}", *plan.notes, *_remarks(plan, counts, args)]))
    return 0


def _plan(args: argparse.Namespace) -> ImportPlan:
    from m3l_model.import_layouts import Choices, plan_files, plan_layout

    choices = Choices(
        args.color,
        args.depth,
        args.labels,
        args.list,
        args.depth_scale,
        args.depth_offset,
        None if args.invalid_depth is None else tuple(args.invalid_depth),
    )
    if args.folder is not None:
        return plan_layout(args.folder, args.layout, choices)
    if args.layout is not None:
        raise M3LError(f"--layout {args.layout} is of a folder; name the folder too")
    return plan_files(choices)


def _size(text: str) -> ImageSize:
    from m3l_model.import_images import ImageSize

    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise M3LError(f"--size {text} is no size; give width and height in pixels, such as 640x480")
    return ImageSize(int(match[1]), int(match[2]))


def _with_progress(images: Sequence[ImageFile]) -> Iterator[ImageFile]:
    """Show a bar from the first image on: not before the bag was found to be writable."""
    from tqdm import tqdm

    yield from tqdm(images, desc="import", unit="image")


def _timed(plan: ImportPlan, rate_hz: float) -> str:
    frames = len(plan.frames)
    return (
        f"{frames} frames, {frames / rate_hz:.1f} s at {rate_hz:g} Hz; "
        f"{plan.with_depth} with depth, {plan.labelled} labelled"
    )


def _recorded(plan: ImportPlan, images: Sequence[ImageFile]) -> str:
    seconds = (images[-1].stamp_ns - images[0].stamp_ns) / 1e9
    colors = sum(frame.color is not None for frame in plan.frames)
    return f"{colors} colour and {plan.with_depth} depth images, {seconds:.1f} s; {plan.labelled} labelled"


def _remarks(plan: ImportPlan, counts: ImportCounts, args: argparse.Namespace) -> Iterator[str]:
    if plan.labels_withheld:
        yield f"labels left out as asked: {plan.labels_withheld}"
    if counts.guessed_intrinsics:
        yield f"camera matrix: guessed for {counts.guessed_intrinsics} frames, since --intrinsics was not given"
    if len(counts.sizes) > 1:
        sizes = ", ".join(f"{size} ({count})" for size, count in counts.sizes.items())
        done = f"cropped and scaled to {args.size}"
        yield f"image sizes: {sizes}; " + (
            done if args.size else "training takes images of one shape: give --size, such as 640x480"
        )
    without_depth = () if plan.has_stamps else [frame.color for frame in plan.frames if frame.depth is None]
    for what, unmatched in (
        ("colour images without depth, imported without", without_depth),
        ("depth images without colour, not imported", plan.depth_unused),
        ("label images without colour, not imported", plan.labels_unused),
        ("listed names without an image", plan.listed_missing),
    ):
        if unmatched:
            examples = ", ".join(map(str, unmatched[:3])) + (", ..." if len(unmatched) > 3 else "")
            yield f"{what}: {len(unmatched)} ({examples})"
