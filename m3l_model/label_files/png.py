# SPDX-License-Identifier: Apache-2.0
"""PNG label images: ids as grey levels or palette indices, and colours."""

from __future__ import annotations

import io
import struct
import zlib
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from m3l_model.label_files.size import check_size
from m3l_model.labels import LabelError

MAX_BYTES = 1 << 26
"""More than an uncompressed RGB PNG of ``size.MAX_PIXELS`` has."""

_GREY, _RGB, _PALETTE = 0, 2, 3
_KINDS = {_GREY: "grey", _RGB: "RGB", _PALETTE: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
_HEADER = struct.Struct(">8s4x4sIIBB")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_LOSSY = {b"\xff\xd8\xff": "JPEG", b"RIFF": "WebP"}
_DAMAGED = (
    EOFError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


class PaletteImage(NamedTuple):
    """Pixels as indices.

    Attributes:
        indices: (H, W) uint8.
        palette: (256, 3) uint8 RGB; black beyond the file's own palette.
    """

    indices: npt.NDArray[np.uint8]
    palette: npt.NDArray[np.uint8]


def read_ids(data: bytes, shape: tuple[int, int] | None, source: str) -> npt.NDArray[np.uint8]:
    """Read ids: the levels of an 8-bit grey PNG, or the indices of a palette PNG of 1, 2, 4 or 8 bits.

    Args:
        data: the file.
        shape: (H, W) that the image must have; any when None.
        source: names the file in errors.

    Returns:
        (H, W) uint8.

    Raises:
        LabelError: another kind of image, another size, or a damaged file.
    """
    kind, depth = _check_header(data, shape, source)
    if kind != _PALETTE and (kind, depth) != (_GREY, 8):
        raise LabelError(
            f"{source}: {depth}-bit {_KINDS[kind]}; save labels as 8-bit grey PNG whose levels are ids, or as palette "
            "PNG whose indices are ids"
        )
    return np.array(_decode(data, source))


def read_colors(
    data: bytes, shape: tuple[int, int] | None, source: str
) -> npt.NDArray[np.uint8] | PaletteImage:
    """Read colours: an 8-bit RGB PNG, (H, W, 3) uint8, or a palette PNG. The rest is as for ``read_ids``."""
    kind, depth = _check_header(data, shape, source)
    if kind == _PALETTE:
        image = _decode(data, source)
        palette = np.zeros((256, 3), np.uint8)
        colors = np.array(image.getpalette() or [], np.uint8).reshape(-1, 3)
        palette[: len(colors)] = colors
        return PaletteImage(np.array(image), palette)
    if (kind, depth) != (_RGB, 8):
        raise LabelError(
            f"{source}: {depth}-bit {_KINDS[kind]}; a mask has the colours of labelmap.txt, as 8-bit RGB or palette PNG"
        )
    return np.array(_decode(data, source))


def _check_header(data: bytes, shape: tuple[int, int] | None, source: str) -> tuple[int, int]:
    """Give the kind of pixels and their bits."""
    for start, name in _LOSSY.items():
        if data.startswith(start):
            raise LabelError(f"{source}: {name}; labels do not survive its compression, save them as PNG")
    if len(data) < _HEADER.size or not data.startswith(_SIGNATURE):
        raise LabelError(f"{source}: not a PNG file, although labels must be PNG")
    _, chunk, width, height, depth, kind = _HEADER.unpack_from(data)
    if chunk != b"IHDR" or kind not in _KINDS:
        raise LabelError(f"{source}: a damaged PNG file: its header is not one")
    check_size(height, width, shape, source)
    return kind, depth


def _decode(data: bytes, source: str) -> Image.Image:
    try:
        Image.open(io.BytesIO(data), formats=("PNG",)).verify()  # load() leaves the pixels' checksums aside
        image = Image.open(io.BytesIO(data), formats=("PNG",))
        image.load()
    except _DAMAGED as error:
        raise LabelError(f"{source}: a damaged PNG file: {' '.join(str(error).split())}") from error
    return image
