# SPDX-License-Identifier: Apache-2.0
"""Recordings in the layout of the TUM RGB-D benchmark: rgb.txt, depth.txt, and files that associate their images."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m3l_model.import_plan import (
    DepthUnits,
    FrameFiles,
    ImportImagesError,
    ImportPlan,
    find_images,
    match_names,
    read_lines,
)

TUM_DEPTH = DepthUnits(scale=1 / 5000, bits=16)

FREIBURG_INTRINSICS = {
    "freiburg1": (517.3, 516.5, 318.6, 255.3),
    "freiburg2": (520.9, 521.0, 325.1, 249.7),
    "freiburg3": (535.4, 539.2, 320.1, 247.6),
}
"""fx, fy, cx, cy of the benchmark's colour cameras, as it publishes them."""

_ASSOCIATIONS = ("associations.txt", "associate.txt", "associated.txt", "association.txt")
_SLOP_NS = 20_000_000
"""The synchronizer's default."""


class StampedFile(NamedTuple):
    """An image of a list: the stamp as it is written there, in nanoseconds, and the file's path as it stands."""

    stamp_ns: int
    name: str


class TumList(NamedTuple):
    """What a list, or a column of it, says.

    Attributes:
        images: in the order of their stamps.
        numbered: the stamps are whole numbers: of frames, not of seconds.
    """

    images: tuple[StampedFile, ...]
    numbered: bool


def is_tum(folder: Path) -> bool:
    """Tell whether a folder has the lists of this layout."""
    return any((folder / name).is_file() for name in ("rgb.txt", *_ASSOCIATIONS))


def plan_tum(folder: Path, associations: Path | None = None, labels: str | None = None) -> ImportPlan:
    """Take all images of rgb.txt and depth.txt, each with its own stamp, or only those of an associations file.

    Where the stamps are the numbers of frames (ICL-NUIM's), images of one number, or of one line, are a frame.

    Args:
        folder: of the recording.
        associations: lines of ``stamp rgb/file stamp depth/file``, or depth first; the folder's own when None.
        labels: a folder or pattern of label images, named as their colour images.

    Raises:
        ImportImagesError: a list is absent, empty or malformed, or its stamps do not rise; no image exists.
    """
    if associations is None:
        associations = next((path for name in _ASSOCIATIONS if (path := folder / name).is_file()), None)
    if associations is None:
        for name in ("rgb.txt", "depth.txt"):
            if not (folder / name).is_file():
                raise ImportImagesError(
                    f"{folder / name}: no such file; a recording of layout tum has rgb.txt and depth.txt, or "
                    "associations.txt, or a file like it that --list names"
                )
        color, depth = (read_tum_list(folder / name) for name in ("rgb.txt", "depth.txt"))
        by_stamp = {image.stamp_ns: image for image in depth.images}
        pairs = {image: by_stamp[image.stamp_ns] for image in color.images if image.stamp_ns in by_stamp}
        source = "all of rgb.txt and depth.txt"
    else:
        color, depth = read_associations(associations)
        pairs = dict(zip(color.images, depth.images, strict=True))
        source = f"the pairs of {associations}"
    listed = tuple(dict.fromkeys((*color.images, *depth.images)))
    there = {image: path for image in listed if (path := folder / image.name).is_file()}
    colors = [image for image in color.images if image in there]
    if not colors:
        raise ImportImagesError(
            f"{folder}: none of the {len(color.images)} colour images listed exists, such as {color.images[0].name}; "
            "unpack the images beside the lists"
        )
    label_of = _match_labels([there[image] for image in colors], labels)
    k = _freiburg_intrinsics(folder)
    numbered = color.numbered and depth.numbered
    unpaired = dict.fromkeys(image for image in depth.images if image in there)
    frames = []
    for image in colors:
        partner = pairs.get(image)
        frame = FrameFiles(there[image], None, label_of.get(there[image]), k, image.stamp_ns)
        if partner is not None and partner in unpaired:
            del unpaired[partner]  # where several frames share it, it is written once
            frame = frame._replace(depth=there[partner], depth_stamp_ns=partner.stamp_ns)
        frames.append(frame)
    notes = [f"images: {source}"]
    unused: tuple[Path, ...] = ()
    if numbered:
        frames = [frame._replace(stamp_ns=None, depth_stamp_ns=None) for frame in frames]
        unused = tuple(there[image] for image in unpaired)
        notes.append("stamps: whole numbers, taken for numbers of frames, which follow at --rate")
    else:
        frames += (FrameFiles(None, there[image], None, k, image.stamp_ns) for image in unpaired)
        frames.sort(key=lambda frame: (frame.stamp_ns or 0, frame.color is not None))
        near = _count_near(colors, [image for image in depth.images if image in there])
        notes.append(
            f"stamps: the recording's own; {near} of {len(colors)} colour images have a depth image within "
            f"{_SLOP_NS // 1_000_000} ms, the synchronizer's default slop"
        )
    if k is not None:
        notes.append("camera matrix: as published for this camera, without its lens distortion")
    return ImportPlan(
        tuple(frames),
        depth_unused=unused,
        listed_missing=tuple(image.name for image in listed if image not in there),
        units=TUM_DEPTH,
        one_camera=True,
        notes=tuple(notes),
    )


