# SPDX-License-Identifier: Apache-2.0
"""Measures reading bags for training against reading them from beginning to end: frames a second, index, memory.

    python bench/bag_reading.py --frames 2600 --size 640x480          # 4 GB a bag of raw images
    python bench/bag_reading.py --color 'DIR/*.color.jpg' --depth 'DIR/*.depth.png'    # of real images

For MCAP and SQLite, with raw images and with jpeg+png, in turn and several times over, in one run:

sequential: ``rosbags``' AnyReader in two processes, half of the bag each, every image deserialized and decoded.
shuffled: a ``DataLoader`` over ``RgbdBagDataset`` with shuffle and two workers, an epoch, workers started before.
index: making a bag's index, against reading its files once; all from the page cache.
first batch: from opening an indexed bag in a new process to its first shuffled batch of two workers.
memory: peak of a worker beyond that of a process that has imported the same, after an epoch.
"""

from __future__ import annotations

import argparse
import glob
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.stores import ros2_jazzy as ros
from torch.utils.data import DataLoader

from m3l_model.bag_dataset import RgbdBagDataset, Sample
from m3l_model.bags import BagFrames, open_index
from m3l_model.cdr import COMPRESSED_IMAGE, IMAGE
from m3l_model.images import to_depth, to_rgb
from m3l_model.shared_batches import SharedCollate

RGB, DEPTH = "/camera/color/image_raw", "/camera/aligned_depth_to_color/image_raw"
STORAGES = {"mcap": StoragePlugin.MCAP, "sqlite": StoragePlugin.SQLITE3}
WORKERS = 2
BATCH = 8
PERIOD_NS = 33_333_333


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--frames", type=int, default=2600, help="of a bag of raw images (default: %(default)s)"
    )
    parser.add_argument(
        "--compressed-frames",
        type=int,
        default=2600,
        help="of one of compressed images (default: %(default)s)",
    )
    parser.add_argument("--size", default="640x480", help="of synthetic images (default: %(default)s)")
    parser.add_argument("--color", help="pattern of colour images to use instead, with --depth")
    parser.add_argument("--depth", help="pattern of depth images, 16-bit PNG")
    parser.add_argument("--batch", type=int, default=8, help="frames of a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument(
        "--folder", type=Path, help="where the bags are made (default: the system's temporary one)"
    )
    parser.add_argument(
        "--only", nargs="*", default=[], help="bags to measure, such as mcap-raw; default: all"
    )
    parser.add_argument("--out", type=Path, help="write the figures here as JSON")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child[0]](Path(args.child[1]))))
        return 0
    results = {}
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="m3l_bench_") as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        for storage in STORAGES:
            for kind, frames in (("raw", args.frames), ("compressed", args.compressed_frames)):
                name = f"{storage}-{kind}"
                if args.only and name not in args.only:
                    continue
                bag = Path(folder) / name
                write_bag(bag, STORAGES[storage], kind == "compressed", frames, args)
                results[name] = measure(bag, args.rounds, args.batch)
                print(json.dumps({name: results[name]}, indent=1), flush=True)
                subprocess.run(["rm", "-r", str(bag)], check=True)
    print(table(results))
    if args.out:
        args.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


def measure(bag: Path, rounds: int, batch: int) -> dict[str, Any]:
    """Measure one bag."""
    size = sum(file.stat().st_size for file in bag.iterdir())
    read_once(bag)  # into the page cache
    builds, reads = [], []
    for _ in range(rounds):
        reads.append(timed(read_once, bag))
        builds.append(timed(open_index, bag, False))
    open_index(bag)
    BagFrames.open(bag)
    sequential, shuffled = [], []
    dataset = RgbdBagDataset([bag])
    loader = shuffled_loader(dataset, batch, persistent_workers=True)
    first_epoch = epoch(loader, len(dataset))
    for _ in range(rounds):
        sequential.append(len(dataset) / read_sequentially(bag))
        shuffled.append(epoch(loader, len(dataset)))
    del loader
    ratios = [ours / theirs for ours, theirs in zip(shuffled, sequential, strict=True)]
    return {
        "bag_mb": round(size / 1e6),
        "frames": len(dataset),
        "sequential_fps": summary(sequential),
        "shuffled_fps": summary(shuffled),
        "ratio": summary(ratios),
        "first_epoch_fps": round(first_epoch, 1),
        "read_once_s": summary(reads),
        "index_s": summary(builds),
        "index_speed": summary([read / build for read, build in zip(reads, builds, strict=True)]),
        "first_batch_s": summary([child("first_batch", bag) for _ in range(rounds)]),
        "worker_memory_mb": child("memory", bag),
    }


