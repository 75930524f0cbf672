# SPDX-License-Identifier: Apache-2.0
"""The index of a bag: its topics, and of every image where it lies, when it was recorded and with which stamp."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from m3l_model.bag_files import open_storage
from m3l_model.bag_storage import (
    MAX_MESSAGE_BYTES,
    PLACE,
    Allocate,
    BagError,
    StorageDamage,
    StorageFile,
    is_compressed,
    new_memory,
    zstd_decompress,
)
from m3l_model.bag_topics import CAMERA_INFO, ImageTopic, Topics, TopicsError, choose_topics
from m3l_model.cdr import COMPRESSED_IMAGE, IMAGE, CdrError, CompressedImage, Image, ImageParser, stamp_ns

INDEXED_TYPES = (IMAGE, COMPRESSED_IMAGE, CAMERA_INFO)

MESSAGE = np.dtype(
    [*((name, PLACE[name]) for name in PLACE.names or ()), ("topic", "<u4"), ("stamp_ns", "<i8")]
)
"""An indexed message: its ``PLACE``, its topic's position in the index, and its header stamp."""


class BagTopic(NamedTuple):
    """A topic of a bag: its type, the number of its messages, and the offered QoS as rosbag2 writes it, or ''."""

    topic: str
    msgtype: str
    messages: int
    qos: str


@dataclass(frozen=True)
class BagIndex:
    """What one needs to know of a bag to read any frame of it.

    Attributes:
        path: the bag, as it was named.
        files: its storage files.
        topics: all of them, also those that are not indexed.
        images: its image topics that have messages, each described by its first one.
        messages: (N,) array of ``MESSAGE``: images and camera infos in log order.
        start_ns, end_ns: log time of the first and of the last message of all topics; 0 in an empty bag.
        warnings: lines for people on what is wrong with the bag though it can be read.
        key: what is found out of the index may be kept under, by ``index_cache``; '' where it may not.
    """

    path: Path
    files: tuple[Path, ...]
    topics: tuple[BagTopic, ...]
    images: tuple[ImageTopic, ...]
    messages: npt.NDArray[np.void]
    start_ns: int
    end_ns: int
    warnings: tuple[str, ...] = ()
    key: str = ""

    @property
    def name(self) -> str:
        """What the bag is called: its folder's name, or its file's without the ending."""
        path = self.path.resolve()
        return path.name if path.is_dir() else path.stem

    @cached_property
    def camera_infos(self) -> frozenset[str]:
        """Topics of camera infos."""
        return frozenset(topic.topic for topic in self.topics if topic.msgtype == CAMERA_INFO)

    def choose_topics(
        self, rgb: str | None = None, depth: str | None = None, label: str | None = None
    ) -> Topics:
        """Settle some of the topics and guess the others.

        Raises:
            BagError: a topic named is not an image topic of this bag, or no colour topic is found.
        """
        try:
            return choose_topics(self.images, self.camera_infos, rgb, depth, label)
        except TopicsError as error:
            raise BagError(f"{self.path}: {error}") from None

    def rows(self, topic: str) -> npt.NDArray[np.intp]:
        """Positions in ``messages`` of a topic's messages, in log order."""
        positions = [position for position, known in enumerate(self.topics) if known.topic == topic]
        return np.flatnonzero(np.isin(self.messages["topic"], positions))

    def image_topic(self, topic: str) -> ImageTopic:
        """The description of an image topic.

        Raises:
            BagError: the bag has no such topic, it is of another type, or has no messages.
        """
        for image in self.images:
            if image.topic == topic:
                return image
        msgtypes = {known.topic: known.msgtype for known in self.topics}
        if topic not in msgtypes:
            listed = ", ".join(sorted(msgtypes)) or "none"
            raise BagError(f"{self.path}: no topic {topic}; the bag has {listed}")
        if msgtypes[topic] not in (IMAGE, COMPRESSED_IMAGE):
            raise BagError(f"{self.path}: {topic} is of type {msgtypes[topic]}, not an image")
        raise BagError(f"{self.path}: {topic} has no messages")


class MessageReader:
    """Reads messages of a bag; opens a file when it is first needed, and keeps the few that were used last.

    A copy, pickled or made by fork, opens files of its own. Not to be shared between threads.
    """

    def __init__(self, index: BagIndex) -> None:
        self._path = index.path
        self._files = index.files
        self._topics = index.topics
        self._parsers = [ImageParser(topic.msgtype) for topic in index.topics]
        self._opened: OrderedDict[int, StorageFile] = OrderedDict()
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": OrderedDict(), "_process": 0}

    def close(self) -> None:
        """Close all files."""
        while self._opened:
            self._opened.popitem()[1].close()

    def read(self, message: np.void, allocate: Allocate = new_memory) -> memoryview:
        """Read the CDR of an indexed message, an element of an array of ``MESSAGE``.

        Raises:
            BagError: a file is missing or damaged, or has changed since it was indexed.
        """
        data = self._file(int(message["file"])).read(message, allocate)
        if is_compressed(data):
            try:
                data = memoryview(zstd_decompress(data, MAX_MESSAGE_BYTES))
            except StorageDamage as error:
                raise BagError(f"{self._path}: {self._describe(message)}: {error}") from None
        return data

    def verify(self, messages: npt.NDArray[np.void]) -> None:
        """Check the stamps of indexed messages by the checksums that the file holds of them, if any.

        Raises:
            BagError: as ``read``.
        """
        for message in messages:
            self._file(int(message["file"])).verify(message)

    def read_image(self, message: np.void, allocate: Allocate = new_memory) -> Image | CompressedImage:
        """Read an indexed message of an image topic.

        Raises:
            BagError: as ``read``; or the message is damaged.
        """
        data = self.read(message, allocate)
        try:
            return self._parsers[message["topic"]].parse(data)
        except CdrError as error:
            raise BagError(f"{self._path}: {self._describe(message)}: {error}") from None

    def _describe(self, message: np.void) -> str:
        return f"{self._topics[int(message['topic'])].topic} at {int(message['stamp_ns'])}"

    def _file(self, position: int) -> StorageFile:
        if self._process != os.getpid():  # files opened before a fork stay the parent's
            self._opened, self._process = OrderedDict(), os.getpid()
        if position not in self._opened:
            if len(self._opened) >= _MOST_OPEN_FILES:
                self._opened.popitem(last=False)[1].close()
            self._opened[position] = open_storage(self._files[position])
        self._opened.move_to_end(position)
        return self._opened[position]


