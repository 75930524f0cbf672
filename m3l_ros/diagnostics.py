# SPDX-License-Identifier: Apache-2.0
"""What the node says about itself on /diagnostics, in every lifecycle state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from m3l_model.sync import SyncStatus
from m3l_ros.inputs import InputStatus, StreamStatus
from m3l_ros.pipeline import Tally, Timing
from m3l_ros.providers import CONVERSION, MESSAGE_FILTERS

_SILENT_AFTER = 3.0


@dataclass(frozen=True)
class Snapshot:
    """The node at one moment. Counters run since it was configured; what is None is not there in that state."""

    time: float
    """Steady time, s."""
    state: str
    """Lifecycle state."""
    error: str | None
    """Why it could not be configured or activated the last time."""
    model: ModelStatus | None
    inputs: InputStatus | None
    sync: SyncStatus | None
    tally: Tally | None
    timings: Sequence[Timing]
    slop: float


@dataclass(frozen=True)
class ModelStatus:
    """What is loaded, and who listens."""

    checkpoint: str
    device: str
    precision: str
    classes: int
    subscribed: frozenset[str]


class Diagnostics:
    """Turns snapshots into messages; remembers the one before, for rates.

    Args:
        name: of the node, with its namespace.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._before: tuple[float, int, int] | None = None
        self._colour_seen = 0.0

    def message(self, stamp: Any, snapshot: Snapshot) -> DiagnosticArray:
        """The message for now.

        Args:
            stamp: builtin_interfaces/Time.
            snapshot: the node now.
        """
        rgb_rate, depth_rate = self._rates(snapshot.time, snapshot.sync)
        if rgb_rate or snapshot.inputs is None:
            self._colour_seen = snapshot.time
        level, text = _judge(snapshot, snapshot.time - self._colour_seen)
        values: dict[str, object] = {"state": snapshot.state}
        if snapshot.inputs:
            values |= {
                "colour": _describe(snapshot.inputs.rgb),
                "colour rate (Hz)": f"{rgb_rate:.1f}",
                "depth": _describe(snapshot.inputs.depth),
                "depth rate (Hz)": f"{depth_rate:.1f}",
            }
        if snapshot.sync and snapshot.tally:
            values |= _sync_values(snapshot.sync)
            values |= _tally_values(snapshot.sync, snapshot.tally)
            values |= _timing_values(snapshot.timings)
        if snapshot.model:
            values |= {
                "subscribed outputs": " ".join(sorted(snapshot.model.subscribed)),
                "checkpoint": snapshot.model.checkpoint,
                "classes": snapshot.model.classes,
                "device": snapshot.model.device,
                "precision": snapshot.model.precision,
            }
        values |= {"image conversion": CONVERSION, "message filters": MESSAGE_FILTERS}
        status = DiagnosticStatus(
            level=level,
            name=f"{self._name}: segmentation",
            message=text,
            hardware_id=snapshot.model.device if snapshot.model else "",
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        message = DiagnosticArray(status=[status])
        message.header.stamp = stamp
        return message

    def _rates(self, now: float, sync: SyncStatus | None) -> tuple[float, float]:
        counts = (_received(sync), sync.depth_accepted) if sync else (0, 0)
        before, self._before = self._before, (now, *counts)
        if before is None or counts[0] < before[1]:
            return 0.0, 0.0
        elapsed = max(now - before[0], 1e-3)
        return (counts[0] - before[1]) / elapsed, (counts[1] - before[2]) / elapsed


def _judge(snapshot: Snapshot, colour_silent: float) -> tuple[bytes, str]:
    """Level and the one sentence that matters most."""
    if snapshot.error:
        return DiagnosticStatus.ERROR, snapshot.error
    inputs, sync = snapshot.inputs, snapshot.sync
    if inputs is None or sync is None:
        return DiagnosticStatus.OK, snapshot.state
    if colour_silent >= _SILENT_AFTER:
        cause = "nobody publishes it" if not inputs.rgb.publishers else "its publisher is silent"
        return (
            DiagnosticStatus.STALE,
            f"no colour image on {inputs.rgb.topic} for {colour_silent:.0f} s: {cause}",
        )
    if inputs.registration_problem:
        return DiagnosticStatus.WARN, inputs.registration_problem
    if sync.outage:
        cause = "nobody publishes it" if not inputs.depth.publishers else "its publisher is silent"
        return DiagnosticStatus.WARN, f"no depth on {inputs.depth.topic}, segmenting colour alone: {cause}"
    skew = sync.skew_ns
    if skew is not None and abs(skew) / 1e9 > snapshot.slop:
        return DiagnosticStatus.WARN, (
            f"depth stamps are {skew / 1e6:+.1f} ms off colour's, beyond slop ({snapshot.slop:g} s): synchronize the "
            f"clocks, or set slop above {abs(skew) / 1e9:.3f}"
        )
    return DiagnosticStatus.OK, "segmenting"


def _received(sync: SyncStatus) -> int:
    return sync.rgb_accepted + sync.rgb_dropped


def _sync_values(sync: SyncStatus) -> dict[str, object]:
    return {
        "outage": sync.outage,
        "skew (ms)": "" if sync.skew_ns is None else f"{sync.skew_ns / 1e6:+.1f}",
        "clock resets": sync.resets,
        "waiting for depth": sync.waiting,
        **{f"frames: {reason}": count for reason, count in sync.frames.items()},
    }


def _describe(stream: StreamStatus) -> str:
    qos = "reliable" if stream.reliable else "best effort"
    return f"{stream.topic}, {stream.publishers} publishers, {qos}"


def _tally_values(sync: SyncStatus, tally: Tally) -> dict[str, object]:
    """The books: received = masks + skipped + dropped + pending."""
    received = _received(sync)
    dropped = tally.dropped + sync.rgb_dropped
    return {
        "received": received,
        "masks": tally.masks,
        "skipped": tally.skipped,
        "dropped": dropped,
        "pending": received - tally.masks - tally.skipped - dropped,
        **{outcome.value: count for outcome, count in tally.outcomes.items()},
        "dropped: old or repeated stamp": sync.rgb_dropped,
        "depth-only masks": tally.depth_only_masks,
        "depth images unreadable": tally.depth_unreadable,
    }


def _timing_values(timings: Sequence[Timing]) -> dict[str, object]:
    if not timings:
        return {}
    p50, p95 = np.percentile(np.array(timings), [50, 95], axis=0) * 1e3
    return {
        f"{stage} p50/p95 (ms)": f"{middle:.1f}/{high:.1f}"
        for stage, middle, high in zip(Timing._fields, p50, p95, strict=True)
    }
