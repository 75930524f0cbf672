# SPDX-License-Identifier: Apache-2.0
"""What an evaluation costs beside the inference in it, and whether its memory grows with the bag.

    python bench/evaluation.py speed --checkpoint FILE BAG      # masks a second, against those of the Predictor alone
    python bench/evaluation.py memory --gigabytes 4 --folder /var/tmp

Speed: the Predictor segments the very inputs of the scenarios, in memory already and one after the other; then an
evaluation reads, changes, segments and scores the same frames, pictures included. The two take turns, the medians of
their rates are compared. Memory: a bag of that size is written into the folder, evaluated, and removed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from m3l_model.openmp import share_cores

share_cores(os.environ)  # as the command does, before torch is imported

# ruff: noqa: E402
import numpy as np
import torch
from tqdm import tqdm

from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.bag_writer import BagWriter
from m3l_model.checkpoint import Metadata
from m3l_model.evaluation import evaluate
from m3l_model.evaluation_pictures import PictureMaker, choose_frames
from m3l_model.evaluation_plan import EvaluationPlan, evaluated_positions, plan_evaluation
from m3l_model.evaluation_store import FileStore
from m3l_model.labels import LabelSet
from m3l_model.offline import FrameSource
from m3l_model.predictor import Predictor
from m3l_model.preprocessing import Preprocessing
from m3l_model.scenarios import ROBUST, Seen, chosen_scenarios
from m3l_model.segmenter import LinearFusionSegmenter

_SIZE = (1080, 1920)
_BYTES_PER_FRAME = _SIZE[0] * _SIZE[1] * (3 + 2 + 1)
_RATE_HZ = 15


def main() -> None:
    """Run the measurement that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    speed = commands.add_parser("speed")
    speed.add_argument("bag", type=Path)
    speed.add_argument("--checkpoint", type=Path, help="default: a random mit_b0 at 480 pixels")
    speed.add_argument("--label-set", default="nyu13", help="of a random network (default: %(default)s)")
    speed.add_argument("--frames", type=int, default=20)
    speed.add_argument("--rounds", type=int, default=3)
    speed.add_argument("--scenarios", nargs="+", default=list(ROBUST), help="or: all")
    speed.set_defaults(run=measure_speed)
    memory = commands.add_parser("memory")
    memory.add_argument("--gigabytes", type=float, default=4.0)
    memory.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    memory.set_defaults(run=measure_memory)
    args = parser.parse_args()
    args.run(args)


def measure_speed(args: argparse.Namespace) -> None:
    """Compare the rates."""
    predictor = (
        Predictor.from_checkpoint(args.checkpoint)
        if args.checkpoint
        else random_predictor(LabelSet.load(args.label_set), 480)
    )
    dataset = RgbdBagDataset([args.bag], predictor.labels)
    positions = evaluated_positions(dataset)
    positions = positions[np.linspace(0, len(positions) - 1, args.frames).astype(int)]
    names = None if args.scenarios == ["all"] else args.scenarios
    plan = plan_evaluation(dataset, np.unique(positions), chosen_scenarios(names))
    inputs = distinct_inputs(plan)
    bare: list[float] = []
    evaluated: list[float] = []
    processor = [0.0, 0.0]
    for _ in range(args.rounds + 1):  # the first warms up
        begin, used = time.perf_counter(), time.process_time()
        for seen in inputs:
            predictor.predict(seen.rgb, seen.depth)
        bare.append(len(inputs) / (time.perf_counter() - begin))
        processor[0] += time.process_time() - used
        with tempfile.TemporaryDirectory() as folder:
            begin, used = time.perf_counter(), time.process_time()
            pictures = PictureMaker(*choose_frames(plan, 1))
            evaluate(plan, {"model": predictor}, FileStore(Path(folder) / "progress", {}), pictures)
            evaluated.append(len(inputs) / (time.perf_counter() - begin))
            processor[1] += time.process_time() - used
    alone, within = statistics.median(bare[1:]), statistics.median(evaluated[1:])
    print(f"{plan.frames} frames, {len(plan.scenarios)} scenarios, {len(inputs)} inputs, {predictor.device}")
    print(f"Predictor alone {alone:.2f} masks/s, evaluation {within:.2f} masks/s: {within / alone:.3f}")
    print(
        f"processor time, of the Predictor alone as a share of the evaluation's: {processor[0] / processor[1]:.3f}"
    )
    print("rounds:", " ".join(f"{b:.2f}/{e:.2f}" for b, e in zip(bare[1:], evaluated[1:], strict=True)))


