# SPDX-License-Identifier: Apache-2.0
"""The layouts of published RGB-D data sets: recognises them and finds the files of their frames."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np

from m3l_model.import_images import read_depth, read_intrinsics
from m3l_model.import_plan import (
    IMAGE_SUFFIXES,
    DepthUnits,
    FrameFiles,
    ImportImagesError,
    ImportPlan,
    find_images,
    natural_order,
    plan_import,
    read_names,
)
from m3l_model.import_tum import is_tum, plan_tum

NYU_8_BIT = DepthUnits(scale=1 / 25.5, offset=0.5, bits=8)
"""NYUv2's 0 to 10 m in 255 steps."""

SUN_RGBD = DepthUnits(rotated=3, bits=16)
"""SUN RGB-D's millimetres, rotated to the left by three bits."""


@dataclass(frozen=True)
class Choices:
    """What a user says of a data set.

    Attributes:
        color, depth, labels: folders or patterns that take the place of the layout's own, in the data set or not.
        list: file that names the frames to take.
        depth_scale, depth_offset, invalid_depth: fields of ``DepthUnits`` that take the place of the layout's.
    """

    color: str | None = None
    depth: str | None = None
    labels: str | None = None
    list: Path | None = None
    depth_scale: float | None = None
    depth_offset: float | None = None
    invalid_depth: tuple[int, ...] | None = None

    def units(self, layout: DepthUnits) -> DepthUnits:
        """The layout's units, as far as nothing else was chosen; a chosen scale is of the values as they are."""
        if self.depth_scale is not None:
            layout = replace(layout, scale=self.depth_scale, offset=0.0, rotated=0, bits=None)
        if self.depth_offset is not None:
            layout = replace(layout, offset=self.depth_offset)
        if self.invalid_depth is not None:
            layout = replace(layout, invalid=self.invalid_depth)
        return layout


def plan_layout(folder: Path, layout: str | None = None, choices: Choices = Choices()) -> ImportPlan:
    """Find the frames of a data set.

    Args:
        folder: of the data set.
        layout: one of ``LAYOUTS``; recognised when None.
        choices: what differs from the layout.

    Raises:
        ImportImagesError: no layout is recognised, or the folder does not hold what its layout asks for.
    """
    if folder.suffix == ".mat" or not folder.is_dir():
        raise ImportImagesError(_no_folder(folder))
    try:
        name = layout or recognise(folder)
        if name is None:
            raise ImportImagesError(_not_recognised(folder))
        plan = LAYOUTS[name](folder, choices)
    except OSError as error:
        raise ImportImagesError(f"{error.filename}: cannot read the folder: {error.strerror}") from error
    units = choices.units(plan.units)
    how = "" if layout else " (recognised; --layout names another)"
    return replace(plan, units=units, notes=(f"layout: {name}{how}", *plan.notes, f"depth: {units}"))


def plan_files(choices: Choices) -> ImportPlan:
    """Find the frames of images of any layout, which are matched by their names; see ``plan_import``.

    Raises:
        ImportImagesError: colour or depth is not named, or the images do not match.
    """
    if choices.color is None or choices.depth is None:
        raise ImportImagesError("name the folder of a data set, or the images with --color and --depth")
    names = None if choices.list is None else read_names(choices.list)
    plan = plan_import(choices.color, choices.depth, choices.labels, names)
    return replace(plan, units=choices.units(plan.units))


def recognise(folder: Path) -> str | None:
    """Name the layout of a folder by what lies in it; None where it is of no known one."""
    if is_tum(folder):
        return "tum"
    if next(_sun_folders(folder), None) is not None or (folder / "image").is_dir():
        return "sunrgbd"
    if _subfolder(folder, _COLOR) and _subfolder(folder, _DEPTH):
        return "nyuv2"
    return None


def _no_folder(path: Path) -> str:
    if path.suffix == ".mat" and path.exists():
        return (
            f"{path} is a MATLAB file, which is not read here: it labels 894 object names, not the 40 classes; give "
            "a folder of images made of it, rgb/, depth/ (16-bit PNG in mm) and label40/ (8-bit PNG)"
        )
    return f"{path}: no such folder"


def _not_recognised(folder: Path) -> str:
    matlab = next(folder.glob("*.mat"), None)
    inner = next((sub for sub in sorted(folder.iterdir()) if sub.is_dir() and recognise(sub)), None)
    if inner is not None:
        way_out = f"its folder {inner.name} looks like {recognise(inner)}: give {inner}"
    elif matlab is not None:
        return _no_folder(matlab)
    else:
        way_out = (
            "nyuv2 has rgb/ and depth/, tum rgb.txt and depth.txt, sunrgbd image/ and depth/ in one folder a frame; "
            "name other files with --color and --depth instead of a folder"
        )
    return f"{folder}: no layout recognised; {way_out}"


# Folders of images matched by their names: NYUv2, and SUN RGB-D as it is prepared for segmentation

_COLOR = ("rgb", "image", "images", "color")
_DEPTH = ("depth", "depths", "depth_raw", "depth_bfx")
_LABELS = ("label40", "labels_40", "label37", "labels_37", "label", "labels", "label13", "labels_13")


