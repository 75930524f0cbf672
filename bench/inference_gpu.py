# SPDX-License-Identifier: Apache-2.0
"""Measure everything about inference on a GPU in one call.

    python bench/inference_gpu.py --reference PATH_TO_M3L_CLONE --checkpoint FILE --bag NYU_VAL --out gpu_bench

It measures the card's matrix rate and bandwidth, the time of a graph's replay against the floor these set, the
latency against the reference and transformers, the labels against the CPU's in float32, and how cost grows. What an
option was not given for, or a package is missing for, is left out, saying so; a part that fails does not keep the
others from running, and the exit code tells.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m3l_model.bench import count_gflop, load_model, random_frame, time_calls
from m3l_model.cuda_engine import CudaEngine
from m3l_model.engine import Engine, Request

BENCH = Path(__file__).resolve().parent
SIZE = (480, 640)
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> int:
    """Run all parts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, help="clone of harshm121/M3L")
    parser.add_argument("--checkpoint", type=Path, help="trained model for the comparison of labels")
    parser.add_argument("--bag", type=Path, help="labelled frames for it")
    parser.add_argument("--out", type=Path, required=True, help="folder for the plot and the profiles")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit(
            f"torch {torch.__version__} sees no GPU; run this on a machine with one and a CUDA build of torch"
        )
    args.out.mkdir(parents=True, exist_ok=True)
    print(described(), flush=True)
    failed = floors(args.out)
    baselines = ["--device", "cuda", "--out", str(args.out / "baselines.json"), "--rounds", "31"]
    if args.reference:
        baselines += ["--reference", str(args.reference)]
    failed += _script("inference_baselines.py", *baselines)
    if args.checkpoint and args.bag:
        labels = ["--checkpoint", str(args.checkpoint), "--bag", str(args.bag), "--device", "cuda"]
        failed += _script("inference_labels.py", *labels, "--precision", "fp32", "fp16", "bf16")
    else:
        print("no --checkpoint and --bag: labels are not compared")
    growth = ["--device", "cuda", "--backbones", "mit_b0", "mit_b2", "--precision", "fp16", "bf16"]
    failed += _script("inference_growth.py", *growth, "--frames", "20", "--out", str(args.out / "growth.png"))
    if failed:
        print(f"\nfailed: {', '.join(failed)}")
    return 1 if failed else 0


def described() -> str:
    """Say what is measured on; in TF32, a convolution in fp32 is no more exact than one in fp16."""
    return (
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}, TF32 in fp32 "
        f"convolutions: {torch.backends.cudnn.allow_tf32}, products: {torch.backends.cuda.matmul.allow_tf32}"
    )


def _script(name: str, *arguments: str) -> list[str]:
    """Run another script of this folder; give its name where it fails."""
    print(f"\n== {name}", flush=True)
    done = subprocess.run([sys.executable, "-u", str(BENCH / name), *arguments], check=False)
    return [name] if done.returncode else []


def floors(out: Path) -> list[str]:
    """Print the replay of each network's graph beside the floor, write a profile of each; give what failed."""
    failed: list[str] = []
    with _part("bandwidth", failed):
        bandwidth = measured_bandwidth()
        print(f"bandwidth {bandwidth / 1e9:.0f} GB/s")
        for name, dtype in PRECISIONS.items():
            with _part(f"matrix rate in {name}", failed):
                rate = measured_matrix_rate(dtype)
                print(f"\nmatrix rate in {name}: {rate / 1e12:.1f} TFLOP/s", flush=True)
                for backbone in ("mit_b0", "mit_b2"):
                    with _part(f"floor of {backbone} in {name}", failed):
                        torch.cuda.empty_cache()
                        _floor(backbone, name, rate, bandwidth, out)
    return failed


@contextmanager
def _part(name: str, failed: list[str]) -> Iterator[None]:
    """Print what a part raises and note its name: whatever it is, the other parts are still worth having."""
    try:
        yield
    except Exception:
        traceback.print_exc()
        failed.append(name)


@torch.inference_mode()
def _floor(backbone: str, name: str, rate: float, bandwidth: float, out: Path) -> None:
    model = load_model(backbone).cuda().eval()
    assert model.metadata is not None
    engine = CudaEngine(model, model.metadata.preprocessing, PRECISIONS[name])
    request = Request(*random_frame(SIZE, "both"), SIZE, False)
    whole = median_ms(lambda: engine.submit(request)())
    overlapped = two_in_flight_ms(engine, request)
    program = engine._program(request)
    replay, eager = event_ms(program.run), event_ms(program.segment)
    with _Traffic() as traffic:
        program.segment()
    compute = 1e3 * count_gflop(backbone, model.num_classes, SIZE) * 1e9 / rate
    memory = 1e3 * traffic.bytes / bandwidth
    captured = "graph" if program._graph is not None else "NO graph, eager"
    print(
        f"{backbone} {name}: frame {whole:.2f} ms, {overlapped:.2f} ms with two in flight, {captured} {replay:.2f} ms, "
        f"operator by operator {eager:.2f} ms; "
        f"floor {compute:.2f} ms of arithmetic and {memory:.2f} ms of traffic (operators unfused); "
        f"{replay / max(compute, memory):.1f} times the larger",
        flush=True,
    )
    with torch.profiler.profile() as profile:
        program.segment()
        torch.cuda.synchronize()
    table = profile.key_averages().table(sort_by="self_device_time_total", row_limit=25)
    (out / f"profile_{backbone}_{name}.txt").write_text(table)


def measured_matrix_rate(dtype: torch.dtype) -> float:
    """Multiplications and additions a second of a large square product."""
    side = 8192
    a, b = (torch.randn(side, side, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * side**3 / (event_ms(lambda: a @ b) / 1e3)


def measured_bandwidth() -> float:
    """Bytes a second of a large copy, read and written."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / (event_ms(lambda: target.copy_(source)) / 1e3)


def event_ms(call: Callable[[], Any], count: int = 30) -> float:
    """Median time of a call on the device."""
    for _ in range(3):
        call()
    times = []
    for _ in range(count):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def median_ms(call: Callable[[], Any], count: int = 30) -> float:
    """Median time of a call on the host, from images to labels."""
    return 1e3 * statistics.median(time_calls(call, count))


def two_in_flight_ms(engine: Engine, request: Request, count: int = 60) -> float:
    """Mean time a frame takes where each is submitted before the one ahead of it is waited for."""
    waiting = deque([engine.submit(request)])
    begin = time.perf_counter()
    for _ in range(count):
        waiting.append(engine.submit(request))
        waiting.popleft()()
    return 1e3 * (time.perf_counter() - begin) / count


class _Traffic(TorchDispatchMode):
    """Counts the bytes that operators read and write; what only looks at memory in another way moves none."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        read, written = _tensors((args, kwargs)), _tensors(result)
        places = {tensor.untyped_storage().data_ptr() for tensor in read}
        views = all(tensor.untyped_storage().data_ptr() in places for tensor in written)
        if func._schema.is_mutable or not views:
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in read + written)
        return result


def _tensors(tree: Any) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(tree)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


if __name__ == "__main__":
    raise SystemExit(main())
