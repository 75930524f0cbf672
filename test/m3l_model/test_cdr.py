# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from bag_variants import compressed_cdr, image_cdr
from hypothesis import given
from hypothesis import strategies as st
from rosbags.typesys import Stores, get_typestore

from m3l_model.cdr import (
    COMPRESSED_IMAGE,
    IMAGE,
    CdrError,
    CompressedImage,
    Image,
    ImageParser,
    parse_image,
    stamp_ns,
)

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types

headers = st.builds(
    lambda sec, nanosec, frame_id: TYPES["std_msgs/msg/Header"](
        TYPES["builtin_interfaces/msg/Time"](sec, nanosec), frame_id
    ),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 2**32 - 1),
    st.text("ab_/ö€", max_size=9),
)
pixels = st.binary(max_size=40).map(lambda data: np.frombuffer(data, np.uint8))
words = st.integers(0, 2**32 - 1)
images = st.builds(
    TYPES[IMAGE],
    headers,
    words,
    words,
    st.sampled_from(["", "rgb8", "16UC1"]),
    st.integers(0, 255),
    words,
    pixels,
)
compressed_images = st.builds(TYPES[COMPRESSED_IMAGE], headers, st.sampled_from(["jpeg", "png", ""]), pixels)


@given(images, st.booleans())
def test_images_are_what_rosbags_serialized(message: object, little_endian: bool) -> None:
    data = bytes(STORE.serialize_cdr(message, IMAGE, little_endian=little_endian))

    image = parse_image(IMAGE, data)

    assert isinstance(image, Image)
    assert_header(image, message, data)
    for name in ("height", "width", "encoding", "is_bigendian", "step"):
        assert getattr(image, name) == getattr(message, name)
    np.testing.assert_array_equal(image.data, message.data)  # type: ignore[attr-defined]


@given(compressed_images, st.booleans())
def test_compressed_images_are_what_rosbags_serialized(message: object, little_endian: bool) -> None:
    data = bytes(STORE.serialize_cdr(message, COMPRESSED_IMAGE, little_endian=little_endian))

    image = parse_image(COMPRESSED_IMAGE, data)

    assert isinstance(image, CompressedImage)
    assert_header(image, message, data)
    assert image.format == message.format  # type: ignore[attr-defined]
    np.testing.assert_array_equal(image.data, message.data)  # type: ignore[attr-defined]


def assert_header(image: Image | CompressedImage, message: object, data: bytes) -> None:
    header = message.header  # type: ignore[attr-defined]
    stamp = header.stamp.sec * 1_000_000_000 + header.stamp.nanosec
    assert image.header == (stamp, header.frame_id)
    assert stamp_ns(data[:12]) == stamp


def test_no_pixel_is_copied() -> None:
    data = bytearray(image_cdr(1, 1, 4, "mono8", 4, b"abcd"))
    image = parse_image(IMAGE, memoryview(data))

    data[-4:] = b"wxyz"

    assert image.data.tobytes() == b"wxyz"


WHOLE = image_cdr(5, 2, 2, "rgb8", 6, bytes(range(12)))


@pytest.mark.parametrize(
    ("msgtype", "whole"), [(IMAGE, WHOLE), (COMPRESSED_IMAGE, compressed_cdr(5, "jpeg", b"12345"))]
)
def test_no_part_of_a_message_is_a_message(msgtype: str, whole: bytes) -> None:
    parse_image(msgtype, whole)
    for size in range(len(whole)):
        with pytest.raises(CdrError):
            parse_image(msgtype, whole[:size])


@given(st.integers(12, len(WHOLE) - 4), words)
def test_a_lying_length_is_an_error_or_another_message_and_allocates_nothing(at: int, value: int) -> None:
    lying = bytearray(WHOLE)
    struct.pack_into("<I", lying, at, value)
    try:
        image = parse_image(IMAGE, bytes(lying))
    except CdrError:
        return
    assert image.data.size <= len(WHOLE)


@given(images, images, st.booleans())
def test_a_parser_is_not_misled_by_the_message_before(
    first: object, second: object, little_endian: bool
) -> None:
    parser = ImageParser(IMAGE)
    for message in (first, first, second, first):
        data = bytes(STORE.serialize_cdr(message, IMAGE, little_endian=little_endian))
        assert parsed(parser.parse, memoryview(data)) == parsed(lambda data: parse_image(IMAGE, data), data)


@pytest.mark.parametrize("value", [0, 1, 255])
def test_whatever_byte_differs_a_parser_parses_as_if_it_were_the_first_message(value: int) -> None:
    for at in range(len(WHOLE)):
        data = bytearray(WHOLE)
        data[at] = value
        for changed in (bytes(data), bytes(data[:at]), bytes(data) + bytes(1 + at % 5)):
            parser = ImageParser(IMAGE)
            parser.parse(WHOLE)
            assert parsed(parser.parse, changed) == parsed(lambda data: parse_image(IMAGE, data), changed)


def test_a_parser_of_compressed_images_parses_each() -> None:
    parser = ImageParser(COMPRESSED_IMAGE)
    for data in (compressed_cdr(5, "jpeg", b"12345"), compressed_cdr(6, "png", b"54321")):
        assert parsed(parser.parse, data) == parsed(lambda data: parse_image(COMPRESSED_IMAGE, data), data)


def parsed(
    parse: Callable[[bytes | memoryview], Image | CompressedImage], data: bytes | memoryview
) -> object:
    """What a message is parsed to, or why it is not, in a form that can be compared."""
    try:
        *fields, pixels = parse(data)
    except CdrError as error:
        return str(error)
    return fields, pixels.tobytes()


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "0 bytes, too few"),
        (b"\0\1\0\0" + bytes(7), "11 bytes, too few"),
        (b"\x28\xb5\x2f\xfd" + bytes(8), "begins with 28b5, which is no plain CDR"),
        (b"\0\3\0\0" + bytes(40), "begins with 0003"),
        (WHOLE[:12] + struct.pack("<I", 2**32 - 1) + WHOLE[16:], "a text in it claims 4294967295 bytes"),
        (WHOLE[:16] + b"\xff\xfe" + WHOLE[18:], "no UTF-8"),
        (WHOLE + bytes(4), "its data claims 12 bytes, but 16 are left"),
    ],
)
def test_what_is_no_message_is_named(data: bytes, complaint: str) -> None:
    with pytest.raises(CdrError, match=complaint):
        parse_image(IMAGE, data)
