# SPDX-License-Identifier: Apache-2.0
"""Reads rosbag2 recordings: messages in log order, and frames paired just as the live node pairs them."""

from __future__ import annotations

import shlex
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import numpy.typing as npt
from rosbags.highlevel import AnyReader
from rosbags.interfaces import Connection, ConnectionExtRosbag2, Qos
from rosbags.typesys import Stores, get_typestore

from m3l_model.bag_topics import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    DEFAULT_TOPICS,
    IMAGE,
    ImageTopic,
    Topics,
    TopicsError,
    choose_topics,
)
from m3l_model.bag_writer import BagWriter
from m3l_model.errors import M3LError
from m3l_model.images import ImageFormatError, to_depth, to_labels, to_rgb
from m3l_model.sync import Frame, Reason, RgbdSynchronizer

__all__ = [
    "DEFAULT_TOPICS",
    "BagError",
    "BagFrame",
    "BagMessage",
    "BagReader",
    "BagWriter",
    "RawMessage",
    "Topics",
    "guess_topics",
    "read_frames",
]

_T = TypeVar("_T")

_STAMP = (struct.Struct(">iI"), struct.Struct("<iI"))
_CDR_HEADER_BYTES = 4


class BagError(M3LError):
    """A bag that cannot be read, or lacks what is asked of it."""


class BagMessage(NamedTuple):
    """A message, with the time at which it was recorded."""

    topic: str
    log_ns: int
    msg: Any


class RawMessage(NamedTuple):
    """A message as it was serialized, in CDR."""

    topic: str
    msgtype: str
    log_ns: int
    data: bytes


class BagFrame(NamedTuple):
    """A colour image of a bag with what belongs to it. The arrays may be read-only.

    Attributes:
        stamp_ns: header stamp of the colour image.
        rgb: (H, W, 3) uint8 RGB.
        depth: (H', W') uint16 millimetres or float32 metres; None where it is missing in the bag.
        labels: (H, W) uint8 ids as recorded; None where the frame has none.
        reason: why the synchronizer let the frame go as it is.
        frame_id: of the colour image.
    """

    stamp_ns: int
    rgb: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.uint16] | npt.NDArray[np.float32] | None
    labels: npt.NDArray[np.uint8] | None
    reason: Reason
    frame_id: str


