# SPDX-License-Identifier: Apache-2.0
"""Damages bags by seed, and judges what the reader makes of them, in processes of their own.

    python test/m3l_model/bag_mutations.py --count 5000 [--first SEED]     # prints a table

A seed chooses a variant of a bag and a mutation of it. What the reader makes of the bag is one of

identical     every frame and message as it was,
refused       one of the package's own errors, naming the bag; what was given out before was as it had been,
warned        what is there is as it was, some is missing, and a warning says so,
explained     the same without a warning, or twice, since a file is gone or added and no metadata.yaml names them,
undetected    something is missing or wrong, but no checksum covers the bytes that were changed,

or a failure: silent (missing or wrong though a checksum covers it), exception (another than the package's own), hang,
crash (the process has died) and memory (more than 1 GB).

No reader can detect a changed pixel, stamp or name in SQLite, which has no checksums at all, nor in MCAP without
checksums of chunks or outside of chunks. In MCAP with them, nothing wrong may pass. The same goes for messages that are
valid but not those that were recorded ("message" mutations), and JPEG data.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import random
import resource
import select
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple
from zlib import crc32

import cv2
import numpy as np
import yaml

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bag_variants import (
    FRAME_ID,
    SECOND,
    STRING,
    VARIANTS,
    StoredMessage,
    Variant,
    compressed_cdr,
    depth_header,
    image_cdr,
    recording,
    topics_of,
    write_bag,
)

from m3l_model.bag_topics import CAMERA_INFO
from m3l_model.bags import BagFrame, BagFrames, BagReader
from m3l_model.cdr import COMPRESSED_IMAGE, IMAGE
from m3l_model.errors import M3LError

MAX_GROWTH = 1 << 30
ADDRESS_SPACE = 2 << 30
TIMEOUT_S = 20.0

FAILURES = frozenset({"silent", "exception", "hang", "crash", "memory"})

_HUGE = (0, 1, 0x7F, 0xFF, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


class Mutation(NamedTuple):
    """What was done to a bag; ``covered``: checksums cover it; ``explained``: what is missing need not be said."""

    variant: str
    kind: str
    covered: bool
    explained: bool


# Bytes


def _truncate(data: bytearray, rng: random.Random) -> None:
    del data[rng.choice([rng.randrange(len(data)), len(data) - 1 - rng.randrange(min(len(data), 64))]) :]


def _flip_bit(data: bytearray, rng: random.Random) -> None:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randrange(2, 40)):
        _flip_bit(data, rng)


def _overwrite(data: bytearray, rng: random.Random) -> None:
    at, size = rng.randrange(len(data)), rng.randrange(1, 600)
    filling = rng.choice([bytes(size), b"\xff" * size, rng.randbytes(size)])
    data[at : at + size] = filling[: len(data) - at]


def _zeros_at_end(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:] = bytes(len(data) - at)


def _insert(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    data[at:at] = rng.randbytes(rng.randrange(1, 200))


def _remove(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(len(data))
    del data[at : at + rng.randrange(1, 200)]


def _append(data: bytearray, rng: random.Random) -> None:
    data += rng.choice([bytes(1000), rng.randbytes(100), bytes(data[:2000])])


def _swap_blocks(data: bytearray, rng: random.Random) -> None:
    size = rng.randrange(1, 2000)
    first, second = rng.randrange(len(data)), rng.randrange(len(data))
    one, other = data[first : first + size], data[second : second + size]
    data[first : first + len(one)] = other[: len(one)].ljust(len(one), b"\0")
    data[second : second + len(other)] = one[: len(other)].ljust(len(other), b"\0")


def _number(data: bytearray, rng: random.Random) -> None:
    """Overwrite what may be a number by one that is hardly right."""
    layout = rng.choice(["<I", "<Q", ">I", "<H"])
    size = struct.calcsize(layout)
    at = rng.randrange(max(1, len(data) - size))
    struct.pack_into(layout, data, at, rng.choice(_HUGE) % (1 << 8 * size))


def _text_length(data: bytearray, rng: random.Random) -> None:
    for name in rng.sample(
        [b"/camera/", b"sensor_msgs", b"cdr", b"offered_qos", b"zstd", b"rgb8", b"ros2"], 7
    ):
        places = [at for at in _all(data, name) if at >= 4]
        if places:
            struct.pack_into("<I", data, rng.choice(places) - 4, rng.choice(_HUGE) % 2**32)
            return


def _all(data: bytes | bytearray, part: bytes) -> list[int]:
    places, at = [], data.find(part)
    while at >= 0:
        places.append(at)
        at = data.find(part, at + 1)
    return places


def _name(data: bytearray, rng: random.Random) -> None:
    """Swap the names of types, topics and encodings."""
    names = [
        b"msg/Image",
        b"msg/CameraInfo",
        b"msg/CompressedImage",
        b"image_raw",
        b"cdr",
        b"16UC1",
        b"rgb8",
        b"labels",
    ]
    for name in rng.sample(names, len(names)):
        places = _all(data, name)
        if places:
            other = rng.choice(names).ljust(len(name))[: len(name)]
            for at in places if rng.random() < 0.5 else rng.sample(places, 1):
                data[at : at + len(name)] = other
            return


BYTES: dict[str, Callable[[bytearray, random.Random], None]] = {
    "truncate": _truncate,
    "flip bit": _flip_bit,
    "flip bits": _flip_bits,
    "overwrite": _overwrite,
    "zeros at end": _zeros_at_end,
    "insert": _insert,
    "remove": _remove,
    "append": _append,
    "swap blocks": _swap_blocks,
    "number": _number,
    "text length": _text_length,
    "name": _name,
}


# Structure of MCAP


def _records(data: bytes) -> list[int]:
    """Where the records begin, those within uncompressed chunks too."""
    found, at = [], 8
    while at + 9 <= len(data):
        opcode, length = struct.unpack_from("<BQ", data, at)
        found.append(at)
        if opcode == 6 and at + 45 <= len(data):
            (name,) = struct.unpack_from("<I", data, at + 9 + 28)
            if not name:
                inner, end = at + 9 + 40, at + 9 + length
                while inner + 9 <= end:
                    found.append(inner)
                    inner += 9 + struct.unpack_from("<Q", data, inner + 1)[0]
        at += 9 + length
    return found


def _record_length(data: bytearray, rng: random.Random) -> None:
    at = rng.choice(_records(bytes(data)))
    (length,) = struct.unpack_from("<Q", data, at + 1)
    new = rng.choice([*_HUGE, length - 1, length + 1, 2 * length, length // 2, length + 9]) % 2**64
    struct.pack_into("<Q", data, at + 1, new)


def _record_kind(data: bytearray, rng: random.Random) -> None:
    data[rng.choice(_records(bytes(data)))] = rng.choice([*range(17), 0x7F, 0x80, 0xFF])


def _record_field(data: bytearray, rng: random.Random) -> None:
    at = rng.choice(_records(bytes(data))) + 9 + rng.randrange(48)
    layout = rng.choice(["<H", "<I", "<Q"])
    size = struct.calcsize(layout)
    if at + size <= len(data):
        (value,) = struct.unpack_from(layout, data, at)
        new = rng.choice([*_HUGE, value + 1, value - 1, value ^ 1 << rng.randrange(8 * size)])
        struct.pack_into(layout, data, at, new % (1 << 8 * size))


def _chunk_sizes(data: bytearray, rng: random.Random) -> None:
    chunks = [at for at in _records(bytes(data)) if data[at] == 6]
    if chunks:
        at = rng.choice(chunks) + 9 + rng.choice([0, 8, 16, 24, 28, 32, 36])
        struct.pack_into(rng.choice(["<I", "<Q"]), data, at, rng.choice(_HUGE) % 2**32)


def _stamp(data: bytearray, rng: random.Random) -> None:
    """Change the stamp of a message so that it may fall out of its frame."""
    places = [at - 12 for at in _all(data, FRAME_ID.encode()) if at >= 12]
    if places:
        at = rng.choice(places)
        data[at + rng.choice([0, 1, 4, 5, 6, 7])] ^= 1 << rng.randrange(8)


MCAP: dict[str, Callable[[bytearray, random.Random], None]] = {
    "record length": _record_length,
    "record kind": _record_kind,
    "record field": _record_field,
    "chunk sizes": _chunk_sizes,
    "stamp": _stamp,
}


# Structure of SQLite


def _page_size(data: bytes | bytearray) -> int:
    size = int.from_bytes(data[16:18], "big")
    return 65536 if size == 1 else max(size, 512)


def _page_head(data: bytearray, rng: random.Random) -> None:
    size = _page_size(data)
    page = rng.randrange(len(data) // size)
    at = page * size + (100 if page == 0 else 0) + rng.randrange(60)
    data[at] = rng.choice([data[at] ^ 1 << rng.randrange(8), 0, 0xFF, 2, 5, 10, 13])


def _page_copy(data: bytearray, rng: random.Random) -> None:
    size = _page_size(data)
    source, target = (rng.randrange(len(data) // size) * size for _ in range(2))
    data[target : target + size] = data[source : source + size]


def _page_pointer(data: bytearray, rng: random.Random) -> None:
    """Make a number that may point to a page point to another: to itself, to its parent, behind the end."""
    size = _page_size(data)
    pages = len(data) // size
    interior = [page for page in range(1, pages) if data[page * size] in (2, 5)] or list(range(pages))
    page = rng.choice(interior)
    at = page * size + rng.choice([8, 0, 4, rng.randrange(size - 4)])
    struct.pack_into(">I", data, at, rng.choice([page + 1, 1, 2, 3, pages, pages + 1, 2**31, 0]))


def _database_head(data: bytearray, rng: random.Random) -> None:
    at = rng.randrange(100)
    data[at] = rng.choice([0, 1, 2, 0xFF, data[at] ^ 1 << rng.randrange(8)])


SQLITE: dict[str, Callable[[bytearray, random.Random], None]] = {
    "page head": _page_head,
    "page copy": _page_copy,
    "page pointer": _page_pointer,
    "database head": _database_head,
    "stamp": _stamp,
}


# Files


def _storage_files(bag: Path) -> list[Path]:
    return sorted(path for path in bag.iterdir() if path.suffix in (".mcap", ".db3"))


def _delete(bag: Path, rng: random.Random) -> None:
    rng.choice(_storage_files(bag)).unlink()


def _swap_files(bag: Path, rng: random.Random) -> None:
    first, *_, last = [*_storage_files(bag), *_storage_files(bag)[-1:]]
    spare = bag / "spare"
    first.rename(spare)
    if first != last:
        last.rename(first)
    spare.rename(last)


def _duplicate(bag: Path, rng: random.Random) -> None:
    files = _storage_files(bag)
    shutil.copy(files[0], bag / f"copy{files[0].suffix}")


def _empty_file(bag: Path, rng: random.Random) -> None:
    rng.choice(_storage_files(bag)).write_bytes(b"")


def _folder_for_file(bag: Path, rng: random.Random) -> None:
    path = rng.choice([*_storage_files(bag), bag / "metadata.yaml"])
    path.unlink(missing_ok=True)
    path.mkdir()


def _wrong_suffix(bag: Path, rng: random.Random) -> None:
    for path in _storage_files(bag):
        path.rename(path.with_suffix(".db3" if path.suffix == ".mcap" else ".mcap"))


def _other_content(bag: Path, rng: random.Random) -> None:
    content = rng.choice(
        [b"#ROSBAG V2.0\n", b"\x28\xb5\x2f\xfd" + bytes(50), b"PK\3\4", b"\0" * 4096, b"hello\n"]
    )
    rng.choice(_storage_files(bag)).write_bytes(content)


def _no_metadata(bag: Path, rng: random.Random) -> None:
    (bag / "metadata.yaml").unlink(missing_ok=True)


def _metadata_lies(bag: Path, rng: random.Random) -> None:
    path = bag / "metadata.yaml"
    names = [file.name for file in _storage_files(bag)]
    content = yaml.safe_load(path.read_text()) if path.exists() else {"rosbag2_bagfile_information": {}}
    information = content["rosbag2_bagfile_information"]
    lie: dict[str, Any] = rng.choice(
        [
            {"message_count": rng.choice([0, -1, 10**30, "many", None])},
            {"storage_identifier": rng.choice(["sqlite3", "mcap", "", None, [1]])},
            {
                "relative_file_paths": rng.choice(
                    [[*names, "more.mcap"], names * 2, [f"../{names[0]}"], ["/etc/passwd"]]
                )
            },
            {
                "relative_file_paths": rng.choice(
                    [[], None, names[0], [None], [["a"]], {"a": 1}, ["\0"], ["x" * 300], ["."]]
                )
            },
            {"relative_file_paths": [f"{name}.zstd" for name in names]},
            {"compression_mode": rng.choice(["FILE", "MESSAGE", "X", None]), "compression_format": "zstd"},
            {"version": rng.choice([0, 99, -1, "x", None])},
            {"starting_time": None, "duration": {"nanoseconds": -(2**63)}},
            {"topics_with_message_count": rng.choice([None, [], [{}], "x"])},
        ]
    )
    information.update(lie)
    path.write_text(yaml.safe_dump(content))


def _metadata_junk(bag: Path, rng: random.Random) -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{chr(98 + level)}: &{chr(98 + level)} [{','.join([f'*{chr(97 + level)}'] * 9)}]\n"
        for level in range(12)
    )
    junk = rng.choice(
        [
            b"",
            b"\0" * 100,
            rng.randbytes(500),
            b"[" * 20_000,
            b"{a: " * 20_000,
            b"- " * 300_000,
            b"x: y\n" * 700_000,
            b"rosbag2_bagfile_information: [1]",
            b"rosbag2_bagfile_information: {relative_file_paths: !!python/object/apply:os.system ['false']}",
            b"rosbag2_bagfile_information: {relative_file_paths: [!!int '', !!timestamp x]}",
            bomb.encode() + b"rosbag2_bagfile_information: {relative_file_paths: *m}",
            bomb.encode() + b"rosbag2_bagfile_information: {relative_file_paths: [*m]}",
            b"%YAML 9.9\n---\n!<x> &y",
            b"\xff\xfe" + "rosbag2_bagfile_information: 1".encode("utf-16-le"),
        ]
    )
    (bag / "metadata.yaml").write_bytes(junk)


FILES: dict[str, Callable[[Path, random.Random], None]] = {
    "delete file": _delete,
    "swap files": _swap_files,
    "duplicate file": _duplicate,
    "empty file": _empty_file,
    "folder for file": _folder_for_file,
    "wrong suffix": _wrong_suffix,
    "other content": _other_content,
    "no metadata": _no_metadata,
    "metadata lies": _metadata_lies,
    "metadata junk": _metadata_junk,
}


# Messages


def png_of_size(width: int, height: int, depth: int = 8, color: int = 2) -> bytes:
    """A PNG that claims a size, with hardly any data."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", crc32(kind + body))

    head = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    data = b"\x78\x9c\x03\x00\x00\x00\x00\x01"
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_of_size(width: int, height: int) -> bytes:
    """A JPEG whose frame header claims a size."""
    data = bytearray(cv2.imencode(".jpg", np.zeros((8, 8, 3), np.uint8))[1].tobytes())
    at = data.index(b"\xff\xc0")
    struct.pack_into(">HH", data, at + 5, height, width)
    return bytes(data)


