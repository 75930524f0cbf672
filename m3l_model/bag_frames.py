# SPDX-License-Identifier: Apache-2.0
"""The frames of a bag: its images paired just as the live node pairs them, and each frame read by its number."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from m3l_model import index_cache
from m3l_model.bag_index import BagIndex, MessageReader
from m3l_model.bag_storage import Allocate, BagError, new_memory
from m3l_model.bag_topics import Topics
from m3l_model.images import ImageFormatError, to_depth, to_labels, to_rgb
from m3l_model.sync import Frame, Reason, RgbdSynchronizer

_T = TypeVar("_T")

REASONS = tuple(Reason)

FRAME = np.dtype(
    [
        ("stamp_ns", "<i8"),
        ("log_ns", "<i8"),
        ("rgb", "<i4"),
        ("depth", "<i4"),
        ("label", "<i4"),
        ("reason", "u1"),
    ]
)
"""A frame: stamp and log time of its colour image; where its images stand in the index's ``messages``, -1 for none; and
the position in ``REASONS`` of why the synchronizer let it go as it is."""


ARRIVAL = np.dtype([("row", "<i4"), ("rgb", "?"), ("stamp_ns", "<i8"), ("log_ns", "<i8")])
"""An image that reaches the synchronizer: its position in the index's ``messages``, whether it is of colour, its header
stamp, and when it arrives."""


@dataclass(frozen=True)
class Pairing:
    """Parameters of the synchronizer; the defaults are the node's. Seconds, but for ``queue_size``."""

    slop: float = 0.02
    max_wait: float = 0.1
    depth_timeout: float = 0.5
    queue_size: int = 30


class BagFrame(NamedTuple):
    """A colour image of a bag with what belongs to it. The arrays may be read-only.

    Attributes:
        stamp_ns: header stamp of the colour image.
        rgb: (H, W, 3) uint8 RGB.
        depth: (H', W') uint16 millimetres or float32 metres; None where it is missing in the bag.
        labels: (H, W) uint8 ids as recorded; None where the frame has none.
        reason: why the synchronizer let the frame go as it is.
        frame_id: of the colour image.
    """

    stamp_ns: int
    rgb: npt.NDArray[np.uint8]
    depth: npt.NDArray[np.uint16] | npt.NDArray[np.float32] | None
    labels: npt.NDArray[np.uint8] | None
    reason: Reason
    frame_id: str


