# SPDX-License-Identifier: Apache-2.0
"""Turns folders of colour, depth and label images into a bag.

``plan_import`` finds which files make up a frame, by their names; ``write_frames`` reads them and writes the bag.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import numpy.typing as npt

from m3l_model.bag_writer import BagWriter
from m3l_model.errors import M3LError

GUESSED_FIELD_OF_VIEW_DEG = 60.0
"""Horizontal, for intrinsics that nobody gave: about a Kinect's (57) and a RealSense D435's colour camera (69)."""

_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_MAX_DEPTH_MM = 65534
"""65535 is what cameras write where there is no reading."""


class ImportImagesError(M3LError):
    """Image files that do not make up a recording."""


class FrameFiles(NamedTuple):
    """The files of one frame; None where there is none, or where it is left out."""

    color: Path
    depth: Path | None
    label: Path | None


@dataclass(frozen=True)
class ImportPlan:
    """Which files become frames, in order, and which do not.

    Attributes:
        frames: what to write.
        depth_unused: depth images without a colour image.
        labels_unused: label images without a colour image.
        labels_withheld: label images left out by ``label_every`` or ``labelled``.
        listed_missing: entries of the list for which there is no colour image.
    """

    frames: tuple[FrameFiles, ...]
    depth_unused: tuple[Path, ...] = ()
    labels_unused: tuple[Path, ...] = ()
    labels_withheld: int = 0
    listed_missing: tuple[str, ...] = ()

    @property
    def with_depth(self) -> int:
        return sum(frame.depth is not None for frame in self.frames)

    @property
    def labelled(self) -> int:
        return sum(frame.label is not None for frame in self.frames)


@dataclass(frozen=True)
class DepthUnits:
    """How the pixels of depth images are meant: metres = (value + offset) * scale.

    Attributes:
        scale: metres per unit.
        offset: added before, in units.
        invalid: values that are no reading.
    """

    scale: float = 0.001
    offset: float = 0.0
    invalid: tuple[int, ...] = (0, 65535)

    def millimetres(self, values: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
        """Convert (H, W) pixels to millimetres; 0 where there is no reading, or one of 65.535 m or more."""
        levels = np.arange(np.iinfo(values.dtype).max + 1)
        millimetres = np.rint((levels + self.offset) * self.scale * 1000)
        unusable = (millimetres < 0) | (millimetres > _MAX_DEPTH_MM) | np.isin(levels, self.invalid)
        return np.where(unusable, 0, millimetres).astype(np.uint16)[values]


def plan_import(
    color: str,
    depth: str,
    labels: str | None = None,
    names: Iterable[str] | None = None,
    label_every: int | None = None,
    labelled: int | None = None,
) -> ImportPlan:
    """Match files by the part of their names that they share, and put the frames in the order of these names.

    Words like color, depth and label count as no part of a name; where nothing matches so, the last number in the
    name alone is compared. A frame needs a colour image only.

    Args:
        color, depth, labels: a folder, or a pattern with ``*``.
        names: names or numbers of the frames to take; all when None.
        label_every: keep the label image of one labelled frame in so many.
        labelled: keep so many label images, spread evenly over the labelled frames.

    Raises:
        ImportImagesError: no images, ambiguous names, nothing that matches, or fewer label images than asked for.
    """
    groups = {"colour": _find_images("colour", color), "depth": _find_images("depth", depth)}
    if labels is not None:
        groups["label"] = _find_images("label", labels)
    if names is not None:
        groups["listed"] = [Path(name) for name in dict.fromkeys(names)]
    keyed = _match(groups)
    colors, depths, label_images = keyed["colour"], keyed["depth"], keyed.get("label", {})
    listed = keyed.get("listed", colors)
    frames = [
        FrameFiles(colors[key], depths.get(key), label_images.get(key))
        for key in sorted(colors, key=_natural_order)
        if key in listed
    ]
    available = [index for index, frame in enumerate(frames) if frame.label is not None]
    kept = set(_thin_out(available, label_every, labelled))
    return ImportPlan(
        frames=tuple(
            frame if index in kept else frame._replace(label=None) for index, frame in enumerate(frames)
        ),
        depth_unused=tuple(path for key, path in depths.items() if key not in colors),
        labels_unused=tuple(path for key, path in label_images.items() if key not in colors),
        labels_withheld=len(available) - len(kept),
        listed_missing=tuple(str(path) for key, path in listed.items() if key not in colors),
    )


def write_frames(
    frames: Iterable[FrameFiles],
    out: str | Path,
    units: DepthUnits,
    rate_hz: float = 10.0,
    start_ns: int = 1_000_000_000,
    frame_id: str = "camera_color_optical_frame",
    intrinsics: npt.NDArray[np.float64] | None = None,
) -> None:
    """Read the images of each frame and write them to a new bag, on this package's default topics.

    Args:
        frames: their files, in order.
        out: the bag's folder; must not exist.
        units: of the depth images.
        rate_hz: frames a second; all images of a frame have one stamp.
        start_ns: stamp of the first frame.
        frame_id: of all images, since depth must be registered to colour.
        intrinsics: (3, 3) camera matrix; ``guess_intrinsics`` when None.

    Raises:
        ImportImagesError: a file is no such image as it should be, or a frame's images differ in size.
        BagWriteError: the bag exists or cannot be written.
    """
    if not 0 < rate_hz < float("inf"):
        raise ImportImagesError(f"rate {rate_hz} is no number of frames a second")
    with BagWriter(out) as writer:
        for index, files in enumerate(frames):
            rgb, depth_mm, labels = _read_frame(files, units)
            k = guess_intrinsics(rgb.shape[1], rgb.shape[0]) if intrinsics is None else intrinsics
            stamp_ns = start_ns + round(index * 1_000_000_000 / rate_hz)
            writer.write_frame(stamp_ns, frame_id, rgb, depth_mm, labels, k)


def guess_intrinsics(width: int, height: int) -> npt.NDArray[np.float64]:
    """Camera matrix of a pinhole of ``GUESSED_FIELD_OF_VIEW_DEG`` with its axis through the middle of the image."""
    focal = width / 2 / np.tan(np.radians(GUESSED_FIELD_OF_VIEW_DEG) / 2)
    return np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])


def read_names(path: Path) -> list[str]:
    """Read a list of frames: a name or number a line.

    Raises:
        ImportImagesError: the file cannot be read or names nothing.
    """
    try:
        names = path.read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        raise ImportImagesError(f"{path}: cannot read the list of frames: {error}") from error
    if not names:
        raise ImportImagesError(f"{path}: the list of frames is empty")
    return names


def read_intrinsics(path: Path) -> npt.NDArray[np.float64]:
    """Read a camera matrix: three lines of three numbers.

    Raises:
        ImportImagesError: the file cannot be read or holds something else.
    """
    try:
        matrix = np.loadtxt(path, dtype=np.float64)
    except (OSError, ValueError) as error:
        raise ImportImagesError(f"{path}: cannot read the intrinsics: {error}") from error
    if matrix.shape != (3, 3) or not (matrix[0, 0] > 0 and matrix[1, 1] > 0 and matrix[2, 2] == 1):
        raise ImportImagesError(f"{path}: not a 3x3 camera matrix (fx 0 cx, 0 fy cy, 0 0 1)")
    return matrix


# Matching

_MODALITY = re.compile("colou?r|depth|gt|images?|img|label(s|led)?|masks?|rgb|seg(mentation)?|semantic")

_Groups = Mapping[str, Sequence[Path]]
_Keyed = dict[str, dict[str, Path]]


def _find_images(role: str, where: str) -> list[Path]:
    path = Path(where).expanduser()
    if path.is_dir():
        found = [
            file
            for file in path.iterdir()
            if not file.name.startswith(".") and file.suffix.lower() in _SUFFIXES
        ]
    else:
        found = [file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file()]
    if not found:
        raise ImportImagesError(f"{where}: no {role} images found; give a folder, or a pattern in quotes")
    return sorted(found)


def _match(groups: _Groups) -> _Keyed:
    """Give each group's files the keys under which most of them meet a colour image."""
    candidates: list[_Keyed] = []
    problems: list[ImportImagesError] = []
    for key_of in (_name_key, _number_key):
        try:
            candidates.append({role: _by_key(role, files, key_of) for role, files in groups.items()})
        except ImportImagesError as error:
            problems.append(error)
    if not candidates:
        raise problems[0]

    def shared(keyed: _Keyed, role: str) -> int:
        return len(keyed["colour"].keys() & keyed[role].keys())

    best = max(candidates, key=lambda keyed: sum(shared(keyed, role) for role in groups))
    for role, files in groups.items():
        if not shared(best, role):
            raise ImportImagesError(
                f"none of the {len(files)} {role} names meets a colour image's: "
                f"{files[0]} and {groups['colour'][0]} have no name or number in common"
            )
    return best


