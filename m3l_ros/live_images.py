# SPDX-License-Identifier: Apache-2.0
"""The images of a bag as messages for the live node, as they would reach it under a scenario of the evaluation."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import closing
from typing import Any, NamedTuple

import numpy as np
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from m3l_model.bag_frames import BagFrames, camera_arrivals
from m3l_model.bag_index import MessageReader
from m3l_model.images import ImageFormatError, to_depth, to_rgb
from m3l_model.scenarios import Scenario, Seen
from m3l_ros.outputs import image_message
from m3l_ros.stamps import to_time

_STAMP_AT = 4
"""Where the stamp of a message with a header lies in its CDR."""


class LiveImage(NamedTuple):
    """A message for the node.

    Attributes:
        rgb: whether it is colour, rather than depth.
        now_ns: when it arrives.
        stamp_ns: in its header.
        message: in CDR.
    """

    rgb: bool
    now_ns: int
    stamp_ns: int
    message: bytes


class LiveImages:
    """Iterates over the colour and depth images of a bag as they arrive under a scenario.

    Images go out as they were recorded, with the scenario's stamp; where it changes the images themselves, as raw ones.

    Args:
        frames: of the bag.
        scenario: what happens to them.
        seed: of the scenario.

    Attributes:
        start_ns: when the bag's first image was recorded.
        rgb_transport, depth_transport: what the node's parameters of that name must be.
    """

    def __init__(self, frames: BagFrames, scenario: Scenario, seed: int) -> None:
        self._frames = frames
        self._scenario = scenario
        self._seed = seed
        index, topics = frames.index, frames.topics
        compressed = {image.topic: image.compressed for image in index.images}
        self.rgb_transport = self._transport(compressed[topics.rgb], "compressed")
        self.depth_transport = self._transport(compressed.get(topics.depth or "", False), "compressedDepth")
        arrivals = camera_arrivals(index, topics)
        self.start_ns = int(arrivals["log_ns"][0])
        self._arrivals = scenario.arrive(arrivals, seed)

    @property
    def message_types(self) -> tuple[type, type]:
        """Of colour and of depth."""
        rgb, depth = (
            Image if transport == "raw" else CompressedImage
            for transport in (self.rgb_transport, self.depth_transport)
        )
        return rgb, depth

    def __iter__(self) -> Iterator[LiveImage]:
        index = self._frames.index
        with closing(MessageReader(index)) as reader:
            for row, rgb, stamp_ns, now_ns in self._arrivals.tolist():
                recorded = index.messages[row]
                if self._scenario.images is None:
                    message = _stamped(bytes(reader.read(recorded)), stamp_ns)
                else:
                    message = self._faulty(reader.read_image(recorded), rgb, stamp_ns)
                yield LiveImage(rgb, now_ns, stamp_ns, message)

    def _transport(self, compressed: bool, name: str) -> str:
        return name if compressed and self._scenario.images is None else "raw"

    def _faulty(self, recorded: Any, rgb: bool, stamp_ns: int) -> bytes:
        """The image under the scenario; an empty one, which nobody can read either, where it is damaged."""
        header = Header(stamp=to_time(stamp_ns), frame_id=recorded.header.frame_id)
        try:
            seen = Seen(to_rgb(recorded), None) if rgb else Seen(None, to_depth(recorded))
        except ImageFormatError:
            return bytes(serialize_message(Image(header=header)))
        start_ns = int(self._frames.frames["stamp_ns"][0])
        faulty = self._scenario.see(seen, self._seed, (stamp_ns, stamp_ns), start_ns)
        pixels = faulty.rgb if rgb else faulty.depth
        assert pixels is not None
        encoding = "rgb8" if rgb else "16UC1" if pixels.dtype == np.uint16 else "32FC1"
        return bytes(serialize_message(image_message(header, encoding, pixels)))


def _stamped(message: bytes, stamp_ns: int) -> bytes:
    """A message in CDR with another stamp."""
    order = "<" if message[1] & 1 else ">"
    stamped = bytearray(message)
    struct.pack_into(f"{order}iI", stamped, _STAMP_AT, *divmod(stamp_ns, 1_000_000_000))
    return bytes(stamped)
