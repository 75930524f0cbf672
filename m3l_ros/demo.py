# SPDX-License-Identifier: Apache-2.0
"""The whole product in one run: bags, training with few labels, evaluation, the live node with depth off, a report."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.bag_topics import DEFAULT_TOPICS, Topics
from m3l_model.bag_writer import BagWriter
from m3l_model.bags import BagFrame, BagFrames, read_frames
from m3l_model.errors import M3LError
from m3l_model.evaluation import evaluate
from m3l_model.evaluation_plan import evaluated_positions, plan_evaluation
from m3l_model.evaluation_summary import ModelSummary, Summary, score_table, summarise
from m3l_model.folders import writing
from m3l_model.labels import LabelSet
from m3l_model.predictor import Predictor
from m3l_model.recipe import load_config
from m3l_model.run_log import read_log
from m3l_model.scenarios import ROBUST, chosen_scenarios
from m3l_model.scene import camera_matrix
from m3l_model.training import Intervals, Machine, train
from m3l_model.training_frames import TrainingFrames
from m3l_ros.demo_bags import (
    FRAME_ID,
    HEIGHT,
    RATE_HZ,
    WIDTH,
    held_out_recording,
    train_recording,
    write_recording,
)
from m3l_ros.demo_live import Observation, run_live
from m3l_ros.demo_report import LiveFrame, StripFrame, write_report

RECIPES = {"m3l": "demo_m3l", "supervised": "demo_supervised"}
EVALUATE_EVERY = 3
STRIP_COLUMNS = 6
TRAIN_WORKERS = 0
"""The demo's small raw images are read faster than another process could be woken."""
MASK_TOPICS = Topics(
    rgb=DEFAULT_TOPICS.rgb,
    depth=DEFAULT_TOPICS.depth,
    label="/segmentation/mask",
    rgb_info=DEFAULT_TOPICS.rgb_info,
    depth_info=DEFAULT_TOPICS.depth_info,
)