def read_tum_list(path: Path) -> TumList:
    """Read rgb.txt or depth.txt: lines of a stamp in seconds and a file; ``#`` begins a comment.

    Raises:
        ImportImagesError: the file cannot be read, is empty or malformed, or its stamps do not rise.
    """
    rows = _read_rows(path, 2, "stamp file")
    images = [_stamped(path, number, row[0], row[1]) for number, row in rows]
    _check_rising(path, [number for number, _ in rows], images)
    return TumList(tuple(images), all(row[0].isdigit() for _, row in rows))


def read_associations(path: Path) -> tuple[TumList, TumList]:
    """Read the colour and the depth images that a file associates, one pair a line, whichever comes first.

    Raises:
        ImportImagesError: the file cannot be read, is empty or malformed, colour stamps do not rise, or neither
            column's files can be told to be of depth.
    """
    rows = _read_rows(path, 4, "stamp rgb/file stamp depth/file")
    sides = [
        [_stamped(path, number, row[column], row[column + 1]) for number, row in rows] for column in (0, 2)
    ]
    is_depth = [all("depth" in image.name.lower() for image in side) for side in sides]
    if is_depth[0] == is_depth[1]:
        raise ImportImagesError(
            f"{path}: which images are of depth cannot be told from names such as {sides[0][0].name} and "
            f"{sides[1][0].name}; those of depth, and only those, must have depth in their path"
        )
    color, depth = (0, 1) if is_depth[1] else (1, 0)
    _check_rising(path, [number for number, _ in rows], sides[color])
    numbered = all(row[0].isdigit() and row[2].isdigit() for _, row in rows)
    return TumList(tuple(sides[color]), numbered), TumList(tuple(sides[depth]), numbered)


def _read_rows(path: Path, columns: int, form: str) -> list[tuple[int, list[str]]]:
    """The lines that are no comment, by number and split; commas separate too, as in the benchmark's own tools."""
    rows = []
    for number, line in enumerate(read_lines(path, "the list of images"), start=1):
        row = line.replace(",", " ").split()
        if not row or row[0].startswith("#"):
            continue
        if len(row) != columns:
            raise ImportImagesError(
                f"{path} line {number}: {line.strip()[:80]!r} is not of the form '{form}'"
            )
        rows.append((number, row))
    if not rows:
        raise ImportImagesError(f"{path} lists no images; its lines should be of the form '{form}'")
    return rows


def _stamped(path: Path, number: int, stamp: str, name: str) -> StampedFile:
    try:
        seconds = Decimal(stamp)
    except InvalidOperation:
        seconds = Decimal("NaN")
    if not (seconds.is_finite() and 0 <= seconds < 2**31):
        raise ImportImagesError(f"{path} line {number}: {stamp!r} is no stamp in seconds (0 to 2**31)")
    return StampedFile(round(seconds * 1_000_000_000), name)


def _check_rising(path: Path, numbers: Sequence[int], images: Sequence[StampedFile]) -> None:
    for number, before, image in zip(numbers[1:], images, images[1:], strict=False):
        if image.stamp_ns <= before.stamp_ns:
            raise ImportImagesError(
                f"{path} line {number}: the stamp of {image.name} is not after that of {before.name} before it; sort "
                "the lines by stamp (sort -n) and leave each stamp once"
            )


def _match_labels(colors: Sequence[Path], labels: str | None) -> Mapping[Path, Path]:
    if labels is None:
        return {}
    keyed = match_names({"colour": colors, "label": find_images("label", labels)})
    return {path: keyed["label"][key] for key, path in keyed["colour"].items() if key in keyed["label"]}


def _count_near(colors: Sequence[StampedFile], depths: Iterable[StampedFile]) -> int:
    """Count the colour images that have a depth image within the slop."""
    stamps = sorted(image.stamp_ns for image in depths)
    after = [bisect_left(stamps, image.stamp_ns - _SLOP_NS) for image in colors]
    return sum(
        at < len(stamps) and stamps[at] <= image.stamp_ns + _SLOP_NS
        for at, image in zip(after, colors, strict=True)
    )


def _freiburg_intrinsics(folder: Path) -> npt.NDArray[np.float64] | None:
    camera = re.search("freiburg[123]", folder.resolve().name)
    if camera is None:
        return None
    fx, fy, cx, cy = FREIBURG_INTRINSICS[camera[0]]
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
