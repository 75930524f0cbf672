# SPDX-License-Identifier: Apache-2.0
"""What one wants to know of a bag before training on it, from its index and a handful of decoded images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from rosbags.typesys import Stores, get_typestore

from m3l_model.bag_files import open_storage
from m3l_model.bag_frames import REASONS, BagFrames, Pairing, pair_frames
from m3l_model.bag_index import BagIndex, MessageReader
from m3l_model.bag_storage import BagError
from m3l_model.bag_topics import CAMERA_INFO, ImageTopic, Topics
from m3l_model.errors import M3LError
from m3l_model.images import has_reading, to_depth, to_labels, to_rgb
from m3l_model.label_files import LabelFiles
from m3l_model.labels import LabelSet
from m3l_model.mcap_file import McapFile
from m3l_model.registration import registration_problem

SAMPLES = 8
"""Images of each kind that are decoded, spread over the bag."""

_SECOND = 1e9
_MOST_SLOP_S = 1.0
"""The node takes no more."""
_TOLERATED_SHARE = 0.1
"""Of the colour images beside depth: with no more of them beyond the slop, it does."""
_PAIRED_PERCENT = 95
"""Of the colour images beside depth: those within a slop worth proposing."""


@dataclass(frozen=True)
class TopicFacts:
    """A topic. The rate is None with fewer than two messages; what only images have is None of others."""

    topic: str
    msgtype: str
    messages: int
    rate_hz: float | None
    encoding: str | None = None
    width: int | None = None
    height: int | None = None
    frame_id: str | None = None


@dataclass(frozen=True)
class ChosenTopic:
    """The topic of a role, None where there is none, and whether the user named it; else it was guessed."""

    topic: str | None
    given: bool


@dataclass(frozen=True)
class Spread:
    """Median, 5th and 95th percentile, in seconds."""

    median_s: float
    low_s: float
    high_s: float

    @classmethod
    def of(cls, nanoseconds: npt.NDArray[np.int64]) -> Spread | None:
        """Measure (N,) nanoseconds; None where there are none."""
        if not len(nanoseconds):
            return None
        low, median, high = np.percentile(nanoseconds, [5, 50, 95]) / _SECOND
        return cls(float(median), float(low), float(high))


@dataclass(frozen=True)
class StampFacts:
    """The header stamps of an image topic.

    Attributes:
        images: of the topic.
        unset: stamps that are 0 or negative.
        repeated: images whose stamp an earlier one has.
        back: images whose stamp is before that of the image recorded before, and the longest such step in seconds.
        log_minus_stamp: delay and offset of the clock that writes log times; None without stamps.
    """

    images: int
    unset: int
    repeated: int
    back: int
    longest_step_back_s: float
    log_minus_stamp: Spread | None


@dataclass(frozen=True)
class Outage:
    """Frames without depth in a row: seconds from the bag's start (log time) and between the frames around them."""

    start_s: float
    duration_s: float
    frames: int


@dataclass(frozen=True)
class PairFacts:
    """How the synchronizer pairs the bag.

    Attributes:
        slop_s: greatest difference of the stamps of a pair.
        frames: colour images that become frames.
        dropped: colour images that become none, being repeated or late.
        with_depth: frames with depth.
        without_depth: frames without, by ``Reason``.
        longest_outage: None where there is depth in each frame, or in none for want of a depth topic.
        depth_minus_rgb: of the stamps, each colour image with the nearest depth image of the bag.
        better_slop_s: would give depth to more frames, namely ``better_slop_pairs``; None where ``slop_s`` does well.
    """

    slop_s: float
    frames: int
    dropped: int
    with_depth: int
    without_depth: Mapping[str, int]
    longest_outage: Outage | None
    depth_minus_rgb: Spread | None
    better_slop_s: float | None
    better_slop_pairs: int


@dataclass(frozen=True)
class LabelFacts:
    """Labels in a topic of the bag or in files beside it: how many there are, and frames that have one."""

    source: str
    labels: int
    frames: int


@dataclass(frozen=True)
class SampleFacts:
    """A few decoded images of one role.

    Attributes:
        images: how many were looked at.
        unreadable: how many of them cannot be decoded, and ``problem`` why not the first one.
        sizes: (width, height) of the others, each once.
        dtype: of their pixels; None where none can be read.
        empty: depth images without any reading.
        median: of all depth readings, in the unit of the image.
    """

    images: int
    unreadable: int = 0
    problem: str | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    dtype: str | None = None
    empty: int = 0
    median: float | None = None


