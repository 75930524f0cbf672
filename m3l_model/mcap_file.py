# SPDX-License-Identifier: Apache-2.0
"""Reads MCAP files at random (https://mcap.dev/spec): chunked or not, compressed, indexed, or cut off in recording."""

from __future__ import annotations

import os
import struct
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple
from zlib import crc32

import lz4.frame  # type: ignore[import-untyped]
import numpy as np

from m3l_model.bag_storage import (
    HEAD_BYTES,
    MAX_MESSAGE_BYTES,
    Allocate,
    BagError,
    StorageDamage,
    StoredMessage,
    StoredTopic,
    new_memory,
    plain_head,
    zstd_decompress,
)

MAGIC = b"\x89MCAP0\r\n"

_HEADER, _FOOTER, _SCHEMA, _CHANNEL, _MESSAGE, _CHUNK, _MESSAGE_INDEX, _CHUNK_INDEX = range(0x01, 0x09)
_ATTACHMENT, _STATISTICS, _METADATA, _DATA_END = 0x09, 0x0B, 0x0C, 0x0F
_ASIDE = {_ATTACHMENT: "attachment", _METADATA: "metadata"}

_RECORD = struct.Struct("<BQ")  # opcode, length of what follows
_MESSAGE_HEADER = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_MESSAGE_PREFIX = struct.Struct("<BQHIQQ")  # both of a message
_CHUNK_HEADER = struct.Struct("<QQQI")  # first and last log time, size without compression, CRC or 0
_CRC = struct.Struct("<I")
_ATTACHMENT_TIMES = struct.Struct("<QQ")  # of logging and of making it
_CHUNK_INDEX_HEADER = struct.Struct(
    "<QQQQ"
)  # first and last log time, position and length of the chunk's record
_FOOTER_RECORD = struct.Struct(
    "<BQQQI"
)  # as a record: then position of summary, of summary offsets, CRC or 0

_WINDOW_BYTES = 64 << 10
"""A chunk or stretch no longer than this is read at once, since the disk would give as much anyway."""
_MAX_METADATA_BYTES = 16 << 20


class _CutError(StorageDamage):
    """The file ends within a record."""


class _ChunkHead(NamedTuple):
    """A chunk's record: its log times, position and size of its content, and how to make messages of it."""

    at: int
    first_ns: int
    last_ns: int
    content_at: int
    content_size: int
    size: int
    crc: int
    compression: str
    end: int


