# SPDX-License-Identifier: Apache-2.0
"""Compare one M3L optimisation step, on the CPU or a GPU, with the reference implementation's: time and memory.

    python bench/train_step.py --reference PATH_TO_M3L_CLONE

mit_b0, 256x256, 2 labelled and 2 unlabelled images, the recipe m3l_paper with dropout and DropPath 0. Both live in a
process of their own and do a step in turn. Memory is the peak above what the process has after its imports. The
reference is GitHub harshm121/M3L, a clone of which stays outside this repository; without it ours is measured alone.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from m3l_model.baselines import check_reference, import_reference  # noqa: E402
from m3l_model.bench import memory_mb  # noqa: E402
from m3l_model.errors import M3LError  # noqa: E402

SIZE = (256, 256)
CLASSES = 13
LABELLED = UNLABELLED = 2
TIME_TARGET, MEMORY_TARGET = 0.6, 0.7


def main() -> int:
    """Measure and print medians, peaks and their ratios."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference", type=Path, help="clone of harshm121/M3L at the commit measured")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--profile", action="store_true", help="also say where the time of ours goes")
    parser.add_argument("--out", type=Path, help="write every step's time here as JSON")
    args = parser.parse_args()
    kinds = ["ours"]
    if args.reference is None:
        print("no --reference: ours is measured alone")
    else:
        try:
            check_reference(args.reference)
        except M3LError as error:
            sys.exit(str(error))
        kinds.append("reference")
    found = measure(kinds, args)
    print(
        f"{args.device}, {args.threads} threads, {SIZE[0]}x{SIZE[1]}, {LABELLED}+{UNLABELLED} images, mit_b0"
    )
    for kind, (seconds, memory) in found.items():
        median = 1e3 * statistics.median(seconds)
        print(f"{kind:<12}{median:>8.0f} ms (from {1e3 * min(seconds):.0f}){memory:>8.0f} MB")
    if "reference" in found:
        ours, reference = found["ours"], found["reference"]
        ratios = statistics.median(ours[0]) / statistics.median(reference[0]), ours[1] / reference[1]
        for what, ratio, target in zip(("time", "memory"), ratios, (TIME_TARGET, MEMORY_TARGET), strict=True):
            verdict = "holds" if ratio <= target else "does not hold"
            print(f"{ratio:.2f} of the reference's {what} (at most {target}): {verdict}")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    if args.profile:
        _profile(args.device, args.threads)
    return 0


def measure(kinds: list[str], args: argparse.Namespace) -> dict[str, tuple[list[float], float]]:
    """Ask a step of each in turn; give the steps' seconds and the peak memory, MB."""
    context = multiprocessing.get_context("spawn")
    connections: dict[str, Connection] = {}
    for kind in kinds:
        connections[kind], its = context.Pipe()
        options = (args.device, args.threads, args.reference)
        context.Process(target=_serve, args=(its, kind, *options), daemon=True).start()
        connections[kind].recv()
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    for number in range(args.rounds):
        for kind in kinds if number % 2 else reversed(kinds):
            connections[kind].send("step")
            seconds[kind].append(connections[kind].recv())
    memory = {}
    for kind in kinds:
        connections[kind].send("end")
        memory[kind] = connections[kind].recv()
    return {kind: (seconds[kind], memory[kind]) for kind in kinds}


def _serve(connection: Connection, kind: str, device: str, threads: int, reference: Path | None) -> None:
    import torch

    torch.set_num_threads(threads)
    load: Callable[[], Callable[[torch.device], Callable[[], object]]]
    load = _ours if kind == "ours" else lambda: _reference(reference)
    prepare = load()
    before = memory_mb("VmRSS")
    step = prepare(torch.device(device))
    for _ in range(2):
        step()
    connection.send("ready")
    while connection.recv() == "step":
        begin = time.perf_counter()
        step()
        if device != "cpu":
            torch.cuda.synchronize()
        connection.send(time.perf_counter() - begin)
    peak = memory_mb("VmHWM") - before if device == "cpu" else torch.cuda.max_memory_allocated() / 1e6
    connection.send(peak)


def _images(device: Any) -> tuple[Any, Any, Any]:
    """Normalised colour and depth of all images, and the labels of the first: (B, 3, H, W) twice, (L, H, W)."""
    import torch

    generator = torch.Generator().manual_seed(0)
    count = LABELLED + UNLABELLED
    rgb = torch.randn(count, 3, *SIZE, generator=generator)
    depth = torch.rand(count, 1, *SIZE, generator=generator).expand(-1, 3, -1, -1)
    labels = torch.randint(CLASSES, (LABELLED, *SIZE), generator=generator)
    return rgb.to(device), depth.to(device), labels.to(device)


