# SPDX-License-Identifier: Apache-2.0
"""The node's subscriptions: colour, depth and their camera_info, paired into frames."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from m3l_model.registration import registration_problem
from m3l_model.sync import Frame, RgbdSynchronizer, SyncStatus
from m3l_ros.freeze import FreezeWatch
from m3l_ros.group_executor import GroupExecutor
from m3l_ros.parameters import NodeParameters
from m3l_ros.providers import SimpleFilter, Subscriber
from m3l_ros.qos import (
    CAMERA_INFO_QOS,
    NO_SUBSCRIPTION_EVENTS,
    SubscriptionEventCallbacks,
    UnsupportedEventTypeError,
    input_qos,
)
from m3l_ros.receipts import Receipts
from m3l_ros.synchronizer import RgbdTimeSynchronizer

_WATCH_PERIOD = 1.0


class InputStatus(NamedTuple):
    """A snapshot of the inputs for diagnostics."""

    rgb: StreamStatus
    depth: StreamStatus
    registration_problem: str | None
    depth_frozen_for: float = 0.0
    """How long the same depth image has been repeated under new stamps, s."""


class StreamStatus(NamedTuple):
    """A snapshot of one image subscription."""

    topic: str
    publishers: int
    reliable: bool
    lost: int = 0
    """Images that the middleware knows of and that never came."""
    qos_problem: str | None = None
    """Why a publisher cannot be heard, and what to set."""


class Inputs:
    """Subscribes, pairs and hands over frames, in a thread of its own, until it is closed.

    Args:
        node: gets the subscriptions.
        core: does the pairing.
        parameters: say which transports and QoS.
        on_frame: called with each frame, the latest camera_info of colour (None where none has come), and the seconds
            since the frame's image arrived.
        wait_until_segmented: returns when all frames handed over are dealt with.
    """

    def __init__(
        self,
        node: Node,
        core: RgbdSynchronizer,
        parameters: NodeParameters,
        on_frame: Callable[[Frame, CameraInfo | None, float], None],
        wait_until_segmented: Callable[[], None],
    ) -> None:
        self._node = node
        self._wait_until_segmented = wait_until_segmented
        self._on_frame = on_frame
        self._rgb_info: CameraInfo | None = None
        self._depth_info: CameraInfo | None = None
        self._rgb_frame_id: str | None = None
        self._depth_frame_id: str | None = None
        self._problem: str | None = None
        self._freeze = FreezeWatch()
        self._executor = GroupExecutor(node)
        callback_group = self._executor.group

        self._infos = [
            node.create_subscription(
                CameraInfo,
                topic,
                callback,
                CAMERA_INFO_QOS,
                callback_group=callback_group,
                event_callbacks=NO_SUBSCRIPTION_EVENTS,
            )
            for topic, callback in (
                (camera_info_topic(node, "rgb"), self._on_rgb_info),
                (camera_info_topic(node, "depth"), self._on_depth_info),
            )
        ]
        # Depth first: an executor serves what has come in this order, and colour then finds its depth.
        self._depth, self._rgb = (
            QosFollowingSubscriber(node, topic, transport, parameters, callback_group)
            for topic, transport in (
                ("depth/image", parameters.depth_transport),
                ("rgb/image", parameters.rgb_transport),
            )
        )
        self._rgb.registerCallback(self._on_rgb)
        self._depth.registerCallback(self._on_depth)
        self._receipts = Receipts(node, callback_group, self._settle)
        self._synchronizer = RgbdTimeSynchronizer(
            node, core, self._rgb, self._depth, callback_group, self._receipts.wanted
        )
        self._synchronizer.registerCallback(self._on_synchronized)
        for subscriber in (self._rgb, self._depth):  # called after the synchronizer, which was here first
            subscriber.registerCallback(partial(self._receipts.image, topic=subscriber.topic))
        self._watch_timer = node.create_timer(
            _WATCH_PERIOD, self._watch, callback_group, Clock(clock_type=ClockType.STEADY_TIME)
        )
        self._executor.start()

    def status(self) -> InputStatus:
        """Of the topics."""
        return InputStatus(self._rgb.status(), self._depth.status(), self._problem, self._freeze.frozen_for)

    def set_tolerances(self, slop: float, max_wait: float, depth_timeout: float) -> None:
        """Change those of the pairing."""
        self._synchronizer.set_tolerances(slop, max_wait, depth_timeout)
        self._executor.wake()

    def sync_status(self) -> SyncStatus:
        """Of the pairing."""
        return self._synchronizer.status()

    @property
    def outage(self) -> bool:
        """Whether there was no depth for too long, as of the latest image."""
        return self._synchronizer.outage

    def close(self) -> list[Frame]:
        """Unsubscribe; returns the frames that waited for their depth."""
        self._executor.stop()
        self._node.destroy_timer(self._watch_timer)
        for subscription in self._infos:
            self._node.destroy_subscription(subscription)
        self._rgb.close()
        self._depth.close()
        self._receipts.close()
        return self._synchronizer.close()

    def _on_rgb(self, msg: Any) -> None:
        self._rgb_frame_id = msg.header.frame_id

    def _on_depth(self, msg: Any) -> None:
        self._depth_frame_id = msg.header.frame_id
        self._freeze.add(msg, time.monotonic())

    def _on_rgb_info(self, msg: CameraInfo) -> None:
        self._rgb_info = msg

    def _on_depth_info(self, msg: CameraInfo) -> None:
        self._depth_info = msg

    def _on_synchronized(self, frame: Frame, waited: float) -> None:
        self._on_frame(frame, self._rgb_info, waited)

    def _settle(self) -> None:
        self._synchronizer.settle()
        self._wait_until_segmented()

    def _watch(self) -> None:
        self._rgb.follow()
        self._depth.follow()
        self._problem = registration_problem(
            self._rgb_frame_id, self._depth_frame_id, self._rgb_info, self._depth_info
        )


def camera_info_topic(node: Node, stream: str) -> str:
    """Where a stream's camera infos are: what ``STREAM/camera_info`` is remapped to, or else beside its images."""
    topic = f"{stream}/camera_info"
    remapped = node.resolve_topic_name(topic)
    if remapped != node.resolve_topic_name(topic, only_expand=True):
        return remapped
    return node.resolve_topic_name(f"{stream}/image").rpartition("/")[0] + "/camera_info"


