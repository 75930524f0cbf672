# SPDX-License-Identifier: Apache-2.0
"""The node with a model slower than the camera: how old its masks get, what is skipped, and whether memory stays flat.

    python bench/node_overload.py --seconds 60 --inference 0.1 --out overload.json

Camera at 30 Hz with depth. Latency is from before the publication of a colour image to the receipt of its mask. With
``overload: newest`` it cannot exceed one inference plus one frame, but for what the rest of the way takes: the frame
that is segmented next is the newest when the model is free. Exit code 0 says that this held for all but one in a
hundred, that the books balance, and that memory did not grow.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import node_usage
import numpy as np
from node_trial import Scene, trial
from sensor_msgs.msg import Image

RATE = 30.0
SAMPLE_PERIOD = 1.0
ALLOWANCE = 0.01
"""Seconds for all but inference: the 95th percentile that `bench/node_overhead.py` allows."""
QUANTILE = 99
WARM_UP = 2.0
"""Seconds whose latencies are not judged: what is lost while reader and writer find each other is sent again.

Nor is the last image's, which waits for the model however long that takes, since no newer one comes."""
MEMORY_LIMIT = 8.0
"""MiB that it may hold at the end more than when a fifth of the run was over."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--inference", type=float, default=0.1, help="time of one, s (default: %(default)s)")
    parser.add_argument("--overload", choices=("newest", "queue"), default="newest")
    parser.add_argument("--out", type=Path, default=Path("overload.json"))
    args = parser.parse_args()
    report = overload(args.seconds, args.inference, args.overload, args.out.with_suffix(".log"))
    args.out.write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    return 0 if report["passed"] else 1


def overload(seconds: float, inference: float, policy: str, log: Path) -> dict[str, Any]:
    """Run it; returns the account."""
    published: dict[int, float] = {}
    samples = []
    with trial({"overload": policy}, log, {"STANDIN_SECONDS": inference}) as node:
        publishers = [node.robot.create_publisher(Image, f"{each}/image", 5) for each in ("depth", "rgb")]
        node.await_matching(*publishers)
        scene = Scene(RATE)
        begin = time.monotonic()
        for number in range(round(seconds * RATE)):
            images = scene.depth(number), scene.rgb(number)
            time.sleep(max(begin + number / RATE - time.monotonic(), 0.0))
            for publisher, image in zip(publishers, images, strict=True):
                published[number] = time.monotonic()
                publisher.publish(image)
            if number % round(SAMPLE_PERIOD * RATE) == 0:
                samples.append(node_usage.take(node.process.pid, number / RATE / 60))
        settled = node.settled(len(published))
        exit_code, _ = node.end()
        ear = node.ear
    latencies = np.array(
        [
            mask.at - published[mask.number]
            for mask in ear.masks
            if WARM_UP * RATE <= mask.number < len(published) - 1
        ]
    )
    growth = node_usage.growth(samples[len(samples) // 5 :])
    bound = inference + 1 / RATE
    p50, p95, high = np.percentile(latencies, [50, 95, QUANTILE])
    numbers = [mask.number for mask in ear.masks]
    checks = {
        "latency bounded": bool(high <= bound + ALLOWANCE),
        "books balance": settled
        and len(published) == len(numbers) + ear.count("skipped") + ear.count("dropped")
        and len(numbers) == ear.count("masks"),
        "in order": numbers == sorted(set(numbers)),
        "memory": growth.memory <= MEMORY_LIMIT,
        "clean exit": exit_code == 0,
    }
    return {
        "passed": all(checks.values()),
        "checks": checks,
        "inference_ms": inference * 1e3,
        "bound_ms": bound * 1e3,
        "latency_ms": {
            "p50": p50 * 1e3,
            "p95": p95 * 1e3,
            f"p{QUANTILE}": high * 1e3,
            "max": float(latencies.max()) * 1e3,
            "first quarter, p50": float(np.median(latencies[: len(latencies) // 4])) * 1e3,
            "last quarter, p50": float(np.median(latencies[-len(latencies) // 4 :])) * 1e3,
            "last image": (ear.masks[-1].at - published[ear.masks[-1].number]) * 1e3,
        },
        "published": len(published),
        "masks": len(numbers),
        "skipped": ear.count("skipped"),
        "dropped": ear.count("dropped"),
        "masks_per_second": len(numbers) / seconds,
        "memory": growth._asdict(),
        "at the end": samples[-1]._asdict(),
    }


if __name__ == "__main__":
    sys.exit(main())