def _absurd_raw(message: StoredMessage, stamp: int, rng: random.Random) -> bytes:
    height, width = rng.choice(
        [(60000, 60000), (0, 16), (12, 0), (0, 0), (2**32 - 1, 2**32 - 1), (1, 1), (65536, 65536)]
    )
    encoding = rng.choice(
        ["rgb8", "16UC1", "mono8", "bayer_rggb8", "yuv422", "nv12", "32FC1", "bgra8", "rgb16"]
    )
    step = rng.choice([0, 1, 48, 180000, 2**32 - 1])
    return image_cdr(stamp, height, width, encoding, step, bytes(rng.choice([0, 1, 12, 576, 1728])))


def _any_encoding(message: StoredMessage, stamp: int, rng: random.Random) -> bytes:
    names = [
        "rgb8",
        "bgr8",
        "rgba8",
        "bgra8",
        "rgb16",
        "bgr16",
        "mono8",
        "mono16",
        "8UC1",
        "8UC3",
        "16UC1",
        "32FC1",
        "64FC1",
        "8SC1",
        "bayer_rggb8",
        "bayer_grbg16",
        "yuv422",
        "yuv422_yuy2",
        "uyvy",
        "yuyv",
        "nv12",
        "nv21",
        "nv24",
        "rgb",
        "bgr8x",
        "yuv",
        "bayer_",
        "8UC99",
        "mono8_x",
        "rgb99",
        "8UC0",
        "16UC-1",
        "32FC4",
    ]
    encoding = rng.choice([*names, "", "\0", "x" * 5000, "rgb8\0"])
    height, width = rng.choice([(1, 1), (2, 2), (3, 3), (2, 3), (1, 7), (12, 16), (13, 17)])
    size = height * width * rng.choice([1, 2, 3, 4, 6])
    return image_cdr(stamp, height, width, encoding, size // height, rng.randbytes(size), rng.random() < 0.3)


def _absurd_compressed(message: StoredMessage, stamp: int, rng: random.Random) -> bytes:
    size = rng.choice(
        [(60000, 60000), (30000, 30000), (65500, 65500), (0, 0), (1, 60000), (9000, 9000), (5000, 5000)]
    )
    data = rng.choice(
        [
            png_of_size(*size, *rng.choice([(8, 2), (16, 0), (16, 6), (8, 3), (1, 0), (8, 7)])),
            jpeg_of_size(*size),
            depth_header() + png_of_size(*size, 16, 0),
            b"GIF89a" + struct.pack("<HH", size[0] % 65536, size[1] % 65536) + bytes(20),
            b"BM" + struct.pack("<IIIIiiHHI", 54, 0, 54, 40, *size, 1, 24, 0) + bytes(24),
            b"II*\0" + bytes(40),
            b"RIFF\x40\0\0\0WEBPVP8 " + bytes(60),
            f"P6 {size[0]} {size[1]} 255\n".encode(),
            f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {size[0]} +X {size[1]}\n".encode(),
            b"\x76\x2f\x31\x01" + bytes(80),
            b"",
            b"\xff\xd8",
            b"\xff\xd8\xff\xd9",
            b"\x89PNG\r\n\x1a\n",
        ]
    )
    form = rng.choice(
        [
            "jpeg",
            "png",
            "rgb8; jpeg compressed bgr8",
            "16UC1; compressedDepth png",
            "32FC1; compressedDepth",
            "rvl",
            "",
        ]
    )
    return compressed_cdr(stamp, form, data)


def _codec(message: StoredMessage, stamp: int, rng: random.Random) -> bytes:
    """Compressed data that is damaged, PNG with its checksums made good again."""
    pixels = np.random.default_rng(rng.randrange(99)).integers(0, 256, (24, 32, 3), np.uint8)
    suffix = rng.choice([".png", ".jpg"])
    options = [cv2.IMWRITE_JPEG_PROGRESSIVE, rng.randrange(2)] if suffix == ".jpg" else []
    data = bytearray(cv2.imencode(suffix, pixels, options)[1].tobytes())
    rng.choice([_flip_bit, _flip_bits, _overwrite, _truncate, _number, _remove])(data, rng)
    if suffix == ".png":
        at = 8
        while at + 12 <= len(data):
            (length,) = struct.unpack_from(">I", data, at)
            end = at + 8 + length
            if end + 4 > len(data):
                break
            struct.pack_into(">I", data, end, crc32(data[at + 4 : end]))
            at = end + 4
    return compressed_cdr(stamp, rng.choice(["png", "jpeg", "16UC1; compressedDepth png"]), bytes(data))


def _quantized(message: StoredMessage, stamp: int, rng: random.Random) -> bytes:
    values = [0.0, -1.0, 1e38, -1e38, float("nan"), float("inf")]
    levels = np.random.default_rng(3).integers(0, 65536, (12, 16), np.uint16)
    data = depth_header(rng.choice(values), rng.choice(values)) + cv2.imencode(".png", levels)[1].tobytes()
    return compressed_cdr(stamp, "32FC1; compressedDepth png", data)


def _cut_message(message: StoredMessage, stamp: int, rng: random.Random) -> bytes:
    return message.data[: rng.choice([0, 1, 3, 4, 8, 11, 12, 16, 20, rng.randrange(len(message.data))])]


def _cdr_field(message: StoredMessage, stamp: int, rng: random.Random) -> bytes:
    data = bytearray(message.data)
    struct.pack_into("<I", data, rng.randrange(0, min(96, len(data) - 4)), rng.choice(_HUGE) % 2**32)
    return bytes(data)


def _cdr_flip(message: StoredMessage, stamp: int, rng: random.Random) -> bytes:
    data = bytearray(message.data)
    data[rng.randrange(min(100, len(data)))] ^= 1 << rng.randrange(8)
    return bytes(data)


def zstd_bomb(blocks: int) -> bytes:
    """A zstd frame of 128 KiB of zeros for each block of four bytes."""
    block = ((128 << 10) << 3 | 1 << 1).to_bytes(3, "little") + b"\0"
    last = ((128 << 10) << 3 | 1 << 1 | 1).to_bytes(3, "little") + b"\0"
    return b"\x28\xb5\x2f\xfd\0\x48" + block * (blocks - 1) + last


def _bomb(message: StoredMessage, stamp: int, rng: random.Random) -> bytes:
    return zstd_bomb(rng.choice([10, 1900, 2100, 80_000]))


BOMB = "message: bomb"
MESSAGES: dict[str, Callable[[StoredMessage, int, random.Random], bytes]] = {
    "message: raw size": _absurd_raw,
    "message: encoding": _any_encoding,
    "message: coded size": _absurd_compressed,
    "message: codec": _codec,
    "message: quantized": _quantized,
    "message: cut": _cut_message,
    "message: field": _cdr_field,
    "message: flip": _cdr_flip,
    BOMB: _bomb,
}
TYPES = "message: type"
LOG_TIMES = "message: time"


def _mutate_messages(variant: Variant, kind: str, rng: random.Random) -> list[StoredMessage]:
    messages = recording(variant.compressed, variant.size)
    topics = topics_of(variant.compressed)
    if kind == TYPES:
        topic = rng.choice([topics.rgb, topics.depth, topics.label])
        msgtype = rng.choice(
            [IMAGE, COMPRESSED_IMAGE, CAMERA_INFO, STRING, "sensor_msgs/msg/Nothing", "", "x" * 3000]
        )
        return [
            message._replace(msgtype=msgtype) if message.topic == topic else message for message in messages
        ]
    if kind == LOG_TIMES:
        at = rng.randrange(len(messages))
        messages[at] = messages[at]._replace(log_ns=rng.choice([0, 2**63 - 1, 2**62, messages[0].log_ns]))
        return messages
    wanted = [
        at for at, message in enumerate(messages) if message.topic in (topics.rgb, topics.depth, topics.label)
    ]
    for at in rng.sample(wanted, rng.choice([1, 1, 3, 3 if kind == BOMB else len(wanted)])):
        stamp = SECOND + (messages[at].log_ns - SECOND) // 100_000_000 * 100_000_000
        messages[at] = messages[at]._replace(data=MESSAGES[kind](messages[at], stamp, rng))
    return messages


def mutate(pristine: Path, bag: Path, seed: int) -> Mutation:
    """Make a damaged copy of one of the bags in a folder, each named by its variant."""
    rng = random.Random(seed)
    name = rng.choice(sorted(VARIANTS))
    variant = VARIANTS[name]
    structure = MCAP if variant.suffix == ".mcap" else SQLITE
    groups = [[*BYTES], [*structure], [*FILES], [*MESSAGES, TYPES, LOG_TIMES]]
    kind = rng.choice(rng.choices(groups, [35, 30, 15, 20])[0])
    if kind.startswith("message:"):
        write_bag(bag, variant, _mutate_messages(variant, kind, rng))
        return Mutation(name, kind, False, False)
    shutil.copytree(pristine / name, bag)
    if kind in FILES:
        FILES[kind](bag, rng)
        explained = kind in ("delete file", "folder for file", "duplicate file")
        return Mutation(name, kind, True, explained and not (bag / "metadata.yaml").is_file())
    path = rng.choice(_storage_files(bag))
    data = bytearray(path.read_bytes())
    {**BYTES, **structure}[kind](data, rng)
    path.write_bytes(data)
    return Mutation(name, kind, variant.checksums, False)


def write_pristine(folder: Path) -> Path:
    """One bag of each variant, named by it."""
    folder.mkdir()
    for name, variant in VARIANTS.items():
        write_bag(folder / name, variant)
    return folder


# Judgement


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Original(NamedTuple):
    """What a bag holds: frames by stamp, and its messages by topic and log time."""

    frames: dict[int, BagFrame]
    messages: dict[tuple[str, int], bytes]


def read_original(bag: Path) -> Original:
    frames = {frame.stamp_ns: frame for frame in BagFrames.open(bag, cache=False)}
    with BagReader(bag) as reader:
        messages = {(raw.topic, raw.log_ns): bytes(raw.data) for raw in reader.raw_messages()}
    return Original(frames, messages)


def judge(bag: Path, original: Original, mutation: Mutation) -> tuple[str, str]:
    """Read a damaged bag; returns what came of it and, for people, why."""
    warnings = _Warnings()
    logging.getLogger("m3l_model").addHandler(warnings)
    try:
        outcomes = [
            _judge(part, bag, original, mutation, warnings) for part in (_frames_state, _messages_state)
        ]
        if mutation.kind in (*MESSAGES, TYPES, LOG_TIMES) and outcomes[1][0] == "undetected":
            outcomes.pop()  # it is another message, rightly read
    finally:
        logging.getLogger("m3l_model").removeHandler(warnings)
    order = ["exception", "silent", "undetected", "refused", "warned", "explained", "identical"]
    return min(outcomes, key=lambda outcome: order.index(outcome[0]))


def _judge(
    state: Callable[[Path, Original], tuple[str, str]],
    bag: Path,
    original: Original,
    mutation: Mutation,
    warnings: _Warnings,
) -> tuple[str, str]:
    warnings.lines.clear()
    try:
        outcome, reason = state(bag, original)
    except M3LError as error:
        line = str(error)
        if str(bag) not in line or "\n" in line or len(line) > 2000:
            return "exception", f"an error that names no file, or is not one line: {line[:500]}"
        return "refused", line
    except Exception as error:
        return "exception", f"{type(error).__name__}: {error}"
    if outcome == "missing" and warnings.lines:
        return "warned", warnings.lines[0]
    if outcome in ("missing", "repeated") and mutation.explained:
        return "explained", reason
    if outcome != "identical":
        return ("silent" if mutation.covered else "undetected"), reason
    return outcome, reason


class _WrongError(Exception):
    pass


def _frames_state(bag: Path, original: Original) -> tuple[str, str]:
    frames = BagFrames.open(bag)
    wrong, lost, seen = [], [], set()
    try:
        for frame in frames:
            known = original.frames.get(frame.stamp_ns)
            if known is None or frame.stamp_ns in seen:
                wrong.append(f"no frame had the stamp {frame.stamp_ns}")
                continue
            seen.add(frame.stamp_ns)
            for role in ("rgb", "depth", "labels", "frame_id"):
                value, expected = getattr(frame, role), getattr(known, role)
                if value is None and expected is not None:
                    lost.append(f"{role} of {frame.stamp_ns}")
                elif not np.array_equal(value, expected):
                    wrong.append(f"{role} of {frame.stamp_ns} differs")
    except M3LError:
        if not wrong:
            raise
    finally:
        frames.close()
    lost += [f"frame {stamp}" for stamp in original.frames.keys() - seen]
    return _state(wrong, lost)


def _messages_state(bag: Path, original: Original) -> tuple[str, str]:
    wrong, repeated, seen = [], [], set()
    try:
        with BagReader(bag) as reader:
            for raw in reader.raw_messages():
                key = (raw.topic, raw.log_ns)
                known = original.messages.get(key)
                if known is None or raw.data != memoryview(known):
                    wrong.append(f"message {key} differs")
                if key in seen:
                    repeated.append(f"message {key} is there twice")
                seen.add(key)
    except M3LError:
        if not wrong:
            raise
    lost = [f"message {key}" for key in original.messages.keys() - seen]
    return ("repeated", repeated[0]) if repeated and not wrong else _state(wrong, lost)


def _state(wrong: list[str], lost: list[str]) -> tuple[str, str]:
    if wrong:
        return "wrong", wrong[0]
    return ("missing", lost[0]) if lost else ("identical", "")


# Processes


class Result(NamedTuple):
    """What came of a seed; ``growth``: of the memory at its peak over that before, bytes."""

    seed: int
    mutation: Mutation
    outcome: str
    reason: str
    growth: int
    seconds: float


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) << 10
    raise LookupError(field)


