# SPDX-License-Identifier: Apache-2.0
"""What a storage file of a bag offers, MCAP or SQLite: which messages it holds, and each one by its place."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from rosbags.interfaces import Qos
from rosbags.rosbag2.metadata import parse_qos

from m3l_model.errors import M3LError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_MESSAGE_BYTES = 256 << 20
"""A message or chunk that claims more than this is taken for damage; nothing is allocated for it."""

PLACE = np.dtype(
    [
        ("stored_topic", "<u4"),
        ("file", "<u4"),
        ("size", "<u4"),
        ("log_ns", "<i8"),
        ("at", "<i8"),
        ("within", "<i8"),
    ]
)
"""Where a message lies.

stored_topic: position of its topic in the storage file.
file: position of its file in the bag.
size: bytes of its CDR, as stored.
log_ns: when it was recorded.
at, within: for MCAP, byte positions: of the chunk's record in the file, and of the CDR in the chunk's content; of a
    message outside of chunks, at is that of the CDR in the file and within is -1. For SQLite, at is the row id.
"""


class BagError(M3LError):
    """A bag that cannot be read, or lacks what is asked of it."""


class StorageDamage(Exception):
    """What is wrong, for a ``BagError`` that names the file."""


class StoredTopic(NamedTuple):
    """A topic of a storage file; each of several publishers may have its own. ``qos`` is text, as rosbag2 writes it."""

    topic: str
    msgtype: str
    qos: str


class StoredMessage(NamedTuple):
    """A message as ``scan`` finds it: the fields of ``PLACE``, and the first ``HEAD_BYTES`` of its CDR or all of it."""

    topic: int
    size: int
    log_ns: int
    at: int
    within: int
    head: bytes


HEAD_BYTES = 32
"""Enough for the stamp of a message that begins with a header."""


Allocate = Callable[[int, int], memoryview]
"""Gives memory of so many bytes, of which the one at the second number lies at a multiple of 64."""


def new_memory(size: int, aligned: int) -> memoryview:
    """The ``Allocate`` of new memory, which may be written: tensors are made of it without a copy."""
    return memoryview(np.empty(size, np.uint8))  # type: ignore[arg-type]


class StorageFile(Protocol):
    """One file of a bag, open; not to be shared between processes or threads.

    Attributes:
        path: of the file.
        topics: grows while ``scan`` finds further ones.
        counts: messages of each topic; known after ``scan``.
        span: first and last log time of all topics, in ns, None without messages; known after ``scan``.
        warnings: lines for people on what is wrong with the file though it can be read.
    """

    path: Path
    topics: list[StoredTopic]
    counts: Counter[int]
    span: tuple[int, int] | None
    warnings: list[str]

    def scan(self, msgtypes: Collection[str] | None = None) -> Iterator[StoredMessage]:
        """Find the messages of some types, or all, in the order in which they lie, reading no more than that takes.

        Raises:
            BagError: the file is damaged.
        """

    def read(self, place: np.void, allocate: Allocate = new_memory) -> memoryview:
        """Read a message (an element of an array of ``PLACE``) whole, checked to be the one that was found there.

        Its CDR need not begin where the memory from ``allocate`` does.

        Raises:
            BagError: the file is damaged there, or has changed.
        """

    def verify(self, place: np.void) -> None:
        """Check what ``scan`` took from here without the checksum that covers it, where there is one.

        Raises:
            BagError: the file is damaged there.
        """

    def progress(self) -> int:
        """Bytes that ``scan`` has passed so far."""

    def close(self) -> None:
        """Close the file."""


def offered_qos(text: str) -> Qos | None:
    """The first QoS profile in a topic's metadata, as rosbag2 writes it; None where there is none that can be read."""
    try:
        profiles = parse_qos(text)
    except Exception:  # on damage, rosbags raises anything from its own errors to TypeError
        return None
    return profiles[0] if profiles else None


_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_BLOCK_BYTES = (128 << 10) + 64
"""A frame's header and its first block: what is needed for the first byte."""


def is_compressed(data: bytes | memoryview) -> bool:
    """Whether rosbag2 has compressed this message by itself (mode MESSAGE); CDR never begins so."""
    return bytes(data[:4]) == _ZSTD_MAGIC


def plain_head(head: bytes, read_start: Callable[[int], bytes]) -> bytes:
    """The first bytes of a message that may be compressed.

    Args:
        head: the first bytes as stored.
        read_start: gives the first bytes as stored, at most so many.

    Raises:
        StorageDamage: it cannot be decompressed.
    """
    if not is_compressed(head):
        return head
    return bytes(zstd_decompress(read_start(_ZSTD_BLOCK_BYTES), HEAD_BYTES, whole=False))


def zstd_decompress(data: bytes | memoryview, limit: int, whole: bool = True) -> bytes:
    """Decompress a zstd frame, and no more than ``limit`` bytes of it, whatever it claims.

    Raises:
        StorageDamage: no zstd frame; or, where ``whole``, one that is cut off or has more.
    """
    decompressor = zstd.ZstdDecompressor()
    try:
        content = decompressor.decompress(data, limit)
        # The frame's end may be read only after its last byte of content.
        more = (
            whole and not (decompressor.eof or decompressor.needs_input) and decompressor.decompress(b"", 1)
        )
        if more or (whole and not decompressor.eof):
            raise StorageDamage("its compressed data is cut off, or larger than it may be")
    except (zstd.ZstdError, EOFError, MemoryError) as error:
        raise StorageDamage(f"it cannot be decompressed: {error}") from None
    return content
