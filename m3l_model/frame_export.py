# SPDX-License-Identifier: Apache-2.0
"""Chooses frames of a bag that are worth labels, and writes them as image files for annotation tools.

Masks put back under the names of the colour images are found as these frames' labels, see ``label_files``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from m3l_model.bag_frames import REASONS, BagFrames, Pairing
from m3l_model.bag_index import MessageReader
from m3l_model.errors import M3LError
from m3l_model.frame_names import frame_file
from m3l_model.images import to_rgb

MANIFEST = "manifest.json"
COLOR, DEPTH = "color", "depth"

_MADE_BY = "m3l frames"
_FORMAT = 1
_MAX_MANIFEST_BYTES = 256 << 20
_CANDIDATES_PER_FRAME = 4
_MOST_CANDIDATES = 1000
_THUMBNAIL = (32, 24)
_SECOND = 1_000_000_000

_log = logging.getLogger(__name__)


class FrameExportError(M3LError):
    """Frames cannot be exported there, or not so."""


@dataclass(frozen=True)
class Choice:
    """Which frames of each bag: one every so many seconds, or so many of those that differ most.

    Raises:
        FrameExportError: neither or both are given, or one is not above 0.
    """

    every: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if (self.every is None) == (self.count is None):
            raise FrameExportError("give either the seconds between frames or the number of frames")
        if (self.every is not None and not 0 < self.every < float("inf")) or (
            self.count is not None and self.count < 1
        ):
            raise FrameExportError(f"{self}: not above 0")

    def __str__(self) -> str:
        return f"--every {self.every:g}" if self.every is not None else f"--count {self.count}"


def choose_frames(frames: BagFrames, choice: Choice) -> npt.NDArray[np.intp]:
    """Choose frames to label.

    By time, a frame is taken when its header stamp is at least ``every`` seconds after that of the last one taken.

    By count, frames are taken so that the views differ: of candidates spread evenly over the bag, no more than four
    for each frame asked for nor a thousand in all, small grey images are compared, brightness and contrast evened out;
    the first frame is the one most like all others, each further one the farthest from those taken. That covers
    what is seen for long and what is seen for a moment alike, and takes a view once however often the robot returns to
    it, where steps of equal change would take it each time. The same bag gives the same frames.

    Returns:
        (N,) positions in ``frames``, by stamp; frames without a stamp of their own cannot be named and are left out,
        as are, with a warning, candidates that cannot be read.
    """
    stamps = frames.frames["stamp_ns"]
    usable, first = np.unique(stamps, return_index=True)
    positions = first[usable > 0]
    if choice.every is not None:
        return positions[_spaced(stamps[positions], round(choice.every * _SECOND))]
    count = choice.count or 0
    if count >= len(positions):
        return positions
    limit = max(count, min(_CANDIDATES_PER_FRAME * count, _MOST_CANDIDATES))
    if limit < len(positions):
        positions = positions[np.linspace(0, len(positions) - 1, limit).round().astype(np.intp)]
    views = _views(frames, positions)
    readable = np.fromiter(views, np.intp, len(views))
    if count >= len(readable):
        return readable
    return readable[np.sort(farthest_points(np.stack(list(views.values())), count))]


def farthest_points(points: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.intp]:
    """Choose points that cover all: the one nearest to the mean, then each time the one farthest from those chosen.

    Args:
        points: (N, D).
        count: at most N.

    Returns:
        (count,) positions, in the order in which they were chosen; of equals the first.
    """
    chosen = [int(np.linalg.norm(points - points.mean(0), axis=1).argmin())]
    distances = np.full(len(points), np.inf, np.float32)
    while len(chosen) < count:
        distances = np.minimum(distances, np.linalg.norm(points - points[chosen[-1]], axis=1))
        distances[chosen[-1]] = -1.0
        chosen.append(int(distances.argmax()))
    return np.array(chosen[:count], np.intp)


def export_frames(bags: Sequence[BagFrames], out: Path, choice: Choice, pairing: Pairing) -> dict[str, int]:
    """Write the chosen frames of bags as images, and ``manifest.json``, which says what they are.

    ``color/<bag>/<stamp_ns>.png`` is RGB, ``depth/<bag>/<stamp_ns>.png`` 16-bit millimetres of the depth image's own
    size, 0 without reading, absent where the frame has no depth. A folder that this function wrote is added to: files
    that are missing are written, and nothing that is there is changed but the manifest.

    Args:
        bags: of different names.
        out: folder to create or add to.
        choice: which frames.
        pairing: by which the frames of ``bags`` were paired, for the manifest.

    Returns:
        Frames of each bag, by name.

    Raises:
        FrameExportError: the folder holds something else, or frames chosen otherwise; two bags have one name; no
            chosen frame of a bag can be read. Single ones are left out with a warning.
    """
    names = [bag.index.name for bag in bags]
    for name in names:
        if names.count(name) > 1:
            raise FrameExportError(
                f"two bags are called {name}, and frames are named by bag; rename one of them"
            )
    manifest = _open_manifest(out)
    try:
        for bag in bags:
            settings = {
                "bag": bag.index.name,
                "path": str(bag.index.path.resolve()),
                "topics": asdict(bag.topics),
                "pairing": asdict(pairing),
                "choice": asdict(choice),
            }
            entry = _entry(manifest, settings, out)
            _save_manifest(out, manifest)
            if entry["frames"]:
                positions = _positions(bag, _incomplete(entry, out), out)
                _export(bag, positions, out)
            else:
                entry["frames"] = _export(bag, choose_frames(bag, choice).tolist(), out)
            _save_manifest(out, manifest)
    except OSError as error:
        raise FrameExportError(f"{out}: cannot write: {error.strerror}") from error
    return {entry["bag"]: len(entry["frames"]) for entry in manifest["bags"] if entry["bag"] in names}


def depth_millimetres(depth: npt.NDArray[np.uint16] | npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Depth (H, W) in uint16 mm or float32 m as uint16 mm, 0 where there is no reading or it is 65.535 m or more."""
    if depth.dtype == np.uint16:
        return np.where(depth == 65535, np.uint16(0), depth)
    millimetres = np.round(np.nan_to_num(depth.astype(np.float64) * 1000, nan=0.0, posinf=0.0, neginf=0.0))
    return np.where((millimetres > 0) & (millimetres < 65535), millimetres, 0).astype(np.uint16)


