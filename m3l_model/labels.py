# SPDX-License-Identifier: Apache-2.0
"""Label sets: the names and colours of the classes, and the ids by which label images call them."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import yaml

from m3l_model.errors import M3LError
from m3l_model.resources import share_path

IGNORE_ID = 255
"""Value of a pixel without a class, in label images and in masks."""

_FOLDER = "config/labels"


class LabelError(M3LError):
    """A label set or label image that cannot be used."""


@dataclass(frozen=True)
class LabelSet:
    """Names and colours of C classes.

    Attributes:
        name: what the set is called.
        classes: the C class names; a class's id is its position.
        colors: one (red, green, blue) of 0..255 for each class.
        id_map: class id, or ``ignore_id``, of every id that label images may hold; None where they hold class ids.
        ignore_id: value of pixels without a class, accepted in label images and written by ``decode``.

    Raises:
        LabelError: the fields contradict one another.
    """

    name: str
    classes: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]
    id_map: Mapping[int, int] | None = field(default=None, hash=False)
    ignore_id: int = IGNORE_ID

    def __post_init__(self) -> None:
        count = len(self.classes)
        if not 1 <= count <= 255:
            raise LabelError(f"label set {self.name!r} has {count} classes; 1 to 255 are possible")
        if len(set(self.classes)) < count:
            twice = sorted({name for name in self.classes if self.classes.count(name) > 1})
            raise LabelError(f"label set {self.name!r} names a class twice: {', '.join(twice)}")
        if len(self.colors) != count:
            raise LabelError(f"label set {self.name!r} has {count} classes but {len(self.colors)} colors")
        if any(len(color) != 3 or not all(0 <= value <= 255 for value in color) for color in self.colors):
            raise LabelError(f"label set {self.name!r}: a color is three numbers of 0 to 255")
        if not count <= self.ignore_id <= 255:
            raise LabelError(
                f"label set {self.name!r}: ignore_id {self.ignore_id} is not within {count}..255"
            )
        for found, meant in (self.id_map or {}).items():
            if not 0 <= found <= 255 or not (0 <= meant < count or meant == self.ignore_id):
                raise LabelError(f"label set {self.name!r}: id {found} cannot mean class {meant}")

    @classmethod
    def load(cls, name_or_path: str | Path) -> LabelSet:
        """Read a label set that comes with the package, by its name, or a YAML file, by its path.

        Raises:
            LabelError: there is no such file, or it holds no label set.
        """
        path = _find(name_or_path)
        try:
            return _from_yaml(yaml.safe_load(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError) as error:
            raise LabelError(f"{path}: cannot read the label set: {error}") from error
        except yaml.YAMLError as error:
            raise LabelError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LabelError(
                f"{path}: not a label set ({type(error).__name__}: {error}); expected the keys name, classes "
                "(a list of name, color and optional ids), optional ignore_ids and ignore_id"
            ) from error
        except LabelError as error:
            raise LabelError(f"{path}: {error}") from None

    @classmethod
    def generic(cls, num_classes: int) -> LabelSet:
        """Classes class_0, class_1, ... in colours that differ, the same ones every time."""
        classes = tuple(f"class_{index}" for index in range(num_classes))
        return cls("generic", classes, tuple(_distinct_color(index) for index in range(num_classes)))

    @classmethod
    def from_json(cls, text: str) -> LabelSet:
        """The inverse of ``to_json``.

        Raises:
            LabelError: the text holds no label set.
        """
        try:
            fields = json.loads(text)
            id_map = fields["id_map"]
            return cls(
                name=str(fields["name"]),
                classes=tuple(str(name) for name in fields["classes"]),
                colors=_colors(fields["colors"]),
                id_map=None
                if id_map is None
                else {int(found): int(meant) for found, meant in id_map.items()},
                ignore_id=int(fields["ignore_id"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise LabelError(f"not a label set in JSON ({type(error).__name__}: {error})") from error

    def to_json(self) -> str:
        """All fields in one line, as checkpoints keep them and the node publishes them."""
        return json.dumps(
            {
                "name": self.name,
                "classes": self.classes,
                "colors": self.colors,
                "id_map": None
                if self.id_map is None
                else {str(key): value for key, value in self.id_map.items()},
                "ignore_id": self.ignore_id,
            }
        )

    def decode(self, ids: npt.NDArray[np.uint8], source: str) -> npt.NDArray[np.uint8]:
        """Turn the ids of a label image into class ids.

        Args:
            ids: (H, W) uint8, as found in the image.
            source: names the image in errors.

        Returns:
            (H, W) uint8, class ids 0..C-1 and ``ignore_id``.

        Raises:
            LabelError: ids outside the set, listed with their pixel counts.
        """
        if cv2.LUT(ids, self._unknown).any():
            unknown = self.count_unknown(ids)
            listed = ", ".join(f"{value} ({count} pixels)" for value, count in unknown.items())
            raise LabelError(
                f"{source}: ids outside label set {self.name!r}: {listed}; choose the set these labels were made "
                "with, or add the ids to its YAML"
            )
        return np.asarray(cv2.LUT(ids, self._meaning), np.uint8)

    def count_unknown(self, ids: npt.NDArray[np.uint8]) -> dict[int, int]:
        """Count the pixels of every id in a label image, (H, W) uint8, that is outside the set."""
        counts = np.bincount(ids.ravel(), minlength=256)
        return {
            int(value): int(counts[value]) for value in np.flatnonzero((counts > 0) & (self._unknown > 0))
        }

    def colorize(self, labels: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Paint (H, W) uint8 class ids: (H, W, 3) uint8 RGB; black where there is no class."""
        return self._palette[labels]

    @cached_property
    def _unknown(self) -> npt.NDArray[np.uint8]:
        unknown = np.ones(256, np.uint8)
        unknown[list(range(len(self.classes)) if self.id_map is None else self.id_map)] = 0
        unknown[self.ignore_id] = 0
        return unknown

    @cached_property
    def _meaning(self) -> npt.NDArray[np.uint8]:
        id_map = {index: index for index in range(len(self.classes))} if self.id_map is None else self.id_map
        meaning = np.full(256, self.ignore_id, np.uint8)
        meaning[list(id_map)] = list(id_map.values())
        return meaning

    @cached_property
    def _palette(self) -> npt.NDArray[np.uint8]:
        palette = np.zeros((256, 3), np.uint8)
        palette[: len(self.colors)] = self.colors
        return palette


