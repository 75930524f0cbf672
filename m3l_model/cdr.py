# SPDX-License-Identifier: Apache-2.0
"""Takes image messages out of their CDR without copying a pixel, and stamps without reading more than the header.

Damaged data is an error, whatever it claims: rosbags would deserialize it too, but slower, and with any exception.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m3l_model.errors import M3LError

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED_IMAGE = "sensor_msgs/msg/CompressedImage"

_HEADER_BYTES = 4
"""The encapsulation header, from behind which CDR counts its alignment."""
_BIG_ENDIAN, _LITTLE_ENDIAN = b"\x00\x00", b"\x00\x01"
_STAMP = {_BIG_ENDIAN: struct.Struct(">iI"), _LITTLE_ENDIAN: struct.Struct("<iI")}
_WORD = {_BIG_ENDIAN: struct.Struct(">I"), _LITTLE_ENDIAN: struct.Struct("<I")}
_MAX_STRING_BYTES = 4096


class CdrError(M3LError):
    """Serialized data that is not the message it should be."""


class Header(NamedTuple):
    """std_msgs/Header; the stamp in nanoseconds."""

    stamp_ns: int
    frame_id: str


class Image(NamedTuple):
    """sensor_msgs/Image; ``data`` is a (N,) uint8 view of what was serialized."""

    header: Header
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: npt.NDArray[np.uint8]


class CompressedImage(NamedTuple):
    """sensor_msgs/CompressedImage; ``data`` is a (N,) uint8 view of what was serialized."""

    header: Header
    format: str
    data: npt.NDArray[np.uint8]


def stamp_ns(head: bytes | memoryview) -> int:
    """The stamp of a message that begins with a std_msgs/Header, from its first 12 bytes, in nanoseconds.

    Raises:
        CdrError: the bytes are too few, or no CDR.
    """
    if len(head) < _HEADER_BYTES + 8:
        raise CdrError(f"it has {len(head)} bytes, too few for a header")
    seconds, nanoseconds = _STAMP[_byte_order(head)].unpack_from(head, _HEADER_BYTES)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def parse_image(msgtype: str, data: bytes | memoryview) -> Image | CompressedImage:
    """Parse a message of either image type.

    Raises:
        CdrError: the data is too short or too long for what it claims, or no CDR.
    """
    stamp = stamp_ns(data)
    reader = _Reader(data, _HEADER_BYTES + 8)
    header = Header(stamp, reader.text())
    if msgtype == COMPRESSED_IMAGE:
        message: Image | CompressedImage = CompressedImage(header, reader.text(), reader.octets())
    else:
        height, width = reader.word(), reader.word()
        encoding, is_bigendian = reader.text(), reader.octet()
        message = Image(header, height, width, encoding, is_bigendian, reader.word(), reader.octets())
    reader.finish()
    return message


def _byte_order(data: bytes | memoryview) -> bytes:
    order = bytes(data[:2])
    if order not in _WORD:
        raise CdrError(f"it begins with {order.hex()}, which is no plain CDR")
    return order


class _Reader:
    """Reads fields one after the other, each where CDR aligns it."""

    def __init__(self, data: bytes | memoryview, at: int) -> None:
        self._data = memoryview(data)
        self._word = _WORD[_byte_order(data)]
        self._at = at

    def word(self) -> int:
        start = self._at + -(self._at - _HEADER_BYTES) % 4
        if start + 4 > len(self._data):
            raise CdrError(f"its {len(self._data)} bytes end within a field")
        self._at = start + 4
        (value,) = self._word.unpack_from(self._data, start)
        return int(value)

    def octet(self) -> int:
        return int(self._take(1)[0])

    def text(self) -> str:
        size = self.word()
        if size > _MAX_STRING_BYTES:
            raise CdrError(f"a text in it claims {size} bytes")
        raw = bytes(self._take(size))
        try:
            return raw.removesuffix(b"\0").decode()
        except UnicodeDecodeError:
            raise CdrError("a text in it is no UTF-8") from None

    def octets(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(self._take(self.word()), np.uint8)

    def finish(self) -> None:
        left = len(self._data) - self._at
        if left > 3:  # some writers pad to a multiple of four
            raise CdrError(f"{left} bytes of it belong to no field")

    def _take(self, size: int) -> memoryview:
        if self._at + size > len(self._data):
            raise CdrError(f"a field claims {size} bytes, but {len(self._data) - self._at} are left")
        self._at += size
        return self._data[self._at - size : self._at]
