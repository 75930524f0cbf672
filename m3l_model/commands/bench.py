# SPDX-License-Identifier: Apache-2.0
"""``m3l bench``: measure a model's latency, memory and arithmetic on this machine."""

from __future__ import annotations

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

from m3l_model.bench import Case, measure_in_turn
from m3l_model.commands.bag_options import positive
from m3l_model.commands.export import image_size
from m3l_model.processor import multiplies_bf16

HELP = "measure latency, memory and arithmetic of a model on this machine"

_COLUMNS = {
    **{"model": 24, "device": 8, "precision": 10, "size": 10, "state": 11},
    **{"p50 ms": 8, "p95 ms": 8, "ratio": 7, "frames/s": 9, "GFLOP": 7, "MB": 7},
}
"""Of the table, with their widths."""


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
    parser.add_argument(
        "--compile",
        action="store_true",
        help="also measure each checkpoint or named backbone with torch.compile, which takes minutes to start",
    )
    parser.add_argument(
        "--transformers",
        action="store_true",
        help="also measure transformers' SegFormer of each checkpoint's or named backbone, on colour alone",
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="CLONE",
        help="also measure the paper's implementation, of which this is a clone, likewise",
    )


def run(args: argparse.Namespace) -> int:
    """Measure in turn what concerns one model and size, each case in a process of its own, and print a table."""
    print("".join(f"{name:<{width}}" for name, width in _COLUMNS.items()))
    for model, size in itertools.product(args.model, args.size):
        cases = _cases(args, model, size)
        found = measure_in_turn(cases, args.frames)
        for case, measured in zip(cases, found, strict=True):
            values = (
                _name(case)[-23:],
                measured.device,
                measured.precision,
                f"{size[0]}x{size[1]}",
                case.state,
                f"{1e3 * measured.percentile(50):.1f}",
                f"{1e3 * measured.percentile(95):.1f}",
                f"{measured.percentile(50) / found[0].percentile(50):.2f}",
                f"{measured.rate:.1f}",
                "-" if measured.gflop is None else f"{measured.gflop:.1f}",
                f"{measured.memory_mb:.0f}",
            )
            row = zip(values, _COLUMNS.values(), strict=True)
            print("".join(f"{value:<{width}}" for value, width in row), flush=True)
    print("ratio: p50 over that of the first row of this model and size, the rows of which took turns")
    return 0


def _name(case: Case) -> str:
    if case.implementation != "ours":
        return f"{case.implementation} {case.model}"
    return f"compiled {case.model}" if case.compile else case.model


def _cases(args: argparse.Namespace, model: str, size: tuple[int, int]) -> list[Case]:
    """Give a model in all precisions and states, then compiled, then what it is compared with."""
    from m3l_model.predictor import choose_device

    common = (args.threads, size)
    is_onnx = model.endswith(".onnx")  # it computes in fp32
    on_cpu = not is_onnx and choose_device(args.device).type == "cpu"
    auto = "fp32" if is_onnx or (on_cpu and not multiplies_bf16()) else "auto"
    precisions = dict.fromkeys(auto if precision == "auto" else precision for precision in args.precision)
    cases = [
        Case(model, args.device, precision, *common, state)
        for precision, state in itertools.product(precisions, args.state)
    ]
    if is_onnx:
        return cases
    if args.compile:
        cases += [replace(case, compile=True) for case in cases]
    if args.reference:
        cases.append(Case(model, args.device, "fp32", *common, "both", "reference", args.reference))
    if args.transformers:
        half = "fp32" if on_cpu else "fp16"
        cases.append(Case(model, args.device, half, *common, "rgb_only", "transformers"))
    return cases