class Demo:
    """The demo's steps, each of which leaves its result under ``out``.

    Args:
        out: folder to create; an earlier demo's is replaced.
        seed: of rooms and training.

    Raises:
        M3LError: ``out`` holds something other than an earlier demo, or cannot be written.
    """

    def __init__(self, out: Path, seed: int) -> None:
        self.out = out
        self.seed = seed
        self.labels = LabelSet.load("demo")
        self._seconds: dict[str, float] = {}
        _make_room(out)

    def run(self) -> bool:
        """Do everything; returns whether every image got its mask, through the outage too."""
        train_rooms, held_out_rooms = train_recording(self.seed), held_out_recording(self.seed)
        train_bag, held_out_bag = self.out / "train", self.out / "held_out"
        with self._step("bags", f"{train_rooms.frames} + {held_out_rooms.frames} frames of synthetic rooms"):
            write_recording(train_rooms, train_bag, os.cpu_count() or 1)
            write_recording(held_out_rooms, held_out_bag, os.cpu_count() or 1)
        with self._step(
            "train", f"{train_rooms.labelled} labelled frames; {' and '.join(RECIPES.values())} at once"
        ):
            self._train(train_bag)
        with self._step(
            "evaluate", f"one held-out frame in {EVALUATE_EVERY}, each with and without a modality"
        ):
            scores = self._evaluate(held_out_bag)
            print(score_table(scores))
        third = held_out_rooms.frames / RATE_HZ / 3
        outage = (round(third, 1), round(2 * third, 1))
        with self._step("live", f"node and player over DDS, depth off from {outage[0]} s to {outage[1]} s"):
            seen = run_live(
                self._checkpoint("m3l"), held_out_bag, DEFAULT_TOPICS, outage, held_out_rooms.frames, self.out
            )
        with self._step("report", "index.html, metrics.json and the bag with the masks"):
            frames = list(read_frames(held_out_bag, DEFAULT_TOPICS))
            live = self._live_metrics(seen, frames, outage)
            withheld = _stamps_within(frames, outage)
            self._write_masks(seen, frames, withheld)
            metrics = self._metrics(scores, live)
            self._write_metrics(metrics)
            self._report(seen, frames, withheld, metrics)
        print(
            f"live: {live['masks']} masks for {live['colour_images']} colour images, "
            f"{live['outage']['masks']} of {live['outage']['colour_images']} while depth was off"
        )
        return bool(live["one_mask_each"])

    @contextmanager
    def _step(self, name: str, what: str) -> Iterator[None]:
        print(f"\n== {name}: {what}", flush=True)
        start = time.monotonic()
        yield
        self._seconds[name] = time.monotonic() - start
        print(f"   {self._seconds[name]:.0f} s", flush=True)

    def _checkpoint(self, name: str) -> Path:
        return self.out / name / "checkpoint.safetensors"

    def _train(self, bag: Path) -> None:
        """Train both models at the same time: two processes with half of the cores each beat one with all of them."""
        threads = max(1, (os.cpu_count() or 1) // len(RECIPES))
        with ProcessPoolExecutor(len(RECIPES), mp_context=get_context("spawn")) as pool:
            runs = [
                pool.submit(_train_one, recipe, bag, self.labels, self.out / name, self.seed, threads)
                for name, recipe in RECIPES.items()
            ]
            for run in runs:
                run.result()

    def _evaluate(self, bag: Path) -> Summary:
        dataset = RgbdBagDataset([BagFrames.open(bag, DEFAULT_TOPICS)], self.labels)
        positions = evaluated_positions(dataset)[::EVALUATE_EVERY]
        plan = plan_evaluation(dataset, positions, chosen_scenarios(ROBUST))
        predictors = {name: Predictor.from_checkpoint(self._checkpoint(name)) for name in RECIPES}
        with tqdm(total=plan.frames, desc="evaluate", unit="frame", mininterval=1) as progress:
            return summarise(evaluate(plan, predictors, report=progress.update))

    def _live_metrics(
        self, seen: Observation, frames: list[BagFrame], outage: tuple[float, float]
    ) -> dict[str, Any]:
        """Compare what came over DDS with what the bag holds."""
        stamps = {frame.stamp_ns for frame in frames}
        masks = seen.masks_of(stamps)
        in_outage = _stamps_within(frames, outage)
        latencies = [1000 * live.latency_s for live in self._live_frames(seen, frames)]
        return {
            "colour_images": len(frames),
            "masks": len(seen.masks),
            "without_mask": len(stamps - masks.keys()),
            "surplus": len(seen.masks) - len(masks),
            "one_mask_each": len(masks) == len(frames) == len(seen.masks),
            "outage": {
                "start_s": outage[0],
                "end_s": outage[1],
                "colour_images": len(in_outage),
                "masks": len(in_outage & masks.keys()),
            },
            "latency_ms": {
                "p50": float(np.percentile(latencies, 50)) if latencies else None,
                "p95": float(np.percentile(latencies, 95)) if latencies else None,
            },
        }

    def _live_frames(self, seen: Observation, frames: list[BagFrame]) -> list[LiveFrame]:
        truths = {frame.stamp_ns: frame.labels for frame in frames}
        return [
            LiveFrame(
                time_s=(stamp - frames[0].stamp_ns) * 1e-9,
                accuracy=float((mask == truths[stamp]).mean()),
                latency_s=arrival - seen.colour[stamp],
            )
            for stamp, arrival, mask in seen.masks
            if stamp in truths and stamp in seen.colour
        ]

    def _write_masks(self, seen: Observation, frames: list[BagFrame], withheld: set[int]) -> None:
        """Record what was replayed, with the masks and their colours, as a bag."""
        masks = {stamp: mask for stamp, _, mask in seen.masks}
        k = camera_matrix(WIDTH, HEIGHT)
        with BagWriter(self.out / "masks") as bag:
            for frame in frames:
                depth = _as_replayed(frame, withheld)
                mask = masks.get(frame.stamp_ns)
                bag.write_frame(frame.stamp_ns, FRAME_ID, frame.rgb, depth, mask, k, MASK_TOPICS)
                if mask is not None:
                    bag.write_rgb("/segmentation/color", frame.stamp_ns, FRAME_ID, self.labels.colorize(mask))

    def _metrics(self, scores: Summary, live: dict[str, Any]) -> dict[str, Any]:
        train_rooms, held_out_rooms = train_recording(self.seed), held_out_recording(self.seed)
        return {
            "command": f"m3l demo --out {self.out} --seed {self.seed}",
            "seed": self.seed,
            "rate_hz": RATE_HZ,
            "train": {
                "frames": train_rooms.frames,
                "labelled": train_rooms.labelled,
                "rooms": train_rooms.rooms,
                "steps": {name: load_config(recipe).steps for name, recipe in RECIPES.items()},
            },
            "held_out": {
                "frames": held_out_rooms.frames,
                "rooms": held_out_rooms.rooms,
                "seconds_per_room": held_out_rooms.frames_per_room / RATE_HZ,
            },
            "offline": {name: offline_scores(model) for name, model in scores.models.items()},
            "live": live,
            "seconds": self._seconds,
            "versions": {
                "python": platform.python_version(),
                **{name: importlib.metadata.version(name) for name in ("m3l_ros", "torch", "numpy", "rclpy")},
            },
        }

    def _report(
        self, seen: Observation, frames: list[BagFrame], withheld: set[int], metrics: dict[str, Any]
    ) -> None:
        masks = {stamp: mask for stamp, _, mask in seen.masks}
        columns = np.linspace(0, len(frames) - 1, 2 * STRIP_COLUMNS + 1).astype(int)[1::2]
        strip = [
            StripFrame(
                time_s=(frame.stamp_ns - frames[0].stamp_ns) * 1e-9,
                rgb=frame.rgb,
                depth_mm=_as_replayed(frame, withheld),
                mask=masks[frame.stamp_ns],
                truth=frame.labels,
            )
            for frame in (frames[index] for index in columns)
            if frame.stamp_ns in masks and frame.labels is not None
        ]
        logs = {name: read_log(self.out / name) for name in RECIPES}
        live = self._live_frames(seen, frames)
        write_report(self.out / "index.html", metrics, live, strip, logs, self.labels)

    def _write_metrics(self, metrics: dict[str, Any]) -> None:
        (self.out / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n", encoding="utf-8")


CONDITIONS = dict(zip(("both", "rgb_only", "depth_only"), ROBUST, strict=True))
"""What the demo's report calls the scenarios of the robust mIoU."""


def offline_scores(model: ModelSummary) -> dict[str, Any]:
    """Give the mIoU under each condition, their mean, the majority's, and the IoU of each class, None without one."""
    scenarios = {condition: model.scenarios[name] for condition, name in CONDITIONS.items()}
    return {
        **{condition: scenario.figures["miou"].value for condition, scenario in scenarios.items()},
        "robust": model.headline["robust"].value,
        "majority": model.majority,
        "class_iou": {
            condition: {
                label: iou if math.isfinite(iou) else None for label, iou in scenario.class_iou.items()
            }
            for condition, scenario in scenarios.items()
        },
        "frames": scenarios["both"].segmented,
    }


def _train_one(recipe: str, bag: Path, labels: LabelSet, out: Path, seed: int, threads: int) -> None:
    torch.set_num_threads(threads)
    frames = TrainingFrames.select([BagFrames.open(bag)], labels)
    if train(load_config(recipe), frames, out, seed, Machine(workers=TRAIN_WORKERS), Intervals(0, 0)) is None:
        raise KeyboardInterrupt


def _stamps_within(frames: list[BagFrame], seconds: tuple[float, float]) -> set[int]:
    """Give the stamps from ``seconds[0]`` on and before ``seconds[1]``, counted from the first frame."""
    first_ns = frames[0].stamp_ns
    return {f.stamp_ns for f in frames if seconds[0] <= (f.stamp_ns - first_ns) * 1e-9 < seconds[1]}


def _as_replayed(frame: BagFrame, withheld: set[int]) -> npt.NDArray[np.uint16] | None:
    """Give the depth image in millimetres, None where it was switched off."""
    if frame.depth is None or frame.stamp_ns in withheld:
        return None
    return frame.depth.astype(np.uint16)


def _make_room(out: Path) -> None:
    """Create the folder, removing an earlier demo, which is known by the note it leaves at once."""
    note = out / ".m3l_demo"
    with writing(out):
        if note.is_file():
            shutil.rmtree(out)
        elif out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise M3LError(f"{out} holds something other than an earlier demo; choose another --out")
        out.mkdir(parents=True, exist_ok=True)
        note.touch()
