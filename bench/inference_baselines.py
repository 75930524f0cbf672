# SPDX-License-Identifier: Apache-2.0
"""Compare this package's inference on the CPU or a GPU with the reference implementation and transformers' SegFormer.

    python bench/inference_baselines.py --reference PATH_TO_M3L_CLONE

Each contender lives in a process of its own, set up as its users would have it; one frame is asked of each in turn,
so that whatever else the machine does meets them all alike. Ours goes from uint8 and uint16 images to labels in NumPy,
the others from normalised tensors to labels. Without --reference, or where transformers is not installed, those are
left out. The reference is GitHub harshm121/M3L at the commit below, a clone or an export of which stays outside this
repository.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from m3l_model.bench import memory_mb, random_frame  # noqa: E402
from m3l_model.openmp import share_cores  # noqa: E402

REFERENCE_COMMIT = "01ce42a168dfcd20b7fa6bb4ce1b0ca9f6145850"
CLASSES = 13
DEPTHS = {"mit_b0": (2, 2, 2, 2), "mit_b2": (3, 4, 6, 3)}
DIMS = {"mit_b0": (32, 64, 160, 256), "mit_b2": (64, 128, 320, 512)}


@dataclass(frozen=True)
class Contender:
    """A network, how it runs, and what its process needs."""

    kind: str  # ours, reference, transformers
    backbone: str
    precision: str
    state: str = "both"

    @property
    def name(self) -> str:
        state = "" if self.state == "both" else f" {self.state}"
        return f"{self.kind} {self.backbone} {self.precision}{state}"


def main() -> int:
    """Run and print the medians, their ratios, and whether each target holds."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, help="clone of harshm121/M3L at the commit in this file")
    parser.add_argument("--backbones", nargs="+", choices=list(DIMS), default=list(DIMS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", default="480x640")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, help="write every latency here as JSON")
    args = parser.parse_args()
    size = tuple(int(side) for side in args.size.split("x"))
    contenders = [c for backbone in args.backbones for c in _contenders(backbone, args)]
    found = measure(contenders, args, (size[0], size[1]))
    print(f"{args.device}, {args.threads} threads, {args.size}, {CLASSES} classes, {args.rounds} rounds\n")
    print(f"{'contender':<40}{'median ms':>10}{'p95 ms':>10}{'peak MB':>10}")
    for contender, (latencies, memory) in found.items():
        p95 = np.percentile(latencies, 95)
        print(
            f"{contender.name:<40}{1e3 * statistics.median(latencies):>10.1f}{1e3 * p95:>10.1f}{memory:>10.0f}"
        )
    print()
    for backbone in args.backbones:
        for line in _verdicts(backbone, found, args.device):
            print(line)
    if args.out:
        args.out.write_text(json.dumps({c.name: [*x[0], x[1]] for c, x in found.items()}, indent=1))
    return 0


def _contenders(backbone: str, args: argparse.Namespace) -> list[Contender]:
    half = "bf16" if args.device == "cpu" else "fp16"
    ours = [
        Contender("ours", backbone, "fp32"),
        Contender("ours", backbone, "bf16"),
        Contender("ours", backbone, "fp32", "rgb_only"),
    ]
    if half == "fp16":
        ours.append(Contender("ours", backbone, "fp16"))
    others = []
    if args.reference is None:
        print("no --reference: the reference implementation is left out")
    else:
        check_reference(args.reference)
        others.append(Contender("reference", backbone, "fp32"))
    try:
        import transformers  # noqa: F401
    except ImportError:
        print("transformers is not installed: its SegFormer is left out")
    else:
        others.append(Contender("transformers", backbone, "fp32" if args.device == "cpu" else "fp16"))
    return ours + others


def check_reference(folder: Path) -> None:
    """Exit in one line unless ``folder`` holds the reference at the commit measured, unchanged."""
    source = folder / "src" / "models" / "segmentation_models" / "linearfusemaskedconsmixbatch"
    if not source.is_dir():
        sys.exit(f"{folder}: not a clone of harshm121/M3L (no {source.relative_to(folder)})")
    git = ["git", "-C", str(folder)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    if head != REFERENCE_COMMIT:
        sys.exit(f"{folder}: at commit {head or 'unknown'}, not {REFERENCE_COMMIT}; git checkout it")
    if subprocess.run([*git, "diff", "--quiet", "HEAD", "--", str(source)]).returncode:
        sys.exit(f"{source}: changed since the commit; git restore it")


def measure(
    contenders: list[Contender], args: argparse.Namespace, size: tuple[int, int]
) -> dict[Contender, tuple[list[float], float]]:
    """Ask one frame of each contender in turn; give its latencies, s, and its peak memory, MB."""
    context = multiprocessing.get_context("spawn")
    plain, ours = dict(os.environ), dict(os.environ)
    share_cores(ours)
    connections: list[Connection] = []
    for contender in contenders:
        os.environ.clear()
        os.environ.update(ours if contender.kind == "ours" else plain)
        mine, its = context.Pipe()
        options = (args.device, args.threads, size, args.reference)
        context.Process(target=_serve, args=(its, contender, *options), daemon=True).start()
        its.close()
        mine.recv()  # one after the other: loading disturbs
        connections.append(mine)
    latencies: dict[Contender, list[float]] = {contender: [] for contender in contenders}
    for number in range(args.rounds):
        order = range(len(contenders)) if number % 2 else reversed(range(len(contenders)))
        for i in order:
            connections[i].send("frame")
            latencies[contenders[i]].append(connections[i].recv())
    found = {}
    for contender, connection in zip(contenders, connections, strict=True):
        connection.send("end")
        found[contender] = (latencies[contender], connection.recv())
    return found


def _serve(
    connection: Connection,
    contender: Contender,
    device: str,
    threads: int,
    size: tuple[int, int],
    reference: Path | None,
) -> None:
    """Load a contender, then time a frame whenever asked to; each time one untimed frame goes before."""
    import torch

    torch.set_num_threads(threads)
    load = {"ours": _load_ours, "reference": _load_reference, "transformers": _load_transformers}
    prepare = load[contender.kind](contender, device, size, reference)
    before = memory_mb("VmRSS")
    with torch.inference_mode():
        call = prepare()
        for _ in range(3):
            call()
        connection.send("ready")
        while connection.recv() == "frame":
            call()
            begin = time.perf_counter()
            call()
            connection.send(time.perf_counter() - begin)
    if device == "cpu":
        connection.send(memory_mb("VmHWM") - before)
    else:
        connection.send(torch.cuda.max_memory_allocated() / 1e6)


def _load_ours(contender: Contender, device: str, size: tuple[int, int], _: Path | None) -> Callable[[], Any]:
    from m3l_model.checkpoint import Metadata
    from m3l_model.labels import LabelSet
    from m3l_model.predictor import Predictor
    from m3l_model.preprocessing import Preprocessing
    from m3l_model.segmenter import LinearFusionSegmenter

    def prepare() -> Callable[[], object]:
        model = LinearFusionSegmenter(contender.backbone, CLASSES)
        model.metadata = Metadata(LabelSet.generic(CLASSES), Preprocessing())
        predictor = Predictor(model, device, contender.precision)
        rgb, depth = random_frame(size)
        frame = (rgb, depth if contender.state == "both" else None)
        return lambda: predictor.predict(*frame, with_confidence=False)

    return prepare


def _load_reference(
    contender: Contender, device: str, size: tuple[int, int], folder: Path | None
) -> Callable[[], Any]:
    import torch

    assert folder is not None
    network_class = import_reference(folder).LinearFusionMaskedConsistencyMixBatch

    def prepare() -> Callable[[], object]:
        config = SimpleNamespace(ratio=0.8, masking_ratio=1.0)
        network = network_class(contender.backbone, config, num_classes=CLASSES, pretrained=False)
        network = network.eval().to(device)
        images = [torch.randn(1, 3, *size).to(device) for _ in range(2)]
        return lambda: network(images)[2].argmax(1).cpu()

    return prepare


def import_reference(folder: Path) -> ModuleType:
    """Import its network; the four names it takes from timm and mmcv are given where those are not installed."""
    import importlib
    import warnings

    import torch
    from torch import Tensor, nn

    class ConvModule(nn.Sequential):
        """1x1 convolution without bias, BatchNorm, ReLU."""

        def __init__(self, in_channels: int, out_channels: int, kernel_size: int, norm_cfg: object) -> None:
            conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=False)
            super().__init__(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))

    class DropPath(nn.Module):
        """Does nothing in eval mode."""

        def __init__(self, drop_prob: float) -> None:
            super().__init__()
            self.drop_prob = drop_prob

        def forward(self, x: Tensor) -> Tensor:
            return x

    warnings.simplefilter("ignore")
    timm = {
        "DropPath": DropPath,
        "to_2tuple": lambda x: x if isinstance(x, tuple) else (x, x),
        "trunc_normal_": torch.nn.init.trunc_normal_,
    }
    for name, content in (
        ("timm", {}),
        ("timm.models", {}),
        ("timm.models.layers", timm),
        ("mmcv", {}),
        ("mmcv.cnn", {"ConvModule": ConvModule}),
    ):
        module = ModuleType(name)
        module.__dict__.update(content)
        sys.modules.setdefault(name, module)
    # The package's own __init__ imports every other network of the reference, and what those need.
    package = ModuleType("reference_linear_fusion")
    source = folder / "src" / "models" / "segmentation_models" / "linearfusemaskedconsmixbatch"
    package.__path__ = [str(source.resolve())]
    sys.modules[package.__name__] = package
    return importlib.import_module(f"{package.__name__}.segformer")


def _load_transformers(
    contender: Contender, device: str, size: tuple[int, int], _: Path | None
) -> Callable[[], Any]:
    import torch
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    def prepare() -> Callable[[], object]:
        config = SegformerConfig(
            num_labels=CLASSES,
            depths=list(DEPTHS[contender.backbone]),
            hidden_sizes=list(DIMS[contender.backbone]),
            decoder_hidden_size=256,
            attn_implementation="eager",
        )
        dtype = torch.float16 if contender.precision == "fp16" else torch.float32
        network = SegformerForSemanticSegmentation(config).eval().to(device, dtype)
        image = torch.randn(1, 3, *size).to(device, dtype)

        def call() -> torch.Tensor:
            logits = network(image).logits
            full = torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
            return full.argmax(1).cpu()

        return call

    return prepare


def _verdicts(backbone: str, found: dict[Contender, tuple[list[float], float]], device: str) -> list[str]:
    """Say of each target whether it holds."""

    def get(kind: str, precision: str) -> tuple[float, float] | None:
        both = found.get(Contender(kind, backbone, precision))
        return None if both is None else (statistics.median(both[0]), both[1])

    lines = []
    ours, half, reference = get("ours", "fp32"), get("ours", "bf16"), get("reference", "fp32")
    assert ours is not None
    assert half is not None
    if device == "cpu":
        faster, slower = {"mit_b0": (2.5, 1.0), "mit_b2": (1.6, 1.4)}[backbone]
        other = get("transformers", "fp32")
        if reference:
            lines.append(_line("as fast as the reference, fp32", reference[0] / ours[0], faster, True))
            lines.append(_line("of the reference's memory, fp32", ours[1] / reference[1], 0.6, False))
        if other:
            lines.append(_line("of transformers' time, RGB only, fp32", ours[0] / other[0], slower, False))
        lines.append(_line("as fast in bf16 as in fp32", ours[0] / half[0], 2.0, True))
    else:
        other, sixteen = get("transformers", "fp16"), get("ours", "fp16")
        best = min(half[0], sixteen[0] if sixteen else half[0])
        if reference:
            lines.append(_line("as fast as the reference in fp32", reference[0] / best, 8.0, True))
        if other:
            lines.append(_line("as fast as transformers, RGB only, fp16", other[0] / best, 3.0, True))
    alone = found[Contender("ours", backbone, "fp32", "rgb_only")]
    lines.append(
        _line("of the time where depth is missing, fp32", statistics.median(alone[0]) / ours[0], 1.0, False)
    )
    return [f"{backbone} {line}" for line in lines]


def _line(what: str, ratio: float, target: float, at_least: bool) -> str:
    holds = ratio >= target if at_least else ratio <= target
    bound = "at least" if at_least else "at most"
    return f"{ratio:5.2f} times {what} ({bound} {target}): {'holds' if holds else 'does not hold'}"


if __name__ == "__main__":
    raise SystemExit(main())
