# SPDX-License-Identifier: Apache-2.0
"""Frames in, masks out over DDS, with a model that answers as the test wants."""

from __future__ import annotations

import threading
import time
from array import array
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String

from m3l_model.images import to_rgb
from m3l_model.labels import LabelSet
from m3l_model.predictor import Prediction
from m3l_model.sync import Frame, Reason
from m3l_ros.outputs import Outputs, image_message
from m3l_ros.parameters import NodeParameters
from m3l_ros.pipeline import Outcome, Pipeline, Tally
from m3l_ros.qos import LATCHED_QOS
from m3l_ros.worker import PATIENCE

LABELS = LabelSet.generic(4)


class StandIn:
    """A predictor whose masks hold the colour image's first value, and which can be held up or fail."""

    def __init__(self, labels=LABELS):
        self.labels = labels
        self.go_on = threading.Event()
        self.go_on.set()
        self.begun = threading.Semaphore(0)
        self.seen = []

    def predict(self, rgb, depth, with_confidence=True):
        self.begun.release()
        self.go_on.wait()
        self.seen.append((rgb, depth, with_confidence))
        first = (rgb if rgb is not None else depth).flat[0]
        if first == 66:
            raise RuntimeError("out of memory")
        shape = (rgb if rgb is not None else depth).shape[:2]
        confidence = np.full(shape, 0.5, np.float32) if with_confidence else None
        used = ("rgb", "depth") if depth is not None and depth.any() else ("rgb",)
        return Prediction(np.full(shape, first, np.uint8), confidence, used)


class Bench:
    """A pipeline with listeners for some of its outputs."""

    def __init__(self, node, wait_until, listeners, **parameters):
        self.wait_until = wait_until
        self.model = StandIn()
        settings = NodeParameters(**{"overlay_opacity": 0.25, **parameters})
        self.outputs = Outputs(node, LABELS, settings)
        self.heard: dict[str, list[Any]] = {name: [] for name in listeners}
        self.subscriptions = [
            node.create_subscription(
                CameraInfo if name == "camera_info" else Image, f"segmentation/{name}", heard.append, 50
            )
            for name, heard in self.heard.items()
        ]
        wanted = set(listeners) & set(settings.outputs)
        wait_until(lambda: self.outputs.wanted() == wanted, "the listeners")
        self.pipeline = Pipeline(cast(Any, self.model), self.outputs, settings, node.get_logger())
        self.pipeline.start()

    def submit(self, *values, info=None):
        for value in values:
            self.pipeline.submit(frame(value), info)

    def hold_up(self, value):
        """Have the model busy with a frame."""
        self.model.go_on.clear()
        self.submit(value)
        self.model.begun.acquire()

    def values(self, name="mask"):
        return [message.data[0] for message in self.heard[name]]

    def books(self):
        tally = self.pipeline.tally()
        return {outcome: count for outcome, count in tally.outcomes.items() if count}


def rgb_message(value, width=4, height=3):
    message = image_message(Image().header, "rgb8", np.full((height, width, 3), value, np.uint8))
    message.header.stamp.sec = value
    message.header.frame_id = "colour"
    return message


def depth_message(value, **fields):
    message = image_message(Image().header, "16UC1", np.full((3, 4), value, np.uint16))
    message.header.stamp.sec = value
    message.header.frame_id = "depth"
    for name, content in fields.items():
        setattr(message, name, content)
    return message


def frame(value, depth=None):
    return Frame(value * 10**9, rgb_message(value), depth, None, Reason.PAIRED)


@pytest.fixture
def make_bench(node, wait_until):
    benches = []

    def make(*listeners, **parameters):
        benches.append(Bench(node, wait_until, listeners, **parameters))
        return benches[-1]

    yield make
    for bench in benches:
        bench.model.go_on.set()
        bench.pipeline.stop()
        bench.outputs.close()
        for subscription in bench.subscriptions:
            node.destroy_subscription(subscription)


def test_mask_has_the_header_and_size_of_its_image(make_bench):
    bench = make_bench("mask")
    bench.submit(1)
    bench.wait_until(lambda: bench.heard["mask"], "the mask")
    [mask] = bench.heard["mask"]
    assert (mask.header.stamp.sec, mask.header.frame_id) == (1, "colour")
    assert (mask.width, mask.height, mask.step, mask.encoding) == (4, 3, 4, "mono8")
    assert bytes(mask.data) == bytes([1] * 12)
    assert [with_confidence for _, _, with_confidence in bench.model.seen] == [False]