class BagFrames:
    """The frames of a bag, in the order in which the node would see them, had it received each message at its log time.

    Every colour image becomes one frame, with depth or without; a frame's labels are the label image with its stamp.

    Args:
        index: of the bag.
        topics: which to read; guessed when None.
        pairing: parameters of the synchronizer.
        cache: keep the pairs in the cache directory, as ``open_index`` does the index.

    Attributes:
        index, topics, pairing: as given, or guessed.
        frames: (N,) array of ``FRAME``.

    Raises:
        BagError: a topic is missing or not of images, or no label image has the stamp of a colour image.
    """

    def __init__(
        self,
        index: BagIndex,
        topics: Topics | None = None,
        pairing: Pairing | None = None,
        cache: bool = True,
    ) -> None:
        self.index = index
        self.topics = topics or index.choose_topics()
        for topic in filter(None, (self.topics.rgb, self.topics.depth, self.topics.label)):
            index.image_topic(topic)
        self.pairing = pairing or Pairing()
        self.frames = _paired(index, self.topics, self.pairing, cache)
        self._colors = np.sort(self.frames["rgb"])
        self._strays = _stray_rows(index, self.topics, self.frames)
        self._reader = MessageReader(index)

    @classmethod
    def open(
        cls,
        path: str | Path,
        topics: Topics | None = None,
        pairing: Pairing | None = None,
        cache: bool = True,
    ) -> BagFrames:
        """Index a bag and pair its images; see the class and ``open_index``."""
        return cls(index_cache.open_index(path, cache), topics, pairing, cache)

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, position: int) -> BagFrame:
        """Read one frame; see ``read``."""
        return self.read(position)

    def read(self, position: int, allocate: Allocate = new_memory) -> BagFrame:
        """Read one frame, its pixels into memory from ``allocate`` where they can be used as they are stored.

        Raises:
            IndexError: there are fewer frames.
            BagError: the bag is damaged there, or has changed.
            ImageFormatError: an image is damaged or of another kind than its topic's.
        """
        return self._read(self.frames[position], allocate)

    def _read(self, frame: np.void, allocate: Allocate) -> BagFrame:
        stamp_ns, _, rgb_row, depth_row, label_row, reason = frame.item()
        message = self._image(rgb_row, allocate)
        rgb = self._convert(to_rgb, rgb_row, "rgb", message)
        depth = labels = None
        if depth_row >= 0:
            depth = self.read_depth(depth_row, allocate)
        if label_row >= 0:
            labels = self._convert(to_labels, label_row, "label", self._image(label_row, allocate))
            if labels.shape != rgb.shape[:2]:
                raise ImageFormatError(
                    f"{self._name(label_row, 'label')} has (height, width) {labels.shape}, "
                    f"but the colour image {rgb.shape[:2]}"
                )
        self._verify_strays(rgb_row)
        return BagFrame(stamp_ns, rgb, depth, labels, REASONS[reason], message.header.frame_id)

    def read_without_depth(self, row: int) -> BagFrame:
        """Read a colour image of the bag and the label image of ``frames`` that belongs to it.

        Args:
            row: its position in the index's ``messages``.

        Raises:
            BagError, ImageFormatError: as ``read``.
        """
        at = np.flatnonzero(self.frames["rgb"] == row)[:1]
        frame: np.void = np.zeros(1, FRAME)[0]
        frame["stamp_ns"] = self.index.messages[row]["stamp_ns"]
        frame["rgb"], frame["depth"] = row, -1
        frame["label"] = self.frames["label"][at[0]] if len(at) else -1
        frame["reason"] = REASONS.index(Reason.DEPTH_LOST)
        return self._read(frame, new_memory)

    def read_depth(
        self, row: int, allocate: Allocate = new_memory
    ) -> npt.NDArray[np.uint16] | npt.NDArray[np.float32]:
        """Read any depth image of the bag, (H', W') uint16 millimetres or float32 metres.

        Args:
            row: its position in the index's ``messages``.
            allocate: as for ``read``.

        Raises:
            BagError, ImageFormatError: as ``read``.
        """
        return self._convert(to_depth, row, "depth", self._image(row, allocate))

    def __iter__(self) -> Iterator[BagFrame]:
        return (self[position] for position in range(len(self)))

    def close(self) -> None:
        """Close the bag's files; they are opened again when they are needed."""
        self._reader.close()

    def _verify_strays(self, row: int) -> None:
        """See that no image around a colour image has lost its frame only because its stamp is damaged."""
        if not len(self._strays):
            return
        at = np.searchsorted(self._colors, row)
        before = self._colors[at - 1] if at > 0 else -1
        after = self._colors[at + 1] if at + 1 < len(self._colors) else len(self.index.messages)
        first, middle, end = np.searchsorted(self._strays, [before, row, after])
        near = self._strays[max(first, middle - _MOST_STRAYS) : min(end, middle + _MOST_STRAYS)]
        self._reader.verify(self.index.messages[near])

    def _image(self, row: int, allocate: Allocate) -> Any:
        return self._reader.read_image(self.index.messages[row], allocate)

    def _convert(self, convert: Callable[[Any], _T], row: int, role: str, message: Any) -> _T:
        try:
            return convert(message)
        except ImageFormatError as error:
            raise ImageFormatError(f"{self._name(row, role)}: {error}") from error

    def _name(self, row: int, role: str) -> str:
        stamp_ns = int(self.index.messages[row]["stamp_ns"])
        return f"{self.index.path}: {getattr(self.topics, role)} at {stamp_ns}"


_MOST_STRAYS = 30
"""So many messages before and after a colour image decide on its frame, as long is the synchronizer's queue."""


def read_frames(
    path: str | Path, topics: Topics | None = None, pairing: Pairing | None = None, cache: bool = True
) -> Iterator[BagFrame]:
    """Read the frames of a bag one after the other; see ``BagFrames``."""
    with closing(BagFrames.open(path, topics, pairing, cache)) as frames:
        yield from frames


