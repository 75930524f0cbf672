# SPDX-License-Identifier: Apache-2.0
"""``m3l bench``: measure a model's latency, memory and arithmetic on this machine."""

from __future__ import annotations

import argparse

from m3l_model.commands.bag_options import positive
from m3l_model.commands.export import image_size

HELP = "measure latency, memory and arithmetic of a model on this machine"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument(
        "model", nargs="*", default=["mit_b0"], help="checkpoint, .onnx file or backbone (default: mit_b0)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument(
        "--precision", nargs="+", default=["fp32", "auto"], help="fp32, bf16, fp16, auto (default: fp32 auto)"
    )
    parser.add_argument(
        "--size", nargs="+", type=image_size, default=[(480, 640)], metavar="HxW", help="default: 480x640"
    )
    parser.add_argument(
        "--state",
        nargs="+",
        choices=["both", "rgb_only", "depth_only"],
        default=["both", "rgb_only"],
        help="modalities of the frames (default: both rgb_only)",
    )
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0 leaves it to torch")
    parser.add_argument("--frames", type=positive, default=30, metavar="N", help="default: %(default)s")


def run(args: argparse.Namespace) -> int:
    """Measure every combination in a process of its own, and print a table."""
    import itertools

    from m3l_model.bench import Case, measure_each

    header = ("model", "device", "precision", "size", "state", "p50 ms", "p95 ms", "frames/s", "GFLOP", "MB")
    widths = (24, 8, 10, 10, 11, 8, 8, 9, 7, 7)
    print("".join(f"{name:<{width}}" for name, width in zip(header, widths, strict=True)))
    for model, size, precision, state in itertools.product(args.model, args.size, args.precision, args.state):
        case = Case(model, args.device, precision, args.threads, size, state)
        (found,) = measure_each([case], args.frames)
        values = (
            model[-23:],
            found.device,
            found.precision,
            f"{size[0]}x{size[1]}",
            state,
            f"{1e3 * found.percentile(50):.1f}",
            f"{1e3 * found.percentile(95):.1f}",
            f"{found.rate:.1f}",
            "-" if found.gflop is None else f"{found.gflop:.1f}",
            f"{found.memory_mb:.0f}",
        )
        print("".join(f"{value:<{width}}" for value, width in zip(values, widths, strict=True)), flush=True)
    return 0
