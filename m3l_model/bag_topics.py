# SPDX-License-Identifier: Apache-2.0
"""Which topics of a bag are colour, depth, labels and their camera infos, guessed from encoding, frame and name."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from m3l_model.cdr import COMPRESSED_IMAGE
from m3l_model.errors import M3LError
from m3l_model.images import LABEL_ENCODINGS, encoding_of, is_color, is_depth

CAMERA_INFO = "sensor_msgs/msg/CameraInfo"


class TopicsError(M3LError):
    """No topic fits, or the one that was asked for does not exist."""


@dataclass(frozen=True)
class Topics:
    """The topics of one RGB-D camera; None where there is none."""

    rgb: str
    depth: str | None = None
    label: str | None = None
    rgb_info: str | None = None
    depth_info: str | None = None


DEFAULT_TOPICS = Topics(
    rgb="/camera/color/image_raw",
    depth="/camera/aligned_depth_to_color/image_raw",
    label="/camera/labels",
    rgb_info="/camera/color/camera_info",
    depth_info="/camera/aligned_depth_to_color/camera_info",
)
"""What this package's own bags use: the names of a RealSense driver with aligned depth."""


class ImageTopic(NamedTuple):
    """What the first message of an image topic tells; width and height are 0 where the image is compressed."""

    topic: str
    msgtype: str
    messages: int
    encoding: str
    frame_id: str
    width: int
    height: int
    color: bool
    depth: bool

    @classmethod
    def from_message(cls, topic: str, msgtype: str, messages: int, msg: Any) -> ImageTopic:
        """Describe a topic of so many messages by its first one."""
        return cls(
            topic=topic,
            msgtype=msgtype,
            messages=messages,
            encoding=encoding_of(msg),
            frame_id=msg.header.frame_id,
            width=getattr(msg, "width", 0),
            height=getattr(msg, "height", 0),
            color=is_color(msg),
            depth=is_depth(msg),
        )

    @property
    def compressed(self) -> bool:
        return self.msgtype == COMPRESSED_IMAGE

    @property
    def size(self) -> tuple[int, int]:
        return self.width, self.height


def choose_topics(
    images: Sequence[ImageTopic],
    infos: Collection[str],
    rgb: str | None = None,
    depth: str | None = None,
    label: str | None = None,
) -> Topics:
    """Choose the topics of one camera.

    Depth is preferred that has the colour image's frame_id and size, because only registered depth can be fused.

    Args:
        images: the image topics of a bag.
        infos: its CameraInfo topics.
        rgb, depth, label: settles that topic; the others are guessed to fit it.

    Raises:
        TopicsError: a topic named is not among ``images``, or none of them looks like a colour camera's.
    """
    named = {image.topic: image for image in images}
    for name in filter(None, (rgb, depth, label)):
        if name not in named:
            raise TopicsError(f"{name} is not one of the image topics; {_listed(images)}")
    free = [image for image in images if image.topic not in (rgb, depth, label)]
    color_image = named[rgb] if rgb else _best(filter(_is_camera, free), _color_rank)
    if color_image is None:
        raise TopicsError(
            f"no topic looks like a colour camera's, so name the colour topic; {_listed(images)}"
        )
    free = [image for image in free if image is not color_image]
    depth_image = named[depth] if depth else _best(filter(_is_depth_camera, free), _depth_rank(color_image))
    label_image = named[label] if label else _best(filter(_is_label, free), _label_rank)
    return Topics(
        rgb=color_image.topic,
        depth=depth_image.topic if depth_image else None,
        label=label_image.topic if label_image else None,
        rgb_info=_info_of(color_image, infos),
        depth_info=_info_of(depth_image, infos) if depth_image else None,
    )


_LABEL_HINT = re.compile("label|seg|mask", re.I)
_PREDICTION = re.compile("segmentation/mask$")
"""What the node publishes: never to be taken for the truth by a guess."""
_DERIVED_HINT = re.compile("label|seg|mask|overlay|confidence|disparity", re.I)
_COLOR_HINT = re.compile("colou?r|rgb|image_raw", re.I)
_OTHER_SENSOR_HINT = re.compile("depth|thermal|infra|(?<![a-z])ir(?![a-z])", re.I)
_REGISTERED_HINT = re.compile("aligned|registered", re.I)

_Rank = Callable[[ImageTopic], tuple[object, ...]]


def _best(candidates: Iterable[ImageTopic], rank: _Rank) -> ImageTopic | None:
    return min(
        candidates,
        key=lambda image: (*rank(image), image.compressed, -image.messages, image.topic),
        default=None,
    )


def _is_camera(image: ImageTopic) -> bool:
    return image.color and not _DERIVED_HINT.search(image.topic)


def _color_rank(image: ImageTopic) -> tuple[object, ...]:
    return (
        bool(_OTHER_SENSOR_HINT.search(image.topic)),
        image.encoding in LABEL_ENCODINGS,
        not _COLOR_HINT.search(image.topic),
    )


def _is_depth_camera(image: ImageTopic) -> bool:
    compressed_depth = image.compressed and "depth" in image.topic and "jp" not in image.encoding
    return (image.depth or compressed_depth) and not _DERIVED_HINT.search(image.topic)


def _depth_rank(color: ImageTopic) -> _Rank:
    return lambda image: (
        image.frame_id != color.frame_id,
        not (image.compressed or color.compressed) and image.size != color.size,
        "depth" not in image.topic,
        not _REGISTERED_HINT.search(image.topic),
    )


def _is_label(image: ImageTopic) -> bool:
    fits = (
        "png" in image.encoding and not image.depth if image.compressed else image.encoding in LABEL_ENCODINGS
    )
    return fits and bool(_LABEL_HINT.search(image.topic)) and not _PREDICTION.search(image.topic)


def _label_rank(image: ImageTopic) -> tuple[object, ...]:
    return ("label" not in image.topic,)


def _info_of(image: ImageTopic, infos: Collection[str]) -> str | None:
    """The CameraInfo beside the image; a compressed image's topic has its transport as one more level."""
    base = image.topic.rsplit("/", 1)[0] if image.compressed else image.topic
    info = f"{base.rsplit('/', 1)[0]}/camera_info"
    return info if info in infos else None


def _listed(images: Sequence[ImageTopic]) -> str:
    listed = ", ".join(f"{image.topic} ({image.msgtype}, {image.encoding})" for image in images)
    return f"image topics with messages: {listed or 'none'}"