def _spaced(stamps: npt.NDArray[np.int64], step_ns: int) -> list[int]:
    taken: list[int] = []
    at = 0
    while at < len(stamps):
        taken.append(at)
        at = max(at + 1, int(np.searchsorted(stamps, stamps[at] + step_ns)))
    return taken


def _views(frames: BagFrames, positions: npt.NDArray[np.intp]) -> dict[int, npt.NDArray[np.float32]]:
    """Views of frames by position, reading colour alone; images that cannot be read are warned of and left out."""
    views = {}
    with closing(MessageReader(frames.index)) as reader:
        progress = tqdm(positions.tolist(), f"compare {frames.index.name}", unit="frame", mininterval=1)
        for position in progress:
            message = frames.index.messages[frames.frames["rgb"][position]]
            try:
                image: Any = reader.read_image(message)
                views[position] = _view(to_rgb(image))
            except M3LError as error:
                _log.warning("left out: %s at %d: %s", frames.topics.rgb, message["stamp_ns"], error)
    return views


def _view(rgb: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """A small grey image as (768,) of mean 0 and norm 1, so that exposure does not count as change."""
    grey = cv2.cvtColor(cv2.resize(rgb, _THUMBNAIL, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
    view = grey.astype(np.float32).ravel()
    view -= view.mean()
    return view / max(float(np.linalg.norm(view)), 1e-6)


def _export(bag: BagFrames, positions: Sequence[int], out: Path) -> list[dict[str, Any]]:
    """Write frames, and describe them for the manifest."""
    exported = []
    problem: M3LError | None = None
    for position in tqdm(positions, f"export {bag.index.name}", unit="frame", mininterval=1):
        try:
            exported.append(_export_frame(bag, position, out))
        except M3LError as error:
            problem = error
            _log.warning("left out: %s", error)
    if problem and not exported:
        raise FrameExportError(f"{bag.index.path}: none of the chosen frames can be read: {problem}")
    return exported


def _export_frame(bag: BagFrames, position: int, out: Path) -> dict[str, Any]:
    facts = bag.frames[position]
    frame = bag[position]
    name = frame_file(bag.index.name, frame.stamp_ns)
    color, depth = f"{COLOR}/{name}", f"{DEPTH}/{name}"
    _save_missing(out / color, cv2.cvtColor(frame.rgb, cv2.COLOR_RGB2BGR))
    if frame.depth is not None:
        _save_missing(out / depth, depth_millimetres(frame.depth))
    return {
        "stamp_ns": frame.stamp_ns,
        "depth_stamp_ns": None
        if frame.depth is None
        else int(bag.index.messages[facts["depth"]]["stamp_ns"]),
        "reason": str(REASONS[facts["reason"]]),
        "color": color,
        "depth": None if frame.depth is None else depth,
        "size": _size(frame.rgb),
        "depth_size": None if frame.depth is None else _size(frame.depth),
        "frame_id": frame.frame_id,
    }


def _size(image: npt.NDArray[Any]) -> list[int]:
    height, width = image.shape[:2]
    return [width, height]


def _save_missing(path: Path, image: npt.NDArray[Any]) -> None:
    """Write a PNG unless it is there; it appears whole or not at all."""
    if path.exists():
        return
    encoded, data = cv2.imencode(".png", image)
    if not encoded:
        raise FrameExportError(f"{path}: the image cannot be written as PNG")
    _replace(path, data.tobytes())


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _open_manifest(out: Path) -> dict[str, Any]:
    file = out / MANIFEST
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return {"made_by": _MADE_BY, "format": _FORMAT, "bags": []}
    try:
        if file.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ValueError
        manifest = json.loads(file.read_text(encoding="utf-8"))
        ours = manifest["made_by"] == _MADE_BY and manifest["format"] == _FORMAT
        for entry in manifest["bags"]:
            for frame in entry["frames"]:
                name = frame_file(entry["bag"], frame["stamp_ns"])
                ours &= frame[COLOR] == f"{COLOR}/{name}" and frame[DEPTH] in (None, f"{DEPTH}/{name}")
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        ours = False
    if not ours:
        raise FrameExportError(f"{out} exists already and was not made by {_MADE_BY}; name another folder")
    return dict(manifest)


def _entry(manifest: dict[str, Any], settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Find or add a bag's part of the manifest."""
    entry: dict[str, Any]
    for entry in manifest["bags"]:
        if entry.get("bag") != settings["bag"]:
            continue
        for field, value in settings.items():
            if entry.get(field) != value:
                raise FrameExportError(
                    f"{out} holds frames of bag {settings['bag']} with {field} {_line(entry.get(field))}, not "
                    f"{_line(value)}; use the same options, or name another folder"
                )
        return entry
    entry = {**settings, "frames": []}
    manifest["bags"].append(entry)
    return entry


def _incomplete(entry: dict[str, Any], out: Path) -> list[int]:
    """Stamps of frames of which a file is missing."""
    return [
        frame["stamp_ns"]
        for frame in entry["frames"]
        if not all((out / frame[role]).exists() for role in (COLOR, DEPTH) if frame[role])
    ]


def _positions(bag: BagFrames, stamps: Sequence[int], out: Path) -> list[int]:
    known = {int(stamp): position for position, stamp in reversed(list(enumerate(bag.frames["stamp_ns"])))}
    missing = [stamp for stamp in stamps if stamp not in known]
    if missing:
        raise FrameExportError(
            f"{out}: bag {bag.index.path} has no frame at {missing[0]}, which was exported before; the bag has "
            "changed, so name another folder"
        )
    return [known[stamp] for stamp in stamps]


def _save_manifest(out: Path, manifest: dict[str, Any]) -> None:
    _replace(out / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())


def _line(value: Any) -> str:
    return json.dumps(value)