def table(results: dict[str, dict[str, Any]]) -> str:
    """Format medians as a table."""
    columns = {
        "sequential_fps": "AnyReader fps",
        "shuffled_fps": "shuffled fps",
        "ratio": "ratio",
        "index_s": "index s",
        "index_speed": "of reading",
        "first_batch_s": "1st batch s",
    }
    lines = [
        f"{'bag':<18}{'MB':>7}" + "".join(f"{title:>15}" for title in columns.values()) + f"{'worker MB':>11}"
    ]
    for name, result in results.items():
        medians = "".join(f"{result[column]['median']:>15.3g}" for column in columns)
        lines.append(f"{name:<18}{result['bag_mb']:>7}{medians}{result['worker_memory_mb']:>11.0f}")
    return "\n".join(lines)


def summary(values: list[float]) -> dict[str, float]:
    """Give least, median and greatest."""
    return {
        "min": round(min(values), 4),
        "median": round(statistics.median(values), 4),
        "max": round(max(values), 4),
    }


def timed(function: Any, *args: Any) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    function(*args)
    return time.perf_counter() - begin


# Bags


def write_bag(
    bag: Path, storage: StoragePlugin, compressed: bool, frames: int, args: argparse.Namespace
) -> None:
    """Write a bag of ``frames`` frames of the images, over and over, depth before colour."""
    typestore = get_typestore(Stores.ROS2_JAZZY)
    images = list(real_images(args) if args.color else synthetic_images(args.size))
    with Writer(bag, version=9, storage_plugin=storage) as writer:
        msgtype = COMPRESSED_IMAGE if compressed else IMAGE
        suffixes = ("/compressed", "/compressedDepth") if compressed else ("", "")
        rgb, depth = (
            writer.add_connection(topic + suffix, msgtype, typestore=typestore)
            for topic, suffix in zip((RGB, DEPTH), suffixes, strict=True)
        )
        encoded = (
            [(compress_depth(image[1]), compress_rgb(image[0])) for image in images] if compressed else []
        )
        for index in range(frames):
            stamp_ns = 1_000_000_000 + index * PERIOD_NS
            header = ros.std_msgs__msg__Header(
                ros.builtin_interfaces__msg__Time(*divmod(stamp_ns, 1_000_000_000)), "camera"
            )
            for position, connection in enumerate((depth, rgb)):
                if compressed:
                    form = ("16UC1; compressedDepth png", "rgb8; jpeg compressed bgr8")[position]
                    data = encoded[index % len(images)][position]
                    message: Any = ros.sensor_msgs__msg__CompressedImage(header, form, data)
                else:
                    message = raw_image(header, images[index % len(images)][1 - position])
                writer.write(connection, stamp_ns, typestore.serialize_cdr(message, msgtype))


def raw_image(header: Any, pixels: np.ndarray) -> Any:
    """Make a message of (H, W, 3) uint8 RGB or (H, W) uint16 millimetres."""
    height, width = pixels.shape[:2]
    data = pixels.view(np.uint8).ravel()
    encoding = "rgb8" if pixels.ndim == 3 else "16UC1"
    return ros.sensor_msgs__msg__Image(header, height, width, encoding, 0, data.size // height, data)


def compress_rgb(rgb: np.ndarray) -> np.ndarray:
    """Compress as image_transport does by default: JPEG of quality 95."""
    return cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])[
        1
    ].ravel()


def compress_depth(depth: np.ndarray) -> np.ndarray:
    """Compress as compressed_depth_image_transport does: PNG behind a header of 12 bytes."""
    return np.concatenate([np.zeros(12, np.uint8), cv2.imencode(".png", depth)[1].ravel()])