class McapFile:
    """A ``StorageFile`` of MCAP.

    Raises:
        BagError: not an MCAP file, or one of another use than ROS 2.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.topics: list[StoredTopic] = []
        self.counts: Counter[int] = Counter()
        self.span: tuple[int, int] | None = None
        self.warnings: list[str] = []
        try:
            self._file = path.open("rb", buffering=0)
            self._fd = self._file.fileno()
            self._size = os.fstat(self._fd).st_size
        except OSError as error:
            raise BagError(f"{path}: cannot open the file: {error.strerror}") from error
        self._schemas: dict[int, str] = {0: ""}
        self._channels: dict[int, int] = {}
        self._other_channels: set[int] = set()  # not of CDR
        self._verified: set[int] = set()
        self._heads: dict[int, _ChunkHead] = {}
        self._kept: tuple[int, memoryview] | None = None
        self._passed = 0
        try:
            if self._pread(0, len(MAGIC)) != MAGIC:
                raise StorageDamage("it does not begin as an MCAP file does")
            self._written = self._size if self._is_finished() else self._end_before_zeros()
            self._data_at = self._read_header()
            self._summary = self._read_summary()
        except StorageDamage as error:
            self.close()
            raise BagError(
                f"{path}: damaged at its beginning, so that nothing of it can be read: {error}"
            ) from None

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def progress(self) -> int:
        """Bytes that ``scan`` has passed so far."""
        return self._passed

    def scan(self, msgtypes: Collection[str] | None = None) -> Iterator[StoredMessage]:
        """Find messages; see ``StorageFile.scan``."""
        found = 0
        self.counts.clear()
        self.span = None
        try:
            for message in self._scan_all() if self._summary is None else self._scan_chunks(msgtypes):
                if msgtypes is None or self.topics[message.topic].msgtype in msgtypes:
                    found += 1
                    yield message
            self._passed = self._size
        except StorageDamage as error:
            if isinstance(error, _CutError) and not self._is_finished():
                self.warnings.append(f"{self.path} was cut off: {error}; read up to there, {found} messages")
                return
            raise BagError(
                f"{self.path}: damaged: {error}; {found} messages before it can be read: "
                f"`head -c {self._passed}` of the file keeps them, `mcap recover` perhaps more"
            ) from None

    def read(self, place: np.void, allocate: Allocate = new_memory) -> memoryview:
        """Read a message whole; see ``StorageFile.read``."""
        stored_topic, _, size, log_ns, at, within, *_ = place.item()
        try:
            if within < 0:
                part = self._read_into(at - _PREFIX_BYTES, allocate(_PREFIX_BYTES + size, _PREFIX_BYTES))
            else:
                part = self._chunk_part(at, within - _PREFIX_BYTES, _PREFIX_BYTES + size, allocate)
            opcode, length, channel, _, logged_ns, _ = _MESSAGE_PREFIX.unpack_from(part)
            found = (opcode, length, logged_ns, self._channels.get(channel, stored_topic))
            if found != (_MESSAGE, size + _MESSAGE_HEADER.size, log_ns, stored_topic):
                raise StorageDamage("another message lies there now")
        except StorageDamage as error:
            raise BagError(
                f"{self.path}: damaged at byte {at}, a message of log time {log_ns}: {error}; "
                "`mcap recover` keeps the other messages"
            ) from None
        return part[_PREFIX_BYTES:]

    def verify(self, place: np.void) -> None:
        """Check what ``scan`` has read without its checksum; see ``StorageFile.verify``."""
        at = int(place["at"])
        if place["within"] < 0 or at in self._verified:
            return
        try:
            head = self._chunk_head(at)
            if head.crc and not self._scanned_whole(head) and not self._is_cut(head):
                self._content(head)
        except StorageDamage as error:
            raise BagError(f"{self.path}: damaged: {error}; `mcap recover` keeps the other chunks") from None

    def chunk_heads(self) -> Iterator[_ChunkHead]:
        """The chunks that the file's summary lists, by position."""
        for at, _ in self._summary.chunks if self._summary else ():
            yield self._chunk_head(at)

    # Records outside of chunks

    def _read_header(self) -> int:
        opcode, length = self._record(len(MAGIC))
        if opcode != _HEADER:
            raise StorageDamage("it has no header record")
        fields = _Fields(self._metadata(len(MAGIC), length))
        profile = fields.text()
        if profile not in ("ros2", ""):
            raise StorageDamage(f"its profile is {profile!r}, but only ros2 is read")
        return len(MAGIC) + _RECORD.size + length

    def _read_summary(self) -> _Summary | None:
        """What the end of the file tells; None where it tells nothing, or nothing that holds."""
        footer_at = self._size - _FOOTER_RECORD.size - len(MAGIC)
        if footer_at < self._data_at:
            return None
        end = self._pread(footer_at, _FOOTER_RECORD.size + len(MAGIC))
        opcode, length, summary_at, _, crc = _FOOTER_RECORD.unpack_from(end)
        if end[_FOOTER_RECORD.size :] != MAGIC or (opcode, length) != (_FOOTER, 20) or not summary_at:
            return None
        try:
            if not self._data_at <= summary_at <= footer_at:
                raise StorageDamage("its footer points out of the file")
            if footer_at - summary_at > MAX_MESSAGE_BYTES:
                raise StorageDamage("its summary is too large")
            data = self._pread(summary_at, footer_at - summary_at + _FOOTER_RECORD.size - 4)
            if crc and crc32(data) != crc:
                raise StorageDamage("its summary fails the checksum")
            return self._parse_summary(data[: footer_at - summary_at])
        except StorageDamage as error:
            self.warnings.append(f"{self.path}: {error}; all of the file is read instead")
            self._schemas, self._channels = {0: ""}, {}
            self.topics.clear()
            return None

    def _parse_summary(self, data: bytes) -> _Summary | None:
        chunks: list[tuple[int, frozenset[int]]] = []
        counts: dict[int, int] | None = None
        span: tuple[int, int] | None = None
        chunk_count, at = 0, 0
        while at < len(data):
            if at + _RECORD.size > len(data):
                raise StorageDamage("its summary ends within a record")
            opcode, length = _RECORD.unpack_from(data, at)
            if at + _RECORD.size + length > len(data):
                raise StorageDamage("a record of its summary is longer than the summary")
            fields = _Fields(data[at + _RECORD.size : at + _RECORD.size + length])
            if opcode in (_SCHEMA, _CHANNEL):
                self._learn(opcode, fields)
            elif opcode == _CHUNK_INDEX:
                _, _, chunk_at, _ = fields.unpack(_CHUNK_INDEX_HEADER)
                channels = frozenset(channel for channel, _ in fields.pairs(struct.Struct("<HQ")))
                chunks.append((chunk_at, channels))
            elif opcode == _STATISTICS:
                *_, chunk_count, first, last = fields.unpack(struct.Struct("<QHIIIIQQ"))
                span = (first, last)
                counts = dict(fields.pairs(struct.Struct("<HQ")))
            at += _RECORD.size + length
        if counts is None or chunk_count != len(chunks) or (any(counts.values()) and not chunks):
            return None
        known: Counter[int] = Counter()
        for channel, count in counts.items():
            if channel in self._channels:
                known[self._channels[channel]] += count
            elif channel not in self._other_channels:
                return None
        return _Summary(sorted(chunks), known, span if any(counts.values()) else None)

    def _learn(self, opcode: int, fields: _Fields) -> None:
        """Take in a schema or channel; one that comes again must say the same."""
        number = fields.number("<H")
        if opcode == _SCHEMA:
            name = fields.text()
            if self._schemas.setdefault(number, name) != name:
                raise StorageDamage(
                    f"type {number} is {self._schemas[number]!r} at one place, {name!r} at another"
                )
            return
        schema, topic, encoding = fields.number("<H"), fields.text(), fields.text()
        if encoding != "cdr":
            if number not in self._other_channels:
                self.warnings.append(
                    f"{self.path}: {topic} is not read: its encoding is {encoding!r}, not cdr"
                )
            self._other_channels.add(number)
            return
        if schema not in self._schemas:
            raise StorageDamage(f"the type of {topic} is missing")
        qos = fields.mapping().get("offered_qos_profiles", "")
        stored = StoredTopic(topic, self._schemas[schema], qos)
        if number not in self._channels:
            self._channels[number] = len(self.topics)
            self.topics.append(stored)
        elif self.topics[self._channels[number]] != stored:
            raise StorageDamage(f"its topic {number} is {topic} at one place, and not so at another")

    def _scan_chunks(self, msgtypes: Collection[str] | None) -> Iterator[StoredMessage]:
        """Go through the chunks that the summary lists and that may hold messages of these types."""
        assert self._summary is not None
        known = self._summary.counts
        for at, channels in self._summary.chunks:
            self._passed = at
            if self._wants(channels, msgtypes):
                yield from self._scan_chunk(self._chunk_head(at))
        for topic, stored in enumerate(self.topics):
            if self.counts[topic] != known[topic] and (msgtypes is None or stored.msgtype in msgtypes):
                raise StorageDamage(
                    f"its summary speaks of {known[topic]} messages of {stored.topic}, {self.counts[topic]} are there"
                )
        self.counts, self.span = Counter(known), self._summary.span

    def _wants(self, channels: frozenset[int], msgtypes: Collection[str] | None) -> bool:
        """Whether a chunk may hold messages of these types; one without message index may hold any."""
        if msgtypes is None or not channels:
            return True
        return any(
            channel in self._channels and self.topics[self._channels[channel]].msgtype in msgtypes
            for channel in channels
        )

    def _scan_all(self) -> Iterator[StoredMessage]:
        """Go from record to record, since there is no summary to say where the messages are."""
        at, previous = self._data_at, _HEADER
        in_chunk: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
        while at < self._size:
            self._passed = at
            opcode, length = self._record(at)
            end = at + _RECORD.size + length
            if at >= self._written or (opcode != _CHUNK and self._ends_in_zeros(end)):
                break
            if opcode in (_DATA_END, _FOOTER):
                if (opcode, length) not in ((_DATA_END, 4), (_FOOTER, _FOOTER_RECORD.size - _RECORD.size)):
                    raise StorageDamage(f"the record at byte {at} is of no possible length")
                return
            if opcode == _CHUNK:
                in_chunk = defaultdict(list)
                for message in self._scan_chunk(self._chunk_head(at)):
                    in_chunk[message.topic].append((message.log_ns, message.within - _PREFIX_BYTES))
                    yield message
            elif opcode == _MESSAGE:
                self._require(end)
                head = self._pread(at, min(_PREFIX_BYTES + HEAD_BYTES, end - at))
                yield from self._message(head, at + _PREFIX_BYTES, -1, length)
            elif opcode in (_SCHEMA, _CHANNEL):
                self._learn(opcode, _Fields(self._metadata(at, length)))
            elif opcode == _MESSAGE_INDEX:
                fields = _Fields(self._metadata(at, length))
                topic = self._channels.get(fields.number("<H"))
                entries = sorted(fields.pairs(struct.Struct("<QQ")))
                if previous not in (_CHUNK, _MESSAGE_INDEX) or fields.at != length:
                    raise StorageDamage(f"the record at byte {at} is no message index")
                if topic is not None and entries != sorted(in_chunk[topic]):
                    raise StorageDamage(
                        f"the message index at byte {at} speaks of other messages than are there"
                    )
            elif opcode in (_ATTACHMENT, _METADATA):
                self._check_aside(opcode, at, length)
            else:
                raise StorageDamage(f"the record at byte {at} is of a kind that does not belong there")
            self._require(end)
            at, previous = end, opcode
        raise _CutError("it has no end record")

    def _check_aside(self, opcode: int, at: int, length: int) -> None:
        """See that a record that is passed over is what it says, and no chunk or message whose kind is damaged."""
        if opcode == _ATTACHMENT:
            fields = _Fields(self._pread(at + _RECORD.size, min(length, _WINDOW_BYTES)))
            fields.unpack(_ATTACHMENT_TIMES)
            fields.text(), fields.text()
            end = fields.number("<Q") + fields.at + _CRC.size
        else:
            fields = _Fields(self._metadata(at, length))
            fields.text(), fields.mapping()
            end = fields.at
        if end != length:
            raise StorageDamage(f"the record at byte {at} is no {_ASIDE[opcode]}")

    def _is_finished(self) -> bool:
        """Whether the recorder has closed the file: what seems cut off within is damage then."""
        return self._size > 2 * len(MAGIC) and self._pread(self._size - len(MAGIC), len(MAGIC)) == MAGIC

    def _end_before_zeros(self) -> int:
        """Where the zeros begin that a file system puts for what was not written when the machine lost its power."""
        end = self._size
        while end > 0:
            start = max(end - _WINDOW_BYTES, 0)
            written = self._pread(start, end - start).rstrip(b"\0")
            if written:
                return start + len(written)
            end = start
        return 0

    # Chunks

    def _chunk_head(self, at: int) -> _ChunkHead:
        if at not in self._heads:
            opcode, length = self._record(at)
            if opcode != _CHUNK:
                raise StorageDamage(f"no chunk at byte {at}")
            fields = _Fields(self._pread(at + _RECORD.size, min(length, 64)))
            first_ns, last_ns, size, crc = fields.unpack(_CHUNK_HEADER)
            compression = fields.text()
            content_size = fields.number("<Q")
            content_at = at + _RECORD.size + fields.at
            end = at + _RECORD.size + length
            if content_at + content_size != end or (not compression and size != content_size):
                raise StorageDamage(f"the chunk at byte {at} contradicts itself about its size")
            if size > MAX_MESSAGE_BYTES or content_size > MAX_MESSAGE_BYTES:
                raise StorageDamage(
                    f"the chunk at byte {at} has {max(size, content_size)} bytes; up to {MAX_MESSAGE_BYTES} are read"
                )
            if compression not in ("", "lz4", "zstd"):
                raise StorageDamage(
                    f"the chunk at byte {at} is compressed by {compression!r}; lz4 and zstd are read"
                )
            self._heads[at] = _ChunkHead(
                at, first_ns, last_ns, content_at, content_size, size, crc, compression, end
            )
        return self._heads[at]

    def _scan_chunk(self, head: _ChunkHead) -> Iterator[StoredMessage]:
        cut = self._is_cut(head)
        if cut and head.compression:
            raise _CutError(f"its last chunk, at byte {head.at}, is not whole")
        content = self._content(head) if self._scanned_whole(head) and not cut else None
        size = max(self._written - head.content_at, 0) if cut else head.size
        at = 0
        while at < size:
            part = _PREFIX_BYTES + HEAD_BYTES
            if content is not None:
                start = bytes(content[at : at + part])
            else:
                start = self._pread(head.content_at + at, min(part, size - at))
            if len(start) < _RECORD.size:
                break
            opcode, length = _RECORD.unpack_from(start)
            end = at + _RECORD.size + length
            if end > head.size:
                raise StorageDamage(f"a record in the chunk at byte {head.at} is longer than the chunk")
            if end > size:
                break
            if opcode == _MESSAGE:
                for message in self._message(start, head.at, at + _PREFIX_BYTES, length):
                    if not head.first_ns <= message.log_ns <= head.last_ns:
                        raise StorageDamage(
                            f"a message in the chunk at byte {head.at} is not of the chunk's time"
                        )
                    yield message
            elif opcode in (_SCHEMA, _CHANNEL):
                if length > _MAX_METADATA_BYTES:
                    raise StorageDamage(f"a topic's definition in the chunk at byte {head.at} is too large")
                body_at = at + _RECORD.size
                body = (
                    bytes(content[body_at:end])
                    if content is not None
                    else self._pread(head.content_at + body_at, length)
                )
                self._learn(opcode, _Fields(body))
            else:
                raise StorageDamage(
                    f"a record in the chunk at byte {head.at} is of a kind that no chunk holds"
                )
            at = end
        if cut:
            raise _CutError(f"its last chunk, at byte {head.at}, is not whole")
        if at != size:
            raise StorageDamage(f"the chunk at byte {head.at} ends within a record")

    def _is_cut(self, head: _ChunkHead) -> bool:
        """Whether a chunk was not written to its end."""
        if head.end > self._size or not self._ends_in_zeros(head.end):
            return head.end > self._size
        try:
            self._content(head)
        except StorageDamage:
            return True
        return not head.crc and not head.compression

    def _ends_in_zeros(self, end: int) -> bool:
        """Whether a record may lack its last bytes: they are zeros, as is all of the file behind it."""
        return self._written < end < self._size

    def _scanned_whole(self, head: _ChunkHead) -> bool:
        return bool(head.compression) or head.size <= _WINDOW_BYTES

    def _message(self, head: bytes, at: int, within: int, length: int) -> Iterator[StoredMessage]:
        if not _MESSAGE_HEADER.size <= length <= MAX_MESSAGE_BYTES:
            raise StorageDamage(
                f"the message at byte {at} has {length} bytes; up to {MAX_MESSAGE_BYTES} are read"
            )
        channel, _, log_ns, _ = _MESSAGE_HEADER.unpack_from(head, _RECORD.size)
        if channel in self._other_channels:
            return
        if channel not in self._channels or log_ns >= 1 << 63:
            raise StorageDamage(f"the message at byte {at} is of no topic, or of no possible time")
        topic, size = self._channels[channel], length - _MESSAGE_HEADER.size

        def read_start(most: int) -> bytes:
            if within < 0:
                return self._pread(at, min(most, size))
            return bytes(self._chunk_part(at, within, min(most, size)))

        self.counts[topic] += 1
        first, last = self.span or (log_ns, log_ns)
        self.span = min(first, log_ns), max(last, log_ns)
        yield StoredMessage(
            topic, size, log_ns, at, within, plain_head(head[_PREFIX_BYTES:][:size], read_start)
        )

    def _chunk_part(self, at: int, start: int, size: int, allocate: Allocate = new_memory) -> memoryview:
        """Read part of a chunk's content; where the chunk has a checksum, it holds."""
        head = self._heads.get(at) or self._chunk_head(at)
        if start < 0 or start + size > head.size:
            raise StorageDamage("the chunk is shorter than it was")
        cut = self._is_cut(head)
        if not head.compression and (cut or not head.crc or at in self._verified):
            return self._read_into(head.content_at + start, allocate(size, _PREFIX_BYTES))
        part = self._content(head)[start : start + size]
        if allocate is new_memory:
            return part
        data = allocate(size, _PREFIX_BYTES)
        data[:] = part
        return data

    def _content(self, head: _ChunkHead) -> memoryview:
        """A chunk's content, checked; the last one is kept, as messages of one frame often share it."""
        if self._kept is not None and self._kept[0] == head.at:
            return self._kept[1]
        content = self._read_into(head.content_at, new_memory(head.content_size, 0))
        if head.compression:
            try:
                content = memoryview(_decompress(content, head))
            except StorageDamage as error:
                raise StorageDamage(f"the chunk at byte {head.at}: {error}") from None
        if head.crc and head.at not in self._verified and crc32(content) != head.crc:
            raise StorageDamage(f"the chunk at byte {head.at} fails its checksum")
        self._verified.add(head.at)
        self._kept = (head.at, content)
        return content

    # Bytes

    def _record(self, at: int) -> tuple[int, int]:
        opcode, length = _RECORD.unpack(self._pread(at, _RECORD.size))
        return opcode, length

    def _metadata(self, at: int, length: int) -> bytes:
        if length > _MAX_METADATA_BYTES:
            raise StorageDamage(f"the record at byte {at} has {length} bytes, too many for what it is")
        return self._pread(at + _RECORD.size, length)

    def _require(self, end: int) -> None:
        if end > self._size:
            raise _CutError(f"its last record ends at byte {end}, but the file at {self._size}")

    def _read_into(self, at: int, data: memoryview) -> memoryview:
        """Fill memory with what lies at a byte of the file."""
        size = len(data)
        self._require(at + size)
        done = 0
        while done < size:
            try:
                count = os.preadv(self._fd, [data[done:]], at + done)
            except OSError as error:
                raise StorageDamage(f"byte {at} cannot be read: {error.strerror}") from error
            if not count:
                raise _CutError(f"it has become shorter than {at + size} bytes")
            done += count
        return data

    def _pread(self, at: int, size: int) -> bytes:
        self._require(at + size)
        try:
            data = os.pread(self._fd, size, at)
        except OSError as error:
            raise StorageDamage(f"byte {at} cannot be read: {error.strerror}") from error
        if len(data) != size:
            raise _CutError(f"it has become shorter than {at + size} bytes")
        return data


