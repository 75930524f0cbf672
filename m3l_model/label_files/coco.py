# SPDX-License-Identifier: Apache-2.0
"""Labels from COCO's instances: JSON with polygons or run lengths."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from m3l_model.frame_names import FrameName
from m3l_model.label_files.coco_masks import Mask, Polygons, RunLengths
from m3l_model.label_files.size import check_size
from m3l_model.label_files.stamped import ClassNames, LoadedLabels, StampedLabels, index_frames
from m3l_model.label_files.storage import Storage
from m3l_model.labels import LabelError, LabelSet

_INSTANCES = re.compile(r"(.*/)?instances_[^/]*\.json")
_MAX_BYTES = 1 << 29
"""COCO's own 118,287 images take 448 MB."""


class CocoLabels(StampedLabels["CocoImage"]):
    """Images that ``instances_*.json`` calls ``.../<bag>/<stamp_ns>.png`` and that have annotations.

    - A category means the class of its name, but for upper and lower case; a category ``background`` that the label set
      lacks means ``ignore_id``.
    - Crowds (``iscrowd``) are painted first, then the other annotations in the order of the file: the later paints over
      the earlier.
    - Pixels of an annotated image without annotation are ``ignore_id``, or the class ``background`` of a label set that
      has one. Images without any annotation are not labelled.
    - The polygons of one annotation are united. Run lengths may be compressed.

    In a spawned process the file is read again when labels are first wanted, which costs less than to pickle them all.

    Raises:
        LabelError: the JSON is damaged or not COCO's, no annotated image is named by a stamp, or two are of one frame.
    """

    remedy = "rename the categories in the annotation tool, choose another label set, or add the classes to its YAML"

    def __init__(self, path: Path, storage: Storage, names: Sequence[str], label_set: LabelSet) -> None:
        super().__init__(path, label_set)
        self._storage = storage
        self._names = tuple(names)
        self._frames: Mapping[FrameName, CocoImage] | None = self._index()

    @property
    def frames(self) -> Mapping[FrameName, CocoImage]:
        if self._frames is None:
            self._frames = self._index()
        return self._frames

    def load(self, member: CocoImage, shape: tuple[int, int] | None) -> LoadedLabels:
        source = f"{self.path}: {member.file_name}"
        check_size(member.height, member.width, shape, source)
        labels = np.full((member.height, member.width), ClassNames(self.label_set).background, np.uint8)
        unknown: dict[str, int] = {}
        for annotation in sorted(member.annotations, key=lambda annotation: not annotation.crowd):
            try:
                mask = annotation.mask.draw(member.height, member.width)
            except ValueError as error:
                raise LabelError(f"{source}: annotation {annotation.id}: {error}") from error
            if annotation.class_id is not None:
                labels[mask] = annotation.class_id
            elif mask.any():
                what = f"category {annotation.category!r}"
                unknown[what] = unknown.get(what, 0) + int(np.count_nonzero(mask))
        return LoadedLabels(labels, unknown)

    def name_of(self, member: CocoImage) -> str:
        return member.file_name

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_frames": None}

    def _index(self) -> dict[FrameName, CocoImage]:
        images = [image for name in self._names for image in self._parse(name)]
        return index_frames(self.path, [(image.file_name, image) for image in images])

    def _parse(self, name: str) -> list[CocoImage]:
        source = self._storage.locate(name)
        try:
            content = json.loads(self._storage.read(name, _MAX_BYTES))
        except (ValueError, RecursionError) as error:
            raise LabelError(f"{source}: not valid JSON: {' '.join(str(error).split())}") from error
        try:
            return _annotated_images(content, ClassNames(self.label_set))
        except LabelError as error:
            raise LabelError(f"{source}: {error}") from error


@dataclass(frozen=True)
class CocoImage:
    """An image of a COCO file with what was drawn on it, in the order of the file."""

    file_name: str
    height: int
    width: int
    annotations: list[Annotation] = field(default_factory=list)


class Annotation(NamedTuple):
    """An annotated object; ``class_id`` is None where the label set has no such class."""

    id: object
    category: str
    class_id: int | None
    crowd: bool
    mask: Mask


def is_instances(name: str) -> bool:
    """Whether a file is named as COCO's instances are."""
    return _INSTANCES.fullmatch(name) is not None


def _annotated_images(content: object, classes: ClassNames) -> list[CocoImage]:
    if not isinstance(content, dict) or not {"images", "annotations", "categories"} <= content.keys():
        raise LabelError(
            "not COCO instances, which have images, annotations and categories; export them as 'COCO 1.0'"
        )
    categories = {
        key: _text(entry, "name", f"category {key}")
        for key, entry in _by_id(content, "categories", "category")
    }
    images = {
        key: CocoImage(
            _text(entry, "file_name", f"image {key}"),
            _length(entry, "height", f"image {key}"),
            _length(entry, "width", f"image {key}"),
        )
        for key, entry in _by_id(content, "images", "image")
    }
    for index, entry in enumerate(_entries(content, "annotations")):
        key = entry.get("id", f"at place {index}")
        category, image = _key(entry, "category_id"), _key(entry, "image_id")
        if category not in categories:
            raise LabelError(f"annotation {key}: category_id {category!r} is not among the categories")
        if image not in images:
            raise LabelError(f"annotation {key}: image_id {image!r} is not among the images")
        try:
            mask = _mask(entry.get("segmentation"), images[image])
        except ValueError as error:
            raise LabelError(f"annotation {key}: {error}") from error
        name = categories[category]
        images[image].annotations.append(
            Annotation(key, name, classes.find(name), bool(entry.get("iscrowd")), mask)
        )
    return [image for image in images.values() if image.annotations]


def _mask(segmentation: Any, image: CocoImage) -> Mask:
    if not segmentation:
        raise ValueError("no segmentation, a box at most; draw a polygon or a mask instead, or delete it")
    if isinstance(segmentation, list):
        return Polygons(segmentation)
    if not isinstance(segmentation, dict) or not isinstance(segmentation.get("counts"), (list, str)):
        raise ValueError("its segmentation is neither polygons nor run lengths")
    if segmentation.get("size") != [image.height, image.width]:
        raise ValueError(
            f"run lengths of size {segmentation.get('size')!r}, but the image has [{image.height}, {image.width}]"
        )
    return RunLengths(segmentation["counts"])


def _by_id(content: Mapping[str, object], what: str, one: str) -> list[tuple[object, dict[str, Any]]]:
    found: dict[object, dict[str, Any]] = {}
    for index, entry in enumerate(_entries(content, what)):
        key = _key(entry, "id")
        if key is None:
            raise LabelError(f"{one} at place {index}: id is missing, or neither a number nor text")
        if key in found:
            raise LabelError(f"{one} {key} is there twice")
        found[key] = entry
    return list(found.items())


def _entries(content: Mapping[str, object], what: str) -> list[dict[str, Any]]:
    entries = content[what]
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise LabelError(f"{what} is not a list of objects")
    return entries


def _key(entry: Mapping[str, object], name: str) -> int | str | None:
    value = entry.get(name)
    return value if isinstance(value, (int, str)) else None


def _text(entry: Mapping[str, object], name: str, where: str) -> str:
    value = entry.get(name)
    if not isinstance(value, str):
        raise LabelError(f"{where}: {name} is missing or not text")
    return value


def _length(entry: Mapping[str, object], name: str, where: str) -> int:
    value = entry.get(name)
    if not isinstance(value, int):
        raise LabelError(f"{where}: {name} is missing or not a whole number")
    return value