def distinct_inputs(plan: EvaluationPlan) -> list[Seen]:
    """The images that the model gets in all scenarios, each once."""
    inputs: list[Seen] = []
    for block in plan.blocks:
        source = FrameSource(plan.dataset, block.bag)
        rows = plan.dataset.bags[block.bag].frames["rgb"][block.positions]
        for index, row in enumerate(rows.tolist()):
            recorded = source.read(row)
            known: set[tuple[int, str]] = set()
            for scenario, decision in zip(plan.scenarios, block.decisions[:, index], strict=True):
                key = (int(decision["depth"]), scenario.name if scenario.images else "")
                if key not in known:
                    known.add(key)
                    inputs.append(source.see(recorded, decision, scenario, plan.seed))
    return inputs


def measure_memory(args: argparse.Namespace) -> None:
    """Evaluate a large bag, and tell this process's own memory on the way."""
    labels = LabelSet.load("demo")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        bag = Path(folder) / "bag"
        frames = round(args.gigabytes * 1e9 / _BYTES_PER_FRAME)
        write_bag(bag, frames, len(labels.classes))
        size = sum(file.stat().st_size for file in bag.iterdir())
        print(f"{frames} frames, {size / 1e9:.2f} GB")
        dataset = RgbdBagDataset([bag], labels, cache=False)
        plan = plan_evaluation(dataset, evaluated_positions(dataset), chosen_scenarios(ROBUST))
        done, memory = 0, []
        with tqdm(total=frames, desc="evaluate", unit="frame", mininterval=5) as progress:

            def report(count: int) -> None:
                nonlocal done
                done += count
                progress.update(count)
                memory.append(own_megabytes())

            evaluate(
                plan,
                {"model": random_predictor(labels, 32)},
                FileStore(Path(folder) / "progress", {}),
                PictureMaker(*choose_frames(plan, 1)),
                report,
            )
    for percent in (5, 25, 50, 75, 100):
        print(f"after {percent:>3} % of the frames: {memory[percent * (len(memory) - 1) // 100]:.0f} MB")


def write_bag(path: Path, frames: int, classes: int) -> None:
    """A few images again and again."""
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (4, *_SIZE, 3), np.uint8)
    depth = rng.integers(500, 5000, (4, *_SIZE), np.uint16)
    labels = np.repeat(np.repeat(rng.integers(0, classes, (4, 9, 16), np.uint8), 120, 1), 120, 2)
    with BagWriter(path) as writer:
        for index in tqdm(range(frames), desc="write", unit="frame", mininterval=5):
            stamp_ns = 1_700_000_000_000_000_000 + index * 1_000_000_000 // _RATE_HZ
            at = index % 4
            writer.write_frame(stamp_ns, "camera", rgb[at], depth[at], labels[at], np.eye(3))


def random_predictor(labels: LabelSet, short_side: int) -> Predictor:
    """A network that has learnt nothing."""
    torch.manual_seed(0)
    model = LinearFusionSegmenter("mit_b0", len(labels.classes)).eval()
    model.metadata = Metadata(labels, Preprocessing(short_side))
    return Predictor(model)


def own_megabytes() -> float:
    """Resident memory of this process, without pages of files."""
    fields: Sequence[str] = Path("/proc/self/status").read_text().split()
    return int(fields[fields.index("RssAnon:") + 1]) / 1000


if __name__ == "__main__":
    main()