def label_set_names() -> list[str]:
    """The names of the label sets that come with the package."""
    return sorted(file.stem for file in share_path(_FOLDER).glob("*.yaml"))


def _find(name_or_path: str | Path) -> Path:
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or len(path.parts) != 1:
        if not path.is_file():
            raise LabelError(f"{path}: no such label set file")
        return path
    try:
        return share_path(f"{_FOLDER}/{path}.yaml")
    except M3LError:
        known = ", ".join(label_set_names())
        raise LabelError(
            f"label set {str(path)!r} is unknown: choose {known}, or give the path of a YAML file"
        ) from None


def _from_yaml(content: Any) -> LabelSet:
    ignore_id = int(content.get("ignore_id", IGNORE_ID))
    entries = content["classes"]
    with_ids = [entry for entry in entries if "ids" in entry]
    if with_ids and len(with_ids) < len(entries):
        without = next(str(entry["name"]) for entry in entries if "ids" not in entry)
        raise LabelError(
            f"class {without!r} has no ids although others have; give ids to all classes or to none"
        )
    pairs = [
        (int(found), index)
        for index, entry in enumerate(entries)
        for found in (entry["ids"] if with_ids else [index])
    ]
    pairs += [(int(found), ignore_id) for found in content.get("ignore_ids", [])]
    id_map = dict(pairs)
    if len(id_map) < len(pairs):
        twice = sorted({found for found, _ in pairs if sum(other == found for other, _ in pairs) > 1})
        raise LabelError(f"ids with more than one meaning: {', '.join(map(str, twice))}")
    return LabelSet(
        name=str(content["name"]),
        classes=tuple(str(entry["name"]) for entry in entries),
        colors=_colors([entry["color"] for entry in entries]),
        id_map=id_map if with_ids or content.get("ignore_ids") else None,
        ignore_id=ignore_id,
    )


def _colors(values: Any) -> tuple[tuple[int, int, int], ...]:
    return tuple((int(red), int(green), int(blue)) for red, green, blue in values)


def _distinct_color(index: int) -> tuple[int, int, int]:
    """Hues a golden angle apart, in three brightnesses."""
    hue = (index * 0.618034) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.75 - 0.25 * (index % 2), (0.95, 0.75, 0.55)[index % 3])
    return round(red * 255), round(green * 255), round(blue * 255)


CHANNELS = LabelSet(
    "channels",
    ("red", "green", "blue", "depth 1", "depth 2", "depth 3"),
    ((255, 0, 0), (0, 255, 0), (0, 0, 255), (90, 90, 90), (160, 160, 160), (230, 230, 230)),
)
"""Stands for classes in a model that was pretrained to reconstruct images: what its outputs are."""
