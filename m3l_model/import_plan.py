# SPDX-License-Identifier: Apache-2.0
"""Which image files become a bag, and how they are meant; for folders of any names, ``plan_import`` finds it out."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m3l_model.errors import M3LError

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
OWN_START_NS = 1_000_000_000
"""Stamp of the first frame where the images have none of their own: a set of images rather than a recording."""

_MAX_DEPTH_MM = 65534
"""65535 is what cameras write where there is no reading."""


class ImportImagesError(M3LError):
    """Image files that do not make up a recording."""


class FrameFiles(NamedTuple):
    """The files of one frame; None where there is none, or where it is left out.

    Attributes:
        color, depth, label: the images. A depth image without a colour image is a frame of its own.
        intrinsics: (3, 3) camera matrix, where the data set gives one.
        stamp_ns: of colour, or of depth without colour, in the recording; None where the order is all that is known.
        depth_stamp_ns: of depth, where it has another.
    """

    color: Path | None
    depth: Path | None = None
    label: Path | None = None
    intrinsics: npt.NDArray[np.float64] | None = None
    stamp_ns: int | None = None
    depth_stamp_ns: int | None = None


class Role(Enum):
    """What an image is."""

    COLOR = "colour"
    DEPTH = "depth"
    LABEL = "label"


class ImageFile(NamedTuple):
    """One image to write.

    Attributes:
        log_ns: log time.
        stamp_ns: header stamp.
        role: what it is.
        path: its file.
        camera: images of one number must be of one size.
        intrinsics: (3, 3) camera matrix; None where it is not known.
    """

    log_ns: int
    stamp_ns: int
    role: Role
    path: Path
    camera: int
    intrinsics: npt.NDArray[np.float64] | None


@dataclass(frozen=True)
class DepthUnits:
    """How the pixels of depth images are meant: metres = (value + offset) * scale.

    Attributes:
        scale: metres per unit.
        offset: added before, in units.
        invalid: values that are no reading.
        rotated: by how many bits 16-bit values are rotated to the left, as SUN RGB-D's are by three.
        bits: of a pixel, 8 or 16, where the other is an error.
    """

    scale: float = 0.001
    offset: float = 0.0
    invalid: tuple[int, ...] = (0, 65535)
    rotated: int = 0
    bits: int | None = None

    def millimetres(self, values: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
        """Convert (H, W) pixels to millimetres; 0 where there is no reading, or one of 65.535 m or more."""
        raw = np.arange(np.iinfo(values.dtype).max + 1)
        levels = raw >> self.rotated | raw << (16 - self.rotated) & 0xFFFF if self.rotated else raw
        millimetres = np.rint((levels + self.offset) * self.scale * 1000)
        unusable = (millimetres < 0) | (millimetres > _MAX_DEPTH_MM) | np.isin(raw, self.invalid)
        return np.where(unusable, 0, millimetres).astype(np.uint16)[values]

    def __str__(self) -> str:
        offset = f" {self.offset:+g}" if self.offset else ""
        bits = f"{self.bits}-bit " if self.bits else ""
        rotated = f", its bits rotated back by {self.rotated}" if self.rotated else ""
        return f"metres = ({bits}value{rotated}{offset}) * {self.scale:g}"


@dataclass(frozen=True)
class ImportPlan:
    """Which files become frames, in order, and which do not.

    Attributes:
        frames: what to write.
        depth_unused: depth images without a colour image.
        labels_unused: label images without a colour image.
        labels_withheld: label images left out by ``label_every`` or ``labelled``.
        listed_missing: entries of a list for which there is no image.
        units: of the depth images.
        one_camera: all images must be of one size, not just those of a frame.
        notes: what was found out about the data set, a line each.
    """

    frames: tuple[FrameFiles, ...]
    depth_unused: tuple[Path, ...] = ()
    labels_unused: tuple[Path, ...] = ()
    labels_withheld: int = 0
    listed_missing: tuple[str, ...] = ()
    units: DepthUnits = DepthUnits()
    one_camera: bool = False
    notes: tuple[str, ...] = ()

    @property
    def has_stamps(self) -> bool:
        """Whether the recording's own stamps are known."""
        return any(frame.stamp_ns is not None for frame in self.frames)

    @property
    def with_depth(self) -> int:
        return sum(frame.depth is not None for frame in self.frames)

    @property
    def labelled(self) -> int:
        return sum(frame.label is not None for frame in self.frames)

    def images(self, rate_hz: float = 10.0, start_ns: int = OWN_START_NS) -> list[ImageFile]:
        """Give every image its stamps, in the order of writing.

        A frame's images are logged when the last of them is due, depth before colour: the synchronizer lets a colour
        image wait for depth only if depth has come within its timeout.

        Args:
            rate_hz: frames a second, where the recording's stamps are not known.
            start_ns: stamp of the first frame, likewise.

        Raises:
            ImportImagesError: the rate is none.
        """
        if not 0 < rate_hz < float("inf"):
            raise ImportImagesError(f"rate {rate_hz} is no number of frames a second")
        images: list[ImageFile] = []
        log_ns = 0
        for index, frame in enumerate(self.frames):
            stamp_ns = frame.stamp_ns
            if stamp_ns is None:
                stamp_ns = start_ns + round(index * 1_000_000_000 / rate_hz)
            depth_stamp_ns = stamp_ns if frame.depth_stamp_ns is None else frame.depth_stamp_ns
            log_ns = max(log_ns, stamp_ns, depth_stamp_ns)
            camera = 0 if self.one_camera else index
            images += (
                ImageFile(log_ns, stamp, role, path, camera, frame.intrinsics)
                for role, path, stamp in (
                    (Role.DEPTH, frame.depth, depth_stamp_ns),
                    (Role.COLOR, frame.color, stamp_ns),
                    (Role.LABEL, frame.label, stamp_ns),
                )
                if path is not None
            )
        return images


