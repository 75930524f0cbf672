# SPDX-License-Identifier: Apache-2.0
"""Reads rosbag2 recordings: messages in log order, and, from ``bag_frames``, images paired as the node pairs them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from rosbags.interfaces import Qos
from rosbags.typesys import Stores, get_typestore

from m3l_model.bag_frames import BagFrame, BagFrames, Pairing, read_frames
from m3l_model.bag_index import BagIndex, BagTopic, MessageReader, find_messages
from m3l_model.bag_storage import BagError, offered_qos
from m3l_model.bag_topics import DEFAULT_TOPICS, Topics
from m3l_model.bag_writer import BagWriter
from m3l_model.index_cache import open_index

__all__ = [
    "DEFAULT_TOPICS",
    "BagError",
    "BagFrame",
    "BagFrames",
    "BagIndex",
    "BagMessage",
    "BagReader",
    "BagWriter",
    "Pairing",
    "RawMessage",
    "Topics",
    "guess_topics",
    "open_index",
    "read_frames",
]


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
    data: memoryview


class BagReader:
    """Reads the messages of a rosbag2 recording, MCAP or SQLite, a folder or a single file; a context manager.

    Raises:
        BagError: the bag is absent, damaged, of ROS 1, or lacks a topic asked for.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._index: BagIndex | None = None
        self._typestore = get_typestore(Stores.ROS2_JAZZY)

    def __enter__(self) -> BagReader:
        self._index = open_index(self.path)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._index = None

    @property
    def index(self) -> BagIndex:
        """The bag's index."""
        if self._index is None:
            raise BagError(f"{self.path} is not open; use the reader in a with statement")
        return self._index

    @property
    def connections(self) -> tuple[BagTopic, ...]:
        """Topics with type and message count."""
        return self.index.topics

    @property
    def start_ns(self) -> int:
        """Log time of the first message; 0 in an empty bag."""
        return self.index.start_ns

    @property
    def end_ns(self) -> int:
        """Log time of the last message; 0 in an empty bag."""
        return self.index.end_ns

    def choose_topics(
        self, rgb: str | None = None, depth: str | None = None, label: str | None = None
    ) -> Topics:
        """Settle some of the topics and guess the others; see ``BagIndex.choose_topics``."""
        return self.index.choose_topics(rgb, depth, label)

    def qos(self, topic: str) -> Qos | None:
        """The QoS profile that the recorded publisher of a topic offered; None where the bag does not say."""
        return next((offered_qos(known.qos) for known in self._topics_of([topic])), None)

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
        index = self.index
        wanted = index.topics if topics is None else self._topics_of(topics)
        positions = {index.topics.index(topic) for topic in wanted}
        reader = MessageReader(index)
        try:
            for message in find_messages(index, {topic.msgtype for topic in wanted}):
                if int(message["topic"]) in positions:
                    known = index.topics[int(message["topic"])]
                    data = reader.read(message)
                    yield RawMessage(known.topic, known.msgtype, int(message["log_ns"]), data)
        finally:
            reader.close()

    def deserialize(self, raw: RawMessage) -> Any:
        """Decode a message of this bag.

        Raises:
            BagError: the data is damaged, or of a type that ROS 2 Jazzy does not come with.
        """
        try:
            return self._typestore.deserialize_cdr(raw.data, raw.msgtype)
        except Exception as error:  # on damage, rosbags raises anything from its own errors to TypeError
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BagError(
                f"{self.path}: a message of {raw.topic} at log time {raw.log_ns} cannot be decoded: {reason}"
            ) from error

    def _topics_of(self, topics: Iterable[str]) -> list[BagTopic]:
        wanted = set(topics)
        found = [known for known in self.connections if known.topic in wanted]
        missing = wanted - {known.topic for known in found}
        if missing:
            listed = ", ".join(sorted({known.topic for known in self.connections})) or "none"
            raise BagError(f"{self.path}: no topic {', '.join(sorted(missing))}; the bag has {listed}")
        return found


def guess_topics(
    path: str | Path, rgb: str | None = None, depth: str | None = None, label: str | None = None
) -> Topics:
    """Settle some of a bag's topics and guess the others; see ``BagIndex.choose_topics``."""
    return open_index(path).choose_topics(rgb, depth, label)
