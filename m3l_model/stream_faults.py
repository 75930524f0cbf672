# SPDX-License-Identifier: Apache-2.0
"""What may happen to a depth stream between camera and synchronizer: images lost, late, or with a wrong stamp.

Each takes the images of a bag as they arrive, (N,) of ``bag_frames.ARRIVAL``, and gives them as they arrive then, in
that order; colour is left alone. Which images are hit depends on header stamps and the generator only.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Arrivals = npt.NDArray[np.void]

_SECOND = 1e9


def lose_all(arrivals: Arrivals, rng: np.random.Generator) -> Arrivals:
    """No depth at all."""
    return arrivals[arrivals["rgb"]]


def lose_bursts(arrivals: Arrivals, rng: np.random.Generator, share: float, length: float) -> Arrivals:
    """Depth comes and goes, for exponentially distributed times.

    Args:
        arrivals, rng: see the module.
        share: of the time without depth, above 0 and below 1.
        length: mean length of an outage, s.
    """
    if not len(arrivals):
        return arrivals
    first, last = arrivals["stamp_ns"].min(), arrivals["stamp_ns"].max()
    means = np.array([length * (1 - share) / share, length]) * _SECOND
    outage = bool(rng.random() < share)
    edges = [float(first)]
    lost = [outage]
    while edges[-1] <= last:
        edges.append(edges[-1] + rng.exponential(means[int(outage)]))
        outage = not outage
        lost.append(outage)
    within = np.searchsorted(edges, arrivals["stamp_ns"], side="right") - 1
    return arrivals[arrivals["rgb"] | ~np.array(lost)[within]]


def keep_every(arrivals: Arrivals, rng: np.random.Generator, nth: int) -> Arrivals:
    """Only every ``nth`` depth image comes."""
    number = np.cumsum(~arrivals["rgb"]) - 1
    return arrivals[arrivals["rgb"] | (number % nth == 0)]


def delay(arrivals: Arrivals, rng: np.random.Generator, longest: float) -> Arrivals:
    """Each depth image comes later by up to ``longest`` seconds, uniformly distributed, but in its turn."""
    late = arrivals.copy()
    depth = ~late["rgb"]
    when = late["log_ns"][depth] + (rng.uniform(0, longest, int(depth.sum())) * _SECOND).astype(np.int64)
    late["log_ns"][depth] = np.maximum.accumulate(when)
    return late[np.argsort(late["log_ns"], kind="stable")]


def skew(arrivals: Arrivals, rng: np.random.Generator, offset: float) -> Arrivals:
    """The depth camera's clock is ``offset`` seconds ahead of the colour camera's."""
    skewed = arrivals.copy()
    skewed["stamp_ns"][~skewed["rgb"]] += round(offset * _SECOND)
    return skewed