def _plan_nyuv2(folder: Path, choices: Choices) -> ImportPlan:
    plan = _plan_folders(folder, choices)
    depth = next((frame.depth for frame in plan.frames if frame.depth is not None), None)
    of_8_bits = depth is not None and read_depth(depth).dtype == np.uint8
    return replace(plan, units=NYU_8_BIT if of_8_bits else DepthUnits(bits=16))


def _plan_sun_prepared(folder: Path, choices: Choices) -> ImportPlan:
    plan = _plan_folders(folder, choices)
    units = _sun_units([frame.depth for frame in plan.frames if frame.depth is not None][:_SAMPLED], choices)
    return replace(plan, units=units)


def _plan_folders(folder: Path, choices: Choices) -> ImportPlan:
    color = _choose(folder, choices.color, _COLOR)
    depth = _choose(folder, choices.depth, _DEPTH)
    labels = _choose(folder, choices.labels, _LABELS)
    if color is None or depth is None:
        wanted = _COLOR if color is None else _DEPTH
        option = "--color" if color is None else "--depth"
        raise ImportImagesError(
            f"{folder} has no folder {', '.join(wanted[:-1])} or {wanted[-1]}; name it with {option}"
        )
    parts = _parts(Path(color))
    if parts:
        example = " ".join(
            f"{option} {Path(where).name}/{parts[-1]}"
            for option, where in (("--color", color), ("--depth", depth), ("--labels", labels))
            if where is not None
        )
        raise ImportImagesError(f"{color} is divided into {' and '.join(parts)}; choose one, as in {example}")
    names = None if choices.list is None else read_names(_list_file(folder, choices.list))
    used = [f"colour {color}", f"depth {depth}", "no labels" if labels is None else f"labels {labels}"]
    return replace(plan_import(color, depth, labels, names), notes=("images: " + ", ".join(used),))


def _choose(folder: Path, chosen: str | None, usual: Sequence[str]) -> str | None:
    """The folder or pattern that was chosen, inside the data set where it is there, or the first usual one."""
    if chosen is not None:
        inside = folder / chosen
        return str(inside) if glob.glob(str(inside), recursive=True) else chosen
    found = _subfolder(folder, usual)
    return None if found is None else str(found)


