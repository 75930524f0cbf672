# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from std_msgs.msg import Header

from m3l_model.sync import Reason, RgbdSynchronizer
from m3l_ros.diagnostics import Diagnostics, ModelStatus, Snapshot
from m3l_ros.inputs import InputStatus, StreamStatus
from m3l_ros.parameters import NodeParameters
from m3l_ros.pipeline import Outcome, Tally, Timing

MS = 1_000_000
INPUTS = InputStatus(StreamStatus("/rgb", 1, True), StreamStatus("/depth", 1, False), None)
UNCONFIGURED = Snapshot(0.0, "unconfigured", None, None, None, None, None, [], NodeParameters())


def tally(**counts):
    outcomes = {outcome: counts.get(outcome.name, 0) for outcome in Outcome}
    return Tally(outcomes, 0, 0, depth_unreadable=0, depth_empty=0, depth_used=0)


def synchronized(frames=10):
    """A synchronizer that has seen some frames, at 30 Hz, with depth."""
    core = RgbdSynchronizer(slop=0.02, max_wait=0.1, depth_timeout=0.5, queue_size=30)
    for index in range(frames):
        now = index * 33 * MS
        core.add_depth(10**9 + now, None, now)
        core.add_rgb(10**9 + now, None, now)
    return core


def active(core, time=0.0, **counts):
    return Snapshot(
        time=time,
        state="active",
        error=None,
        model=ModelStatus("m.safetensors", "cpu", "float32", 8, frozenset({"mask"})),
        inputs=INPUTS,
        sync=core.status(),
        tally=tally(**counts),
        timings=[Timing(0.001, 0.002, 0.03, 0.004)] * 5,
        parameters=NodeParameters(),
        memory=200 * 2**20,
    )


def report(*snapshots, diagnostics=None):
    diagnostics = diagnostics or Diagnostics("front/segmentation_node")
    for snapshot in snapshots:
        message, _ = diagnostics.message(Header().stamp, snapshot)
    [status] = message.status
    return status, {pair.key: pair.value for pair in status.values}


@pytest.mark.parametrize("state", ["unconfigured", "inactive", "finalized"])
def test_every_state_is_reported(state):
    status, values = report(replace(UNCONFIGURED, state=state))
    assert (status.level, status.message, values["state"]) == (DiagnosticStatus.OK, state, state)
    assert status.name == "front/segmentation_node: segmentation"
    assert {"image conversion", "message filters"} <= set(values)


def test_reason_why_it_could_not_be_configured_is_an_error():
    status, _ = report(replace(UNCONFIGURED, error="cannot configure: no file"))
    assert (status.level, status.message) == (DiagnosticStatus.ERROR, "cannot configure: no file")


def test_paired_frames_are_well():
    status, values = report(active(synchronized(), MASKED=10))
    assert (status.level, status.message) == (DiagnosticStatus.OK, "segmenting")
    assert values["frames: paired"] == "10"
    assert values["inference p50/p95 (ms)"] == "30.0/30.0"
    assert values["colour"] == "/rgb, 1 publishers, reliable"
    assert values["depth"] == "/depth, 1 publishers, best effort"
    assert (status.hardware_id, values["device"], values["subscribed outputs"]) == ("cpu", "cpu", "mask")


def test_books_balance():
    """received = masks + skipped + dropped + pending, whatever is still under way."""
    core = synchronized(frames=20)
    core.add_rgb(1, None, 700 * MS)
    _, values = report(active(core, MASKED=8, OVERLOAD=3, UNSUBSCRIBED=1, UNREADABLE=2, FAILED=1, INACTIVE=1))
    numbers = {name: int(values[name]) for name in ("received", "masks", "skipped", "dropped", "pending")}
    assert numbers == {"received": 21, "masks": 8, "skipped": 4, "dropped": 4, "pending": 5}


def test_outage_is_a_warning_that_names_the_topic():
    core = synchronized()
    core.poll(2_000 * MS)
    status, values = report(active(core))
    assert status.level == DiagnosticStatus.WARN
    assert "/depth" in status.message
    assert values["outage"] == "True"
    nobody = replace(active(core), inputs=INPUTS._replace(depth=StreamStatus("/depth", 0, True)))
    assert "nobody publishes it" in report(nobody)[0].message


def test_skew_beyond_slop_is_named_with_a_slop_that_would_pair():
    snapshot = active(synchronized())
    assert snapshot.sync is not None
    within, beyond = (
        replace(snapshot, sync=replace(snapshot.sync, skew_ns=skew * MS)) for skew in (-20, -45)
    )
    assert report(within)[0].level == DiagnosticStatus.OK
    status, values = report(beyond)
    assert (status.level, values["skew (ms)"]) == (DiagnosticStatus.WARN, "-45.0")
    assert "-45.0 ms off" in status.message
    assert "set slop above 0.045" in status.message


