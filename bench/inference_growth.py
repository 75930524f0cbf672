# SPDX-License-Identifier: Apache-2.0
"""Measure how latency grows with the image's area (0.1 to 2 megapixels) and the batch (1 to 16), and plot it.

python bench/inference_growth.py --out docs/inference_growth.png
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m3l_model.bench import time_calls
from m3l_model.cuda_engine import capture
from m3l_model.engine import one_line
from m3l_model.labelling import Labels, label
from m3l_model.prepared import PreparedSegmenter
from m3l_model.segmenter import LinearFusionSegmenter

SIZES = ((256, 384), (384, 512), (480, 640), (600, 800), (720, 1280), (960, 1280), (1080, 1920))
BATCHES = (1, 2, 4, 8, 16)
BATCH_SIZE = (480, 640)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> int:
    """Run, print and plot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="image to write")
    parser.add_argument("--backbones", nargs="+", default=["mit_b0"])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--frames", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    areas: dict[str, list[float]] = {}
    batches: dict[str, list[float]] = {}
    for backbone in args.backbones:
        model = LinearFusionSegmenter(backbone, skip_missing=True).to(args.device).eval()
        for precision in args.precision:
            name = f"{backbone} {precision}"
            network = PreparedSegmenter(model, PRECISIONS[precision])
            areas[name] = [latency(network, 1, size, args.frames) for size in SIZES]
            batches[name] = [latency(network, batch, BATCH_SIZE, args.frames) for batch in BATCHES]
            for size, seconds in zip(SIZES, areas[name], strict=True):
                pixels = size[0] * size[1] / 1e6
                print(
                    f"{name} {size[0]}x{size[1]}: {1e3 * seconds:.1f} ms, {1e3 * seconds / pixels:.0f} ms a megapixel"
                )
            for batch, seconds in zip(BATCHES, batches[name], strict=True):
                print(f"{name} batch {batch}: {1e3 * seconds:.1f} ms, {1e3 * seconds / batch:.1f} ms a frame")
    plot(areas, batches, args.out)
    return 0


def latency(network: PreparedSegmenter, batch: int, size: tuple[int, int], frames: int) -> float:
    """Give the median time, s, from a normalised batch to its labels on the device, on a GPU as one CUDA graph."""
    device = network.device
    rgb, depth = torch.randn(batch, 3, *size, device=device), torch.randn(batch, 1, *size, device=device)
    missing = torch.zeros(batch, 2, dtype=torch.bool, device=device)

    @torch.inference_mode()
    def frame() -> Labels:
        return label(network(rgb, depth, missing), size)

    call: Callable[[], object] = frame
    if device.type == "cuda":
        call = replayed(frame, device, f"batch of {batch}, {size[0]}x{size[1]}")
    return statistics.median(time_calls(call, frames))


def replayed(frame: Callable[[], object], device: torch.device, name: str) -> Callable[[], None]:
    """Capture what computes a frame; give what replays it (or runs it, where it cannot be captured) and waits."""
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))  # which makes weights and inputs
    with torch.cuda.stream(stream):
        for _ in range(3):  # cuDNN chooses its algorithms, and tables are made, before the capture
            frame()
    stream.synchronize()
    run: Callable[[], object] = frame
    try:
        graph, _ = capture(frame, stream)
        run = graph.replay
    except RuntimeError as error:
        print(f"{name}: no CUDA graph, timed eager: {one_line(error.__context__ or error)}")

    def call() -> None:
        run()
        torch.cuda.synchronize(device)

    return call


def plot(areas: dict[str, list[float]], batches: dict[str, list[float]], out: Path) -> None:
    """Draw latency against area and batch, with the line through the first point and zero."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4))
    pixels = [height * width / 1e6 for height, width in SIZES]
    for axis, places, curves in ((left, pixels, areas), (right, BATCHES, batches)):
        for name, seconds in curves.items():
            (line,) = axis.plot(places, [1e3 * s for s in seconds], marker="o", label=name)
            linear = [1e3 * seconds[0] * place / places[0] for place in places]
            axis.plot(places, linear, linestyle=":", color=line.get_color())
        axis.set_ylabel("ms")
        axis.legend()
    left.set_xlabel("megapixels, batch 1 (dotted: proportional)")
    right.set_xlabel(f"batch of {BATCH_SIZE[0]}x{BATCH_SIZE[1]} (dotted: proportional)")
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=80)


if __name__ == "__main__":
    raise SystemExit(main())