def _subfolder(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of these folders that there is, whatever its case."""
    there = {path.name.lower(): path for path in sorted(folder.iterdir(), reverse=True) if path.is_dir()}
    return next((there[name] for name in names if name in there), None)


def _parts(folder: Path) -> list[str]:
    """The subfolders of a folder that holds no image itself."""
    if not folder.is_dir() or any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir()):
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def _sun_units(depths: Sequence[Path], choices: Choices) -> DepthUnits:
    """Tell rotated millimetres by their low bits, which are 0 below 8.192 m, from plain ones."""
    low_bits_zero = [
        np.mean(values[values > 0] & 7 == 0) for values in map(read_depth, depths) if values.any()
    ]
    if choices.depth_scale is None and any(read_depth(path).dtype == np.uint8 for path in depths):
        raise ImportImagesError(f"{depths[0]} has 8 bits, in units unknown here; give --depth-scale")
    return SUN_RGBD if np.mean(low_bits_zero or [1]) > 0.5 else DepthUnits(bits=16)


def _list_file(folder: Path, path: Path) -> Path:
    return folder / path if not path.exists() and (folder / path).exists() else path


# SUN RGB-D as published: a folder a frame

_SUN_COLOR = "image"
_SUN_DEPTH = ("depth_bfx", "depth")
_SUN_LABELS = ("label37", "label")
_SAMPLED = 5
_LABEL_SUFFIXES = IMAGE_SUFFIXES | {".npy"}


def _plan_sunrgbd(folder: Path, choices: Choices) -> ImportPlan:
    found = sorted(_sun_folders(folder), key=_number_order)
    if not found:
        return _plan_sun_prepared(folder, choices)
    if choices.color is not None:
        raise ImportImagesError(
            f"--color {choices.color}: a frame's colour image is the one in its image/; leave --color out"
        )
    listed: Mapping[str, Path | None] = {str(path): path for path in found}
    if choices.list is not None:
        listed = _listed(folder, found, _list_file(folder, choices.list))
    in_frames = [_in_some_frame(found, chosen) for chosen in (choices.depth, choices.labels)]
    if not in_frames[0]:
        raise ImportImagesError(f"--depth {choices.depth}: no frame of {folder} has a folder of this name")
    depth = _SUN_DEPTH if choices.depth is None else (choices.depth,)
    labels = _SUN_LABELS if choices.labels is None else (choices.labels,) if in_frames[1] else ()
    frames = [None if path is None else _sun_frame(path, depth, labels) for path in listed.values()]
    notes = []
    if not in_frames[1]:
        frames = _number_labels(frames, choices)
    elif not any(frame and frame.label for frame in frames):
        notes = [
            "labels: none found; seg.mat holds names of objects, not class ids: give the numbered images of the 37 "
            "classes with --labels, and their list of frames with --list"
        ]
    there = [frame for frame in frames if frame is not None]
    used = Counter(frame.depth.parent.name for frame in there if frame.depth is not None)
    notes.append("depth images from: " + (", ".join(f"{name}/ ({n})" for name, n in used.items()) or "none"))
    return ImportPlan(
        tuple(there),
        listed_missing=tuple(name for name, path in listed.items() if path is None),
        units=SUN_RGBD,
        notes=tuple(notes),
    )


def _sun_folders(folder: Path) -> Iterator[Path]:
    """The frames' folders below a folder, or it itself."""
    for path, folders, files in os.walk(folder):
        of_depth = Path(path) != folder and any(name in folders for name in _SUN_DEPTH)
        if _SUN_COLOR in folders and ("intrinsics.txt" in files or of_depth):
            yield Path(path)
            folders.clear()


def _number_order(path: Path) -> list[tuple[int, str]]:
    return natural_order("-".join(re.findall(r"\d+|[^\d-]+", str(path))))


def _in_some_frame(frames: Sequence[Path], name: str | None) -> bool:
    """Whether a name is that of a folder in the frames' folders, or None."""
    return name is None or (len(Path(name).parts) == 1 and any((frame / name).is_dir() for frame in frames))


def _sun_frame(folder: Path, depth: Sequence[str], label: Sequence[str]) -> FrameFiles:
    color = _only_image(folder, (_SUN_COLOR,), IMAGE_SUFFIXES)
    if color is None:
        raise ImportImagesError(f"{folder / _SUN_COLOR} holds no image; remove {folder} or add it")
    return FrameFiles(
        color,
        _only_image(folder, depth, IMAGE_SUFFIXES),
        _only_image(folder, label, _LABEL_SUFFIXES),
        read_intrinsics(intrinsics) if (intrinsics := folder / "intrinsics.txt").exists() else None,
    )


def _only_image(folder: Path, names: Sequence[str], suffixes: frozenset[str]) -> Path | None:
    for name in names:
        sub = folder / name
        found = sorted(path for path in sub.glob("*") if path.suffix.lower() in suffixes)
        if len(found) > 1:
            raise ImportImagesError(f"{sub} holds {found[0].name} and {found[1].name}; one image is expected")
        if found:
            return found[0]
    return None


def _listed(folder: Path, frames: Sequence[Path], path: Path) -> dict[str, Path | None]:
    """The frames' folders by the names in a list, in its order; None where there is none.

    A name is a path, of a frame's folder or of its colour image; how many folders it begins with does not matter.
    """
    by_name: dict[str, list[Path]] = {}
    for frame in frames:
        by_name.setdefault(frame.name, []).append(frame)
    listed: dict[str, Path | None] = {}
    for name in read_names(path):
        parts = Path(name).parts or (name,)
        if len(parts) > 2 and parts[-2] == _SUN_COLOR:
            parts = parts[:-2]
        fitting = [
            frame
            for frame in by_name.get(parts[-1], [])
            if all(a == b for a, b in zip(parts[::-1], frame.relative_to(folder).parts[::-1], strict=False))
        ]
        if len(fitting) > 1:
            raise ImportImagesError(
                f"{path}: {name} may be {fitting[0]} or {fitting[1]}; name more of its path"
            )
        listed[name] = fitting[0] if fitting else None
    if not any(listed.values()):
        raise ImportImagesError(
            f"{path}: none of its {len(listed)} names is a frame in {folder}, such as {name}"
        )
    return listed


def _number_labels(frames: Sequence[FrameFiles | None], choices: Choices) -> list[FrameFiles | None]:
    """Give the frames of a list the label images of a folder, the first the first, as sunrgbd-meta-data has them."""
    labels = find_images("label", str(choices.labels))
    if choices.list is None:
        raise ImportImagesError(
            f"{choices.labels}: which frames these {len(labels)} label images are of only a list can tell, whose "
            "first line is the first image's frame; give it with --list"
        )
    if len(labels) != len(frames):
        raise ImportImagesError(
            f"{choices.labels} holds {len(labels)} label images, but {choices.list} names {len(frames)} frames; they "
            "are matched in order, so give just the images of these frames"
        )
    labels.sort(key=_number_order)
    return [
        None if frame is None else frame._replace(label=label)
        for frame, label in zip(frames, labels, strict=True)
    ]


# TUM RGB-D


def _plan_tum(folder: Path, choices: Choices) -> ImportPlan:
    for option, chosen in (("--color", choices.color), ("--depth", choices.depth)):
        if chosen is not None:
            raise ImportImagesError(
                f"{option} {chosen}: the images of {folder} are those of its lists; leave it out"
            )
    associations = None if choices.list is None else _list_file(folder, choices.list)
    labels = _choose(folder, choices.labels, _LABELS)
    return plan_tum(folder, associations, labels)


LAYOUTS: Mapping[str, Callable[[Path, Choices], ImportPlan]] = MappingProxyType(
    {
        "nyuv2": _plan_nyuv2,
        "sunrgbd": _plan_sunrgbd,
        "tum": _plan_tum,
    }
)
"""How the frames of each layout are found."""
