# SPDX-License-Identifier: Apache-2.0
"""Looks into PNG and JPEG data before it is decoded: OpenCV allocates what a header claims, and overlooks damage."""

from __future__ import annotations

import struct
from zlib import crc32

PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
JPEG_MAGIC = b"\xff\xd8"

MAX_PIXELS = 1 << 25
"""8K video is just below. To decode more, whatever a few bytes claim, could take a gigabyte."""

_PNG_CHUNK = struct.Struct(">I4s")  # length, type; then the data and its CRC
_PNG_SIZE = struct.Struct(">II")
_JPEG_FRAME = struct.Struct(">BHH")  # bits, height, width

_JPEG_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})
_JPEG_SCAN = 0xDA
_JPEG_BARE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without content."""
_JPEG_END = b"\xff\xd9"


class CompressedImageError(ValueError):
    """Data that is no whole PNG or JPEG image of a size that is decoded."""


def check_compressed(data: bytes | memoryview) -> None:
    """Check that data is PNG or JPEG, from beginning to end, of no more than ``MAX_PIXELS``.

    PNG's checksums are verified; JPEG has none, so that damage within its pixels may pass.

    Raises:
        CompressedImageError: it is not.
    """
    data = memoryview(data)
    if data[: len(PNG_MAGIC)] == PNG_MAGIC:
        height, width = _check_png(data)
    elif data[: len(JPEG_MAGIC)] == JPEG_MAGIC:
        height, width = _check_jpeg(data)
    else:
        raise CompressedImageError(
            f"its {len(data)} bytes are no image that can be read, neither JPEG nor PNG"
        )
    if not 0 < width * height <= MAX_PIXELS:
        raise CompressedImageError(f"it claims {width}x{height} pixels; up to {MAX_PIXELS} are decoded")


def _check_png(data: memoryview) -> tuple[int, int]:
    size = None
    at = len(PNG_MAGIC)
    while at + _PNG_CHUNK.size + 4 <= len(data):
        length, kind = _PNG_CHUNK.unpack_from(data, at)
        end = at + _PNG_CHUNK.size + length
        if end + 4 > len(data):
            break
        if crc32(data[at + 4 : end]) != int.from_bytes(data[end : end + 4], "big"):
            raise CompressedImageError(f"its PNG chunk at byte {at} fails the checksum")
        if size is None:
            if kind != b"IHDR" or length != 13:
                raise CompressedImageError("it is a PNG without header")
            width, height = _PNG_SIZE.unpack_from(data, at + _PNG_CHUNK.size)
            size = (height, width)
        elif kind == b"IEND":
            return size
        at = end + 4
    raise CompressedImageError(f"its {len(data)} bytes are no image that can be read: a PNG that is cut off")


def _check_jpeg(data: memoryview) -> tuple[int, int]:
    size = None
    at = len(JPEG_MAGIC)
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker == 0xFF:  # fills up
            at += 1
            continue
        if marker in _JPEG_BARE:
            at += 2
            continue
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in _JPEG_FRAMES and at + 4 + _JPEG_FRAME.size <= len(data):
            _, height, width = _JPEG_FRAME.unpack_from(data, at + 4)
            size = (height, width)
        if marker == _JPEG_SCAN and size:
            if bytes(data[at:]).rfind(_JPEG_END) < 0:
                raise CompressedImageError("it is a JPEG that is cut off")
            return size
        at += 2 + length
    raise CompressedImageError(f"its {len(data)} bytes are no image that can be read: a JPEG without header")
