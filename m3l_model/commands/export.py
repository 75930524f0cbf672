# SPDX-License-Identifier: Apache-2.0
"""``m3l export``: write a model as an ONNX file and check it against torch."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from m3l_model.shipped import DEFAULT_MODEL, model_file

HELP = "write a model as an ONNX file"

_EPILOG = """\
The file takes rgb (B, H, W, 3) uint8, depth (B, H, W) float32 metres with 0 for holes, and missing (B, 2) bool, and
gives labels (B, H, W) uint8. With --size it scales the images to the network's size itself; without, it takes any
number of images of any size from 32x32, scaled before where the model has a short_side.
Predictor.from_checkpoint, the node, and every command that runs a model take the .onnx file in place of a checkpoint.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("--checkpoint", type=model_file, required=True, help=f"file, or {DEFAULT_MODEL}")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="file to write, *.onnx")
    parser.add_argument("--format", choices=["onnx"], default="onnx", help="default: %(default)s")
    parser.add_argument("--size", type=image_size, metavar="HxW", help="fix the images' size, as in 480x640")
    parser.add_argument("--logits", action="store_true", help="give logits too, which confidence needs")


def image_size(text: str) -> tuple[int, int]:
    """Read a size such as 480x640, height first."""
    size = re.fullmatch(r"0*([1-9]\d*)x0*([1-9]\d*)", text, re.ASCII)
    if size is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 480x640 (height x width)")
    return int(size[1]), int(size[2])


def run(args: argparse.Namespace) -> int:
    """Export, run the file on random images and say how far it is from torch."""
    from m3l_model.checkpoint import load_checkpoint
    from m3l_model.errors import M3LError
    from m3l_model.onnx_check import export_checked

    if args.out.suffix != ".onnx":
        raise M3LError(f"{args.out}: the name of an ONNX file ends in .onnx")
    if args.out.is_dir():
        raise M3LError(f"{args.out}: is a folder; choose another --out")
    check = export_checked(load_checkpoint(args.checkpoint), args.out, args.size, args.logits)
    print(f"wrote {args.out}, {args.out.stat().st_size / 1e6:.1f} MB")
    print(
        f"against torch on {check.frames} random frames: labels equal on {100 * check.agreement:.3f} % of pixels"
    )
    return 0