def plan_import(
    color: str,
    depth: str,
    labels: str | None = None,
    names: Iterable[str] | None = None,
) -> ImportPlan:
    """Match files by the part of their names that they share, and put the frames in the order of these names.

    Words like color, depth and label count as no part of a name; where nothing matches so, the last number in the
    name alone is compared. A frame needs a colour image only.

    Args:
        color, depth, labels: a folder, or a pattern with ``*``.
        names: names or numbers of the frames to take; all when None.

    Raises:
        ImportImagesError: no images, ambiguous names, or nothing that matches.
    """
    groups = {"colour": find_images("colour", color), "depth": find_images("depth", depth)}
    if labels is not None:
        groups["label"] = find_images("label", labels)
    if names is not None:
        groups["listed"] = [Path(name) for name in dict.fromkeys(names)]
    keyed = match_names(groups)
    colors, depths, label_images = keyed["colour"], keyed["depth"], keyed.get("label", {})
    listed = keyed.get("listed", colors)
    return ImportPlan(
        frames=tuple(
            FrameFiles(colors[key], depths.get(key), label_images.get(key))
            for key in sorted(colors, key=natural_order)
            if key in listed
        ),
        depth_unused=tuple(path for key, path in depths.items() if key not in colors),
        labels_unused=tuple(path for key, path in label_images.items() if key not in colors),
        listed_missing=tuple(str(path) for key, path in listed.items() if key not in colors),
    )


def keep_labels(plan: ImportPlan, label_every: int | None = None, labelled: int | None = None) -> ImportPlan:
    """Leave labels out, to train on fewer.

    Args:
        plan: what to import.
        label_every: keep the label image of one labelled frame in so many.
        labelled: keep so many label images, spread evenly over the labelled frames.

    Raises:
        ImportImagesError: there are fewer label images than asked for.
    """
    available = [index for index, frame in enumerate(plan.frames) if frame.label is not None]
    kept = set(_thin_out(available, label_every, labelled))
    return replace(
        plan,
        frames=tuple(
            frame if index in kept else frame._replace(label=None) for index, frame in enumerate(plan.frames)
        ),
        labels_withheld=len(available) - len(kept),
    )


def read_names(path: Path) -> list[str]:
    """Read a list of frames: a name, number or path a line, first in its line.

    Raises:
        ImportImagesError: the file cannot be read or names nothing.
    """
    names = [line.split()[0] for line in read_lines(path, "the list of frames") if line.strip()]
    if not names:
        raise ImportImagesError(f"{path}: the list of frames is empty")
    return names


def read_lines(path: Path, what: str) -> list[str]:
    """Read a text file that is part of a data set; ``what`` says which.

    Raises:
        ImportImagesError: the file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ImportImagesError(f"{path}: cannot read {what}: {error}") from error


# Matching

_MODALITY = re.compile("colou?r|depth|gt|ids?|images?|img|label(s|led)?|masks?|rgb|seg(mentation)?|semantic")

_Groups = Mapping[str, Sequence[Path]]
_Keyed = dict[str, dict[str, Path]]


def find_images(role: str, where: str) -> list[Path]:
    """Find the images in a folder, or those that a pattern with ``*`` names, in the order of their names.

    Raises:
        ImportImagesError: there are none.
    """
    path = Path(where).expanduser()
    if path.is_dir():
        found = [
            file
            for file in path.iterdir()
            if not file.name.startswith(".") and file.suffix.lower() in IMAGE_SUFFIXES
        ]
    else:
        found = [file for file in map(Path, glob.glob(str(path), recursive=True)) if file.is_file()]
    if not found:
        raise ImportImagesError(f"{where}: no {role} images found; give a folder, or a pattern in quotes")
    return sorted(found)


def match_names(groups: _Groups) -> _Keyed:
    """Give each group's files the keys under which most of them meet those of the group ``colour``.

    Raises:
        ImportImagesError: two files of a group would have one key, or a group meets no colour image at all.
    """
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
    return path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name


def _name_key(path: Path) -> str:
    words = re.findall(r"[^\W\d_]+|\d+", _stem(path).lower())
    return "-".join(word for word in words if not _MODALITY.fullmatch(word))


def _number_key(path: Path) -> str:
    numbers = re.findall(r"\d+", _stem(path))
    if not numbers:
        raise ImportImagesError(f"{path} has no number in its name")
    return str(int(numbers[-1]))


def natural_order(key: str) -> list[tuple[int, str]]:
    """Sort by this what has numbers between dashes: 2 before 10."""
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
