# SPDX-License-Identifier: Apache-2.0
"""What the node says about itself on /diagnostics, in every lifecycle state."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue

from m3l_model.sync import Reason, SyncStatus
from m3l_ros.inputs import InputStatus, StreamStatus
from m3l_ros.judgement import Judgement, Recent, judge
from m3l_ros.parameters import NodeParameters
from m3l_ros.pipeline import Outcome, Tally, Timing
from m3l_ros.providers import CONVERSION, MESSAGE_FILTERS

_WINDOW = 3.0
_MIB = 2**20


@dataclass(frozen=True)
class Snapshot:
    """The node at one moment. Counters run since it was configured; what is None is not there in that state."""

    time: float
    """Steady time, s."""
    state: str
    """Lifecycle state."""
    error: str | None
    """Why it could not be configured or activated, or a checkpoint not be used, the last time."""
    model: ModelStatus | None
    inputs: InputStatus | None
    sync: SyncStatus | None
    tally: Tally | None
    timings: Sequence[Timing]
    parameters: NodeParameters
    outage_length: float = 0.0
    """Of the depth outage in progress, s of the ROS clock."""
    memory: int = 0
    """Of the process, bytes."""


@dataclass(frozen=True)
class ModelStatus:
    """What is loaded, and who listens."""

    checkpoint: str
    device: str
    precision: str
    classes: int
    subscribed: frozenset[str]
    device_memory: int | None = None
    """Bytes that torch holds of a GPU's memory."""