def _work(folder: Path) -> None:
    """Judge the seeds that come on stdin, one a line; answer each with a line of JSON."""
    pristine = folder / "pristine"
    originals = {name: read_original(pristine / name) for name in VARIANTS}
    answers, sys.stdout = sys.stdout, sys.stderr
    limit = _memory("VmSize:") + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for line in sys.stdin:
        seed = int(line)
        bag = folder / f"bag_{os.getpid()}"
        shutil.rmtree(bag, ignore_errors=True)
        mutation = mutate(pristine, bag, seed)
        print(json.dumps(mutation), file=answers, flush=True)
        Path("/proc/self/clear_refs").write_text("5")
        before, started = _memory("VmRSS:"), time.monotonic()
        outcome, reason = judge(bag, originals[mutation.variant], mutation)
        seconds, growth = time.monotonic() - started, _memory("VmHWM:") - before
        if growth > MAX_GROWTH:
            outcome, reason = "memory", f"{growth >> 20} MiB; {reason}"
        print(json.dumps([outcome, reason, growth, seconds]), file=answers, flush=True)


class _Worker:
    """A process that judges seeds, started anew when it hangs or dies."""

    def __init__(self, folder: Path, errors: IO[bytes]) -> None:
        self._folder = folder
        self._errors = errors
        self._process: subprocess.Popen[bytes] | None = None

    def judge(self, seed: int) -> Result:
        process = self._process or self._start()
        assert process.stdin is not None
        process.stdin.write(b"%d\n" % seed)
        process.stdin.flush()
        mutation = Mutation("", "", False, False)
        started = time.monotonic()
        try:
            mutation = Mutation(*self._answer(process, 120))
            return Result(seed, mutation, *self._answer(process, TIMEOUT_S))
        except TimeoutError:
            outcome, reason = "hang", f"more than {TIMEOUT_S} s"
        except EOFError:
            outcome, reason = "crash", f"exit code {process.wait()}"
        self.stop()
        return Result(seed, mutation, outcome, reason, 0, time.monotonic() - started)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        cache = {"XDG_CACHE_HOME": str(self._folder / "cache")}
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--work", str(self._folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={**os.environ, **cache},
            bufsize=0,  # or select would not see what the buffer holds
        )
        return self._process

    def _answer(self, process: subprocess.Popen[bytes], timeout: float) -> Any:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], timeout)[0]:
            raise TimeoutError
        line = process.stdout.readline()
        if not line:
            raise EOFError
        return json.loads(line)


