# SPDX-License-Identifier: Apache-2.0
"""Labels from CVAT's export "Segmentation mask 1.1": coloured PNG files, and a list of what the colours mean."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from m3l_model.frame_names import FrameName
from m3l_model.label_files.png import MAX_BYTES, PaletteImage, read_colors
from m3l_model.label_files.stamped import ClassNames, LoadedLabels, StampedLabels, index_frames
from m3l_model.label_files.storage import Storage
from m3l_model.labels import LabelError, LabelSet

MASKS_FOLDER = "SegmentationClass"
LABEL_MAP = "labelmap.txt"

_LINE = re.compile(r"(?P<name>.+?):\s*(?P<color>[0-9]{1,3}\s*,\s*[0-9]{1,3}\s*,\s*[0-9]{1,3})\s*(:.*)?")
_MAX_LABEL_MAP_BYTES = 1 << 20
_MAX_STRANGE_COLORS = 64
"""A file with more of them is a photograph, not a mask."""


class CvatLabels(StampedLabels[str]):
    """``SegmentationClass/.../<bag>/<stamp_ns>.png`` beside ``labelmap.txt``, anywhere in a folder or archive.

    A colour means the class that bears, but for upper and lower case, the name that labelmap.txt gives to it.
    ``background``, and black where labelmap.txt does not list it, mean ``ignore_id``, or the class ``background`` of a
    label set that has one. A label that is in labelmap.txt and in no mask need not be in the label set.

    Raises:
        LabelError: labelmap.txt is missing or wrong, no mask is named by a stamp, or two are of one frame.
    """

    remedy = "rename the labels in CVAT, choose another label set, or add the classes to its YAML"

    def __init__(self, storage: Storage, names: Sequence[str], label_set: LabelSet) -> None:
        super().__init__(storage.path, label_set)
        self._storage = storage
        roots = sorted({name.rpartition(f"{MASKS_FOLDER}/")[0] for name in names if is_mask(name)})
        if len(roots) > 1:
            raise LabelError(f"{self.path}: more than one export in it: {', '.join(roots)}; give one of them")
        label_map = f"{roots[0]}{LABEL_MAP}"
        if label_map not in names:
            raise LabelError(
                f"{storage.locate(label_map)}: missing, so that the colours of {MASKS_FOLDER} mean nothing; export "
                "the task again as 'Segmentation mask 1.1'"
            )
        self._colors = _read_label_map(
            storage.read(label_map, _MAX_LABEL_MAP_BYTES), storage.locate(label_map), label_set
        )
        self._frames = index_frames(
            self.path,
            [(name.removeprefix(f"{roots[0]}{MASKS_FOLDER}/"), name) for name in names if is_mask(name)],
        )

    @property
    def frames(self) -> Mapping[FrameName, str]:
        return self._frames

    def load(self, member: str, shape: tuple[int, int] | None) -> LoadedLabels:
        source = self._storage.locate(member)
        pixels = read_colors(self._storage.read(member, MAX_BYTES), shape, source)
        codes = _codes(pixels.palette if isinstance(pixels, PaletteImage) else pixels)
        slots = self._colors.slots(codes)
        if isinstance(pixels, PaletteImage):
            codes, slots = codes[pixels.indices], slots[pixels.indices]
        counts = np.bincount(slots.ravel(), minlength=len(self._colors.names) + 1)
        unknown: Counter[str] = Counter()
        for name, known, count in zip(self._colors.names, self._colors.known, counts[:-1], strict=True):
            if count and not known:
                unknown[f"label {name!r}"] += int(count)
        if counts[-1]:
            unknown.update(_strange_colors(codes[slots == len(self._colors.names)], source))
        return LoadedLabels(self._colors.classes[slots], unknown)

    def name_of(self, member: str) -> str:
        return member


def is_mask(name: str) -> bool:
    """Whether a file is a mask of such an export."""
    return MASKS_FOLDER in name.split("/")[:-1] and name.lower().endswith(".png")


class _ColorTable(NamedTuple):
    """What N colours mean.

    Attributes:
        codes: (N,) uint32, ascending.
        names: N label names.
        known: N, whether the label set has the label.
        classes: (N + 1,) uint8, class ids and ``ignore_id``; the last is for all other colours.
    """

    codes: npt.NDArray[np.uint32]
    names: tuple[str, ...]
    known: tuple[bool, ...]
    classes: npt.NDArray[np.uint8]

    def slots(self, codes: npt.NDArray[np.uint32]) -> npt.NDArray[np.intp]:
        """Give each colour's place in the table; N where it has none."""
        slots = np.searchsorted(self.codes, codes)
        found = self.codes[np.minimum(slots, len(self.codes) - 1)] == codes
        return np.where(found, slots, len(self.codes))


def _strange_colors(codes: npt.NDArray[np.uint32], source: str) -> dict[str, int]:
    found, counts = np.unique(codes, return_counts=True)
    if len(found) > _MAX_STRANGE_COLORS:
        raise LabelError(
            f"{source}: {len(found)} colours that {LABEL_MAP} does not list, so a picture rather than a mask"
        )
    colors = [f"{code >> 16},{code >> 8 & 255},{code & 255}" for code in found.tolist()]
    return {
        f"colour {color} that {LABEL_MAP} does not list": int(count)
        for color, count in zip(colors, counts, strict=True)
    }


def _codes(colors: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Turn (..., 3) RGB into one number each."""
    codes = colors[..., 0].astype(np.uint32)
    for channel in (1, 2):
        codes <<= np.uint32(8)
        codes |= colors[..., channel]
    return codes


def _read_label_map(data: bytes, source: str, label_set: LabelSet) -> _ColorTable:
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise LabelError(f"{source}: not UTF-8 text: {error.reason}") from error
    names: dict[int, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        color = [int(value) for value in match["color"].split(",")] if match else []
        if match is None or max(color) > 255:
            raise LabelError(
                f"{source}: line {number} is not name:red,green,blue:parts:actions: {line[:80]!r}"
            )
        code = color[0] << 16 | color[1] << 8 | color[2]
        name = match["name"].strip()
        if names.setdefault(code, name) != name:
            raise LabelError(
                f"{source}: labels {names[code]!r} and {name!r} have the same colour; give them different ones in CVAT"
            )
    names.setdefault(0, "background")
    classes = ClassNames(label_set)
    found = {code: classes.find(name) for code, name in sorted(names.items())}
    return _ColorTable(
        codes=np.array(list(found), np.uint32),
        names=tuple(names[code] for code in found),
        known=tuple(index is not None for index in found.values()),
        classes=np.array(
            [label_set.ignore_id if index is None else index for index in found.values()]
            + [label_set.ignore_id],
            np.uint8,
        ),
    )
