# SPDX-License-Identifier: Apache-2.0
"""Reads the SQLite files of rosbag2 at random, by row id; messages compressed one by one included."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import apsw
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
)

MAGIC = b"SQLite format 3\x00"

_JOURNAL_MAGIC = b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7"
_PAGE_SIZE_AT, _PAGE_COUNT_AT = 16, 28

_LOG_TIMES = "SELECT count(*), ifnull(sum((timestamp & 2147483647) + (timestamp >> 31)), 0) FROM messages"
"""How many messages there are, and a digest of their log times."""


def unfinished_journals(path: Path) -> list[Path]:
    """What a recorder that was interrupted, or still records, has left beside its database: -wal, -journal."""
    journals = []
    for suffix, magic in (("-wal", b""), ("-journal", _JOURNAL_MAGIC)):
        journal = path.with_name(path.name + suffix)
        try:
            with journal.open("rb") as file:
                start = file.read(len(_JOURNAL_MAGIC))
        except OSError:
            continue
        if start and start.startswith(magic):
            journals.append(journal)
    return journals


class _WholePagesFile(apsw.VFSFile):
    """A database without the rest of a page at its end, which SQLite would take for one that ends in zeros."""

    def xFileSize(self) -> int:
        size = super().xFileSize()
        header = self.xRead(_PAGE_SIZE_AT + 2, 0)
        return size - size % _page_bytes(header)


class _WholePages(apsw.VFS):
    NAME = "m3l_whole_pages"

    def __init__(self) -> None:
        super().__init__(self.NAME, "")

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return _WholePagesFile("", name, flags)


_register_whole_pages = cache(_WholePages)
"""SQLite knows it for as long as the object lives."""


def _page_bytes(header: bytes) -> int:
    size = int.from_bytes(header[_PAGE_SIZE_AT : _PAGE_SIZE_AT + 2], "big")
    return 65536 if size == 1 else max(size, 512)


class SqliteFile:
    """A ``StorageFile`` of SQLite.

    Raises:
        BagError: not a database of rosbag2, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.topics: list[StoredTopic] = []
        self.counts: Counter[int] = Counter()
        self.span: tuple[int, int] | None = None
        self.warnings: list[str] = []
        self._found = 0
        self._passed = 0
        self._opened_blob: apsw.Blob | None = None
        try:
            self._size = path.stat().st_size
            self._cut = self._is_cut()
        except OSError as error:
            raise BagError(f"{path}: cannot open the file: {error.strerror}") from error
        with self._errors():
            self._database = self._open()
        try:
            with self._errors():
                self._ids = self._read_topics()
        except BagError:
            self.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._database.close(True)

    def verify(self, place: np.void) -> None:
        """SQLite has no checksums."""

    def progress(self) -> int:
        """Bytes that ``scan`` has passed so far, by the share of rows."""
        return self._passed

    def scan(self, msgtypes: Collection[str] | None = None) -> Iterator[StoredMessage]:
        """Find messages; see ``StorageFile.scan``."""
        self._found = 0
        self.counts.clear()
        self.span = None
        with self._errors():
            try:
                for message in self._scan():
                    if msgtypes is None or self.topics[message.topic].msgtype in msgtypes:
                        self._found += 1
                        yield message
            except apsw.Error as error:
                if not self._cut:
                    raise
                self.warnings.append(
                    f"{self.path} was cut off: {error}; read up to there, {self._found} messages"
                )
        self._passed = self._size

    def read(self, place: np.void, allocate: Allocate = new_memory) -> memoryview:
        """Read a message whole; see ``StorageFile.read``."""
        row = int(place["at"])
        expected = (int(place["stored_topic"]), int(place["log_ns"]), int(place["size"]))
        with self._errors():
            rows: Iterable[Any] = self._database.execute(
                "SELECT topic_id, timestamp, length(data) FROM messages WHERE rowid = ?", (row,)
            )
            if [(self._ids.get(topic), log_ns, size) for topic, log_ns, size in rows] != [expected]:
                raise StorageDamage(f"row {row} of messages holds another message than it did")
            data = allocate(expected[2], 0)
            self._blob(row).read_into(data)
        return data

    def _open(self) -> apsw.Connection:
        """Open the database as one that nobody changes, but with what a recorder left in its write-ahead log."""
        journals = {journal.name[len(self.path.name) :] for journal in unfinished_journals(self.path)}
        if "-wal" in journals:
            self._cut = False  # what the file lacks may be in there
            try:
                database = self._connect("mode=ro")
                database.execute("SELECT 1 FROM sqlite_master").fetchall()
                self.warnings.append(f"{self.path}: its recorder did not end it; read with its -wal file")
                return database
            except apsw.Error as error:
                raise BagError(
                    f"{self.path}: cannot open its -wal file, which has the end of the recording ({error}); copy the "
                    "bag to a folder that can be written"
                ) from None
        if "-journal" in journals:
            self.warnings.append(f"{self.path}: its recorder was interrupted; read as far as that goes")
        self._cut |= bool(journals)
        return self._connect("immutable=1")

    def _connect(self, mode: str) -> apsw.Connection:
        uri = f"file:{quote(os.fsencode(self.path.resolve()))}?{mode}"
        if self._cut:
            _register_whole_pages()
        flags = apsw.SQLITE_OPEN_READONLY | apsw.SQLITE_OPEN_URI
        database = apsw.Connection(uri, flags, vfs=_WholePages.NAME if self._cut else None)
        database.limit(apsw.SQLITE_LIMIT_LENGTH, MAX_MESSAGE_BYTES)
        database.execute("PRAGMA cell_size_check = ON")
        if self._cut:  # SQLite opens no file that lacks pages, unless one is about to mend it
            database.config(apsw.SQLITE_DBCONFIG_WRITABLE_SCHEMA, 1)
        return database

    def _is_cut(self) -> bool:
        """Whether the file has fewer pages than its header says."""
        with self.path.open("rb") as file:
            header = file.read(100)
        if len(header) < 100:
            raise BagError(f"{self.path}: the file has {self._size} bytes, too few for a database")
        pages = int.from_bytes(header[_PAGE_COUNT_AT : _PAGE_COUNT_AT + 4], "big")
        return self._size < pages * _page_bytes(header)

    def _read_topics(self) -> dict[int, int]:
        """Read the topics; returns their positions by the database's ids."""
        tables = self._database.execute(
            "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name IN ('topics', 'messages')"
        )
        columns = {row[1] for row in self._database.execute("PRAGMA table_info(topics)")}
        if tables.fetchall() != [(2,)] or not columns:
            raise StorageDamage("it has no tables of messages and topics, so rosbag2 did not write it")
        qos = "offered_qos_profiles" if "offered_qos_profiles" in columns else "''"
        ids = {}
        for row in self._database.execute(f"SELECT id, name, type, serialization_format, {qos} FROM topics"):
            number, topic, msgtype, encoding, profiles = row
            if not all(isinstance(text, str) for text in (topic, msgtype, encoding, profiles)):
                raise StorageDamage(f"topic {number} has no name or type")
            if encoding != "cdr":
                raise StorageDamage(f"{topic} is serialized as {encoding!r}, but only cdr is read")
            if number in ids:
                raise StorageDamage(f"topic {number} is there twice")
            ids[number] = len(self.topics)
            self.topics.append(StoredTopic(topic, msgtype, profiles))
        return ids

    def _scan(self) -> Iterator[StoredMessage]:
        newest: Any = 1
        if not self._cut:  # else it is the row that is missing
            newest = self._database.execute("SELECT max(rowid) FROM messages").fetchall()[0][0] or 1
        query = "SELECT rowid, topic_id, timestamp, length(data), typeof(data) FROM messages ORDER BY rowid"
        rows: Iterator[Any] = self._database.execute(query)
        before, count, digest = None, 0, 0
        for row, topic_id, log_ns, size, kind in rows:
            if topic_id not in self._ids or not isinstance(log_ns, int) or kind != "blob":
                raise StorageDamage(f"row {row} of messages is of no topic, or has no time or no data")
            if before is not None and row <= before:
                raise StorageDamage(f"row {row} of messages comes after row {before}")
            before, count, digest = row, count + 1, digest + (log_ns & 2147483647) + (log_ns >> 31)
            if size > MAX_MESSAGE_BYTES:
                raise StorageDamage(
                    f"row {row} of messages has {size} bytes; up to {MAX_MESSAGE_BYTES} are read"
                )
            blob = self._blob(row)
            if self._cut:  # a row may begin before the cut and end behind it
                self._database.execute("SELECT data FROM messages WHERE rowid = ?", (row,)).fetchall()
            head = plain_head(blob.read(HEAD_BYTES), partial(self._start, row))
            topic = self._ids[topic_id]
            self.counts[topic] += 1
            first, last = self.span or (log_ns, log_ns)
            self.span = min(first, log_ns), max(last, log_ns)
            self._passed = self._size * row // max(newest, row, 1)
            yield StoredMessage(topic, size, log_ns, row, -1, head)
        if not self._cut and self._has_index():
            indexed = self._database.execute(f"{_LOG_TIMES} INDEXED BY timestamp_idx").fetchall()
            if indexed != [(count, digest)]:
                raise StorageDamage(
                    f"{count} messages are there, but its index of log times speaks of {indexed[0][0]}, "
                    "or of other times"
                )

    def _has_index(self) -> bool:
        indexes: Iterable[Any] = self._database.execute("PRAGMA index_list(messages)")
        return any(row[1] == "timestamp_idx" for row in indexes)

    def _start(self, row: int, most: int) -> bytes:
        return self._blob(row).read(most)

    def _blob(self, row: int) -> apsw.Blob:
        """The data of a message, open at its beginning: to read it in part, and without another copy."""
        if self._opened_blob is None:
            self._opened_blob = self._database.blob_open("main", "messages", "data", row, False)
        else:
            self._opened_blob.reopen(row)
        return self._opened_blob

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (apsw.Error, StorageDamage, ValueError, MemoryError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BagError(
                f"{self.path}: damaged: {reason}; what can still be read: `sqlite3 {self.path.name} .recover`"
            ) from None
