# SPDX-License-Identifier: Apache-2.0
"""Say where the time of a frame goes on the CPU, by kind of operator.

    python bench/inference_profile.py --backbones mit_b0 mit_b2 --precision fp32

Milliseconds of one thread, of each kind of operator the least of a few frames; let nothing run beside it. Attention in
bf16 on a processor without AMX is made of products, and counts as those.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m3l_model.bench import STATES, load_model, random_frame
from m3l_model.predictor import Predictor

SIZE = (480, 640)
ATTENTION, DEPTHWISE, PRODUCTS = "attention", "depth-wise convolutions", "products and dense convolutions"
KINDS = {
    "scaled_dot_product": ATTENTION,
    "layer_norm": "LayerNorm",
    "upsample": "decoder: interpolation",
    "lerp": "decoder: interpolation",
    "index_select": "decoder: interpolation",
    "conv": PRODUCTS,
    "mm": PRODUCTS,
    "linear": PRODUCTS,
}
"""Kinds by a part of an operator's name, the first that is in it; what is left is "the rest"."""


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbones", nargs="+", default=["mit_b0", "mit_b2"])
    parser.add_argument("--precision", nargs="+", default=["fp32"])
    parser.add_argument("--state", choices=STATES, default="both")
    parser.add_argument("--frames", type=int, default=5)
    args = parser.parse_args()
    columns = {
        f"{backbone} {precision}": profiled(backbone, precision, args.state, args.frames)
        for backbone in args.backbones
        for precision in args.precision
    }
    kinds = sorted(
        {kind for column in columns.values() for kind in column},
        key=lambda kind: -max(column[kind] for column in columns.values()),
    )
    print(f"{'ms':<36}" + "".join(f"{name:>14}" for name in columns))
    for kind in kinds:
        print(f"{kind:<36}" + "".join(f"{column[kind]:>14.1f}" for column in columns.values()))
    print(f"{'all':<36}" + "".join(f"{sum(column.values()):>14.1f}" for column in columns.values()))
    return 0


def profiled(backbone: str, precision: str, state: str, frames: int) -> Counter[str]:
    """Give the time, ms, of each kind of operator in a frame."""
    torch.manual_seed(0)
    predictor = Predictor(load_model(backbone), "cpu", precision, threads=1)
    images = random_frame(SIZE, state)
    predictor.predict(*images, with_confidence=False)
    measured = []
    for _ in range(frames):
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True
        ) as profile:
            predictor.predict(*images, with_confidence=False)
        spent: Counter[str] = Counter()
        for event in profile.key_averages(group_by_input_shape=True):
            spent[kind_of(event)] += event.self_cpu_time_total / 1e3
        measured.append(spent)
    return Counter({kind: min(spent[kind] for spent in measured) for kind in set().union(*measured)})


def kind_of(event: Any) -> str:
    """Tell the kind of an operator; a convolution is depth-wise where each of its kernels sees one channel."""
    kind = next((kind for part, kind in KINDS.items() if part in event.key), "the rest")
    shapes = event.input_shapes
    if kind == PRODUCTS and len(shapes) > 1 and len(shapes[1]) == 4 and shapes[1][1:] == [1, 3, 3]:
        return DEPTHWISE
    return kind


if __name__ == "__main__":
    raise SystemExit(main())
