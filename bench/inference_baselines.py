# SPDX-License-Identifier: Apache-2.0
"""Say whether inference is as fast as asked for, against the reference implementation and transformers' SegFormer.

    python bench/inference_baselines.py --reference PATH_TO_M3L_CLONE

Measures as ``m3l bench`` does, backbone by backbone. Without --reference, or where transformers is not installed, those
are left out. The reference is GitHub harshm121/M3L, a clone of which stays outside this repository.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from m3l_model.baselines import check_reference  # noqa: E402
from m3l_model.bench import Case, Measurement, measure_in_turn  # noqa: E402
from m3l_model.errors import M3LError  # noqa: E402
from m3l_model.openmp import share_cores  # noqa: E402
from m3l_model.processor import multiplies_bf16  # noqa: E402

TARGETS = {"mit_b0": (2.5, 1.0), "mit_b2": (1.6, 1.4)}
"""On the CPU: how many times as fast as the reference, and at most how many times transformers' time."""


def main() -> int:
    """Run and print the medians, their ratios, and whether each target holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, help="clone of harshm121/M3L at the commit measured")
    parser.add_argument("--backbones", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", default="480x640")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, help="write every latency here as JSON")
    args = parser.parse_args()
    share_cores(os.environ)
    failed = False
    if args.reference is None:
        print("no --reference: the reference implementation is left out")
    else:
        try:
            check_reference(args.reference)
        except M3LError as error:
            print(f"the reference implementation is left out: {error}")
            args.reference, failed = None, True
    if args.device == "cpu" and not multiplies_bf16():
        print("the processor does not multiply bf16: it is left out")
    if importlib.util.find_spec("transformers") is None:
        print("transformers is not installed: its SegFormer is left out")
    print(f"{args.device}, {args.threads} threads, {args.size}, {args.rounds} rounds, backbone by backbone\n")
    print(f"{'contender':<40}{'median ms':>10}{'p95 ms':>10}{'peak MB':>10}{'GFLOP':>8}")
    lines, everything = [], {}
    for backbone in args.backbones:
        cases = _cases(backbone, args)
        try:
            measured = measure_in_turn(list(cases.values()), args.rounds)
        except M3LError as error:
            print(f"{backbone}: not measured: {error}")
            failed = True
            continue
        found = dict(zip(cases, measured, strict=True))
        for name, one in found.items():
            p50, p95 = 1e3 * one.percentile(50), 1e3 * one.percentile(95)
            print(
                f"{backbone + ' ' + name:<40}{p50:>10.1f}{p95:>10.1f}{one.memory_mb:>10.0f}{one.gflop or 0:>8.1f}"
            )
            everything[f"{backbone} {name}"] = [*one.latencies, one.memory_mb]
        lines += [f"{backbone} {line}" for line in _verdicts(backbone, found, args.device)]
    print("\n" + "\n".join(lines))
    if args.out:
        args.out.write_text(json.dumps(everything, indent=1))
    return 1 if failed else 0


def _cases(backbone: str, args: argparse.Namespace) -> dict[str, Case]:
    height, width = (int(side) for side in args.size.split("x"))
    common = (args.threads, (height, width))
    precisions = ["fp32"]
    if args.device != "cpu":
        precisions += ["bf16", "fp16"]
    elif multiplies_bf16():
        precisions.append("bf16")
    cases = {f"ours {precision}": Case(backbone, args.device, precision, *common) for precision in precisions}
    cases["ours fp32 rgb_only"] = Case(backbone, args.device, "fp32", *common, "rgb_only")
    if args.device != "cpu":
        cases["ours fp16 compiled"] = Case(backbone, args.device, "fp16", *common, compile=True)
    if args.reference:
        cases["reference fp32"] = Case(
            backbone, args.device, "fp32", *common, "both", "reference", args.reference
        )
    if importlib.util.find_spec("transformers"):
        half = "fp32" if args.device == "cpu" else "fp16"
        cases[f"transformers {half}"] = Case(backbone, args.device, half, *common, "rgb_only", "transformers")
    return cases


def _verdicts(backbone: str, found: dict[str, Measurement], device: str) -> list[str]:
    """Say of each target whether it holds."""
    median = {name: statistics.median(one.latencies) for name, one in found.items()}
    fp32 = median["ours fp32"]
    lines = []
    if device == "cpu":
        faster, slower = TARGETS[backbone]
        if "reference fp32" in median:
            memory = found["ours fp32"].memory_mb / found["reference fp32"].memory_mb
            lines.append(
                _line("as fast as the reference, fp32", median["reference fp32"] / fp32, faster, True)
            )
            lines.append(_line("of the reference's memory, fp32", memory, 0.6, False))
        if "transformers fp32" in median:
            ratio = fp32 / median["transformers fp32"]
            lines.append(_line("of transformers' time, RGB only, fp32", ratio, slower, False))
        if "ours bf16" in median:
            lines.append(_line("as fast in bf16 as in fp32", fp32 / median["ours bf16"], 2.0, True))
    else:
        best = min(median["ours bf16"], median["ours fp16"])
        if "reference fp32" in median:
            lines.append(
                _line("as fast as the reference in fp32", median["reference fp32"] / best, 8.0, True)
            )
        if "transformers fp16" in median:
            ratio = median["transformers fp16"] / best
            lines.append(_line("as fast as transformers, RGB only, fp16", ratio, 3.0, True))
    missing = median["ours fp32 rgb_only"] / fp32
    lines.append(_line("of the time where depth is missing, fp32", missing, 1.0, False))
    return lines


def _line(what: str, ratio: float, target: float, at_least: bool) -> str:
    holds = ratio >= target if at_least else ratio <= target
    bound = "at least" if at_least else "at most"
    return f"{ratio:5.2f} times {what} ({bound} {target}): {'holds' if holds else 'does not hold'}"


if __name__ == "__main__":
    raise SystemExit(main())
