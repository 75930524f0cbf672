# SPDX-License-Identifier: Apache-2.0
"""From image messages to arrays, for anything with the fields of sensor_msgs/Image or sensor_msgs/CompressedImage.

The colour formats are converted by rosbags-image, imported only where one is to be converted (on a robot cv_bridge does
it), and OpenCV. Here is what they leave out: row padding, checks of sizes, compressed depth, and which encodings are
colour, depth or labels.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple, Protocol, TypeGuard, cast

import cv2
import numpy as np
import numpy.typing as npt

from m3l_model.compressed_images import PNG_MAGIC, CompressedImageError, check_compressed
from m3l_model.errors import M3LError

DEPTH_ENCODINGS = frozenset({"16UC1", "mono16", "32FC1"})
"""Encodings of depth: millimetres in 16 bits, metres in floats."""

LABEL_ENCODINGS = frozenset({"mono8", "8UC1"})
"""Encodings that may hold class ids."""

_COLOR_PREFIXES = ("rgb", "bgr", "mono8", "bayer_", "yuv", "uyvy", "yuyv", "nv12", "nv21")
_CHROMA_BELOW = frozenset({"nv12", "nv21"})
"""Encodings whose colour lies in height / 2 more rows, below the brightness."""

_AS_STORED: dict[str, tuple[np.dtype[Any], int]] = {
    "rgb8": (np.dtype("u1"), 3),
    "mono8": (np.dtype("u1"), 1),
    "8UC1": (np.dtype("u1"), 1),
    "mono16": (np.dtype("<u2"), 1),
    "16UC1": (np.dtype("<u2"), 1),
    "32FC1": (np.dtype("<f4"), 1),
}
"""Type and channels of the encodings that may be used without conversion."""

_Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16] | npt.NDArray[np.float32]

_COMPRESSED_DEPTH_HEADER = struct.Struct("<iff")
"""What compressed_depth_image_transport puts before the PNG: format, and two parameters that quantize 32FC1."""


class ImageFormatError(M3LError):
    """An image message that is damaged or of an encoding unfit for its use."""


class RawImage(Protocol):
    """The fields of sensor_msgs/Image that matter here; ``data`` is bytes, array.array or ndarray."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: object


class CompressedImage(Protocol):
    """The fields of sensor_msgs/CompressedImage that matter here."""

    format: str
    data: object


ImageMessage = RawImage | CompressedImage


def is_color(msg: ImageMessage) -> bool:
    """Whether the encoding is one of colour (or grey), as far as the message says."""
    if _is_compressed(msg):
        return not is_depth(msg)
    return _encoding(msg).startswith(_COLOR_PREFIXES)


def is_depth(msg: ImageMessage) -> bool:
    """Whether the encoding is one of depth, as far as the message says."""
    if _is_compressed(msg):
        return "compressedDepth" in msg.format or _compressed_encoding(msg) in DEPTH_ENCODINGS
    return _encoding(msg) in DEPTH_ENCODINGS


def _is_compressed(msg: ImageMessage) -> TypeGuard[CompressedImage]:
    return hasattr(msg, "format")


def _encoding(raw: ImageMessage) -> str:
    return cast("RawImage", raw).encoding


def encoding_of(msg: ImageMessage) -> str:
    """The encoding (of a compressed image: the format), for people."""
    return msg.format if _is_compressed(msg) else _encoding(msg)