class BagReader:
    """Reads a rosbag2 recording, MCAP or SQLite, a folder or a single file; a context manager.

    Raises:
        BagError: the bag is absent, damaged, of ROS 1, or lacks a topic asked for.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._reader: AnyReader | None = None

    def __enter__(self) -> BagReader:
        with self._errors():
            reader = AnyReader(_storage_paths(self.path), default_typestore=get_typestore(Stores.ROS2_JAZZY))
            reader.open()
        self._reader = reader
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        reader, self._reader = self._opened, None
        reader.close()

    @property
    def connections(self) -> list[Connection]:
        """Topics with type, message count and offered QoS; a topic may come more than once."""
        return self._opened.connections

    @property
    def start_ns(self) -> int:
        """Log time of the first message; 0 in an empty bag."""
        return self._opened.start_time if self._opened.message_count else 0

    @property
    def end_ns(self) -> int:
        """Log time of the last message; 0 in an empty bag."""
        return self._opened.end_time - 1 if self._opened.message_count else 0

    @property
    def topics(self) -> Topics:
        """The colour, depth, label and camera info topics, as far as they can be guessed.

        Raises:
            BagError: no topic looks like a colour camera's.
        """
        return self.choose_topics()

    def choose_topics(
        self, rgb: str | None = None, depth: str | None = None, label: str | None = None
    ) -> Topics:
        """Settle some of the topics and guess the others.

        Raises:
            BagError: a topic named is not an image topic of this bag, or no colour topic is found.
        """
        infos = {connection.topic for connection in self.connections if connection.msgtype == CAMERA_INFO}
        try:
            return choose_topics(self.image_topics, infos, rgb, depth, label)
        except TopicsError as error:
            raise BagError(f"{self.path}: {error}") from None

    def require_images(self, topics: Topics) -> list[str]:
        """The colour, depth and label topic, checked to be of images.

        Raises:
            BagError: one of them is not in the bag, or of another type.
        """
        wanted = [topic for topic in (topics.rgb, topics.depth, topics.label) if topic is not None]
        for connection in self._connections_of(wanted):
            if connection.msgtype not in (IMAGE, COMPRESSED_IMAGE):
                raise BagError(
                    f"{self.path}: {connection.topic} is of type {connection.msgtype}, not an image"
                )
        return wanted

    @cached_property
    def image_topics(self) -> tuple[ImageTopic, ...]:
        """The topics of images, each described by its first message."""
        counts: Counter[tuple[str, str]] = Counter()
        for connection in self.connections:
            if connection.msgtype in (IMAGE, COMPRESSED_IMAGE):
                counts[connection.topic, connection.msgtype] += connection.msgcount
        return tuple(
            ImageTopic.from_message(topic, msgtype, count, first.msg)
            for (topic, msgtype), count in counts.items()
            for first in islice(self.messages([topic]), 1)
        )

    def qos(self, topic: str) -> Qos | None:
        """The QoS profile that the recorded publisher of a topic offered; None where the bag does not say."""
        extensions = [
            cast("ConnectionExtRosbag2", connection.ext) for connection in self._connections_of([topic])
        ]
        return next((profile for extension in extensions for profile in extension.offered_qos_profiles), None)

    def messages(self, topics: Iterable[str] | None = None) -> Iterator[BagMessage]:
        """Read the messages of some topics, or of all, in log order.

        Raises:
            BagError: the bag has no such topic, or the data is damaged.
        """
        for raw in self.raw_messages(topics):
            yield BagMessage(raw.topic, raw.log_ns, self.deserialize(raw))

    def raw_messages(self, topics: Iterable[str] | None = None) -> Iterator[RawMessage]:
        """Like ``messages``, but leave them serialized.

        Raises:
            BagError: the bag has no such topic, or the data is damaged.
        """
        connections = self.connections if topics is None else self._connections_of(topics)
        with self._errors():
            for connection, log_ns, data in self._opened.messages(connections) if connections else ():
                yield RawMessage(connection.topic, connection.msgtype, log_ns, data)

    def deserialize(self, raw: RawMessage) -> Any:
        """Decode a message of this bag.

        Raises:
            BagError: the data is damaged.
        """
        with self._errors():
            return self._opened.deserialize(raw.data, raw.msgtype)

    def header_stamp_ns(self, raw: RawMessage) -> int:
        """The stamp of a message whose first field is a std_msgs/Header, without decoding the rest.

        Raises:
            BagError: the message is too short.
        """
        if len(raw.data) < _CDR_HEADER_BYTES + 8:
            raise BagError(
                f"{self.path}: a message of {raw.topic} has {len(raw.data)} bytes, too few for a header"
            )
        little_endian = raw.data[1] & 1
        seconds, nanoseconds = _STAMP[little_endian].unpack_from(raw.data, _CDR_HEADER_BYTES)
        return int(seconds) * 1_000_000_000 + int(nanoseconds)

    def _connections_of(self, topics: Iterable[str]) -> list[Connection]:
        wanted = set(topics)
        found = [connection for connection in self.connections if connection.topic in wanted]
        missing = wanted - {connection.topic for connection in found}
        if missing:
            known = sorted({connection.topic for connection in self.connections})
            raise BagError(
                f"{self.path}: no topic {', '.join(sorted(missing))}; the bag has {', '.join(known) or 'none'}"
            )
        return found

    @property
    def _opened(self) -> AnyReader:
        if self._reader is None:
            raise BagError(f"{self.path} is not open; use the reader in a with statement")
        return self._reader

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except M3LError:
            raise
        except Exception as error:  # on damage, rosbags raises anything from its own errors to TypeError
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BagError(
                f"{self.path}: cannot read the bag, it may be damaged or incomplete: {reason}"
            ) from error


def guess_topics(
    path: str | Path, rgb: str | None = None, depth: str | None = None, label: str | None = None
) -> Topics:
    """Settle some of a bag's topics and guess the others; see ``BagReader.choose_topics``."""
    with BagReader(path) as reader:
        return reader.choose_topics(rgb, depth, label)


def read_frames(
    path: str | Path,
    topics: Topics | None = None,
    slop: float = 0.02,
    max_wait: float = 0.1,
    depth_timeout: float = 0.5,
    queue_size: int = 30,
) -> Iterator[BagFrame]:
    """Read a bag as the frames that the live node would see, had it received each message at its log time.

    Every colour image becomes one frame, with depth or without; a frame's labels are the label image with its stamp.

    Args:
        path: a rosbag2 folder or file.
        topics: which to read; guessed when None.
        slop, max_wait, depth_timeout, queue_size: of the synchronizer, in seconds.

    Raises:
        BagError: the bag cannot be read, or no label image has the stamp of a colour image.
        ImageFormatError: an image is damaged or of another kind than its topic's.
    """
    sync = RgbdSynchronizer(slop, max_wait, depth_timeout, queue_size)
    with BagReader(path) as reader:
        topics = topics or reader.topics
        wanted = reader.require_images(topics)
        labels = _LabelBuffer(_label_stamps(reader, topics))
        waiting: deque[Frame] = deque()
        for raw in reader.raw_messages(wanted):
            stamp_ns = reader.header_stamp_ns(raw)
            if (
                raw.topic == topics.rgb
            ):  # what fell due before log_ns goes out first, as if poll had been called then
                waiting += sync.add_rgb(stamp_ns, raw, raw.log_ns)
            elif raw.topic == topics.depth:
                waiting += sync.add_depth(stamp_ns, raw, raw.log_ns)
            else:
                labels.add(stamp_ns, raw)
            while waiting and labels.settled(waiting[0].stamp_ns):
                frame = waiting.popleft()
                yield _decode(reader, frame, labels.take(frame.stamp_ns))
        while (deadline_ns := sync.next_deadline_ns()) is not None:
            waiting += sync.poll(deadline_ns)
        for frame in waiting:
            yield _decode(reader, frame, labels.take(frame.stamp_ns))