def synthetic_images(size: str, count: int = 16) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Make smooth, slightly noisy images, about as hard to compress as a camera's."""
    width, height = map(int, size.split("x"))
    generator = np.random.default_rng(0)
    for _ in range(count):
        coarse = generator.uniform(0, 255, (height // 16, width // 16, 3)).astype(np.float32)
        rgb = cv2.resize(coarse, (width, height)) + generator.normal(0, 3, (height, width, 3))
        near = generator.uniform(800, 6000, (height // 32, width // 32)).astype(np.float32)
        depth = cv2.resize(near, (width, height)) + generator.normal(0, 4, (height, width))
        depth[generator.random((height, width)) < 0.05] = 0
        yield rgb.clip(0, 255).astype(np.uint8), depth.astype(np.uint16)


def real_images(args: argparse.Namespace) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Read images from files."""
    for color, depth in zip(sorted(glob.glob(args.color)), sorted(glob.glob(args.depth)), strict=True):
        bgr, millimetres = cv2.imread(color), cv2.imread(depth, cv2.IMREAD_UNCHANGED)
        if bgr is None or millimetres is None:
            raise SystemExit(f"{color}, {depth}: cannot be read")
        yield cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), millimetres.astype(np.uint16)


# What is measured


def read_once(bag: Path) -> None:
    """Read all of a bag's files."""
    buffer = bytearray(1 << 20)
    for file in bag.iterdir():
        with file.open("rb", buffering=0) as opened:
            while opened.readinto(buffer):
                pass


def epoch(loader: DataLoader[Any], frames: int) -> float:
    """Frames a second over one epoch."""
    begin = time.perf_counter()
    seen = sum(len(batch.stamp_ns) for batch in loader)
    seconds = time.perf_counter() - begin
    assert seen == frames
    return frames / seconds


def read_sequentially(bag: Path) -> float:
    """Seconds until two processes have read and decoded half of the bag each, once both were ready."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(WORKERS + 1)
    processes = [context.Process(target=read_part, args=(bag, part, barrier)) for part in range(WORKERS)]
    for process in processes:
        process.start()
    barrier.wait()
    begin = time.perf_counter()
    barrier.wait()
    seconds = time.perf_counter() - begin
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return seconds


def read_part(bag: Path, part: int, barrier: Barrier) -> None:
    """Read and decode a share of a bag with AnyReader."""
    with AnyReader([bag], default_typestore=get_typestore(Stores.ROS2_JAZZY)) as reader:
        span = (reader.end_time - reader.start_time) / WORKERS
        start, stop = (round(reader.start_time + span * edge) for edge in (part, part + 1))
        connections: list[Connection] = reader.connections
        barrier.wait()
        for connection, _, data in reader.messages(connections, start, stop):
            message: Any = reader.deserialize(data, connection.msgtype)
            (to_depth if "depth" in connection.topic else to_rgb)(message)
        barrier.wait()


def child(what: str, bag: Path) -> Any:
    """Run one of ``CHILDREN`` in a process of its own."""
    command = [sys.executable, __file__, "--child", what, str(bag)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def first_batch(bag: Path) -> float:
    """Seconds from opening an indexed bag to the first batch."""
    begin = time.perf_counter()
    next(iter(shuffled_loader(RgbdBagDataset([bag]))))
    return time.perf_counter() - begin


def memory(bag: Path) -> float:
    """Megabytes by which a worker's peak, after an epoch, exceeds what it was before it read anything."""
    dataset = RgbdBagDataset([bag], transform=PeakMemory())
    peaks = [sample for batch in shuffled_loader(dataset) for sample in batch.mb.tolist()]
    return max(peaks)


class PeakMemory:
    """A transform that lets a sample carry the growth of its worker's peak resident memory, beside its data."""

    def __init__(self) -> None:
        self._process, self._before = 0, 0.0

    def __call__(self, sample: Sample) -> MeasuredSample:
        """Measure."""
        if self._process != os.getpid():
            self._process, self._before = os.getpid(), resident_mb("VmRSS")
        return MeasuredSample(*sample, resident_mb("VmHWM") - self._before)


class MeasuredSample(NamedTuple):
    """A ``Sample``, and megabytes."""

    rgb: np.ndarray
    depth: np.ndarray
    labels: np.ndarray
    missing: np.ndarray
    labelled: bool
    stamp_ns: int
    bag: int
    mb: float


def resident_mb(field: str) -> float:
    """Read a field of this process's status, in megabytes."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def shuffled_loader(dataset: RgbdBagDataset, batch: int = BATCH, **options: Any) -> DataLoader[Any]:
    """Make the loader that is measured."""
    return DataLoader(
        dataset,
        batch,
        shuffle=True,
        num_workers=WORKERS,
        collate_fn=SharedCollate(dataset, batch, WORKERS),
        **options,
    )


CHILDREN = {"first_batch": first_batch, "memory": memory}

if __name__ == "__main__":
    sys.exit(main())