def test_each_output_shows_the_labels(make_bench):
    bench = make_bench("color", "overlay", "confidence", "camera_info")
    bench.submit(2, info=CameraInfo(width=4, height=3))
    bench.wait_until(lambda: all(bench.heard.values()), "every output")
    color, overlay = to_rgb(bench.heard["color"][0]), to_rgb(bench.heard["overlay"][0])
    assert (color == LABELS.colors[2]).all()
    assert np.abs(overlay - (0.25 * np.array(LABELS.colors[2]) + 0.75 * 2)).max() <= 0.5
    assert np.frombuffer(bench.heard["confidence"][0].data, np.float32).tolist() == [0.5] * 12
    assert bench.heard["confidence"][0].encoding == "32FC1"
    info = bench.heard["camera_info"][0]
    assert (info.width, info.header.stamp.sec, info.header.frame_id) == (4, 2, "colour")


def test_what_nobody_subscribes_to_is_not_computed(make_bench):
    bench = make_bench()
    bench.submit(1)
    bench.wait_until(lambda: bench.books() == {Outcome.UNSUBSCRIBED: 1}, "the books")
    assert not bench.model.seen


def test_newest_frame_wins_under_overload(make_bench):
    bench = make_bench("mask", overload="newest")
    bench.hold_up(1)
    bench.submit(2, 3, 4)
    time.sleep(2 * PATIENCE)
    bench.model.go_on.set()
    bench.wait_until(lambda: bench.values() == [1, 4], "the masks of the first and the newest")
    bench.wait_until(lambda: bench.books() == {Outcome.MASKED: 2, Outcome.OVERLOAD: 2}, "the books")


def test_queue_skips_nothing_until_it_is_full(make_bench):
    bench = make_bench("mask", overload="queue", overload_queue_size=2)
    bench.hold_up(1)
    bench.submit(2, 3, 4)
    bench.model.go_on.set()
    bench.wait_until(lambda: bench.values() == [1, 2, 3], "the masks")
    bench.wait_until(lambda: bench.books() == {Outcome.MASKED: 3, Outcome.QUEUE_FULL: 1}, "the books")


def test_depth_alone_that_is_of_no_use_is_counted_and_the_model_left_alone(make_bench, wait_until):
    bench = make_bench("mask")
    damaged = depth_message(8, data=bytes(3))
    for depth in (depth_message(0), damaged, depth_message(9)):
        bench.pipeline.submit(Frame(9 * 10**9, None, depth, None, Reason.COLOUR_LOST), None)
    bench.pipeline.wait_until_idle()
    tally = bench.pipeline.tally()
    assert (tally.depth_only_masks, tally.depth_only_dropped) == (1, 2)
    assert (tally.depth_empty, tally.depth_unreadable, tally.depth_used) == (1, 1, 1)
    assert bench.books() == {}


def test_depth_alone_that_nobody_wants_is_not_dropped(make_bench):
    bench = make_bench()
    bench.pipeline.submit(Frame(9 * 10**9, None, depth_message(9), None, Reason.COLOUR_LOST), None)
    bench.pipeline.wait_until_idle()
    assert bench.pipeline.tally().depth_only_dropped == 0


def test_frames_that_cannot_be_segmented_are_counted_and_the_next_one_is_segmented(make_bench):
    bench = make_bench("mask", overload="queue")
    damaged = rgb_message(3)
    damaged.data = array("B", [1, 2, 3])
    bench.pipeline.submit(Frame(3, damaged, None, None, Reason.PAIRED), None)
    bench.submit(66, 2)
    bench.wait_until(lambda: bench.values() == [2], "the mask of the sound frame")
    expected = {Outcome.UNREADABLE: 1, Outcome.FAILED: 1, Outcome.MASKED: 1}
    bench.wait_until(lambda: bench.books() == expected, "the books")


def test_colour_is_segmented_alone_where_its_depth_is_damaged(make_bench):
    bench = make_bench("mask")
    bench.pipeline.submit(frame(1, depth=depth_message(1000, encoding="rgb8")), None)
    bench.wait_until(lambda: bench.values() == [1], "the mask")
    assert [depth for _, depth, _ in bench.model.seen] == [None]
    assert bench.pipeline.tally().depth_unreadable == 1


