# SPDX-License-Identifier: Apache-2.0
"""Writes RGB-D recordings as rosbag2 in MCAP."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

import numpy as np
import numpy.typing as npt
from rosbags.interfaces import (
    Connection,
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.stores import ros2_jazzy as ros

from m3l_model.bag_topics import CAMERA_INFO, DEFAULT_TOPICS, Topics
from m3l_model.cdr import IMAGE
from m3l_model.errors import M3LError
from m3l_model.mcap_file import write_checksums

BAG_VERSION: Final = 8
"""Of metadata.yaml. Humble reads QoS profiles as text only, which version 9 made a list; Jazzy and later read both."""

_FOREVER = QosTime(9223372036, 854775807)
DEFAULT_QOS = Qos(
    history=QosHistory.KEEP_LAST,
    depth=10,
    reliability=QosReliability.RELIABLE,
    durability=QosDurability.VOLATILE,
    deadline=_FOREVER,
    lifespan=_FOREVER,
    liveliness=QosLiveliness.AUTOMATIC,
    liveliness_lease_duration=_FOREVER,
    avoid_ros_namespace_conventions=False,
)
"""Of topics for which nothing else is said."""
LATCHED_QOS = DEFAULT_QOS._replace(depth=1, durability=QosDurability.TRANSIENT_LOCAL)
"""Of what late subscribers need too."""


class BagWriteError(M3LError):
    """A bag that cannot be written, or a message that does not fit into it."""


class BagWriter:
    """Writes a new bag: a folder of one MCAP file, not compressed, with checksums, and metadata.yaml.

    Topics are offered as reliable, keep last 10, unless told otherwise. Message definitions are those of ROS 2 Jazzy;
    those of images, camera infos and headers are the same since Humble. Log times are the stamps unless given.

    A context manager. The bag bears its name when it is whole: until then it lies in a hidden folder beside it, which
    is removed when the context is left by an exception, or by the next writer of that bag.

    Raises:
        BagWriteError: the folder exists or cannot be made, a topic changes its type, or an array does not fit.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._typestore = get_typestore(Stores.ROS2_JAZZY)
        self._unfinished = self.path.parent / f".{self.path.name}.unfinished"
        self._connections: dict[str, Connection] = {}
        self._writer: Writer | None = None

    def __enter__(self) -> BagWriter:
        if self.path.suffix == ".bag":
            raise BagWriteError(
                f"{self.path}: names in .bag are for ROS 1 bags; this writes a folder, name it without"
            )
        if self.path.exists():
            raise BagWriteError(f"{self.path} exists already; remove it or choose another name")
        folder = self._unfinished / self.path.name
        with self._disk_errors():
            if self._unfinished.exists():
                shutil.rmtree(self._unfinished)
            self._writer = Writer(folder, version=BAG_VERSION, storage_plugin=StoragePlugin.MCAP)
            self._writer.open()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        writer = self._opened()
        self._writer = None
        with self._disk_errors():
            try:
                writer.__exit__(exc_type, exc, traceback)
                if exc_type is None:
                    folder = self._unfinished / self.path.name
                    write_checksums(folder / f"{self.path.name}.mcap")
                    folder.rename(self.path)
            finally:
                shutil.rmtree(self._unfinished, ignore_errors=True)

    def write_frame(
        self,
        stamp_ns: int,
        frame_id: str,
        rgb: npt.NDArray[np.uint8] | None,
        depth_mm: npt.NDArray[np.uint16] | None,
        labels: npt.NDArray[np.uint8] | None,
        k: npt.ArrayLike,
        topics: Topics = DEFAULT_TOPICS,
        log_ns: int | None = None,
    ) -> None:
        """Write all images of one registered camera, with one stamp, and the camera infos of colour and depth.

        Depth goes before colour: the synchronizer lets a colour image wait for depth only once depth has been seen.

        Args:
            stamp_ns, frame_id: of all of them.
            rgb: (H, W, 3) uint8 RGB; None where colour dropped out.
            depth_mm: (H, W) uint16 millimetres, 0 without reading; None where depth dropped out.
            labels: (H, W) uint8 ids; None where the frame has no labels.
            k: (3, 3) intrinsics.
            topics: where to; what has no topic is left out.
            log_ns: log time of all of them.
        """
        for image, info in ((depth_mm, topics.depth_info), (rgb, topics.rgb_info)):
            if image is not None and info is not None:
                height, width = image.shape[:2]
                self.write_camera_info(info, stamp_ns, frame_id, width, height, k, log_ns)
        if depth_mm is not None and topics.depth is not None:
            self.write_depth(topics.depth, stamp_ns, frame_id, depth_mm, log_ns)
        if rgb is not None:
            self.write_rgb(topics.rgb, stamp_ns, frame_id, rgb, log_ns)
        if labels is not None and topics.label is not None:
            self.write_labels(topics.label, stamp_ns, frame_id, labels, log_ns)

    def write_rgb(
        self, topic: str, stamp_ns: int, frame_id: str, rgb: npt.NDArray[np.uint8], log_ns: int | None = None
    ) -> None:
        """Write a colour image, (H, W, 3) uint8 RGB, as rgb8."""
        self._write_image(topic, stamp_ns, frame_id, rgb, "rgb8", log_ns)

    def write_depth(
        self,
        topic: str,
        stamp_ns: int,
        frame_id: str,
        depth_mm: npt.NDArray[np.uint16],
        log_ns: int | None = None,
    ) -> None:
        """Write a depth image, (H, W) uint16 millimetres, 0 without reading, as 16UC1."""
        self._write_image(topic, stamp_ns, frame_id, depth_mm, "16UC1", log_ns)

    def write_labels(
        self,
        topic: str,
        stamp_ns: int,
        frame_id: str,
        labels: npt.NDArray[np.uint8],
        log_ns: int | None = None,
    ) -> None:
        """Write a label image, (H, W) uint8 ids, as mono8; give it the stamp of its colour image."""
        self._write_image(topic, stamp_ns, frame_id, labels, "mono8", log_ns)

    def write_camera_info(
        self,
        topic: str,
        stamp_ns: int,
        frame_id: str,
        width: int,
        height: int,
        k: npt.ArrayLike,
        log_ns: int | None = None,
    ) -> None:
        """Write the intrinsics k, 3x3, of an image that is rectified or nearly so: no distortion, no rotation."""
        intrinsics = np.asarray(k, np.float64).reshape(3, 3)
        msg = ros.sensor_msgs__msg__CameraInfo(
            header=self.header(stamp_ns, frame_id),
            height=height,
            width=width,
            distortion_model="plumb_bob",
            d=np.zeros(5),
            k=intrinsics.ravel(),
            r=np.eye(3).ravel(),
            p=np.hstack([intrinsics, np.zeros((3, 1))]).ravel(),
            binning_x=0,
            binning_y=0,
            roi=ros.sensor_msgs__msg__RegionOfInterest(0, 0, 0, 0, False),
        )
        self.write_message(topic, CAMERA_INFO, stamp_ns if log_ns is None else log_ns, msg)

    def knows(self, msgtype: str) -> bool:
        """Whether messages of a type can be written."""
        return msgtype in self._typestore.fielddefs

    def write_message(
        self, topic: str, msgtype: str, log_ns: int, msg: object, qos: Qos = DEFAULT_QOS
    ) -> None:
        """Write a message of a class of ``rosbags.typesys.stores.ros2_jazzy``; the first one's QoS is the topic's."""
        self.write_serialized(topic, msgtype, log_ns, self._typestore.serialize_cdr(msg, msgtype), qos)

    def write_serialized(
        self, topic: str, msgtype: str, log_ns: int, data: bytes | memoryview, qos: Qos = DEFAULT_QOS
    ) -> None:
        """Write a message that is already serialized as CDR; the first one's QoS is the topic's."""
        connection = self._connection(topic, msgtype, qos)
        with self._disk_errors():
            self._opened().write(connection, log_ns, data)

    def _write_image(
        self,
        topic: str,
        stamp_ns: int,
        frame_id: str,
        pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16],
        encoding: str,
        log_ns: int | None,
    ) -> None:
        dtype, channels = {"rgb8": (np.uint8, 3), "mono8": (np.uint8, 1), "16UC1": (np.uint16, 1)}[encoding]
        if (
            pixels.dtype != dtype
            or pixels.shape[2:] != ((channels,) if channels > 1 else ())
            or pixels.ndim < 2
        ):
            raise BagWriteError(
                f"{topic}: {pixels.dtype} pixels of shape {pixels.shape} are no {encoding} image"
            )
        height, width = pixels.shape[:2]
        msg = ros.sensor_msgs__msg__Image(
            header=self.header(stamp_ns, frame_id),
            height=height,
            width=width,
            encoding=encoding,
            is_bigendian=0,
            step=width * channels * pixels.itemsize,
            data=np.ascontiguousarray(pixels, np.dtype(dtype).newbyteorder("<")).view(np.uint8).ravel(),
        )
        self.write_message(topic, IMAGE, stamp_ns if log_ns is None else log_ns, msg)

    def header(self, stamp_ns: int, frame_id: str) -> ros.std_msgs__msg__Header:
        """A header with a stamp in nanoseconds."""
        seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
        if not 0 <= seconds < 2**31:
            raise BagWriteError(
                f"{self.path}: stamp {stamp_ns} ns does not fit into a message (0 to 2**31 s)"
            )
        return ros.std_msgs__msg__Header(ros.builtin_interfaces__msg__Time(seconds, nanoseconds), frame_id)

    def _connection(self, topic: str, msgtype: str, qos: Qos) -> Connection:
        if topic not in self._connections:
            if not self.knows(msgtype):
                raise BagWriteError(
                    f"{self.path}: {topic} is of type {msgtype}, which ROS 2 Jazzy does not come with"
                )
            self._connections[topic] = self._opened().add_connection(
                topic, msgtype, typestore=self._typestore, offered_qos_profiles=[qos]
            )
        connection = self._connections[topic]
        if connection.msgtype != msgtype:
            raise BagWriteError(f"{self.path}: {topic} is of type {connection.msgtype}, not {msgtype}")
        return connection

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise BagWriteError(f"{self.path}: cannot write: {error.strerror}") from error

    def _opened(self) -> Writer:
        if self._writer is None:
            raise BagWriteError(f"{self.path} is not open; use the writer in a with statement")
        return self._writer
