# SPDX-License-Identifier: Apache-2.0
"""Labels that lie in files beside the bag: a folder of PNGs, or what annotation tools export."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from m3l_model.label_files import coco, cvat
from m3l_model.label_files.png_folder import PngLabels
from m3l_model.label_files.storage import FolderStorage, Storage, ZipStorage
from m3l_model.labels import LabelError, LabelSet

_ACCEPTED = (
    "labels are a folder of PNGs named <stamp_ns>.png or <bag>/<stamp_ns>.png, CVAT's export 'Segmentation mask 1.1' "
    "(the .zip or its folder), or COCO instances (the .json, or CVAT's export 'COCO 1.0')"
)


class LabelFiles(Protocol):
    """Label images by bag and stamp. It is pickled at little cost and opens files late, in each process for itself."""

    path: Path
    label_set: LabelSet

    @property
    def bag_names(self) -> frozenset[str | None]:
        """The bags for which there are labels; None stands for labels that serve any bag."""

    def stamps(self, bag_name: str) -> frozenset[int]:
        """Header stamps in nanoseconds of the bag's frames that have labels.

        A file named ``<bag>/<stamp_ns>.png`` serves that bag alone, ``<stamp_ns>.png`` any bag that has no file of its
        own for this stamp.
        """

    def read(self, bag_name: str, stamp_ns: int, shape: tuple[int, int]) -> npt.NDArray[np.uint8]:
        """Read the labels of a frame.

        Args:
            bag_name: the bag folder's name, or the stem of a bag that is one file.
            stamp_ns: one of ``stamps``.
            shape: (H, W) of the colour image.

        Returns:
            (H, W) uint8, class ids 0..C-1 and the label set's ``ignore_id``.

        Raises:
            LabelError: the file is named, which is damaged, of another size, or holds something outside the label set.
        """

    def check(self) -> None:
        """Read all labels once, with a progress bar.

        Raises:
            LabelError: lists all ids, colours and names outside the label set, with pixel counts and files, and says
                which files cannot be read.
        """


def open_label_files(path: str | Path, label_set: LabelSet) -> LabelFiles:
    """Find out what kind of label files these are, and which frames they are of.

    Args:
        path: a folder of PNGs (see ``PngLabels``), a zip or unpacked folder of CVAT's "Segmentation mask 1.1" (see
            ``CvatLabels``), or COCO instances as a JSON file or in a zip or folder of CVAT's "COCO 1.0" (see
            ``CocoLabels``).
        label_set: gives names and ids their classes.

    Raises:
        LabelError: it is nothing of these, or the labels cannot be told apart by bag and stamp.
    """
    path = Path(path).expanduser()
    storage: Storage
    if path.is_dir():
        storage = FolderStorage(path)
    elif path.suffix.lower() == ".json" and path.is_file():
        return coco.CocoLabels(path, FolderStorage(path.parent), [path.name], label_set)
    elif path.is_file() and zipfile.is_zipfile(path):
        storage = ZipStorage(path)
    else:
        reason = "neither a folder nor a file of a known kind" if path.exists() else "no such file or folder"
        raise LabelError(f"{path}: {reason}; {_ACCEPTED}")
    names = storage.names()
    if any(map(cvat.is_mask, names)):
        return cvat.CvatLabels(storage, names, label_set)
    instances = [name for name in names if coco.is_instances(name)]
    if instances:
        return coco.CocoLabels(path, storage, instances, label_set)
    if any(name.lower().endswith((".png", ".jpg", ".jpeg")) for name in names):
        return PngLabels(storage, names, label_set)
    raise LabelError(f"{path}: no labels in it; {_ACCEPTED}")
