# SPDX-License-Identifier: Apache-2.0
"""The conditions that a model is evaluated under: what happens to the depth stream, and to the images.

Everything random is drawn from seed, scenario and, for images, their own header stamp: an image looks the same
whenever and wherever it is used, offline or on its way to the live node.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from m3l_model import image_faults, stream_faults
from m3l_model.errors import M3LError
from m3l_model.image_faults import Depth, Rgb
from m3l_model.stream_faults import Arrivals

BURST_SECONDS = 1.0
"""Mean length of a depth outage."""
DROP_RATES = (0.1, 0.25, 0.5, 0.75, 0.9)
"""Shares of the time without depth."""


class Seen(NamedTuple):
    """The images that the model gets: (H, W, 3) uint8 and (H', W') uint16 mm or float32 m; None where there is none."""

    rgb: Rgb | None
    depth: Depth | None


class Moment(NamedTuple):
    """When an image fault strikes: its generator, and seconds since the bag's first frame."""

    rng: np.random.Generator
    seconds: float


@dataclass(frozen=True)
class Scenario:
    """A condition, seeded.

    Attributes:
        name: of the command line and of reports.
        description: for people.
        stream: changes which depth images arrive, when, and with which stamp; None: as recorded.
        images: changes the images, one at a time, with None for the other; None: as recorded.
        drop_rate: share of the time without depth, for the curve over it; None where that is not what it varies.
    """

    name: str
    description: str
    stream: Callable[[Arrivals, np.random.Generator], Arrivals] | None = None
    images: Callable[[Seen, Moment], Seen] | None = None
    drop_rate: float | None = None

    def arrive(self, arrivals: Arrivals, seed: int) -> Arrivals:
        """Give the images of a bag, (N,) of ``bag_frames.ARRIVAL``, as they reach the synchronizer here."""
        return arrivals if self.stream is None else self.stream(arrivals, _generator(seed, self.name))

    def see(self, seen: Seen, seed: int, stamps_ns: tuple[int, int], start_ns: int) -> Seen:
        """Give the images of a frame as the model gets them here.

        Args:
            seen: as recorded.
            seed: of the evaluation.
            stamps_ns: header stamps of the colour and of the depth image.
            start_ns: that of the bag's first frame.
        """
        if self.images is None:
            return seen
        rgb, depth = (
            Moment(_generator(seed, self.name, each, stamp % (1 << 64)), (stamp - start_ns) * 1e-9)
            for each, stamp in enumerate(stamps_ns)
        )
        return Seen(
            self.images(Seen(seen.rgb, None), rgb).rgb, self.images(Seen(None, seen.depth), depth).depth
        )


