# SPDX-License-Identifier: Apache-2.0
"""The node through outages of depth: how long colour waits for depth that has stopped, and how soon it is used again.

    python bench/node_outage.py --outages 20 --out outage.json --plot outage.svg

Camera at 30 Hz; depth is published before the colour image of the same moment, but for outages of 1 to 2 s, with 1 to
2 s between them. Latency is from before the publication of a colour image to the receipt of its mask; the model costs
nothing. Exit code 0 says that in every outage no frame took longer than `max_wait`, none that came when depth was gone
for `depth_timeout` waited at all, that depth was used again within one period of its return, and that every image got
its mask or was skipped: with ``overload: newest`` those that still wait at `depth_timeout` are released together, and
the newest wins. A plot shows the first outage.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from node_trial import Scene, trial
from sensor_msgs.msg import Image

from m3l_ros.parameters import NodeParameters

RATE = 30.0
LENGTHS = (1.0, 2.0)
ALLOWANCE = 0.01
"""Seconds for all but waiting: the 95th percentile that `bench/node_overhead.py` allows."""


class Outage(NamedTuple):
    """Images without depth: from ``first`` to before ``end``; depth is back with the image ``end``."""

    first: int
    end: int


class Shot(NamedTuple):
    """A colour image that got its mask; times are steady, s."""

    number: int
    published: float
    latency: float
    with_depth: bool


class Account(NamedTuple):
    """What became of the images."""

    shots: list[Shot]
    published: int
    skipped: int
    last_depth: dict[Outage, float]
    """When the last depth before each outage was published, steady time, s."""
    exit_code: int


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--outages", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--overload", choices=("newest", "queue"), default="newest")
    parser.add_argument("--out", type=Path, default=Path("outage.json"))
    parser.add_argument("--plot", type=Path, help="SVG or PNG of the first outage")
    args = parser.parse_args()
    outages = schedule(args.outages, args.seed)
    account = run(outages, args.overload, args.out.with_suffix(".log"))
    report = {"overload": args.overload, **judge(outages, account)}
    args.out.write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    if args.plot:
        plot(outages[0], account.shots, args.plot)
    return 0 if report["passed"] else 1


def schedule(count: int, seed: int) -> list[Outage]:
    """Outages of random length, apart by random lengths."""
    rng = random.Random(seed)
    outages = []
    at = 0
    for _ in range(count):
        first = at + round(rng.uniform(*LENGTHS) * RATE)
        at = first + round(rng.uniform(*LENGTHS) * RATE)
        outages.append(Outage(first, at))
    return outages


def run(outages: list[Outage], overload: str, log: Path) -> Account:
    """Publish all images to the node."""
    without_depth = {number: outage for outage in outages for number in range(*outage)}
    published: dict[int, float] = {}
    last_depth: dict[Outage, float] = {}
    depth_at = 0.0
    with trial({"overload": overload}, log, {}) as node:
        depth, rgb = (node.robot.create_publisher(Image, f"{each}/image", 5) for each in ("depth", "rgb"))
        node.await_matching(depth, rgb)
        scene = Scene(RATE)
        begin = time.monotonic()
        for number in range(outages[-1].end + round(RATE)):
            depth_image, rgb_image = scene.depth(number), scene.rgb(number)
            time.sleep(max(begin + number / RATE - time.monotonic(), 0.0))
            outage = without_depth.get(number)
            if outage is None:
                depth_at = time.monotonic()
                depth.publish(depth_image)
            else:
                last_depth.setdefault(outage, depth_at)
            published[number] = time.monotonic()
            rgb.publish(rgb_image)
        node.settled(len(published))
        exit_code, _ = node.end()
    shots = [
        Shot(mask.number, published[mask.number], mask.at - published[mask.number], mask.with_depth)
        for mask in node.ear.masks
    ]
    return Account(shots, len(published), node.ear.count("skipped"), last_depth, exit_code)


def judge(outages: list[Outage], account: Account) -> dict[str, Any]:
    """The verdict."""
    defaults = NodeParameters()
    latencies: dict[str, list[float]] = {
        "with depth": [],
        "until depth_timeout": [],
        "later": [],
        "first": [],
    }
    paired = {shot.number for shot in account.shots if shot.with_depth}
    for shot in account.shots:
        outage = next((each for each in outages if each.first <= shot.number < each.end), None)
        if outage is None:
            latencies["with depth"].append(shot.latency)
        elif shot.published - account.last_depth[outage] <= defaults.depth_timeout:
            latencies["until depth_timeout"].append(shot.latency)
        else:
            latencies["later"].append(shot.latency)
        if outage and shot.number == outage.first:
            latencies["first"].append(shot.latency)
    back = [min(paired & set(range(each.end, each.end + round(RATE)))) - each.end for each in outages]
    checks = {
        "every image masked or skipped": len(account.shots) + account.skipped == account.published,
        "first waits at most max_wait": max(latencies["first"]) <= defaults.max_wait + ALLOWANCE,
        "none waits longer": max(latencies["until depth_timeout"]) <= defaults.max_wait + ALLOWANCE,
        "none waits after depth_timeout": max(latencies["later"]) <= defaults.max_wait / 2,
        "depth used within one period of its return": max(back) <= 1,
        "no depth where there is none": not any(paired & set(range(*outage)) for outage in outages),
        "clean exit": account.exit_code == 0,
    }
    return {
        "passed": all(checks.values()),
        "checks": checks,
        "outages": len(outages),
        "images": account.published,
        "masks": len(account.shots),
        "skipped": account.skipped,
        "max_wait_ms": defaults.max_wait * 1e3,
        "depth_timeout_ms": defaults.depth_timeout * 1e3,
        "latency_ms": {name: _figures(of) for name, of in latencies.items()},
        "periods until depth is used again, of each outage": back,
    }


def _figures(latencies: list[float]) -> dict[str, float]:
    p50, p95 = np.percentile(latencies, [50, 95]) * 1e3
    return {"images": len(latencies), "p50": p50, "p95": p95, "max": max(latencies) * 1e3}


def plot(outage: Outage, shots: list[Shot], path: Path) -> None:
    """Latency over time around one outage."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    defaults = NodeParameters()
    margin = round(0.5 * RATE)
    shown = [shot for shot in shots if outage.first - margin <= shot.number < outage.end + margin]
    figure, axes = plt.subplots(figsize=(7.0, 2.8), layout="constrained")
    stopped = (outage.first - 1) / RATE
    axes.axvspan(0.0, (outage.end / RATE) - stopped, color="0.92", label="no depth")
    axes.axvline(defaults.depth_timeout, color="0.4", linestyle="--", linewidth=1, label="depth_timeout")
    axes.axhline(defaults.max_wait * 1e3, color="0.4", linestyle=":", linewidth=1, label="max_wait")
    for with_depth, marker, label in ((True, "o", "mask with depth"), (False, "x", "mask from colour alone")):
        of = [shot for shot in shown if shot.with_depth is with_depth]
        axes.plot(
            [shot.number / RATE - stopped for shot in of],
            [shot.latency * 1e3 for shot in of],
            marker,
            markersize=4,
            label=label,
        )
    axes.set_xlabel("image taken, s after the last depth image")
    axes.set_ylabel("latency, ms")
    axes.set_ylim(0)
    axes.legend(loc="center right", fontsize="small")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    sys.exit(main())
