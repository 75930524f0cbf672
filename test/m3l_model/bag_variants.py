# SPDX-License-Identifier: Apache-2.0
"""Writes one recording in every form in which rosbag2 may have it, for the tests of storage and for mutations."""

from __future__ import annotations

import sqlite3
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import yaml
from mcap.writer import CompressionType, IndexType, Writer

from m3l_model.bag_storage import zstd
from m3l_model.bag_topics import CAMERA_INFO, Topics
from m3l_model.cdr import COMPRESSED_IMAGE, IMAGE

SECOND = 1_000_000_000
PERIOD = SECOND // 10
FRAME_ID = "camera_color_optical_frame"
STRING = "std_msgs/msg/String"


class StoredMessage(NamedTuple):
    """A message as it is to be stored."""

    topic: str
    msgtype: str
    log_ns: int
    data: bytes


Writing = Callable[[Path, Sequence[StoredMessage]], None]
"""Writes a storage file."""


class Variant(NamedTuple):
    """A form of recording.

    write: of one file.
    suffix: of its name.
    compressed: JPEG, PNG and compressedDepth rather than raw images.
    size: height and width of the images.
    files: how many the recording is split into.
    checksums: of every byte that matters.
    metadata: whether metadata.yaml is there.
    message_zstd: each message is compressed by itself.
    """

    write: Writing
    suffix: str
    compressed: bool = False
    size: tuple[int, int] = (12, 16)
    files: int = 1
    checksums: bool = False
    metadata: bool = True
    message_zstd: bool = False


# CDR


def text(value: bytes | str, order: str = "<") -> bytes:
    data = (value.encode() if isinstance(value, str) else value) + b"\0"
    return struct.pack(f"{order}I", len(data)) + data


