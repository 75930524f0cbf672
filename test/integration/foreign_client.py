# SPDX-License-Identifier: Apache-2.0
"""A camera and a listener that know DDS and nothing of ROS 2 but its names: ``foreign_client.py IN.npz OUT.npz``.

Publishes the colour images ``rgb`` (N, H, W, 3) of the one file, and the depth images ``depth`` (M, H, W), M <= N, with
the first of them; writes the masks, their stamps and frame ids, and the classes that it receives to the other.
"""

# mypy: disable-error-code="type-arg"
import os
import sys
import time
from dataclasses import dataclass

import numpy as np
from cyclonedds.core import Policy, Qos
from cyclonedds.domain import Domain, DomainParticipant
from cyclonedds.idl import IdlStruct
from cyclonedds.idl.types import int32, sequence, uint8, uint32
from cyclonedds.pub import DataWriter
from cyclonedds.sub import DataReader
from cyclonedds.topic import Topic
from cyclonedds.util import duration

PATIENCE = 120.0
LOOPBACK = """<CycloneDDS><Domain>
  <General><Interfaces><NetworkInterface name="lo"/></Interfaces><AllowMulticast>false</AllowMulticast></General>
  <Discovery><Peers><Peer address="127.0.0.1"/></Peers><MaxAutoParticipantIndex>100</MaxAutoParticipantIndex>
    <ParticipantIndex>auto</ParticipantIndex></Discovery>
</Domain></CycloneDDS>"""
RELIABLE = Qos(Policy.Reliability.Reliable(duration(seconds=10)), Policy.History.KeepLast(50))
LATCHED = Qos(
    Policy.Reliability.Reliable(duration(seconds=10)),
    Policy.Durability.TransientLocal,
    Policy.History.KeepLast(1),
)


@dataclass
class Time(IdlStruct, typename="builtin_interfaces::msg::dds_::Time_"):
    sec: int32
    nanosec: uint32


@dataclass
class Header(IdlStruct, typename="std_msgs::msg::dds_::Header_"):
    stamp: Time
    frame_id: str


@dataclass
class Image(IdlStruct, typename="sensor_msgs::msg::dds_::Image_"):
    header: Header
    height: uint32
    width: uint32
    encoding: str
    is_bigendian: uint8
    step: uint32
    data: sequence[uint8]


@dataclass
class String(IdlStruct, typename="std_msgs::msg::dds_::String_"):
    data: str


@dataclass
class KeyValue(IdlStruct, typename="diagnostic_msgs::msg::dds_::KeyValue_"):
    key: str
    value: str


@dataclass
class DiagnosticStatus(IdlStruct, typename="diagnostic_msgs::msg::dds_::DiagnosticStatus_"):
    level: uint8
    name: str
    message: str
    hardware_id: str
    values: sequence[KeyValue]


@dataclass
class DiagnosticArray(IdlStruct, typename="diagnostic_msgs::msg::dds_::DiagnosticArray_"):
    header: Header
    status: sequence[DiagnosticStatus]


def main(source, target):
    domain_id = int(os.environ["ROS_DOMAIN_ID"])
    domain = Domain(domain_id, LOOPBACK)
    participant = DomainParticipant(domain_id)
    rgb, depth = (
        DataWriter(participant, Topic(participant, f"rt/{name}/image", Image), RELIABLE)
        for name in ("rgb", "depth")
    )
    masks, classes, diagnostics = (
        DataReader(participant, Topic(participant, f"rt/{name}", kind), qos)
        for name, kind, qos in (
            ("segmentation/mask", Image, RELIABLE),
            ("segmentation/classes", String, LATCHED),
            ("diagnostics", DiagnosticArray, RELIABLE),
        )
    )
    said = {}

    def node_says(key, value):
        for message in diagnostics.take(50):
            said.update({pair.key: pair.value for pair in message.status[0].values})
        return said.get(key) == value

    wait_for(lambda: rgb.matched_sub and depth.matched_sub, "subscriptions of the node")
    wait_for(lambda: node_says("subscribed outputs", "mask"), "the node to know who listens")
    images = np.load(source)
    depth.write(image(images["depth"][0], "16UC1", -1))
    wait_for(lambda: node_says("outage", "False"), "the node to know of depth")
    for index, pixels in enumerate(images["rgb"]):
        if index < len(images["depth"]):
            depth.write(image(images["depth"][index], "16UC1", index))
        rgb.write(image(pixels, "rgb8", index))
    received, latched = [], []

    def all_received():
        received.extend(masks.take(50))
        return len(received) >= len(images["rgb"])

    def classes_received():
        latched.extend(classes.take(5))
        return latched

    wait_for(all_received, "the masks")
    wait_for(classes_received, "the classes")  # a topic is found in its own time
    np.savez(
        target,
        masks=[np.array(mask.data, np.uint8).reshape(mask.height, mask.step) for mask in received],
        stamps=[mask.header.stamp.sec * 10 + mask.header.stamp.nanosec // 10**8 for mask in received],
        frame_ids=[mask.header.frame_id for mask in received],
        encodings=[mask.encoding for mask in received],
        classes=[message.data for message in latched],
    )
    del participant, domain


def image(pixels, encoding, index):
    sec, tenths = divmod(1000 * 10 + index, 10)
    header = Header(Time(sec, tenths * 10**8), "foreign_camera")
    height, width = pixels.shape[:2]
    return Image(header, height, width, encoding, 0, pixels.strides[0], pixels.tobytes())


def wait_for(condition, what):
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            sys.exit(f"waited {PATIENCE:g} s in vain for {what}")
        time.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