def to_rgb(msg: ImageMessage) -> npt.NDArray[np.uint8]:
    """Colour image as (H, W, 3) uint8 RGB; grey is repeated. It may share memory with the message.

    Raises:
        ImageFormatError: the encoding is not of colour or not supported, or the sizes contradict one another.
    """
    if _is_compressed(msg):
        _require(is_color(msg), f"format {msg.format!r} is depth, not colour")
        image = _decompress(msg, cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        _require(
            image.dtype == np.uint8, f"format {msg.format!r} holds {image.dtype} pixels: depth, not colour"
        )
        return cast("npt.NDArray[np.uint8]", cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
    if not is_color(msg):
        raise ImageFormatError(
            f"encoding {_encoding(msg)!r} is depth, not colour"
            if is_depth(msg)
            else f"encoding {_encoding(msg)!r} is not supported as colour "
            "(8UC3 and its like do not say the order of colours)"
        )
    return cast("npt.NDArray[np.uint8]", _convert(cast("RawImage", msg), "rgb8"))


def to_depth(msg: ImageMessage) -> npt.NDArray[np.uint16] | npt.NDArray[np.float32]:
    """Depth image as (H, W) uint16 millimetres or float32 metres. It may share memory with the message.

    Raises:
        ImageFormatError: the encoding is not of depth or not supported, or the sizes contradict one another.
    """
    if _is_compressed(msg):
        return _decompress_depth(msg)
    if not is_depth(msg):
        raise ImageFormatError(
            f"encoding {_encoding(msg)!r} is {'colour' if is_color(msg) else 'not supported'}, not depth; "
            "depth is 16UC1 or mono16 (mm) or 32FC1 (m)"
        )
    return cast("npt.NDArray[np.uint16] | npt.NDArray[np.float32]", _convert(cast("RawImage", msg), None))


def has_reading(depth: npt.NDArray[np.uint16] | npt.NDArray[np.float32]) -> bool:
    """Whether any pixel of (H, W) uint16 mm or float32 m holds a distance, as ``preprocessing.to_metres`` has it."""
    farthest = 65535 if depth.dtype == np.uint16 else 65.535
    row, column = (size // 2 for size in depth.shape)
    if 0 < depth[row, column] < farthest:  # most tell by one pixel, most others by one row
        return True
    return any(bool(((part > 0) & (part < farthest)).any()) for part in (depth[row], depth))


def to_labels(msg: ImageMessage) -> npt.NDArray[np.uint8]:
    """Label image as (H, W) uint8 ids, unchanged. It may share memory with the message.

    Raises:
        ImageFormatError: not one channel of 8 bits, compressed with loss, or the sizes contradict one another.
    """
    if _is_compressed(msg):
        _require(
            _bytes(msg).tobytes().startswith(PNG_MAGIC),
            f"format {msg.format!r} cannot carry labels: ids survive only PNG",
        )
        labels = _decompress(msg, cv2.IMREAD_UNCHANGED)
        _require(
            labels.ndim == 2 and labels.dtype == np.uint8,
            f"labels must have one channel of 8 bits, not {labels.dtype} of shape {labels.shape}",
        )
        return cast("npt.NDArray[np.uint8]", labels)
    _require(_encoding(msg) in LABEL_ENCODINGS, f"encoding {_encoding(msg)!r} cannot carry labels; use mono8")
    return cast("npt.NDArray[np.uint8]", _convert(cast("RawImage", msg), None))


class _PackedImage(NamedTuple):
    """A raw image without row padding, as rosbags-image expects it."""

    height: int
    width: int
    encoding: str
    is_bigendian: bool
    data: npt.NDArray[np.uint8]


def _convert(msg: RawImage, color_space: str | None) -> Any:
    if color_space in (None, msg.encoding) and msg.encoding in _AS_STORED:
        dtype, channels = _AS_STORED[msg.encoding]
        data = _pack(msg, dtype, channels)
        pixels = data.view(dtype.newbyteorder()).astype(dtype) if msg.is_bigendian else data.view(dtype)
        return pixels.reshape((msg.height, msg.width, channels) if channels > 1 else (msg.height, msg.width))
    try:
        from rosbags.image import ImageError, image_to_cvimage
        from rosbags.image.image import to_cvtype
    except ImportError as error:
        raise ImageFormatError(
            f"encoding {msg.encoding!r} needs rosbags-image here: pip install rosbags-image"
        ) from error
    try:
        _, _, name, channels = to_cvtype(msg.encoding)
        data = _pack(msg, np.dtype(name), channels)
        packed = _PackedImage(_rows(msg), msg.width, msg.encoding, bool(msg.is_bigendian), data)
        return image_to_cvimage(cast("Any", packed), color_space)
    except (ImageError, cv2.error) as error:
        raise ImageFormatError(f"encoding {msg.encoding!r} is not supported: {_line(error)}") from error


def _rows(msg: RawImage) -> int:
    return msg.height * 3 // 2 if msg.encoding in _CHROMA_BELOW else msg.height


def _pack(msg: RawImage, dtype: np.dtype[Any], channels: int) -> npt.NDArray[np.uint8]:
    """Check the sizes and drop the padding at the end of each row."""
    rows = _rows(msg)
    row_bytes = msg.width * channels * dtype.itemsize
    data = _bytes(msg)
    if not (msg.height > 0 and msg.width > 0):
        problem = "the image is empty"
    elif msg.step < row_bytes:
        problem = f"step is {msg.step}, but a row takes {row_bytes} bytes"
    elif data.size != rows * msg.step:
        problem = f"{data.size} bytes of data, but {rows} rows of {msg.step} are due"
    else:
        problem = ""
    if problem:
        raise ImageFormatError(f"{msg.width}x{msg.height} {msg.encoding}: {problem}")
    if msg.step > row_bytes:
        data = data.reshape(rows, msg.step)[:, :row_bytes].ravel()
    return data


def _decompress_depth(msg: CompressedImage) -> npt.NDArray[np.uint16] | npt.NDArray[np.float32]:
    _require(
        "rvl" not in msg.format.lower(), f"format {msg.format!r}: RVL is not supported, record it as png"
    )
    data = _bytes(msg).tobytes()
    header = b"" if data.startswith(PNG_MAGIC) else data[: _COMPRESSED_DEPTH_HEADER.size]
    levels = _decompress(msg, cv2.IMREAD_UNCHANGED, skip=len(header))
    _require(
        levels.ndim == 2 and levels.dtype == np.uint16,
        f"format {msg.format!r} holds {levels.dtype} pixels of shape {levels.shape}: colour, not depth, "
        "which has one channel of 16 bits",
    )
    if _compressed_encoding(msg) != "32FC1":
        return cast("npt.NDArray[np.uint16]", levels)
    _require(header != b"", f"format {msg.format!r}: the header that says how depth was quantized is missing")
    _, scale, offset = _COMPRESSED_DEPTH_HEADER.unpack(header)
    metres = np.full(levels.shape, np.nan, np.float32)
    with np.errstate(all="ignore"):
        np.divide(np.float32(scale), levels - np.float32(offset), out=metres, where=levels != 0)
    return metres


def _decompress(msg: CompressedImage, flags: int, skip: int = 0) -> _Pixels:
    data = _bytes(msg)[skip:]
    try:
        check_compressed(data.data)
        image = cv2.imdecode(data, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    except CompressedImageError as error:
        raise ImageFormatError(f"format {msg.format!r}: {error}") from None
    except cv2.error as error:
        raise ImageFormatError(f"format {msg.format!r}: cannot be decompressed: {_line(error)}") from error
    if image is None:
        raise ImageFormatError(f"format {msg.format!r}: its {data.size} bytes are no image that can be read")
    return cast("_Pixels", image)


def _compressed_encoding(msg: CompressedImage) -> str:
    """The encoding before compression; image_transport writes it in front, as in ``16UC1; compressedDepth png``."""
    return msg.format.split(";")[0].strip()


def _bytes(msg: ImageMessage) -> npt.NDArray[np.uint8]:
    return np.frombuffer(cast("bytes", msg.data), np.uint8)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ImageFormatError(message)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