def chosen_scenarios(names: Sequence[str] | None) -> tuple[Scenario, ...]:
    """Give scenarios by name, with those that the headline needs in front; all where none is named.

    Raises:
        M3LError: a name is unknown.
    """
    if names is None:
        return SCENARIOS
    known = {scenario.name for scenario in SCENARIOS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise M3LError(f"no scenario {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return tuple(scenario for scenario in SCENARIOS if scenario.name in {*names, *ROBUST})


def _generator(seed: int, name: str, *more: int) -> np.random.Generator:
    return np.random.default_rng((seed, zlib.crc32(name.encode()), *more))


def _without_rgb(seen: Seen, moment: Moment) -> Seen:
    return Seen(None, seen.depth)


_GROWTH_SECONDS = 10.0
_GREATEST_HOLE = 0.8


def _holes(seen: Seen, moment: Moment, rgb: bool, depth: bool) -> Seen:
    share = _GREATEST_HOLE * (moment.seconds % _GROWTH_SECONDS) / _GROWTH_SECONDS
    return Seen(
        image_faults.lose_regions_of_rgb(seen.rgb, moment.rng, share)
        if rgb and seen.rgb is not None
        else seen.rgb,
        image_faults.lose_regions_of_depth(seen.depth, moment.rng, share)
        if depth and seen.depth is not None
        else seen.depth,
    )


def _noise(seen: Seen, moment: Moment, rgb: float, depth: float) -> Seen:
    return Seen(
        image_faults.add_rgb_noise(seen.rgb, moment.rng, rgb) if rgb and seen.rgb is not None else seen.rgb,
        image_faults.add_depth_noise(seen.depth, moment.rng, depth)
        if depth and seen.depth is not None
        else seen.depth,
    )


def _on_depth(seen: Seen, moment: Moment, fault: Callable[[Depth], Depth]) -> Seen:
    return seen if seen.depth is None else seen._replace(depth=fault(seen.depth))


def _on_rgb(seen: Seen, moment: Moment, fault: Callable[[Rgb, np.random.Generator], Rgb]) -> Seen:
    return seen if seen.rgb is None else seen._replace(rgb=fault(seen.rgb, moment.rng))


_RGB_NOISE = 25.0
_DEPTH_NOISE = 5.0
_GROWING = (
    f"growing from none to {_GREATEST_HOLE:.0%} of the image within {_GROWTH_SECONDS:g} s, again and again"
)

CLEAN = Scenario("clean", "both modalities as recorded")
DEPTH_MISSING = Scenario(
    "depth_missing", "no depth image arrives", stream=stream_faults.lose_all, drop_rate=1.0
)
RGB_MISSING = Scenario("rgb_missing", "colour withheld from every frame that has depth", images=_without_rgb)
ROBUST = (CLEAN.name, DEPTH_MISSING.name, RGB_MISSING.name)
"""The scenarios whose mean is the paper's robust mIoU."""

SCENARIOS = (
    CLEAN,
    DEPTH_MISSING,
    RGB_MISSING,
    *(
        Scenario(
            f"depth_bursts_{rate:.0%}".rstrip("%"),
            f"depth lost in bursts of {BURST_SECONDS:g} s on average, {rate:.0%} of the time",
            stream=partial(stream_faults.lose_bursts, share=rate, length=BURST_SECONDS),
            drop_rate=rate,
        )
        for rate in DROP_RATES
    ),
    Scenario(
        "depth_decimated",
        "only every third depth image arrives",
        stream=partial(stream_faults.keep_every, nth=3),
    ),
    Scenario(
        "depth_delayed",
        "each depth image arrives later, by up to 0.25 s at random",
        stream=partial(stream_faults.delay, longest=0.25),
    ),
    Scenario(
        "depth_skewed",
        "the depth camera's clock is 0.05 s ahead",
        stream=partial(stream_faults.skew, offset=0.05),
    ),
    Scenario(
        "depth_holes", f"regions of depth lost, {_GROWING}", images=partial(_holes, rgb=False, depth=True)
    ),
    Scenario(
        "rgb_holes", f"regions of colour black, {_GROWING}", images=partial(_holes, rgb=True, depth=False)
    ),
    Scenario(
        "both_holes", f"regions of either lost, {_GROWING}", images=partial(_holes, rgb=True, depth=True)
    ),
    Scenario(
        "depth_range",
        "no depth nearer than 0.6 m or farther than 3.5 m",
        images=partial(_on_depth, fault=partial(image_faults.cut_range, nearest=0.6, farthest=3.5)),
    ),
    Scenario(
        "depth_noise",
        f"depth with {_DEPTH_NOISE:g} times a Kinect's noise",
        images=partial(_noise, rgb=0.0, depth=_DEPTH_NOISE),
    ),
    Scenario(
        "rgb_noise",
        f"colour with Gaussian noise of {_RGB_NOISE:g} grey levels",
        images=partial(_noise, rgb=_RGB_NOISE, depth=0.0),
    ),
    Scenario(
        "both_noise",
        "depth and colour with that noise",
        images=partial(_noise, rgb=_RGB_NOISE, depth=_DEPTH_NOISE),
    ),
    Scenario(
        "depth_quantised",
        "depth in whole pixels of disparity (focal length times baseline 40 px m: steps of 0.2 m at 3 m)",
        images=partial(_on_depth, fault=partial(image_faults.quantise_disparity, focal_times_baseline=40.0)),
    ),
    Scenario(
        "rgb_dark",
        "an eighth of the light, with a sensor's noise of 2 grey levels",
        images=partial(_on_rgb, fault=partial(image_faults.darken, gain=1 / 8, noise=2.0)),
    ),
    Scenario(
        "rgb_blurred",
        "colour smeared over 3 % of the image's width",
        images=partial(_on_rgb, fault=partial(image_faults.blur, share=0.03)),
    ),
)
"""All scenarios, in the order of reports."""