class _LabelBuffer:
    """Label images, kept until the frame with their stamp comes; frames wait for those that are still to come.

    Args:
        awaited: how many label images will come with each stamp.
    """

    def __init__(self, awaited: Counter[int]) -> None:
        self._awaited = awaited
        self._arrived: dict[int, RawMessage] = {}

    def add(self, stamp_ns: int, raw: RawMessage) -> None:
        if self._awaited[stamp_ns]:
            self._awaited[stamp_ns] -= 1
            self._arrived[stamp_ns] = raw

    def settled(self, stamp_ns: int) -> bool:
        return stamp_ns in self._arrived or not self._awaited[stamp_ns]

    def take(self, stamp_ns: int) -> RawMessage | None:
        return self._arrived.pop(stamp_ns, None)


def _label_stamps(reader: BagReader, topics: Topics) -> Counter[int]:
    """Count the label images of each colour image's stamp, by a first pass over the bag."""
    if topics.label is None:
        return Counter()
    stamps: dict[str, Counter[int]] = {topics.rgb: Counter(), topics.label: Counter()}
    for raw in reader.raw_messages(stamps):
        stamps[raw.topic][reader.header_stamp_ns(raw)] += 1
    labels, colors = stamps[topics.label], stamps[topics.rgb]
    matched = Counter({stamp_ns: count for stamp_ns, count in labels.items() if stamp_ns in colors})
    if labels and not matched:
        raise BagError(
            f"{reader.path}: none of the {labels.total()} images of {topics.label} has the stamp of an image of "
            f"{topics.rgb}; a label image must carry the header stamp of the colour image it labels"
        )
    return matched


def _decode(reader: BagReader, frame: Frame, label: RawMessage | None) -> BagFrame:
    msg = reader.deserialize(frame.rgb)
    rgb = _convert(reader, to_rgb, frame.rgb, msg)
    depth = labels = None
    if frame.depth is not None:
        depth = _convert(reader, to_depth, frame.depth, reader.deserialize(frame.depth))
    if label is not None:
        labels = _convert(reader, to_labels, label, reader.deserialize(label))
        if labels.shape != rgb.shape[:2]:
            raise ImageFormatError(
                f"{reader.path}: {label.topic} at {frame.stamp_ns} has (height, width) {labels.shape}, "
                f"but the colour image {rgb.shape[:2]}"
            )
    return BagFrame(frame.stamp_ns, rgb, depth, labels, frame.reason, msg.header.frame_id)


def _convert(reader: BagReader, convert: Callable[[Any], _T], raw: RawMessage, msg: Any) -> _T:
    try:
        return convert(msg)
    except ImageFormatError as error:
        raise ImageFormatError(
            f"{reader.path}: {raw.topic} at {reader.header_stamp_ns(raw)}: {error}"
        ) from error


def _storage_paths(path: Path) -> list[Path]:
    """What rosbags is to open: a folder with metadata.yaml, or the storage files of one without."""
    if not path.exists():
        raise BagError(f"{path}: no such bag")
    if path.is_dir() and path.suffix == ".bag":
        raise BagError(f"{path}: a folder ending in .bag would be taken for a ROS 1 bag; rename it")
    if (path / "metadata.yaml").exists():
        return [path]
    files = [path] if path.is_file() else []
    for pattern in ("*.mcap", "*.db3", "*.bag"):
        files = files or sorted(path.glob(pattern))
    if not files:
        raise BagError(f"{path} is no rosbag2 folder: it has no metadata.yaml, .mcap or .db3 file")
    if files[0].suffix == ".bag":
        source, target = shlex.quote(str(files[0])), shlex.quote(str(files[0].with_suffix("")))
        raise BagError(
            f"{files[0]} is a ROS 1 bag; convert it with: "
            f"rosbags-convert --src {source} --dst {target} --dst-storage mcap"
        )
    return files