def pair_frames(index: BagIndex, topics: Topics, pairing: Pairing) -> npt.NDArray[np.void]:
    """Pair the images of a bag by the synchronizer's own policy, as if each arrived at its log time.

    Returns:
        (N,) array of ``FRAME``.

    Raises:
        BagError: no label image has the stamp of a colour image.
    """
    paired = pair_arrivals(camera_arrivals(index, topics), pairing)
    labels = _label_rows(index, topics)
    return np.array(
        [
            (
                frame.stamp_ns,
                index.messages["log_ns"][frame.rgb],
                frame.rgb,
                -1 if frame.depth is None else frame.depth,
                labels.get(frame.stamp_ns, -1),
                REASONS.index(frame.reason),
            )
            for frame in paired
        ],
        FRAME,
    )


def camera_arrivals(index: BagIndex, topics: Topics) -> npt.NDArray[np.void]:
    """The colour and depth images of a bag in the order of their log times: (N,) array of ``ARRIVAL``."""
    rgb_rows = index.rows(topics.rgb)
    rows = np.union1d(rgb_rows, index.rows(topics.depth)) if topics.depth else rgb_rows
    arrivals = np.empty(len(rows), ARRIVAL)
    arrivals["row"] = rows
    arrivals["rgb"] = np.isin(rows, rgb_rows)
    for field in ("stamp_ns", "log_ns"):
        arrivals[field] = index.messages[field][rows]
    return arrivals


def pair_arrivals(arrivals: npt.NDArray[np.void], pairing: Pairing) -> list[Frame]:
    """Pair images by the synchronizer's own policy in virtual time, which is their log time.

    Args:
        arrivals: (N,) array of ``ARRIVAL``, in the order in which the images arrive.
        pairing: parameters of the synchronizer.

    Returns:
        The synchronizer's frames, with rows of the index as images.
    """
    sync = RgbdSynchronizer(pairing.slop, pairing.max_wait, pairing.depth_timeout, pairing.queue_size)
    paired: list[Frame] = []
    # What fell due before a message's log time goes out first, as if poll had been called then.
    for row, rgb, stamp_ns, log_ns in arrivals.tolist():
        paired += (sync.add_rgb if rgb else sync.add_depth)(stamp_ns, row, log_ns)
    while (deadline_ns := sync.next_deadline_ns()) is not None:
        paired += sync.poll(deadline_ns)
    return paired


def _label_rows(index: BagIndex, topics: Topics) -> dict[int, int]:
    """Where the label image of each stamp stands in the index."""
    if topics.label is None:
        return {}
    rows = index.rows(topics.label)
    stamps = index.messages["stamp_ns"]
    if len(rows) and not np.isin(stamps[rows], stamps[index.rows(topics.rgb)]).any():
        raise BagError(
            f"{index.path}: none of the {len(rows)} images of {topics.label} has the stamp of an image of "
            f"{topics.rgb}; a label image must carry the header stamp of the colour image it labels"
        )
    return dict(zip(stamps[rows].tolist(), rows.tolist(), strict=True))


def _stray_rows(index: BagIndex, topics: Topics, frames: npt.NDArray[np.void]) -> npt.NDArray[np.intp]:
    """Positions in the index of images that belong to no frame."""
    rows = [index.rows(topic) for topic in (topics.rgb, topics.depth, topics.label) if topic]
    used = [frames[role] for role in ("rgb", "depth", "label")]
    return np.setdiff1d(np.concatenate(rows), np.concatenate(used))


def _paired(index: BagIndex, topics: Topics, pairing: Pairing, cache: bool) -> npt.NDArray[np.void]:
    if not (cache and index.key):
        return pair_frames(index, topics, pairing)
    how = repr((topics.rgb, topics.depth, topics.label, astuple(pairing), FRAME))
    name = f"pairs-{hashlib.blake2b(how.encode(), digest_size=8).hexdigest()}"
    kept = (index_cache.load(index.key, name) or {}).get("frames")
    if kept is not None and kept.dtype == FRAME and _within(kept, len(index.messages)):
        return kept
    frames = pair_frames(index, topics, pairing)
    index_cache.save(index.key, name, {"frames": frames})
    return frames


def _within(frames: npt.NDArray[np.void], messages: int) -> bool:
    return all(((frames[role] >= -1) & (frames[role] < messages)).all() for role in ("rgb", "depth", "label"))