def _ours() -> Callable[[Any], Callable[[], object]]:
    import dataclasses

    import torch
    from lightning_fabric import Fabric

    from m3l_model.dropout import SampleDropout
    from m3l_model.learner import Learner
    from m3l_model.preprocessing import Inputs
    from m3l_model.recipe import load_config
    from m3l_model.segmenter import LinearFusionSegmenter
    from m3l_model.views import View, Views

    def prepare(device: torch.device) -> Callable[[], object]:
        config = dataclasses.replace(load_config("m3l_paper"), backbone="mit_b0")
        network = LinearFusionSegmenter(config.backbone, CLASSES)
        for module in network.modules():
            if isinstance(module, SampleDropout):
                module.p = 0
        learner = Learner(config, network, Fabric(accelerator=device.type, devices=1))
        rgb, depth, labels = _images(device)
        twice = [0, 1, 0, 1, 2, 3]
        missing = torch.tensor([[False, False]] * 3 + [[False, True], [True, False], [False, True]])
        views = Views(
            View(Inputs(rgb[twice], depth[twice], None), missing, torch.arange(6)),
            torch.cat((labels, labels)),
            View(Inputs(rgb, depth, None), torch.zeros(4, 2, dtype=torch.bool), torch.arange(4)),
            torch.tensor(twice),
            LABELLED,
            None,
        )
        return lambda: learner.step(0, views)

    return prepare


def _reference(folder: Path | None) -> Callable[[Any], Callable[[], object]]:
    """Do the step of its ``MeanTeacherMaskStudent``, in one process, without logging."""
    import copy

    import torch
    from torch import nn

    assert folder is not None
    network_class = import_reference(folder).LinearFusionMaskedConsistencyMixBatch
    for name in ("scipy", "scipy.ndimage"):  # another loss of that file's needs it
        sys.modules.setdefault(name, ModuleType(name))
    sys.path.insert(0, str(folder / "src"))
    losses = importlib.import_module("utils.seg_opr.loss_func")

    def prepare(device: torch.device) -> Callable[[], object]:
        settings = SimpleNamespace(ratio=0.8, masking_ratio=1.0)
        student = network_class("mit_b0", settings, num_classes=CLASSES, pretrained=False).to(device).train()
        for module in student.modules():
            if isinstance(module, nn.Dropout2d | nn.Dropout):
                module.p = 0
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        teacher = copy.deepcopy(student)
        for parameter in teacher.parameters():
            parameter.detach_()
        rates, decays = (1e-4, 1e-4, 3e-4), (1e-4, 0, 1e-4)
        optimizers = [
            torch.optim.AdamW(parameters, lr=rate, weight_decay=decay)
            for parameters, rate, decay in zip(student.get_params(), rates, decays, strict=True)
        ]
        min_kept = int(SIZE[0] * SIZE[1] * 0.08) * LABELLED
        ohem = losses.ProbOhemCrossEntropy2d(255, thresh=0.7, min_kept=min_kept)
        plain = nn.CrossEntropyLoss(ignore_index=255)
        rgb, depth, labels = _images(device)

        def step() -> None:
            for optimizer in optimizers:
                optimizer.zero_grad()
            data = [torch.cat((x[:LABELLED], x)) for x in (rgb, depth)]
            options = {"get_sup_loss": True, "gt": torch.cat((labels, labels)), "criterion": ohem}
            masked = [LABELLED, 2 * LABELLED + UNLABELLED]
            predicted, supervised = student(data, mask=True, range_batches_to_mask=masked, **options)
            taught, _ = teacher(data, mask=False, **options)
            pseudo = taught[-1].softmax(1).max(1).indices
            loss = supervised + student.get_sup_loss(predicted, pseudo, plain)
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            for own, other in zip(teacher.parameters(), student.parameters(), strict=True):
                own.data.mul_(0.99).add_(0.01, other.data)
            loss.item()

        return step

    return prepare


def _profile(device: str, threads: int) -> None:
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.set_num_threads(threads)
    step = _ours()(torch.device(device))
    step()
    kinds = [ProfilerActivity.CPU] + ([] if device == "cpu" else [ProfilerActivity.CUDA])
    with profile(activities=kinds) as profiler:
        step()
    order = "self_cpu_time_total" if device == "cpu" else "self_cuda_time_total"
    print(profiler.key_averages().table(sort_by=order, row_limit=18, max_name_column_width=40))


if __name__ == "__main__":
    raise SystemExit(main())