class QosFollowingSubscriber(SimpleFilter):
    """A subscription to an image topic whose QoS follows what the topic's publishers offer.

    It requests reliable while it knows of no publisher, so that nothing of a reliable one is missed, and changes to
    best effort as soon as a publisher offers no more.

    Args:
        node: gets the subscription.
        topic: relative name of the raw topic; what it resolves to is the image_transport base name.
        transport: ``raw``, or what image_transport appends to the base name.
        parameters: say what QoS to request.
        callback_group: of the subscription; ``follow`` must be called from it.
    """

    def __init__(
        self,
        node: Node,
        topic: str,
        transport: str,
        parameters: NodeParameters,
        callback_group: CallbackGroup,
    ) -> None:
        super().__init__()
        self._node = node
        base = node.resolve_topic_name(topic)
        self.topic = base if transport == "raw" else f"{base}/{transport}"
        self._msg_type = Image if transport == "raw" else CompressedImage
        self._policy = parameters.input_qos
        self._depth = parameters.input_depth
        self._callback_group = callback_group
        self._lock = threading.Lock()
        self._closed = False
        self._subscriber: Any = None
        self._reliability = ReliabilityPolicy.RELIABLE
        self._lost = 0
        self._qos_problem: str | None = None
        self.follow()

    def follow(self) -> None:
        """Subscribe anew if the publishers that there are now ask for another QoS."""
        offered = self._offered()
        with self._lock:
            if all(reliability == ReliabilityPolicy.RELIABLE for reliability in offered):
                self._qos_problem = None
            if self._closed or (self._subscriber is not None and not offered):
                return
            qos = input_qos(self._policy, self._depth, offered)
            if self._subscriber is not None and qos.reliability == self._reliability:
                return
            self._unsubscribe()
            self._reliability = qos.reliability
            self._qos_problem = None
            self._subscriber = self._subscribe(qos)
            self._subscriber.registerCallback(self.signalMessage)

    def status(self) -> StreamStatus:
        """The topic, its publishers and the QoS requested of them."""
        reliable = self._reliability == ReliabilityPolicy.RELIABLE
        publishers = self._node.count_publishers(self.topic)
        return StreamStatus(self.topic, publishers, reliable, self._lost, self._qos_problem)

    def close(self) -> None:
        """Unsubscribe for good."""
        with self._lock:
            self._closed = True
            self._unsubscribe()

    def _offered(self) -> list[ReliabilityPolicy]:
        return [
            publisher.qos_profile.reliability
            for publisher in self._node.get_publishers_info_by_topic(self.topic)
        ]

    def _subscribe(self, qos: QoSProfile) -> Any:
        events: dict[str, Any] = {
            "incompatible_qos": self._on_incompatible_qos,
            "message_lost": self._on_message_lost,
        }
        while True:
            try:
                return Subscriber(
                    self._node,
                    self._msg_type,
                    self.topic,
                    qos_profile=qos,
                    callback_group=self._callback_group,
                    event_callbacks=SubscriptionEventCallbacks(**events, use_default_callbacks=False),
                )
            except UnsupportedEventTypeError:  # a middleware that does not say what it lost
                del events["message_lost"]

    def _unsubscribe(self) -> None:
        if self._subscriber is not None:
            self._node.destroy_subscription(self._subscriber.sub)
            self._subscriber = None

    def _on_message_lost(self, event: Any) -> None:
        self._lost += event.total_count_change

    def _on_incompatible_qos(self, _: Any) -> None:
        if self._policy == "auto":
            self.follow()
            return
        if self._qos_problem is None:
            self._qos_problem = (
                f"a publisher does not offer the QoS that parameter input_qos: {self._policy} requests, and nothing of "
                "it is received; set input_qos: auto"
            )
