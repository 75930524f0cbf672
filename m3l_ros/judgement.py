# SPDX-License-Identifier: Apache-2.0
"""Judges how well the node does, by its thresholds: each problem with its level and the way out, the worst first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from diagnostic_msgs.msg import DiagnosticStatus

from m3l_model.sync import SyncStatus
from m3l_ros.inputs import InputStatus, StreamStatus
from m3l_ros.parameters import NodeParameters
from m3l_ros.transport import PROFILE, PROFILE_VARIABLES

if TYPE_CHECKING:
    from m3l_ros.diagnostics import Snapshot

OK, WARN, ERROR, STALE = (
    DiagnosticStatus.OK,
    DiagnosticStatus.WARN,
    DiagnosticStatus.ERROR,
    DiagnosticStatus.STALE,
)
ERROR_KIND, OUTAGE_KIND = "error", "no depth"
_LARGEST_SLOP = 1.0


class Judgement(NamedTuple):
    """One thing to be said of the node."""

    level: bytes
    kind: str
    """The same for as long as the problem is the same, whatever figures its text holds."""
    text: str


@dataclass(frozen=True)
class Recent:
    """The node in the last seconds."""

    seconds: float
    counts: Counter[str]
    """By name, as `m3l_ros.diagnostics` counts."""
    colour_silent: float
    """Time since a colour image came, s."""
    latency_p95: float
    """From an image's arrival to its mask's publication, s."""

    def rate(self, name: str) -> float:
        """Counts per second."""
        return self.counts[name] / self.seconds

    @property
    def pair_ratio(self) -> float:
        """Share of the frames with colour that had depth."""
        return self.counts["paired"] / self.counts["frames"] if self.counts["frames"] else 0.0


def judge(snapshot: Snapshot, recent: Recent) -> list[Judgement]:
    """The problems there are, the worst first."""
    return sorted(_problems(snapshot, recent), key=lambda problem: -_severity(problem.level))


def _severity(level: bytes) -> int:
    """STALE is the highest number, but a node that cannot work at all is the worse news."""
    return (OK, WARN, STALE, ERROR).index(level)


def _problems(snapshot: Snapshot, recent: Recent) -> Iterator[Judgement]:
    if snapshot.error:
        level = WARN if snapshot.inputs else ERROR  # a model that was refused, while another one works
        yield Judgement(level, ERROR_KIND, snapshot.error)
    inputs, sync, thresholds = snapshot.inputs, snapshot.sync, snapshot.parameters
    if inputs is None or sync is None:
        return
    yield from _input_problems(inputs, recent, thresholds)
    if sync.outage:
        yield from _outage(inputs, recent, snapshot.outage_length, thresholds)
    else:
        yield from _depth_problems(inputs, sync, recent, thresholds)
    yield from _pipeline_problems(recent, thresholds)


def _input_problems(inputs: InputStatus, recent: Recent, thresholds: NodeParameters) -> Iterator[Judgement]:
    if recent.colour_silent >= thresholds.stale_after:
        yield Judgement(
            STALE,
            "no colour",
            f"no colour image on {inputs.rgb.topic} for {recent.colour_silent:.0f} s: "
            f"{_cause(inputs.rgb, recent.counts['lost'])}",
        )
    if inputs.registration_problem:
        yield Judgement(WARN, "registration", inputs.registration_problem)
    lost = recent.counts["lost"]
    if lost > thresholds.missing_warn * (lost + recent.counts["received"]):
        yield Judgement(
            WARN,
            "lost",
            f"{lost} of {lost + recent.counts['received']} colour images on {inputs.rgb.topic} were {_LOST}",
        )
    for stream in (inputs.rgb, inputs.depth):
        if stream.qos_problem:
            yield Judgement(WARN, f"QoS of {stream.topic}", f"{stream.topic}: {stream.qos_problem}")
        if stream.publishers > 1:
            yield Judgement(
                WARN,
                f"publishers of {stream.topic}",
                f"{stream.publishers} publishers on {stream.topic}, whose images are mixed: stop all but one, or remap "
                "(one that was killed is counted for some 20 s more)",
            )


_LOST = (
    f"lost between publisher and node: give the publisher, and the node, the profile {PROFILE} of m3l_ros "
    f"({' or '.join(PROFILE_VARIABLES)}), or have it publish reliably"
)


def _cause(stream: StreamStatus, lost: int) -> str:
    """Why no image comes."""
    if stream.qos_problem:
        return stream.qos_problem
    if lost:
        return f"{lost} were {_LOST}"
    return "its publisher is silent" if stream.publishers else "nobody publishes it"


def _outage(
    inputs: InputStatus, recent: Recent, length: float, thresholds: NodeParameters
) -> Iterator[Judgement]:
    if length < thresholds.outage_warn_after:
        return
    if recent.counts["depth without stamp"]:
        cause = "its images have no stamp"
    elif recent.counts["depth repeated"]:
        cause = "its images repeat a stamp"
    else:
        cause = _cause(inputs.depth, recent.counts["depth lost"])
    is_error = 0 < thresholds.outage_error_after <= length
    yield Judgement(
        ERROR if is_error else WARN,
        OUTAGE_KIND,
        f"no depth on {inputs.depth.topic} for {length:.0f} s, segmenting colour alone: {cause}",
    )


def _depth_problems(
    inputs: InputStatus, sync: SyncStatus, recent: Recent, thresholds: NodeParameters
) -> Iterator[Judgement]:
    """Depth comes: whether it is of use."""
    counts, topic = recent.counts, inputs.depth.topic
    read = counts["depth used"] + counts["depth empty"] + counts["depth unreadable"]
    if counts["depth empty"] > read / 2:
        yield Judgement(
            WARN,
            "depth empty",
            f"{counts['depth empty']} of {read} depth images on {topic} hold no reading, all zero or NaN, and count as "
            "missing: check the depth camera",
        )
    elif counts["depth unreadable"]:
        yield Judgement(
            WARN,
            "depth unreadable",
            f"{counts['depth unreadable']} of {read} depth images on {topic} cannot be read, and count as missing: "
            "the log says why",
        )
    elif 0 < thresholds.frozen_warn_after <= inputs.depth_frozen_for:
        yield Judgement(
            WARN,
            "depth frozen",
            f"depth on {topic} is frozen, the same image under new stamps for {inputs.depth_frozen_for:.0f} s: restart "
            "the depth camera (a simulator without noise: set frozen_warn_after to 0)",
        )
    skew = abs(sync.skew_ns or 0) / 1e9
    if skew > thresholds.slop and not counts["paired"]:
        remedy = f", or set slop above {skew:.3f}" if skew < _LARGEST_SLOP else ""
        yield Judgement(
            WARN,
            "skew",
            f"depth stamps are {(sync.skew_ns or 0) / 1e6:+.1f} ms off colour's, beyond slop ({thresholds.slop:g} s): "
            f"synchronize the clocks{remedy}",
        )
    elif counts["frames"] and recent.pair_ratio < thresholds.pair_ratio_warn:
        yield Judgement(
            WARN,
            "pairs",
            f"only {100 * recent.pair_ratio:.0f} % of the colour images found depth within slop "
            f"({thresholds.slop:g} s): colour comes at {recent.rate('received'):.1f} Hz, depth at "
            f"{recent.rate('depth'):.1f} Hz",
        )


def _pipeline_problems(recent: Recent, thresholds: NodeParameters) -> Iterator[Judgement]:
    counts = recent.counts
    if counts["failed"] and not counts["masks"]:
        yield Judgement(ERROR, "failing", "the model fails on every image: the log says why")
    elif counts["dropped"] > thresholds.dropped_warn * counts["received"]:
        yield Judgement(
            WARN,
            "dropped",
            f"{counts['dropped']} of {counts['received']} colour images were dropped: the counters below, and the log, "
            "say why",
        )
    if recent.latency_p95 > thresholds.latency_warn:
        yield Judgement(
            WARN,
            "latency",
            f"5 % of the masks come {recent.latency_p95:.2f} s or more after their image: take a smaller model or a "
            "faster device",
        )