def test_depth_without_a_reading_counts_as_missing(make_bench):
    bench = make_bench("mask", overload="queue")
    for value, depth in ((1, depth_message(1000)), (2, depth_message(0)), (3, None)):
        bench.pipeline.submit(frame(value, depth=depth), None)
    bench.wait_until(lambda: bench.values() == [1, 2, 3], "the masks")
    bench.wait_until(lambda: bench.books() == {Outcome.MASKED: 3}, "the books")
    tally = bench.pipeline.tally()
    assert (tally.depth_used, tally.depth_empty, tally.depth_unreadable) == (1, 1, 0)


def test_another_model_is_swapped_in_between_two_frames_after_its_classes(make_bench, node):
    bench = make_bench("mask", overload="queue")
    classes: list[str] = []
    node.create_subscription(
        String, "segmentation/classes", lambda msg: classes.append(msg.data), LATCHED_QOS
    )
    bench.wait_until(lambda: classes == [LABELS.to_json()], "the classes")
    bench.hold_up(1)
    bench.submit(2)
    other = StandIn(LabelSet.generic(6))
    swap = threading.Thread(target=bench.pipeline.swap, args=(other,))
    swap.start()
    swap.join(0.05)
    assert swap.is_alive(), "the frame in hand is the old model's"
    assert bench.pipeline.predictor is bench.model
    bench.model.go_on.set()
    swap.join()
    bench.wait_until(lambda: bench.values() == [1, 2], "the masks")
    assert [len(model.seen) for model in (bench.model, other)] == [1, 1]
    bench.wait_until(lambda: classes[1:] == [other.labels.to_json()], "the new classes")


def test_model_can_be_swapped_while_nothing_runs(make_bench):
    bench = make_bench("mask")
    bench.pipeline.stop()
    other = StandIn()
    bench.pipeline.swap(cast(Any, other))
    bench.pipeline.start()
    bench.submit(1)
    bench.wait_until(lambda: bench.values() == [1], "the mask")
    assert other.seen


def test_output_that_is_disabled_is_not_published_until_it_is_enabled(make_bench):
    bench = make_bench("mask", "color", outputs=("mask", "overlay"))
    bench.submit(1)
    bench.wait_until(lambda: bench.values() == [1], "the mask")
    assert not bench.heard["color"]
    bench.outputs.use_parameters(NodeParameters(outputs=("color",)))
    bench.submit(2)
    bench.wait_until(lambda: bench.heard["color"], "the colours")
    assert bench.values() == [1]


def test_waiting_before_the_pipeline_counts_too(make_bench):
    bench = make_bench("mask")
    bench.pipeline.submit(frame(1), None, waited=5.0)
    bench.wait_until(lambda: bench.pipeline.timings(), "the timing")
    assert 5.0 <= bench.pipeline.timings()[0].wait < 10.0


def test_depth_alone_gives_a_mask_of_its_own_header_and_is_no_colour_image_in_the_books(make_bench):
    bench = make_bench("mask", "overlay", overload="queue")
    for value, fields in ((3, {}), (3, {"encoding": "nonsense"})):
        depth = depth_message(value, **fields)
        bench.pipeline.submit(Frame(0, None, depth, 0, Reason.COLOUR_LOST), None)
    bench.submit(1)
    bench.wait_until(lambda: bench.values() == [3, 1], "the masks")
    assert bench.heard["mask"][0].header.frame_id == "depth"
    bench.wait_until(lambda: bench.books() == {Outcome.MASKED: 1}, "the books")
    assert bench.pipeline.tally().depth_only_masks == 1


def test_frames_left_at_the_end_are_in_the_books(make_bench):
    bench = make_bench("mask", overload="queue")
    bench.hold_up(1)
    bench.submit(2, 3)
    threading.Timer(0.01, bench.model.go_on.set).start()
    bench.pipeline.stop()
    bench.submit(2)
    assert bench.books() == {Outcome.MASKED: 1, Outcome.INACTIVE: 3}


def test_pipeline_starts_again_after_a_stop(make_bench):
    bench = make_bench("mask")
    bench.pipeline.stop()
    bench.pipeline.start()
    bench.submit(1)
    bench.wait_until(lambda: bench.values() == [1], "the mask")
    bench.wait_until(lambda: len(bench.pipeline.timings()) == 1, "the timing")
    assert all(stage >= 0 for stage in bench.pipeline.timings()[0])


@given(st.dictionaries(st.sampled_from(Outcome), st.integers(0, 100)))
def test_every_outcome_is_a_mask_skipped_or_dropped(counts):
    tally = Tally({outcome: counts.get(outcome, 0) for outcome in Outcome}, 0, 0, 0, 0, 0)
    assert tally.masks + tally.skipped + tally.dropped == sum(counts.values())