def build_index(
    path: Path, files: Sequence[Path], report: Callable[[int], object] = lambda passed: None
) -> BagIndex:
    """Index a bag by going through its files.

    Args:
        path: a rosbag2 folder or storage file.
        files: its storage files.
        report: called now and then with the bytes passed.

    Raises:
        BagError: the bag cannot be read.
    """
    found = _scan_files(files, INDEXED_TYPES, report)
    index = BagIndex(
        path,
        tuple(files),
        tuple(found.topics.values()),
        (),
        found.messages,
        min((first for first, _ in found.spans), default=0),
        max((last for _, last in found.spans), default=0),
    )
    images, problems = _describe_images(index)
    return replace(index, images=images, warnings=(*found.warnings, *problems))


def find_messages(index: BagIndex, msgtypes: Collection[str]) -> npt.NDArray[np.void]:
    """Find all messages of some types: (N,) array of ``MESSAGE`` in log order, as in ``BagIndex.messages``.

    Types that are not indexed are looked for in the files. Their stamps are 0.

    Raises:
        BagError: the bag has become damaged.
    """
    if set(msgtypes) <= set(INDEXED_TYPES):
        return index.messages
    return _scan_files(index.files, msgtypes, lambda passed: None).messages


_MOST_OPEN_FILES = 32
_BATCH = 1 << 10
_MOST_TRIED = 30


@dataclass
class _Found:
    """What is in the files of a bag; the messages in log order."""

    messages: npt.NDArray[np.void]
    topics: dict[tuple[str, str], BagTopic]
    spans: list[tuple[int, int]]
    warnings: list[str]


def _scan_files(files: Sequence[Path], msgtypes: Collection[str], report: Callable[[int], object]) -> _Found:
    found = _Found(np.empty(0, MESSAGE), {}, [], [])
    parts = [found.messages]
    before = 0
    for position, file in enumerate(files):
        with closing(open_storage(file)) as storage:
            batches = []
            for batch in _scan(storage, msgtypes):
                batches.append(batch)
                report(before + storage.progress())
            before += storage.progress()
            part = np.concatenate(batches)
            part["file"] = position
            positions = np.array([*_merge_topics(storage, found.topics), 0], np.uint32)
            part["topic"] = positions[part["stored_topic"]]
            parts.append(part)
            found.spans += [storage.span] if storage.span else []
            found.warnings += storage.warnings
    found.messages = np.concatenate(parts)
    found.messages = found.messages[np.argsort(found.messages["log_ns"], kind="stable")]
    return found


def _scan(storage: StorageFile, msgtypes: Collection[str]) -> Iterator[npt.NDArray[np.void]]:
    """Find a file's messages of some types, in batches of ``MESSAGE``, file and topic still to be filled in."""
    batch: list[tuple[int, ...]] = []
    for message in storage.scan(msgtypes):
        stamp = 0
        topic = storage.topics[message.topic]
        if topic.msgtype in INDEXED_TYPES:
            try:
                stamp = stamp_ns(message.head)
            except CdrError as error:
                raise BagError(
                    f"{storage.path}: a message of {topic.topic} at log time {message.log_ns} is damaged: {error}"
                ) from None
        batch.append((message.topic, 0, message.size, message.log_ns, message.at, message.within, 0, stamp))
        if len(batch) == _BATCH:
            yield np.array(batch, MESSAGE)
            batch.clear()
    yield np.array(batch, MESSAGE)


def _merge_topics(storage: StorageFile, topics: dict[tuple[str, str], BagTopic]) -> list[int]:
    """Add a file's topics to those of the bag; returns the position in the bag of each."""
    for position, stored in enumerate(storage.topics):
        key = (stored.topic, stored.msgtype)
        known = topics.get(key, BagTopic(*key, 0, ""))
        count = known.messages + storage.counts[position]
        topics[key] = known._replace(messages=count, qos=known.qos or stored.qos)
    positions = {key: position for position, key in enumerate(topics)}
    return [positions[stored.topic, stored.msgtype] for stored in storage.topics]


def _describe_images(index: BagIndex) -> tuple[tuple[ImageTopic, ...], list[str]]:
    """Describe each image topic by its first message that can be read, of the first ones."""
    images, warnings = [], []
    with closing(MessageReader(index)) as reader:
        for position, topic in enumerate(index.topics):
            if topic.msgtype not in (IMAGE, COMPRESSED_IMAGE):
                continue
            problem = None
            for message in index.messages[index.messages["topic"] == position][:_MOST_TRIED]:
                try:
                    image = reader.read_image(message)
                except BagError as error:
                    problem = problem or error
                    continue
                images.append(ImageTopic.from_message(topic.topic, topic.msgtype, topic.messages, image))
                break
            else:
                if problem:
                    warnings.append(f"no message of {topic.topic} can be read: {problem}")
    return tuple(images), warnings
