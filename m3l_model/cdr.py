# SPDX-License-Identifier: Apache-2.0
"""Takes image messages out of their CDR without copying a pixel, and stamps without reading more than the header.

Damaged data is an error, whatever it claims: rosbags would deserialize it too, but slower, and with any exception.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

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
_STAMP_END = _HEADER_BYTES + 8
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
    if len(head) < _STAMP_END:
        raise CdrError(f"it has {len(head)} bytes, too few for a header")
    seconds, nanoseconds = _STAMP[_byte_order(head)].unpack_from(head, _HEADER_BYTES)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def parse_image(msgtype: str, data: bytes | memoryview) -> Image | CompressedImage:
    """Parse a message of either image type.

    Raises:
        CdrError: the data is too short or too long for what it claims, or no CDR.
    """
    stamp = stamp_ns(data)
    word = _WORD[_byte_order(data)].unpack_from
    try:
        frame_id, at = _text(data, word, _STAMP_END)
        if msgtype == COMPRESSED_IMAGE:
            form, at = _text(data, word, at)
            return CompressedImage(
                Header(stamp, frame_id), form, np.frombuffer(data, np.uint8, *_octets(data, word, at))
            )
        return _raw_fields(data, word, frame_id, at).image(stamp, data)
    except (struct.error, IndexError):
        raise CdrError(f"its {len(data)} bytes end within a field") from None


class ImageParser:
    """Parses the messages of one topic, as ``parse_image`` does.

    Most raw images differ from the one before in their stamp and pixels only: where all other bytes are the same, so
    are the other fields.
    """

    def __init__(self, msgtype: str) -> None:
        self._msgtype = msgtype
        self._known: _KnownImage | None = None

    def parse(self, data: bytes | memoryview) -> Image | CompressedImage:
        """Parse a message; see ``parse_image``."""
        known = self._known
        if known is not None and known.differs_in_stamp_and_pixels_only(data):
            return known.fields.image(stamp_ns(data), data)
        image = parse_image(self._msgtype, data)
        if isinstance(image, Image):
            self._known = _KnownImage.of(data)
        return image


class _RawFields(NamedTuple):
    """All of a sensor_msgs/Image but its stamp and pixels: frame id, the fields from height to step, and how many bytes
    of pixels lie where.
    """

    frame_id: str
    form: tuple[int, int, str, int, int]
    pixel_bytes: int
    pixels_at: int

    def image(self, stamp: int, data: bytes | memoryview) -> Image:
        """The message with these fields whose bytes are ``data``."""
        pixels = np.frombuffer(data, np.uint8, self.pixel_bytes, self.pixels_at)
        return Image(Header(stamp, self.frame_id), *self.form, pixels)


class _KnownImage(NamedTuple):
    """A raw image whose fields are known, and the bytes that they were parsed from."""

    fields: _RawFields
    size: int
    encapsulation: bytes
    between: bytes

    @classmethod
    def of(cls, data: bytes | memoryview) -> _KnownImage:
        word = _WORD[_byte_order(data)].unpack_from
        fields = _raw_fields(data, word, *_text(data, word, _STAMP_END))
        return cls(fields, len(data), bytes(data[:_HEADER_BYTES]), bytes(data[_STAMP_END : fields.pixels_at]))

    def differs_in_stamp_and_pixels_only(self, data: bytes | memoryview) -> bool:
        return (
            len(data) == self.size
            and data[:_HEADER_BYTES] == self.encapsulation
            and data[_STAMP_END : self.fields.pixels_at] == self.between
        )


def _raw_fields(data: bytes | memoryview, word: _Unpack, frame_id: str, at: int) -> _RawFields:
    """Parse what follows the header, which ends at ``at``."""
    at += -at % 4
    (height,), (width,) = word(data, at), word(data, at + 4)
    encoding, at = _text(data, word, at + 8)
    is_bigendian = data[at]
    at += 1 + -(at + 1) % 4
    (step,) = word(data, at)
    return _RawFields(frame_id, (height, width, encoding, is_bigendian, step), *_octets(data, word, at + 4))


_Unpack = Callable[[Any, int], tuple[int, ...]]


def _byte_order(data: bytes | memoryview) -> bytes:
    order = bytes(data[:2])
    if order not in _WORD:
        raise CdrError(f"it begins with {order.hex()}, which is no plain CDR")
    return order


def _text(data: bytes | memoryview, word: _Unpack, at: int) -> tuple[str, int]:
    """A string, and where it ends."""
    at += -at % 4  # as the encapsulation header has four bytes, alignment is the same with it and without
    (size,) = word(data, at)
    end = at + 4 + size
    if size > _MAX_STRING_BYTES or end > len(data):
        raise CdrError(f"a text in it claims {size} bytes, but {len(data) - at - 4} are left")
    try:
        return str(data[at + 4 : end], "utf-8").removesuffix("\0"), end
    except UnicodeDecodeError:
        raise CdrError("a text in it is no UTF-8") from None


def _octets(data: bytes | memoryview, word: _Unpack, at: int) -> tuple[int, int]:
    """Number of bytes in the sequence that ends the message, and where they begin."""
    at += -at % 4
    (size,) = word(data, at)
    left = len(data) - (at + 4 + size)
    if not 0 <= left < 4:  # some writers pad to a multiple of four
        raise CdrError(f"its data claims {size} bytes, but {len(data) - at - 4} are left")
    return size, at + 4