@dataclass(frozen=True)
class BagInfo:
    """What ``m3l info`` says of a bag.

    Attributes:
        storage: MCAP or SQLite.
        files: names and sizes in bytes of the storage files.
        start_ns, duration_s: log time of the first message of all topics, and from there to the last.
        chosen: topics by role, as the fields of ``Topics``; empty without a colour topic, as ``no_camera`` then says.
        stamps, samples: by role: rgb, depth and label, those that there are.
        labelled: frames that have a label from any source.
        registration: what speaks against depth being registered to colour; None where nothing does.
        label_problem: why labels cannot be read; None where nothing was found.
        warnings: what is wrong with the files.
    """

    path: str
    name: str
    storage: str
    files: Mapping[str, int]
    start_ns: int
    duration_s: float
    topics: tuple[TopicFacts, ...]
    chosen: Mapping[str, ChosenTopic]
    no_camera: str | None
    stamps: Mapping[str, StampFacts]
    pairs: PairFacts | None
    labels: tuple[LabelFacts, ...]
    labelled: int
    samples: Mapping[str, SampleFacts]
    registration: str | None
    label_problem: str | None
    warnings: tuple[str, ...]


def describe_bag(
    index: BagIndex,
    named: Mapping[str, str],
    pairing: Pairing,
    label_set: LabelSet | None = None,
    label_files: LabelFiles | None = None,
    cache: bool = True,
) -> BagInfo:
    """Describe a bag.

    Args:
        index: of the bag.
        named: topics that the user chose, by role: rgb, depth, label.
        pairing: parameters of the synchronizer.
        label_set: to check label images by.
        label_files: labels beside the bag.
        cache: as for ``open_index``.

    Raises:
        BagError: a topic named is not an image topic of this bag, or the bag has become unreadable.
    """
    for topic in named.values():
        index.image_topic(topic)
    topics, no_camera = None, None
    try:
        topics = index.choose_topics(**named)
    except BagError as error:
        no_camera = str(error).removeprefix(f"{index.path}: ")
    with closing(MessageReader(index)) as reader, closing(open_storage(index.files[0])) as storage:
        info = BagInfo(
            path=str(index.path),
            name=index.name,
            storage="MCAP" if isinstance(storage, McapFile) else "SQLite",
            files={file.name: file.stat().st_size for file in index.files},
            start_ns=index.start_ns,
            duration_s=(index.end_ns - index.start_ns) / _SECOND,
            topics=_topic_facts(index, reader),
            chosen={},
            no_camera=no_camera,
            stamps={},
            pairs=None,
            labels=(),
            labelled=0,
            samples={},
            registration=None,
            label_problem=None,
            warnings=index.warnings,
        )
        if topics is None:
            return info
        # Labels are looked at by themselves: that they fit no frame is a finding here, not an error.
        frames = BagFrames(index, replace(topics, label=None), pairing, cache)
        roles = {
            role: topic for role in ("rgb", "depth", "label") if (topic := getattr(topics, role)) is not None
        }
        labels, labelled = _label_facts(frames, topics, label_files)
        samples = {role: _sample(index, reader, role, topic) for role, topic in roles.items()}
        return replace(
            info,
            chosen={role: ChosenTopic(topic, role in named) for role, topic in asdict(topics).items()},
            stamps={role: _stamp_facts(index, topic) for role, topic in roles.items()},
            pairs=_pair_facts(frames, pairing),
            labels=labels,
            labelled=labelled,
            samples=samples,
            registration=_registration(index, reader, topics),
            label_problem=_label_problem(frames, reader, topics, samples["rgb"], label_set, label_files),
        )


def _topic_facts(index: BagIndex, reader: MessageReader) -> tuple[TopicFacts, ...]:
    images = {image.topic: image for image in index.images}
    facts = []
    for position, known in enumerate(index.topics):
        logged = index.messages["log_ns"][index.messages["topic"] == position]
        span_ns = int(logged[-1] - logged[0]) if len(logged) > 1 else index.end_ns - index.start_ns
        rate = (known.messages - 1) * _SECOND / span_ns if known.messages > 1 and span_ns > 0 else None
        topic = TopicFacts(known.topic, known.msgtype, known.messages, rate)
        image = images.get(known.topic)
        if image is not None and image.msgtype == known.msgtype:
            width, height = _size(index, reader, image)
            topic = replace(
                topic, encoding=image.encoding, width=width, height=height, frame_id=image.frame_id
            )
        facts.append(topic)
    return tuple(facts)