class Diagnostics:
    """Turns snapshots into messages; remembers those of the last seconds, for rates.

    Args:
        name: of the node, with its namespace.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._history: deque[tuple[float, Counter[str]]] = deque()
        self._colour_seen: float | None = None

    def message(self, stamp: Any, snapshot: Snapshot) -> tuple[DiagnosticArray, list[Judgement]]:
        """The message for now, and the problems it speaks of.

        Args:
            stamp: builtin_interfaces/Time.
            snapshot: the node now.
        """
        recent = self._recent(snapshot)
        problems = judge(snapshot, recent)
        values: dict[str, object] = {"state": snapshot.state}
        if snapshot.inputs:
            values |= {
                "colour": _describe(snapshot.inputs.rgb),
                "colour rate (Hz)": f"{recent.rate('received'):.1f}",
                "depth": _describe(snapshot.inputs.depth),
                "depth rate (Hz)": f"{recent.rate('depth'):.1f}",
                "colour images lost in transport": snapshot.inputs.rgb.lost,
                "depth images lost in transport": snapshot.inputs.depth.lost,
            }
        if snapshot.sync and snapshot.tally:
            values |= {
                "mask rate (Hz)": f"{recent.rate('masks'):.1f}",
                "pair ratio (%)": f"{100 * recent.pair_ratio:.0f}",
                **_sync_values(snapshot),
                **_tally_values(snapshot.sync, snapshot.tally),
                **_timing_values(snapshot.timings),
            }
        if snapshot.model:
            values |= _model_values(snapshot.model)
        values |= {
            "memory (MiB)": snapshot.memory // _MIB,
            "image conversion": CONVERSION,
            "message filters": MESSAGE_FILTERS,
        }
        if len(problems) > 1:
            values["other problems"] = "; ".join(problem.text for problem in problems[1:])
        well = "segmenting" if snapshot.inputs else snapshot.state
        status = DiagnosticStatus(
            level=problems[0].level if problems else DiagnosticStatus.OK,
            name=f"{self._name}: segmentation",
            message=problems[0].text if problems else well,
            hardware_id=snapshot.model.device if snapshot.model else "",
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()],
        )
        message = DiagnosticArray(status=[status])
        message.header.stamp = stamp
        return message, problems

    def _recent(self, snapshot: Snapshot) -> Recent:
        """What was counted since the report that is just old enough; counters that fell were started anew."""
        counts = _counts(snapshot)
        if self._history and any(counts[name] < before for name, before in self._history[-1][1].items()):
            self._history.clear()
        self._history.append((snapshot.time, counts))
        while len(self._history) > 2 and self._history[1][0] <= snapshot.time - _WINDOW:
            self._history.popleft()
        since, before = self._history[0]
        previous = self._history[-2][1] if len(self._history) > 1 else counts
        if counts["received"] > previous["received"] or snapshot.inputs is None or self._colour_seen is None:
            self._colour_seen = snapshot.time
        return Recent(
            seconds=max(snapshot.time - since, 1e-3),
            counts=Counter({name: count - before[name] for name, count in counts.items()}),
            colour_silent=snapshot.time - self._colour_seen,
            latency_p95=float(np.percentile([sum(timing) for timing in snapshot.timings], 95))
            if snapshot.timings
            else 0.0,
        )


def _counts(snapshot: Snapshot) -> Counter[str]:
    counts: Counter[str] = Counter()
    inputs, sync, tally = snapshot.inputs, snapshot.sync, snapshot.tally
    if inputs:
        counts.update({"lost": inputs.rgb.lost, "depth lost": inputs.depth.lost})
    if sync and tally:
        counts.update(
            {
                "received": _received(sync),
                "depth": sync.depth_accepted,
                "depth without stamp": sync.depth_no_stamp,
                "depth repeated": sync.depth_duplicate,
                "paired": sync.frames[Reason.PAIRED],
                "frames": sum(sync.frames.values()) - sync.frames[Reason.COLOUR_LOST],
                "masks": tally.masks + tally.depth_only_masks,
                "dropped": tally.dropped - tally.outcomes[Outcome.INACTIVE] + sync.rgb_dropped,
                "failed": tally.outcomes[Outcome.FAILED],
                "depth used": tally.depth_used,
                "depth empty": tally.depth_empty,
                "depth unreadable": tally.depth_unreadable,
            }
        )
    return counts


def _received(sync: SyncStatus) -> int:
    return sync.rgb_accepted + sync.rgb_dropped


def _sync_values(snapshot: Snapshot) -> dict[str, object]:
    sync = snapshot.sync
    assert sync is not None
    return {
        "outage": sync.outage,
        "outage length (s)": f"{snapshot.outage_length:.1f}" if sync.outage else "",
        "skew (ms)": "" if sync.skew_ns is None else f"{sync.skew_ns / 1e6:+.1f}",
        "clock resets": sync.resets,
        "waiting for depth": sync.waiting,
        **{f"frames: {reason}": count for reason, count in sync.frames.items()},
        "depth images dropped: no stamp": sync.depth_no_stamp,
        "depth images dropped: repeated stamp": sync.depth_duplicate,
        "depth images dropped: far future": sync.depth_far_future,
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
        "depth-only frames dropped": tally.depth_only_dropped,
        "depth images unreadable": tally.depth_unreadable,
        "depth images without a reading": tally.depth_empty,
    }


def _timing_values(timings: Sequence[Timing]) -> dict[str, object]:
    if not timings:
        return {}
    stages = np.array(timings)
    stages = np.column_stack((stages.sum(axis=1), stages))
    p50, p95 = np.percentile(stages, [50, 95], axis=0) * 1e3
    return {
        f"{stage} p50/p95 (ms)": f"{middle:.1f}/{high:.1f}"
        for stage, middle, high in zip(("latency", *Timing._fields), p50, p95, strict=True)
    }


def _model_values(model: ModelStatus) -> dict[str, object]:
    values: dict[str, object] = {
        "subscribed outputs": " ".join(sorted(model.subscribed)),
        "checkpoint": model.checkpoint,
        "classes": model.classes,
        "device": model.device,
        "precision": model.precision,
    }
    if model.device_memory is not None:
        values["device memory (MiB)"] = model.device_memory // _MIB
    return values