def test_depth_that_pairs_now_and_then_is_slow_and_not_skewed():
    before, after = active(synchronized(10), time=100.0), active(synchronized(40), time=102.0)
    assert after.sync is not None
    frames = {**after.sync.frames, Reason.PAIRED: 15, Reason.DEADLINE: 25}
    slow = replace(after, sync=replace(after.sync, skew_ns=66 * MS, frames=frames))
    status, values = report(before, slow)
    assert status.level == DiagnosticStatus.WARN
    assert "only 17 % of the colour images found depth within slop (0.02 s)" in status.message
    assert values["pair ratio (%)"] == "17"


def test_images_lost_in_transport_are_a_warning_that_names_the_profile():
    def snapshot(time, lost):
        stream = StreamStatus("/rgb", 1, False, lost)
        return replace(active(synchronized(), time=time), inputs=INPUTS._replace(rgb=stream))

    status, values = report(snapshot(100.0, 3), snapshot(101.0, 45))
    assert (status.level, values["colour images lost in transport"]) == (DiagnosticStatus.WARN, "45")
    assert "42 of 42 colour images on /rgb were lost" in status.message
    assert "config/fastdds_shm.xml" in status.message
    assert "FASTRTPS_DEFAULT_PROFILES_FILE" in status.message


@pytest.mark.parametrize(
    ("stream", "cause"),
    [
        (
            StreamStatus("/rgb", 1, True, qos_problem="nothing is received; set input_qos: auto"),
            "set input_qos: auto",
        ),
        (
            StreamStatus("/rgb", 1, False, lost=40),
            "40 were lost between publisher and node: give the publisher",
        ),
        (StreamStatus("/rgb", 0, True), "nobody publishes it"),
    ],
)
def test_why_no_colour_comes_is_said_with_the_way_out(stream, cause):
    core = synchronized()
    silent = replace(active(core, time=110.0), inputs=INPUTS._replace(rgb=stream))
    status, _ = report(active(core, time=100.0), silent)
    assert status.level == DiagnosticStatus.STALE
    assert status.message.startswith("no colour image on /rgb for 10 s: ")
    assert cause in status.message


@pytest.mark.parametrize(
    ("stamps", "cause"),
    [((0, 0), "its images have no stamp"), ((10**9, 10**9), "its images repeat a stamp")],
)
def test_why_depth_that_comes_is_of_no_use_is_said(stamps, cause):
    core = synchronized()
    before = active(core, time=100.0)
    for index, stamp in enumerate(stamps):
        core.add_depth(stamp, None, (1000 + index) * MS)
    core.poll(2_000 * MS)
    status, _ = report(before, active(core, time=102.0))
    assert (status.level, cause in status.message) == (DiagnosticStatus.WARN, True)


def test_worst_problem_comes_first_and_the_others_are_named():
    core = synchronized()
    core.poll(2_000 * MS)
    inputs = INPUTS._replace(registration_problem="not registered", depth=StreamStatus("/depth", 2, True))
    failing = replace(active(core), inputs=inputs, error="damaged was refused", outage_length=70.0)
    failing = replace(failing, parameters=NodeParameters(outage_error_after=60.0))
    status, values = report(failing)
    assert (status.level, "no depth on /depth for 70 s" in status.message) == (DiagnosticStatus.ERROR, True)
    others = ["damaged was refused", "2 publishers on /depth", "not registered"]
    assert all(text in values["other problems"] for text in others)


def test_model_that_always_fails_is_an_error():
    before, after = active(synchronized(10), time=100.0), active(synchronized(20), time=101.0, FAILED=10)
    assert report(before, after)[0].level == DiagnosticStatus.ERROR


def test_latency_is_judged_and_split_into_stages():
    slow = replace(active(synchronized()), timings=[Timing(0.5, 0.1, 0.6, 0.1)] * 5)
    status, values = report(slow)
    assert (status.level, values["latency p50/p95 (ms)"]) == (DiagnosticStatus.WARN, "1300.0/1300.0")
    assert values["wait p50/p95 (ms)"] == "500.0/500.0"


def test_registration_problem_is_a_warning():
    status, _ = report(
        replace(active(synchronized()), inputs=INPUTS._replace(registration_problem="not registered"))
    )
    assert (status.level, status.message) == (DiagnosticStatus.WARN, "not registered")


def test_rates_are_those_since_the_last_report():
    _, values = report(active(synchronized(frames=10), time=5.0), active(synchronized(frames=40), time=7.0))
    assert (values["colour rate (Hz)"], values["depth rate (Hz)"]) == ("15.0", "15.0")


def test_silent_colour_is_stale():
    core = synchronized()
    before = [active(core, time=time) for time in (100.0, 101.0, 102.0)]
    status, _ = report(replace(UNCONFIGURED, time=99.0), *before)
    assert status.level == DiagnosticStatus.OK
    status, _ = report(replace(UNCONFIGURED, time=99.0), *before, active(core, time=109.0))
    assert (status.level, status.message) == (
        DiagnosticStatus.STALE,
        "no colour image on /rgb for 9 s: its publisher is silent",
    )