def _size(index: BagIndex, reader: MessageReader, image: ImageTopic) -> tuple[int | None, int | None]:
    """Width and height; those of a compressed image by decoding the first one, None where that fails."""
    if image.width:
        return image.size
    try:
        message: Any = reader.read_image(index.messages[index.rows(image.topic)[0]])
        pixels = to_depth(message) if image.depth else to_rgb(message)
    except M3LError:
        return None, None
    return pixels.shape[1], pixels.shape[0]


def _stamp_facts(index: BagIndex, topic: str) -> StampFacts:
    messages = index.messages[index.rows(topic)]
    stamps = messages["stamp_ns"]
    is_set = stamps > 0
    steps = np.diff(stamps[is_set])
    back = steps[steps < 0]
    return StampFacts(
        images=len(stamps),
        unset=int((~is_set).sum()),
        repeated=int(is_set.sum()) - len(np.unique(stamps[is_set])),
        back=len(back),
        longest_step_back_s=float(-back.min(initial=0) / _SECOND),
        log_minus_stamp=Spread.of((messages["log_ns"] - stamps)[is_set]),
    )


def _pair_facts(frames: BagFrames, pairing: Pairing) -> PairFacts:
    found = frames.frames
    without = found["depth"] < 0
    reasons = Counter(str(REASONS[reason]) for reason in found["reason"][without])
    images = len(frames.index.rows(frames.topics.rgb))
    facts = PairFacts(
        slop_s=pairing.slop,
        frames=len(found),
        dropped=images - len(found),
        with_depth=int((~without).sum()),
        without_depth=dict(reasons),
        longest_outage=None,
        depth_minus_rgb=None,
        better_slop_s=None,
        better_slop_pairs=0,
    )
    if frames.topics.depth is None:
        return facts
    stamps = frames.index.messages["stamp_ns"]
    rgb = found["stamp_ns"][found["stamp_ns"] > 0]
    depth = np.unique(stamps[frames.index.rows(frames.topics.depth)])
    depth = depth[depth > 0]
    offsets = _nearest(rgb, depth)
    facts = replace(facts, longest_outage=_longest_outage(frames), depth_minus_rgb=Spread.of(offsets))
    slop_s = _better_slop(offsets, depth, pairing.slop)
    if slop_s is None:
        return facts
    better = pair_frames(frames.index, frames.topics, replace(pairing, slop=slop_s))
    paired = int((better["depth"] >= 0).sum())
    return (
        replace(facts, better_slop_s=slop_s, better_slop_pairs=paired) if paired > facts.with_depth else facts
    )


