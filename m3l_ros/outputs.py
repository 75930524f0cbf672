# SPDX-License-Identifier: Apache-2.0
"""The node's publishers: masks and what is painted of them, each for those who subscribe."""

from __future__ import annotations

import threading
from array import array
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo, Image, TimeReference
from std_msgs.msg import Header, String

from m3l_model.labels import LabelSet
from m3l_model.overlay import paint_over
from m3l_model.sync import Frame
from m3l_ros.parameters import OUTPUTS, NodeParameters
from m3l_ros.qos import ACCOUNT_QOS, LATCHED_QOS, MASK_QOS, NO_PUBLISHER_EVENTS

if TYPE_CHECKING:
    from m3l_model.predictor import Prediction

try:
    from vision_msgs.msg import LabelInfo, VisionClass
except ImportError:
    LabelInfo = None

MASK, COLOR, OVERLAY, CONFIDENCE, CAMERA_INFO = OUTPUTS
DECISION = "segmentation/decision"


class Outputs:
    """Publishers of one label set; the classes are published at once, and kept for late subscribers.

    Args:
        node: gets the publishers.
        labels: names and colours of the classes.
        parameters: say which outputs there are, and how opaque the overlay's colours.
    """

    def __init__(self, node: Node, labels: LabelSet, parameters: NodeParameters) -> None:
        self._node = node
        self.use_parameters(parameters)
        self._lock = threading.Lock()  # diagnostics ask what is wanted while the node is cleaned up
        self._publishers = {
            name: node.create_publisher(
                CameraInfo if name == CAMERA_INFO else Image,
                f"segmentation/{name}",
                MASK_QOS,
                event_callbacks=NO_PUBLISHER_EVENTS,
            )
            for name in OUTPUTS
        }
        self._decisions = node.create_publisher(
            TimeReference, DECISION, ACCOUNT_QOS, event_callbacks=NO_PUBLISHER_EVENTS
        )
        self._classes, self._label_info = (
            None
            if message_type is None
            else node.create_publisher(
                message_type, f"segmentation/{name}", LATCHED_QOS, event_callbacks=NO_PUBLISHER_EVENTS
            )
            for message_type, name in ((String, "classes"), (LabelInfo, "label_info"))
        )
        self.use_labels(labels)

    def use_parameters(self, parameters: NodeParameters) -> None:
        """Take over what may change at any time."""
        self._enabled = frozenset(parameters.outputs)
        self._opacity = parameters.overlay_opacity

    def use_labels(self, labels: LabelSet) -> None:
        """Publish the classes of the masks to come."""
        self._labels = labels
        assert self._classes is not None
        self._classes.publish(String(data=labels.to_json()))
        if self._label_info is not None:
            self._label_info.publish(_label_info(labels, self._node))

    def wanted(self) -> frozenset[str]:
        """Which of a frame's topics are enabled, and subscribed to by somebody."""
        with self._lock:
            return frozenset(
                name
                for name, publisher in self._publishers.items()
                if name in self._enabled and publisher.get_subscription_count() > 0
            )

    def publish(
        self,
        wanted: frozenset[str],
        header: Header,
        prediction: Prediction,
        rgb: npt.NDArray[np.uint8] | None,
        camera_info: CameraInfo | None,
    ) -> None:
        """Publish one frame.

        Args:
            wanted: the topics to publish.
            header: stamp and frame_id of the image that was segmented.
            prediction: its (H, W) labels, and the confidence where it is wanted.
            rgb: the (H, W, 3) colour image; None where colour is lost.
            camera_info: of colour; None where none has come.
        """
        # All are made before any is published: a frame goes out whole or not at all.
        messages: dict[str, Any] = {}
        if MASK in wanted:
            messages[MASK] = image_message(header, "mono8", prediction.labels)
        if CAMERA_INFO in wanted and camera_info is not None and rgb is not None:
            camera_info.header = header
            messages[CAMERA_INFO] = camera_info
        if CONFIDENCE in wanted and prediction.confidence is not None:
            messages[CONFIDENCE] = image_message(header, "32FC1", prediction.confidence)
        if wanted & {COLOR, OVERLAY}:
            color = self._labels.colorize(prediction.labels)
            if COLOR in wanted:
                messages[COLOR] = image_message(header, "rgb8", color)
            if OVERLAY in wanted:
                messages[OVERLAY] = image_message(header, "rgb8", paint_over(rgb, color, self._opacity))
        for name, message in messages.items():
            self._publishers[name].publish(message)

    def publish_decision(self, frame: Frame) -> None:
        """Say what the synchronizer made of an image: its header, the stamp of its depth (0: none), and the reason."""
        if not self._decisions.get_subscription_count():
            return
        decision = TimeReference(
            header=(frame.depth if frame.rgb is None else frame.rgb).header, source=str(frame.reason)
        )
        if frame.depth is not None:
            decision.time_ref = frame.depth.header.stamp
        self._decisions.publish(decision)

    def close(self) -> None:
        """Withdraw every topic."""
        with self._lock:
            publishers = [*self._publishers.values(), self._decisions, self._classes, self._label_info]
            self._publishers.clear()
        for publisher in publishers:
            if publisher is not None:
                self._node.destroy_publisher(publisher)


def image_message(header: Header, encoding: str, pixels: npt.NDArray[Any]) -> Image:
    """An (H, W) or (H, W, C) array as sensor_msgs/Image.

    The data are set as an array.array: rclpy takes that as it is, and copies an ndarray element by element.
    """
    pixels = np.ascontiguousarray(pixels)
    data = array("B")
    data.frombytes(pixels.view(np.uint8).data)
    return Image(
        header=header,
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=0,
        step=pixels.strides[0],
        data=data,
    )


def _label_info(labels: LabelSet, node: Node) -> Any:
    message = LabelInfo()
    message.header.stamp = node.get_clock().now().to_msg()
    message.class_map = [
        VisionClass(class_id=index, class_name=name) for index, name in enumerate(labels.classes)
    ]
    return message
