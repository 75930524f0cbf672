# SPDX-License-Identifier: Apache-2.0
"""Labels from PNG files of ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from m3l_model.frame_names import FrameName, parse_frame_file
from m3l_model.label_files.png import MAX_BYTES, read_ids
from m3l_model.label_files.stamped import LoadedLabels, StampedLabels, index_frames, shortened
from m3l_model.label_files.storage import Storage
from m3l_model.labels import LabelError, LabelSet


class PngLabels(StampedLabels[str]):
    """PNG files named ``<stamp_ns>.png`` or ``<bag>/<stamp_ns>.png``, in folders that may lie deeper.

    They are 8-bit grey, or have a palette, whose indices count and whose colours do not; the label set's ``id_map``
    says what the ids mean.

    Raises:
        LabelError: no file is named by a stamp, two are of one frame, or labels are JPEG files.
    """

    remedy = "choose the set these labels were made with, or add the ids to its YAML"

    def __init__(self, storage: Storage, names: Sequence[str], label_set: LabelSet) -> None:
        super().__init__(storage.path, label_set)
        self._storage = storage
        lossy = [name for name in names if not _is_png(name) and parse_frame_file(name)]
        if lossy:
            raise LabelError(
                f"{self.path}: labels do not survive JPEG compression, save them as PNG: {shortened(lossy)}"
            )
        self._frames = index_frames(self.path, [(name, name) for name in names if _is_png(name)])

    @property
    def frames(self) -> Mapping[FrameName, str]:
        return self._frames

    def load(self, member: str, shape: tuple[int, int] | None) -> LoadedLabels:
        source = self._storage.locate(member)
        ids = read_ids(self._storage.read(member, MAX_BYTES), shape, source)
        unknown = self.label_set.count_unknown(ids)
        if unknown:
            return LoadedLabels(ids, {f"id {value}": count for value, count in unknown.items()})
        return LoadedLabels(self.label_set.decode(ids, source), {})

    def name_of(self, member: str) -> str:
        return member


def _is_png(name: str) -> bool:
    return PurePosixPath(name).suffix.lower() == ".png"
