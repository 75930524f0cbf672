# SPDX-License-Identifier: Apache-2.0
"""Reads colour, depth and label images from files and writes them to a bag."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import numpy.typing as npt

from m3l_model.bag_writer import BagWriter
from m3l_model.import_plan import DepthUnits, ImageFile, ImportImagesError, Role, read_lines

GUESSED_FIELD_OF_VIEW_DEG = 60.0
"""Horizontal, for intrinsics that nobody gave: about a Kinect's (57) and a RealSense D435's colour camera (69)."""


class ImageSize(NamedTuple):
    """Of an image, in pixels."""

    width: int
    height: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


@dataclass
class ImportCounts:
    """What was written.

    Attributes:
        sizes: colour images of each size as they were read.
        guessed_intrinsics: colour images whose camera matrix is a guess.
    """

    sizes: dict[ImageSize, int] = field(default_factory=dict)
    guessed_intrinsics: int = 0


def write_images(
    images: Iterable[ImageFile],
    out: str | Path,
    units: DepthUnits,
    frame_id: str = "camera_color_optical_frame",
    intrinsics: npt.NDArray[np.float64] | None = None,
    size: ImageSize | None = None,
) -> ImportCounts:
    """Read images and write them to a new bag, on this package's default topics, with their camera infos.

    Args:
        images: in the order of their log times.
        out: the bag's folder; must not exist.
        units: of the depth images.
        frame_id: of all images, since depth must be registered to colour.
        intrinsics: (3, 3) camera matrix of all images; those of each, or ``guess_intrinsics``, when None.
        size: crop the images in the middle to this shape and scale them to it, and their intrinsics likewise.

    Raises:
        ImportImagesError: a file is no such image as it should be, or a camera's images differ in size.
        BagWriteError: the bag exists or cannot be written.
    """
    counts = ImportCounts()
    first_of_camera: dict[int, tuple[ImageSize, Path]] = {}
    with BagWriter(out) as writer:
        for image in images:
            pixels = _read(image, units)
            found = ImageSize(pixels.shape[1], pixels.shape[0])
            expected, other = first_of_camera.setdefault(image.camera, (found, image.path))
            if found != expected:
                raise ImportImagesError(
                    f"{image.path} is {found}, but {other} {expected}; "
                    "depth and labels must be registered to colour and of its size"
                )
            k = image.intrinsics if intrinsics is None else intrinsics
            if image.role is Role.COLOR:
                counts.sizes[found] = counts.sizes.get(found, 0) + 1
                counts.guessed_intrinsics += k is None
            if k is None:
                k = guess_intrinsics(*found)
            if size is not None:
                pixels, k = _fit(pixels, k, size)
            rgb, depth_mm, labels = (
                pixels if image.role is role else None for role in (Role.COLOR, Role.DEPTH, Role.LABEL)
            )
            writer.write_frame(image.stamp_ns, frame_id, rgb, depth_mm, labels, k, log_ns=image.log_ns)
    return counts


def _fit(
    pixels: npt.NDArray[Any], k: npt.NDArray[np.float64], size: ImageSize
) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64]]:
    """Crop in the middle to the shape of ``size``, then scale; pixel centres are at whole numbers."""
    from m3l_model.preprocessing import resize_nearest, resize_rgb  # imports torch

    height, width = pixels.shape[:2]
    scale = max(size.width / width, size.height / height)
    cut_width = min(width, max(1, round(size.width / scale)))
    cut_height = min(height, max(1, round(size.height / scale)))
    left, top = (width - cut_width) // 2, (height - cut_height) // 2
    cropped = pixels[top : top + cut_height, left : left + cut_width]
    resize = resize_rgb if pixels.ndim == 3 else resize_nearest
    zoom_x, zoom_y = size.width / cut_width, size.height / cut_height
    to_pixels = np.array(
        [
            [zoom_x, 0, (0.5 - left) * zoom_x - 0.5],
            [0, zoom_y, (0.5 - top) * zoom_y - 0.5],
            [0, 0, 1],
        ]
    )
    return resize(np.ascontiguousarray(cropped), (size.height, size.width)), to_pixels @ k


def guess_intrinsics(width: int, height: int) -> npt.NDArray[np.float64]:
    """Camera matrix of a pinhole of ``GUESSED_FIELD_OF_VIEW_DEG`` with its axis through the middle of the image."""
    focal = width / 2 / np.tan(np.radians(GUESSED_FIELD_OF_VIEW_DEG) / 2)
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def read_intrinsics(path: Path) -> npt.NDArray[np.float64]:
    """Read a camera matrix: nine numbers, row by row.

    Raises:
        ImportImagesError: the file cannot be read or holds something else.
    """
    words = " ".join(read_lines(path, "the intrinsics")).replace(",", " ").split()
    try:
        matrix = np.array(words, dtype=np.float64).reshape(3, 3)
    except ValueError:
        matrix = np.zeros((3, 3))
    if not (np.isfinite(matrix).all() and matrix[0, 0] > 0 and matrix[1, 1] > 0 and matrix[2, 2] == 1):
        raise ImportImagesError(f"{path}: not a 3x3 camera matrix (fx 0 cx, 0 fy cy, 0 0 1)")
    return matrix


# Reading

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_BIT_DEPTH_AT = 24
_LOSSY = (b"\xff\xd8\xff", b"RIFF")


def _read(image: ImageFile, units: DepthUnits) -> npt.NDArray[Any]:
    if image.role is Role.COLOR:
        return _read_color(image.path)
    if image.role is Role.LABEL:
        return _read_labels(image.path)
    values = read_depth(image.path)
    if units.bits not in (None, values.itemsize * 8):
        raise ImportImagesError(
            f"{image.path} has {values.itemsize * 8} bits a pixel, but {units.bits} are expected; "
            "import depth images of one kind at a time, or name their units with --depth-scale"
        )
    return units.millimetres(values)


def _read_color(path: Path) -> npt.NDArray[np.uint8]:
    bgr = _decode(path, _read_bytes(path), cv2.IMREAD_COLOR)
    return cast("npt.NDArray[np.uint8]", cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))


def read_depth(path: Path) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
    """Read the pixels of a depth image, (H, W), as they are stored.

    Raises:
        ImportImagesError: it is no depth image.
    """
    values = _decode(path, _read_bytes(path), cv2.IMREAD_UNCHANGED)
    if values.ndim != 2 or values.dtype not in (np.uint8, np.uint16):
        raise ImportImagesError(
            f"{path}: depth must have one channel of 8 or 16 bits, not {values.dtype} of shape {values.shape}"
        )
    return cast("npt.NDArray[np.uint8] | npt.NDArray[np.uint16]", values)


def _read_labels(path: Path) -> npt.NDArray[np.uint8]:
    data = _read_bytes(path)
    if data.startswith(_LOSSY):
        raise ImportImagesError(f"{path}: class ids do not survive JPEG or WebP; save labels as 8-bit PNG")
    values = _load_array(path, data) if path.suffix == ".npy" else _decode(path, data, cv2.IMREAD_UNCHANGED)
    scaled = data.startswith(_PNG) and data[_PNG_BIT_DEPTH_AT] < 8
    if values.ndim != 2 or values.dtype != np.uint8 or scaled:
        raise ImportImagesError(
            f"{path}: labels must have one channel of 8 bits that holds class ids; this has a palette, colours or "
            "another depth"
        )
    return cast("npt.NDArray[np.uint8]", values)


def _load_array(path: Path, data: bytes) -> npt.NDArray[Any]:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, OSError, EOFError, MemoryError) as error:
        raise ImportImagesError(f"{path}: not an array that can be read: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ImportImagesError(f"{path}: an archive of arrays, not one array")
    return array


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ImportImagesError(f"{path}: cannot read the file: {error.strerror}") from error


def _decode(path: Path, data: bytes, flags: int) -> Any:
    """Decode the pixels as they are stored: depth is registered to those, whatever orientation a tag asks for."""
    try:
        image = (
            cv2.imdecode(np.frombuffer(data, np.uint8), flags | cv2.IMREAD_IGNORE_ORIENTATION)
            if data
            else None
        )
    except cv2.error:
        image = None
    if image is None:
        raise ImportImagesError(f"{path}: not an image that can be read")
    return image