def _by_key(role: str, files: Sequence[Path], key_of: Callable[[Path], str]) -> dict[str, Path]:
    keyed: dict[str, Path] = {}
    for file in files:
        other = keyed.setdefault(key_of(file), file)
        if other is not file:
            raise ImportImagesError(
                f"{other} and {file} would be {role} images of one frame; give a narrower pattern, "
                "such as 'folder/*.color.jpg'"
            )
    return keyed


def _stem(path: Path) -> str:
    return path.stem if path.suffix.lower() in _SUFFIXES else path.name


def _name_key(path: Path) -> str:
    words = re.findall(r"[^\W\d_]+|\d+", _stem(path).lower())
    return "-".join(word for word in words if not _MODALITY.fullmatch(word))


def _number_key(path: Path) -> str:
    numbers = re.findall(r"\d+", _stem(path))
    if not numbers:
        raise ImportImagesError(f"{path} has no number in its name")
    return str(int(numbers[-1]))


def _natural_order(key: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in key.split("-")]


def _thin_out(available: Sequence[int], label_every: int | None, labelled: int | None) -> Sequence[int]:
    if label_every is None and labelled is None:
        return available
    if not available:
        raise ImportImagesError("there are no labelled frames to choose from; name the label images")
    if label_every is not None:
        if label_every < 1:
            raise ImportImagesError(
                f"one labelled frame in {label_every} cannot be kept; at least 1 is needed"
            )
        return available[::label_every]
    if not labelled or not 1 <= labelled <= len(available):
        raise ImportImagesError(f"{labelled} labelled frames cannot be kept; 1 to {len(available)} are there")
    return [available[(2 * index + 1) * len(available) // (2 * labelled)] for index in range(labelled)]


# Reading

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_BIT_DEPTH_AT = 24
_LOSSY = (b"\xff\xd8\xff", b"RIFF")


class _FrameImages(NamedTuple):
    rgb: npt.NDArray[np.uint8]
    depth_mm: npt.NDArray[np.uint16] | None
    labels: npt.NDArray[np.uint8] | None


def _read_frame(files: FrameFiles, units: DepthUnits) -> _FrameImages:
    rgb = _read_color(files.color)
    depth_mm = None if files.depth is None else units.millimetres(_read_depth(files.depth))
    labels = None if files.label is None else _read_labels(files.label)
    for path, image in ((files.depth, depth_mm), (files.label, labels)):
        if image is not None and image.shape != rgb.shape[:2]:
            raise ImportImagesError(
                f"{path} is {image.shape[1]}x{image.shape[0]}, but {files.color} {rgb.shape[1]}x{rgb.shape[0]}; "
                "depth and labels must be registered to colour and of its size"
            )
    return _FrameImages(rgb, depth_mm, labels)


def _read_color(path: Path) -> npt.NDArray[np.uint8]:
    bgr = _decode(path, _read_bytes(path), cv2.IMREAD_COLOR)
    return cast("npt.NDArray[np.uint8]", cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB))


def _read_depth(path: Path) -> npt.NDArray[np.uint8] | npt.NDArray[np.uint16]:
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
    values = _decode(path, data, cv2.IMREAD_UNCHANGED)
    scaled = data.startswith(_PNG) and data[_PNG_BIT_DEPTH_AT] < 8
    if values.ndim != 2 or values.dtype != np.uint8 or scaled:
        raise ImportImagesError(
            f"{path}: labels must have one channel of 8 bits that holds class ids; this has a palette, colours or "
            "another depth"
        )
    return cast("npt.NDArray[np.uint8]", values)


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