def write_checksums(path: Path) -> None:
    """Give the chunks of a finished, not compressed file the checksums that its writer left out.

    Raises:
        BagError: the file is damaged.
        OSError: it cannot be written.
    """
    with closing(McapFile(path)) as file, path.open("r+b") as writable:
        for head in file.chunk_heads():
            writable.seek(head.content_at)
            crc = crc32(writable.read(head.content_size))
            writable.seek(head.at + _RECORD.size + _CHUNK_HEADER.size - _CRC.size)
            writable.write(_CRC.pack(crc))


class _Summary(NamedTuple):
    """Chunks by position, each with the channels it holds; the messages of each topic, and all topics' log times."""

    chunks: list[tuple[int, frozenset[int]]]
    counts: Counter[int]
    span: tuple[int, int] | None


_PREFIX_BYTES = _MESSAGE_PREFIX.size


class _Fields:
    """Reads the fields of a record one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        return layout.unpack(self._take(layout.size))

    def number(self, layout: str) -> int:
        (value,) = self.unpack(struct.Struct(layout))
        return value

    def text(self) -> str:
        try:
            return self._take(self.number("<I")).decode()
        except UnicodeDecodeError:
            raise StorageDamage("a text in it is no UTF-8") from None

    def pairs(self, layout: struct.Struct) -> Iterator[tuple[int, int]]:
        size = self.number("<I")
        data = self._take(size)
        if size % layout.size:
            raise StorageDamage("a list in it has an odd length")
        yield from layout.iter_unpack(data)

    def mapping(self) -> dict[str, str]:
        inner = _Fields(self._take(self.number("<I")))
        found = {}
        while inner.at < len(inner._data):
            key = inner.text()
            found[key] = inner.text()
        return found

    def _take(self, size: int) -> bytes:
        if self.at + size > len(self._data):
            raise StorageDamage("a record in it is shorter than its fields")
        self.at += size
        return self._data[self.at - size : self.at]


def _decompress(data: memoryview, head: _ChunkHead) -> bytes:
    """Decompress to the size that the chunk claims, and no further, whatever the data wants."""
    if head.compression == "zstd":
        content = zstd_decompress(data, head.size)
    else:
        decompressor = lz4.frame.LZ4FrameDecompressor()
        try:
            content = decompressor.decompress(data, head.size)
        except (RuntimeError, EOFError, MemoryError) as error:
            raise StorageDamage(f"it cannot be decompressed: {error}") from None
        if not decompressor.eof:
            raise StorageDamage("its compressed data is cut off, or larger than it claims")
    if len(content) != head.size:
        raise StorageDamage("its content is shorter than it claims")
    return content