def judge_seeds(seeds: Sequence[int], folder: Path, errors: IO[bytes]) -> Iterator[Result]:
    """Judge seeds one after the other in a process of its own; ``folder`` is empty, ``errors`` gets its stderr."""
    write_pristine(folder / "pristine")
    worker = _Worker(folder, errors)
    with contextlib.closing(worker_closer := contextlib.ExitStack()):
        worker_closer.callback(worker.stop)
        for seed in seeds:
            yield worker.judge(seed)


def table(results: Sequence[Result]) -> str:
    """Kinds by outcomes, peak memory and slowest, for people."""
    outcomes = sorted({result.outcome for result in results})
    rows: defaultdict[str, Counter[str]] = defaultdict(Counter)
    growth: Counter[str] = Counter()
    seconds: defaultdict[str, float] = defaultdict(float)
    for result in results:
        kind = result.mutation.kind
        for row in (kind, "all"):
            rows[row][result.outcome] += 1
            growth[row] = max(growth[row], result.growth)
            seconds[row] = max(seconds[row], result.seconds)
    lines = [
        f"{'':<22}" + "".join(f"{outcome:>12}" for outcome in outcomes) + f"{'peak MiB':>10}{'slowest s':>11}"
    ]
    for row in sorted(rows, key=lambda row: (row == "all", row)):
        counts = "".join(f"{rows[row][outcome]:>12}" for outcome in outcomes)
        lines.append(f"{row:<22}{counts}{growth[row] >> 20:>10}{seconds[row]:>11.2f}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        _work(args.work)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        results = []
        with (Path(folder) / "stderr").open("wb") as errors:
            for result in judge_seeds(range(args.first, args.first + args.count), Path(folder), errors):
                results.append(result)
                if result.outcome in FAILURES:
                    print(result, flush=True)
        noise = (Path(folder) / "stderr").read_bytes()
        Path("/tmp/fz_noise").write_bytes(noise)
    print(table(results))
    print(f"{len(noise)} bytes on stderr, such as {noise[:300]!r}")
    return int(any(result.outcome in FAILURES for result in results))


if __name__ == "__main__":
    sys.exit(main())
