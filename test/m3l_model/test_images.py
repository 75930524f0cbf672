# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import array
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import pytest
from bag_mutations import jpeg_of_size, png_of_size
from hypothesis import given
from hypothesis import strategies as st

from m3l_model.compressed_images import MAX_PIXELS
from m3l_model.images import (
    ImageFormatError,
    has_reading,
    is_color,
    is_depth,
    to_depth,
    to_labels,
    to_rgb,
)
from m3l_model.preprocessing import to_metres


@dataclass
class RawImage:
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: Any


@dataclass
class CompressedImage:
    format: str
    data: Any


def as_array(data: bytes) -> array.array[int]:
    return array.array("B", data)


def as_ndarray(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


CONTAINERS: list[Callable[[bytes], Any]] = [bytes, bytearray, as_array, as_ndarray]


def raw(
    pixels: np.ndarray, encoding: str, padding: int = 0, big_endian: bool = False, container: Any = bytes
) -> RawImage:
    """The message a driver would send: each row followed by that many bytes of rubbish."""
    height, width = pixels.shape[:2]
    rows = (
        pixels.astype(pixels.dtype.newbyteorder(">" if big_endian else "<"))
        .reshape(height, -1)
        .view(np.uint8)
    )
    padded = np.hstack([rows, np.full((height, padding), 0xA5, np.uint8)])
    return RawImage(height, width, encoding, int(big_endian), padded.shape[1], container(padded.tobytes()))


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


layouts = st.fixed_dictionaries(
    {"padding": st.integers(0, 5), "big_endian": st.booleans(), "container": st.sampled_from(CONTAINERS)}
)
sizes = st.tuples(st.integers(1, 6), st.integers(1, 6))


def random_pixels(shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.uniform(0, 10, shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@given(sizes, layouts, st.sampled_from(["rgb8", "bgr8", "rgba8", "bgra8", "mono8"]), st.integers(0, 2**32))
def test_color_survives_padding_byte_order_and_container(
    size: tuple[int, int], layout: dict[str, Any], encoding: str, seed: int
) -> None:
    channels = {"mono8": 1, "rgb8": 3, "bgr8": 3}.get(encoding, 4)
    pixels = random_pixels((*size, channels), np.uint8, seed)

    rgb = to_rgb(raw(pixels, encoding, **layout))

    expected = pixels[..., [2, 1, 0]] if encoding.startswith("bgr") else pixels[..., :3]
    assert rgb.dtype == np.uint8
    np.testing.assert_array_equal(rgb, np.broadcast_to(expected, (*size, 3)))


@given(sizes, layouts, st.sampled_from(["16UC1", "mono16", "32FC1"]), st.integers(0, 2**32))
def test_depth_survives_padding_byte_order_and_container(
    size: tuple[int, int], layout: dict[str, Any], encoding: str, seed: int
) -> None:
    pixels = random_pixels(size, np.float32 if encoding == "32FC1" else np.uint16, seed)

    depth = to_depth(raw(pixels, encoding, **layout))

    assert depth.dtype == pixels.dtype
    np.testing.assert_array_equal(depth, pixels)


@given(sizes, layouts, st.sampled_from(["mono8", "8UC1"]), st.integers(0, 2**32))
def test_labels_survive_padding_and_container(
    size: tuple[int, int], layout: dict[str, Any], encoding: str, seed: int
) -> None:
    ids = random_pixels(size, np.uint8, seed)

    np.testing.assert_array_equal(to_labels(raw(ids, encoding, **layout)), ids)


@given(sizes, layouts, st.integers(-3, 3).filter(bool))
def test_a_wrong_number_of_bytes_is_an_error(
    size: tuple[int, int], layout: dict[str, Any], excess: int
) -> None:
    message = raw(np.zeros((*size, 3), np.uint8), "rgb8", **layout)
    data = bytes(message.data)
    wrong = replace(message, data=data + bytes(excess) if excess > 0 else data[:excess])

    with pytest.raises(ImageFormatError, match=f"{len(wrong.data)} bytes of data"):
        to_rgb(wrong)


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (RawImage(2, 2, "rgb8", 0, 5, bytes(10)), "step is 5, but a row takes 6"),
        (RawImage(0, 2, "rgb8", 0, 6, b""), "empty"),
        (RawImage(60000, 60000, "rgb8", 0, 180000, b"abc"), "3 bytes of data, but 60000 rows"),
        (RawImage(2, 2, "8UC3", 0, 6, bytes(12)), "'8UC3' is not supported as colour"),
        (RawImage(2, 2, "bayer_rggb12", 0, 4, bytes(8)), "'bayer_rggb12' is not supported"),
        (RawImage(2, 2, "", 0, 6, bytes(12)), "'' is not supported"),
        (RawImage(2, 2, "16UC1", 0, 4, bytes(8)), "'16UC1' is depth, not colour"),
        (RawImage(2, 2, "mono16", 0, 4, bytes(8)), "'mono16' is depth, not colour"),
    ],
)
def test_what_is_no_color_image_is_refused_by_name(message: RawImage, complaint: str) -> None:
    with pytest.raises(ImageFormatError, match=complaint):
        to_rgb(message)


def test_depth_and_labels_of_another_encoding_are_refused_by_name() -> None:
    color = raw(np.zeros((2, 2, 3), np.uint8), "rgb8")

    with pytest.raises(ImageFormatError, match="'rgb8' is colour, not depth"):
        to_depth(color)
    with pytest.raises(ImageFormatError, match="'rgb8' cannot carry labels"):
        to_labels(color)
    with pytest.raises(ImageFormatError, match="'64FC1' is not supported, not depth"):
        to_depth(raw(np.zeros((2, 2)), "64FC1"))


GRAY_YUV = {"yuv422": (128, 90), "uyvy": (128, 90), "yuyv": (90, 128), "yuv422_yuy2": (90, 128)}


@pytest.mark.parametrize("encoding", GRAY_YUV)
@pytest.mark.parametrize("padding", [0, 3])
def test_yuv422_of_no_chroma_is_gray(encoding: str, padding: int) -> None:
    pixels = np.tile(np.array(GRAY_YUV[encoding], np.uint8), (4, 6, 1))

    rgb = to_rgb(raw(pixels, encoding, padding))

    gray = round((90 - 16) * 255 / 219)
    assert rgb.shape == (4, 6, 3)
    assert np.abs(rgb.astype(int) - gray).max() <= 1


@pytest.mark.parametrize("encoding", ["nv12", "nv21"])
def test_planar_yuv_has_half_as_many_rows_more_than_the_image(encoding: str) -> None:
    rows = np.vstack([np.full((4, 6), 90, np.uint8), np.full((2, 6), 128, np.uint8)])
    message = replace(raw(rows, encoding, padding=2), height=4)

    assert to_rgb(message).shape == (4, 6, 3)


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_gives_back_a_plain_color(pattern: str) -> None:
    color = {"r": 200, "g": 100, "b": 50}
    tile = np.array([color[name] for name in pattern], np.uint8).reshape(2, 2)

    rgb = to_rgb(raw(np.tile(tile, (4, 4)), f"bayer_{pattern}8", padding=1))

    assert (rgb[2:-2, 2:-2] == [200, 100, 50]).all()


def test_compressed_color_is_rgb_and_gray_is_repeated() -> None:
    bgr = np.tile(np.array([10, 120, 240], np.uint8), (16, 16, 1))
    jpeg = cv2.imencode(".jpg", bgr)[1].tobytes()

    np.testing.assert_array_equal(
        to_rgb(CompressedImage("rgb8; png compressed bgr8", as_array(png(bgr)))), bgr[..., ::-1]
    )
    assert np.abs(to_rgb(CompressedImage("jpeg", jpeg)).astype(int) - [240, 120, 10]).max() < 8
    assert (to_rgb(CompressedImage("mono8; png compressed mono8", png(bgr[..., 1]))) == 120).all()


def test_an_orientation_tag_does_not_turn_pixels_away_from_their_depth() -> None:
    jpeg = cv2.imencode(".jpg", np.zeros((8, 16, 3), np.uint8))[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]
    viewed = cv2.imdecode(as_ndarray(turned), cv2.IMREAD_COLOR)
    assert viewed is not None
    assert viewed.shape == (16, 8, 3)

    assert to_rgb(CompressedImage("jpeg", turned)).shape == (8, 16, 3)


@pytest.mark.parametrize(
    "size", [(60000, 60000), (30000, 30000), (65500, 65500), (8192, 4097), (0, 8), (8, 0)]
)
def test_a_header_that_claims_an_absurd_size_allocates_nothing(size: tuple[int, int]) -> None:
    width, height = size
    for convert, form, data in (
        (to_rgb, "png", png_of_size(width, height)),
        (to_rgb, "rgb8; jpeg compressed bgr8", jpeg_of_size(width, height)),
        (to_labels, "mono8; png compressed mono8", png_of_size(width, height, 8, 0)),
        (
            to_depth,
            "16UC1; compressedDepth png",
            struct.pack("<iff", 0, 0.0, 0.0) + png_of_size(width, height, 16, 0),
        ),
    ):
        with pytest.raises(ImageFormatError, match=f"claims {width}x{height} pixels; up to {MAX_PIXELS} are"):
            convert(CompressedImage(form, data))


@pytest.mark.parametrize("suffix", [".bmp", ".tiff", ".webp", ".ppm", ".hdr"])
def test_other_formats_than_jpeg_and_png_are_refused(suffix: str) -> None:
    pixels = np.zeros((8, 8, 3), np.float32 if suffix == ".hdr" else np.uint8)
    data = cv2.imencode(suffix, pixels)[1].tobytes()

    with pytest.raises(ImageFormatError, match="neither JPEG nor PNG"):
        to_rgb(CompressedImage(suffix, data))


def test_a_png_fails_by_any_bit_that_is_wrong() -> None:
    whole = png(random_pixels((4, 5, 3), np.uint8, seed=2))
    for at in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[at // 8] ^= 1 << at % 8
        with pytest.raises(ImageFormatError):
            to_rgb(CompressedImage("png", bytes(damaged)))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_compressed_image_that_is_cut_off_is_refused(suffix: str) -> None:
    whole = cv2.imencode(suffix, random_pixels((9, 9, 3), np.uint8, seed=3))[1].tobytes()
    for size in range(len(whole)):
        with pytest.raises(ImageFormatError):
            to_rgb(CompressedImage("jpeg", whole[:size]))


def test_a_jpeg_may_be_padded_and_progressive() -> None:
    pixels = np.full((16, 16, 3), 90, np.uint8)
    for options in ([], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]):
        data = cv2.imencode(".jpg", pixels, options)[1].tobytes()
        assert to_rgb(CompressedImage("jpeg", data + bytes(100))).shape == (16, 16, 3)


@pytest.mark.parametrize("form", ["16UC1; compressedDepth png", "16UC1; compressedDepth", "compressedDepth"])
def test_compressed_depth_has_a_header_before_the_png(form: str) -> None:
    millimetres = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    header = struct.pack("<iff", 0, 0.0, 0.0)

    np.testing.assert_array_equal(to_depth(CompressedImage(form, header + png(millimetres))), millimetres)


@pytest.mark.parametrize("form", ["16UC1; png compressed 16UC1", "png"])
def test_depth_may_come_as_a_plain_16_bit_png(form: str) -> None:
    millimetres = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000

    np.testing.assert_array_equal(to_depth(CompressedImage(form, png(millimetres))), millimetres)


def test_quantized_inverse_depth_comes_back_in_metres() -> None:
    metres = np.array([[0.5, 1.0, np.nan], [2.5, 7.0, 9.5]], np.float32)
    scale, offset = 100.0 * 101.0, 1.0 - 100.0 * 101.0 / 10.0
    levels = np.nan_to_num(scale / metres + offset).astype(np.uint16)
    message = CompressedImage(
        "32FC1; compressedDepth png", struct.pack("<iff", 0, scale, offset) + png(levels)
    )

    depth = to_depth(message)

    assert depth.dtype == np.float32
    np.testing.assert_allclose(depth, metres, atol=0.01)


@pytest.mark.parametrize(
    ("convert", "message", "complaint"),
    [
        (to_rgb, CompressedImage("jpeg", b"\xff\xd8\xff rubbish"), "no image that can be read"),
        (to_rgb, CompressedImage("png", b""), "0 bytes"),
        (to_rgb, CompressedImage("png", png(np.ones((4, 4), np.uint16))), "uint16 pixels: depth, not colour"),
        (to_rgb, CompressedImage("16UC1; compressedDepth png", b""), "is depth, not colour"),
        (to_depth, CompressedImage("jpeg", png(np.zeros((4, 4, 3), np.uint8))), "colour, not depth"),
        (to_depth, CompressedImage("16UC1; compressedDepth rvl", bytes(40)), "RVL is not supported"),
        (
            to_depth,
            CompressedImage("16UC1; compressedDepth png", bytes(5)),
            "no image that can be read|0 bytes",
        ),
        (to_depth, CompressedImage("32FC1; compressedDepth", png(np.ones((4, 4), np.uint16))), "header"),
        (to_labels, CompressedImage("jpeg", cv2.imencode(".jpg", np.zeros((4, 4)))[1].tobytes()), "only PNG"),
        (to_labels, CompressedImage("png", png(np.zeros((4, 4, 3), np.uint8))), "one channel of 8 bits"),
    ],
)
def test_unfit_compressed_images_are_refused(convert: Any, message: CompressedImage, complaint: str) -> None:
    with pytest.raises(ImageFormatError, match=complaint):
        convert(message)


def test_compressed_labels_are_png_of_one_channel() -> None:
    ids = np.arange(12, dtype=np.uint8).reshape(3, 4)

    np.testing.assert_array_equal(to_labels(CompressedImage("mono8; png compressed mono8", png(ids))), ids)


@pytest.mark.parametrize(
    ("message", "color", "depth"),
    [
        (RawImage(1, 1, "rgb8", 0, 3, b""), True, False),
        (RawImage(1, 1, "yuv422_yuy2", 0, 2, b""), True, False),
        (RawImage(1, 1, "bayer_grbg8", 0, 1, b""), True, False),
        (RawImage(1, 1, "16UC1", 0, 2, b""), False, True),
        (RawImage(1, 1, "32FC1", 0, 4, b""), False, True),
        (RawImage(1, 1, "8UC3", 0, 3, b""), False, False),
        (CompressedImage("rgb8; jpeg compressed bgr8", b""), True, False),
        (CompressedImage("16UC1; compressedDepth png", b""), False, True),
        (CompressedImage("16UC1; png compressed ", b""), False, True),
    ],
)
def test_encodings_tell_color_from_depth(message: Any, color: bool, depth: bool) -> None:
    assert is_color(message) == color
    assert is_depth(message) == depth


def test_messages_of_rclpy_are_read_like_those_of_bags() -> None:
    sensor_msgs = pytest.importorskip("sensor_msgs.msg", reason="no ROS messages on this machine")
    pixels = random_pixels((3, 5, 3), np.uint8, seed=1)
    template = raw(pixels, "bgr8", padding=1)
    image = sensor_msgs.Image(
        height=3, width=5, encoding="bgr8", step=template.step, data=as_array(template.data)
    )
    compressed = sensor_msgs.CompressedImage(format="bgr8; png compressed bgr8", data=as_array(png(pixels)))

    np.testing.assert_array_equal(to_rgb(image), pixels[..., ::-1])
    np.testing.assert_array_equal(to_rgb(compressed), pixels[..., ::-1])


@given(
    st.tuples(st.integers(1, 5), st.integers(1, 5)),
    st.sampled_from([np.uint16, np.float32]),
    st.dictionaries(
        st.integers(0, 24), st.sampled_from([0, 1, 65, 65.534, 65.535, 65534, 65535]), max_size=3
    ),
)
def test_one_distance_anywhere_is_a_reading(
    shape: tuple[int, int], dtype: Any, values: dict[int, float]
) -> None:
    depth = np.full(shape, np.nan if dtype is np.float32 else 0, dtype)
    for at, value in values.items():
        depth.flat[at % depth.size] = value
    assert has_reading(depth) == bool((to_metres(depth) > 0).any())