def _nearest(rgb: npt.NDArray[np.int64], depth: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """For each stamp of colour, that of the nearest depth image minus it; empty without depth."""
    if not len(depth):
        return depth
    after = np.searchsorted(depth, rgb)
    later = depth[np.minimum(after, len(depth) - 1)] - rgb
    earlier = depth[np.maximum(after - 1, 0)] - rgb
    return np.where(np.abs(earlier) <= np.abs(later), earlier, later)


def _better_slop(offsets: npt.NDArray[np.int64], depth: npt.NDArray[np.int64], slop_s: float) -> float | None:
    """The slop in seconds, whole milliseconds, that would do for what is no outage; None where the given one does.

    Colour images farther than a period of depth from any depth image are an outage's, which no slop mends.
    """
    if len(depth) < 2 or not len(offsets):
        return None
    distances_s = np.abs(offsets) / _SECOND
    beside = distances_s[distances_s <= min(float(np.median(np.diff(depth))) / _SECOND, _MOST_SLOP_S)]
    if (beside > slop_s).sum() <= _TOLERATED_SHARE * len(beside):
        return None
    return float(np.ceil(np.percentile(beside, _PAIRED_PERCENT) * 1e3) / 1e3)


def _longest_outage(frames: BagFrames) -> Outage | None:
    log_ns = frames.frames["log_ns"]
    bounds = np.diff(frames.frames["depth"] < 0, prepend=False, append=False)
    runs = np.flatnonzero(bounds).reshape(-1, 2)
    if not len(runs):
        return None
    begins = log_ns[np.maximum(runs[:, 0] - 1, 0)]
    ends = log_ns[np.minimum(runs[:, 1], len(log_ns) - 1)]
    longest = int((ends - begins).argmax())
    return Outage(
        start_s=float((begins[longest] - frames.index.start_ns) / _SECOND),
        duration_s=float((ends[longest] - begins[longest]) / _SECOND),
        frames=int(runs[longest, 1] - runs[longest, 0]),
    )


def _label_facts(
    frames: BagFrames, topics: Topics, label_files: LabelFiles | None
) -> tuple[tuple[LabelFacts, ...], int]:
    """The labels of each source, and how many frames have one of any."""
    sources: dict[str, npt.NDArray[Any] | list[int]] = {}
    if topics.label is not None:
        sources[topics.label] = frames.index.messages["stamp_ns"][frames.index.rows(topics.label)]
    if label_files is not None:
        sources[str(label_files.path)] = list(label_files.stamps(frames.index.name))
    stamps = frames.frames["stamp_ns"]
    labelled = {source: np.isin(stamps, labels) for source, labels in sources.items()}
    facts = tuple(
        LabelFacts(source, len(labels), int(labelled[source].sum())) for source, labels in sources.items()
    )
    return facts, int(np.any(list(labelled.values()), axis=0).sum()) if labelled else 0


_DECODE: Mapping[str, Callable[[Any], npt.NDArray[Any]]] = {
    "rgb": to_rgb,
    "depth": to_depth,
    "label": to_labels,
}


def _sample(index: BagIndex, reader: MessageReader, role: str, topic: str) -> SampleFacts:
    rows = _spread_over(index.rows(topic))
    images, problems = [], []
    for row in rows:
        message = index.messages[row]
        try:
            images.append(_DECODE[role](reader.read_image(message)))
        except M3LError as error:
            problems.append(f"at {int(message['stamp_ns'])}: {error}")
    sizes = dict.fromkeys((image.shape[1], image.shape[0]) for image in images)
    facts = SampleFacts(
        images=len(rows),
        unreadable=len(problems),
        problem=problems[0] if problems else None,
        sizes=tuple(sizes),
        dtype=str(images[0].dtype) if images else None,
    )
    if role != "depth":
        return facts
    readings = [image[np.isfinite(image) & (image > 0) & (image != 65535)] for image in images]
    every = np.concatenate(readings) if readings else np.empty(0)
    return replace(
        facts,
        empty=sum(not has_reading(image) for image in images),
        median=float(np.median(every)) if len(every) else None,
    )


def _spread_over(rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if len(rows) <= SAMPLES:
        return rows
    return rows[np.linspace(0, len(rows) - 1, SAMPLES).round().astype(np.intp)]


def _registration(index: BagIndex, reader: MessageReader, topics: Topics) -> str | None:
    if topics.depth is None:
        return None
    infos = [_camera_info(index, reader, topic) for topic in (topics.rgb_info, topics.depth_info)]
    frame_ids = [index.image_topic(topic).frame_id for topic in (topics.rgb, topics.depth)]
    return registration_problem(frame_ids[0], frame_ids[1], infos[0], infos[1])


def _camera_info(index: BagIndex, reader: MessageReader, topic: str | None) -> Any:
    """The first message of a CameraInfo topic; None where there is none that can be read."""
    messages = index.messages[index.rows(topic)[:1] if topic else []]
    if not len(messages):
        return None
    try:
        data = reader.read(messages[0])
        return get_typestore(Stores.ROS2_JAZZY).deserialize_cdr(data, CAMERA_INFO)
    except Exception:  # on damage, rosbags raises anything from its own errors to TypeError
        return None


def _label_problem(
    frames: BagFrames,
    reader: MessageReader,
    topics: Topics,
    rgb: SampleFacts,
    label_set: LabelSet | None,
    label_files: LabelFiles | None,
) -> str | None:
    """Read a few labels as training will: by the label set, and those in files at the size of colour."""
    index = frames.index
    try:
        if topics.label is not None and label_set is not None:
            for row in _spread_over(index.rows(topics.label)):
                message = index.messages[row]
                where = f"{topics.label} at {int(message['stamp_ns'])}"
                image: Any = reader.read_image(message)
                label_set.decode(to_labels(image), where)
        if label_files is not None and rgb.sizes:
            width, height = rgb.sizes[0]
            stamps = np.intersect1d(list(label_files.stamps(index.name)), frames.frames["stamp_ns"])
            for stamp_ns in _spread_over(stamps):
                label_files.read(index.name, int(stamp_ns), (height, width))
    except M3LError as error:
        return str(error)
    return None