def aligned(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def header(stamp_ns: int, frame_id: str, order: str = "<") -> bytes:
    return struct.pack(f"{order}iI", *divmod(stamp_ns, SECOND)) + text(frame_id, order)


def image_cdr(
    stamp_ns: int,
    height: int,
    width: int,
    encoding: str,
    step: int,
    data: bytes,
    big_endian: bool = False,
    order: str = "<",
    frame_id: str = FRAME_ID,
) -> bytes:
    """sensor_msgs/Image, with any contradiction; order "<" or ">" is that of CDR, big_endian that of the pixels."""
    body = aligned(header(stamp_ns, frame_id, order)) + struct.pack(f"{order}II", height, width)
    body = aligned(body + text(encoding, order) + bytes([big_endian])) + struct.pack(f"{order}I", step)
    return (b"\0\1\0\0" if order == "<" else bytes(4)) + body + struct.pack(f"{order}I", len(data)) + data


def compressed_cdr(
    stamp_ns: int, form: str, data: bytes, order: str = "<", frame_id: str = FRAME_ID
) -> bytes:
    """sensor_msgs/CompressedImage."""
    body = aligned(aligned(header(stamp_ns, frame_id, order)) + text(form, order))
    return (b"\0\1\0\0" if order == "<" else bytes(4)) + body + struct.pack(f"{order}I", len(data)) + data


def camera_info_cdr(stamp_ns: int) -> bytes:
    """A sensor_msgs/CameraInfo as far as an index looks at it."""
    return b"\0\1\0\0" + aligned(header(stamp_ns, FRAME_ID)) + bytes(200)


def depth_header(scale: float = 0.0, offset: float = 0.0) -> bytes:
    """What compressed_depth_image_transport puts before its PNG."""
    return struct.pack("<iff", 0, scale, offset)


# Recordings

RAW_TOPICS = Topics("/camera/color/image_raw", "/camera/depth/image_raw", "/camera/labels")
COMPRESSED_TOPICS = Topics(
    "/camera/color/image_raw/compressed",
    "/camera/depth/image_raw/compressedDepth",
    "/camera/labels/compressed",
)


def topics_of(compressed: bool) -> Topics:
    return COMPRESSED_TOPICS if compressed else RAW_TOPICS


def recording(
    compressed: bool = False, size: tuple[int, int] = (12, 16), frames: int = 8
) -> list[StoredMessage]:
    """Frames at 10 Hz from 1 s on; depth is missing in two of them, labels are there in every third."""
    return list(_messages(compressed, size, frames))


def _messages(compressed: bool, size: tuple[int, int], frames: int) -> Iterator[StoredMessage]:
    topics = topics_of(compressed)
    rng = np.random.default_rng(7)
    height, width = size
    for index in range(frames):
        stamp = SECOND + index * PERIOD
        smooth = cv2.resize(rng.integers(0, 256, (3, 4, 3), np.uint8), (width, height))
        rgb = smooth if compressed else rng.integers(0, 256, (height, width, 3), np.uint8)
        depth = rng.integers(0, 9000, (height, width), np.uint16)
        labels = rng.integers(0, 13, (height, width), np.uint8)
        yield StoredMessage("/chatter", STRING, stamp, b"\0\1\0\0" + text(f"frame {index}"))
        if index not in (4, 5):
            yield _image(topics.depth, stamp, depth, "16UC1", compressed)
        yield _image(topics.rgb, stamp + PERIOD // 20, rgb, "rgb8", compressed, stamp)
        yield StoredMessage("/camera/camera_info", CAMERA_INFO, stamp + PERIOD // 10, camera_info_cdr(stamp))
        if index % 3 == 0:
            yield _image(topics.label, stamp + PERIOD // 5, labels, "mono8", compressed, stamp)


def _image(
    topic: str | None,
    log_ns: int,
    pixels: np.ndarray,
    encoding: str,
    compressed: bool,
    stamp_ns: int | None = None,
) -> StoredMessage:
    assert topic is not None
    stamp = log_ns if stamp_ns is None else stamp_ns
    height, width = pixels.shape[:2]
    if not compressed:
        data = image_cdr(stamp, height, width, encoding, pixels.strides[0], pixels.tobytes())
        return StoredMessage(topic, IMAGE, log_ns, data)
    suffix, prefix, form = {
        "rgb8": (".jpg", b"", "rgb8; jpeg compressed bgr8"),
        "16UC1": (".png", depth_header(), "16UC1; compressedDepth png"),
        "mono8": (".png", b"", "mono8; png compressed mono8"),
    }[encoding]
    coded = prefix + cv2.imencode(suffix, pixels)[1].tobytes()
    return StoredMessage(topic, COMPRESSED_IMAGE, log_ns, compressed_cdr(stamp, form, coded))


# Storage

QOS = "- history: 1\n  depth: 10\n  reliability: 1\n  durability: 2\n"


def mcap(compression: CompressionType = CompressionType.NONE, **options: Any) -> Writing:
    """MCAP by the format's own library, with these options of its ``Writer``."""

    def write(path: Path, messages: Sequence[StoredMessage]) -> None:
        with path.open("wb") as file:
            writer = Writer(file, compression=compression, **options)
            writer.start(profile="ros2", library="test")
            channels = {}
            for topic, msgtype, log_ns, data in messages:
                if topic not in channels:
                    schema = writer.register_schema(msgtype, "ros2msg", b"# its definition")
                    channels[topic] = writer.register_channel(
                        topic, "cdr", schema, {"offered_qos_profiles": QOS}
                    )
                writer.add_message(channels[topic], log_ns, data, log_ns)
            writer.finish()

    return write


SQLITE_SCHEMAS = {
    1: "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, "
    "serialization_format TEXT NOT NULL);",
    2: "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, "
    "serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL);",
    3: "CREATE TABLE schema(schema_version INTEGER PRIMARY KEY, ros_distro TEXT NOT NULL);"
    "INSERT INTO schema VALUES(3, 'humble');"
    "CREATE TABLE metadata(id INTEGER PRIMARY KEY, metadata_version INTEGER NOT NULL, metadata TEXT NOT NULL);"
    "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, "
    "serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL);",
    4: "CREATE TABLE schema(schema_version INTEGER PRIMARY KEY, ros_distro TEXT NOT NULL);"
    "INSERT INTO schema VALUES(4, 'jazzy');"
    "CREATE TABLE metadata(id INTEGER PRIMARY KEY, metadata_version INTEGER NOT NULL, metadata TEXT NOT NULL);"
    "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, "
    "serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL, type_description_hash TEXT NOT NULL);"
    "CREATE TABLE message_definitions(id INTEGER PRIMARY KEY, topic_type TEXT NOT NULL, encoding TEXT NOT NULL, "
    "encoded_message_definition TEXT NOT NULL, type_description_hash TEXT NOT NULL);",
}
"""What rosbag2 makes, by the version of its SQLite schema, but for the table of messages."""

_MESSAGES = (
    "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, timestamp INTEGER NOT NULL, "
    "data BLOB NOT NULL);CREATE INDEX timestamp_idx ON messages (timestamp ASC);"
)


def sqlite(version: int = 4, before: str = "PRAGMA page_size = 1024") -> Writing:
    """SQLite of a version of rosbag2's schema, after some SQL; small pages, so that messages overflow them."""

    def write(path: Path, messages: Sequence[StoredMessage]) -> None:
        with closing(sqlite3.connect(path)) as database:
            database.execute(before)
            database.executescript(SQLITE_SCHEMAS[version] + _MESSAGES)
            fill_sqlite(database, version, messages)

    return write


def fill_sqlite(database: sqlite3.Connection, version: int, messages: Sequence[StoredMessage]) -> None:
    topics: dict[str, int] = {}
    for topic, msgtype, log_ns, data in messages:
        if topic not in topics:
            topics[topic] = len(topics) + 1
            columns = {1: 4, 2: 5, 3: 5, 4: 6}[version]
            row = (topics[topic], topic, msgtype, "cdr", QOS, "RIHS01_0")[:columns]
            database.execute(f"INSERT INTO topics VALUES({', '.join('?' * len(row))})", row)
        database.execute(
            "INSERT INTO messages(topic_id, timestamp, data) VALUES(?, ?, ?)", (topics[topic], log_ns, data)
        )
    database.commit()


def write_bag(path: Path, variant: Variant, messages: Sequence[StoredMessage] | None = None) -> Path:
    """Write a bag: a folder with storage files and, unless the variant does without, metadata.yaml."""
    if messages is None:
        messages = recording(variant.compressed, variant.size)
    if variant.message_zstd:
        messages = [message._replace(data=zstd.compress(message.data)) for message in messages]
    path.mkdir()
    names = [f"{path.name}_{part}{variant.suffix}" for part in range(variant.files)]
    each = -(-len(messages) // variant.files)
    for part, name in enumerate(names):
        variant.write(path / name, messages[part * each : (part + 1) * each])
    if variant.metadata:
        (path / "metadata.yaml").write_text(metadata_yaml(names, variant, messages))
    return path


def metadata_yaml(names: Sequence[str], variant: Variant, messages: Sequence[StoredMessage]) -> str:
    times = [message.log_ns for message in messages] or [0]
    counts: dict[tuple[str, str], int] = {}
    for message in messages:
        key = (message.topic, message.msgtype)
        counts[key] = counts.get(key, 0) + 1
    information = {
        "version": 5,
        "storage_identifier": "mcap" if variant.suffix == ".mcap" else "sqlite3",
        "duration": {"nanoseconds": max(times) - min(times)},
        "starting_time": {"nanoseconds_since_epoch": min(times)},
        "message_count": len(messages),
        "topics_with_message_count": [
            {
                "topic_metadata": {
                    "name": topic,
                    "type": msgtype,
                    "serialization_format": "cdr",
                    "offered_qos_profiles": QOS,
                },
                "message_count": count,
            }
            for (topic, msgtype), count in counts.items()
        ],
        "compression_format": "zstd" if variant.message_zstd else "",
        "compression_mode": "MESSAGE" if variant.message_zstd else "",
        "relative_file_paths": list(names),
        "files": [{"path": name, "message_count": 1} for name in names],
    }
    return yaml.safe_dump({"rosbag2_bagfile_information": information}, sort_keys=False)


_NONE, _ZSTD, _LZ4 = CompressionType.NONE, CompressionType.ZSTD, CompressionType.LZ4
_BIG = (120, 160)
"""Images of which two make a chunk longer than what the reader reads at once."""

VARIANTS = {
    "mcap": Variant(mcap(chunk_size=2000), ".mcap", checksums=True),
    "mcap_one_chunk": Variant(mcap(chunk_size=1 << 24), ".mcap", checksums=True, metadata=False),
    "mcap_message_chunks": Variant(mcap(chunk_size=1), ".mcap", checksums=True),
    "mcap_big": Variant(mcap(chunk_size=150_000), ".mcap", size=_BIG, checksums=True),
    "mcap_zstd": Variant(mcap(_ZSTD, chunk_size=4000), ".mcap", checksums=True),
    "mcap_lz4": Variant(mcap(_LZ4, chunk_size=4000), ".mcap", checksums=True),
    "mcap_lz4_no_crc": Variant(mcap(_LZ4, chunk_size=4000, enable_crcs=False), ".mcap"),
    "mcap_zstd_no_crc": Variant(mcap(_ZSTD, chunk_size=4000, enable_crcs=False), ".mcap"),
    "mcap_no_crc": Variant(mcap(chunk_size=2000, enable_crcs=False), ".mcap", metadata=False),
    "mcap_not_chunked": Variant(mcap(use_chunking=False), ".mcap"),
    "mcap_no_index": Variant(
        mcap(chunk_size=2000, index_types=IndexType.NONE, use_summary_offsets=False), ".mcap", checksums=True
    ),
    "mcap_no_message_index": Variant(
        mcap(chunk_size=2000, index_types=IndexType.CHUNK), ".mcap", checksums=True
    ),
    "mcap_no_summary": Variant(
        mcap(
            chunk_size=2000,
            index_types=IndexType.NONE,
            repeat_channels=False,
            repeat_schemas=False,
            use_statistics=False,
            use_summary_offsets=False,
        ),
        ".mcap",
        checksums=True,
    ),
    "mcap_no_repeats": Variant(
        mcap(chunk_size=2000, repeat_channels=False, repeat_schemas=False), ".mcap", checksums=True
    ),
    "mcap_split": Variant(mcap(chunk_size=4000), ".mcap", files=3, checksums=True),
    "mcap_message_zstd": Variant(mcap(chunk_size=4000), ".mcap", checksums=True, message_zstd=True),
    "mcap_compressed": Variant(
        mcap(chunk_size=4000), ".mcap", compressed=True, size=(48, 64), checksums=True
    ),
    "mcap_compressed_no_crc": Variant(
        mcap(chunk_size=4000, enable_crcs=False), ".mcap", compressed=True, size=(48, 64)
    ),
    "sqlite_1": Variant(sqlite(1), ".db3"),
    "sqlite_2": Variant(sqlite(2), ".db3", metadata=False),
    "sqlite_3": Variant(sqlite(3, "PRAGMA page_size = 4096"), ".db3"),
    "sqlite_4": Variant(sqlite(4), ".db3"),
    "sqlite_split": Variant(sqlite(), ".db3", files=2),
    "sqlite_message_zstd": Variant(sqlite(3), ".db3", message_zstd=True),
    "sqlite_compressed": Variant(sqlite(), ".db3", compressed=True, size=(48, 64)),
}
"""Every form, by name. metadata.yaml can be left out of each."""
