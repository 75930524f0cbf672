# SPDX-License-Identifier: Apache-2.0
"""What would go wrong if one trained on a bag, in plain words."""

from __future__ import annotations

from collections.abc import Iterator

from m3l_model.bag_info import BagInfo, PairFacts, SampleFacts, StampFacts
from m3l_model.registration import scale_of

FEW_LABELS = 8
"""With fewer labelled frames, a model learns the room rather than the classes."""

_MILLIMETRES_ABOVE = 100.0
"""A median depth in metres that only millimetres explain."""
_NEW_EPOCH_S = 1.0
_ROLE_NAMES = {"rgb": "colour", "depth": "depth", "label": "label"}


def training_problems(info: BagInfo) -> list[str]:
    """Say what would go wrong; empty where nothing was found."""
    problems = [warning.removeprefix(f"{info.path}: ") for warning in info.warnings]
    if info.no_camera:
        return [*problems, f"There is no colour to train on: {info.no_camera}"]
    for role, samples in info.samples.items():
        problems += _sample_problems(_ROLE_NAMES[role], samples)
    for role, stamps in info.stamps.items():
        problems += _stamp_problems(_ROLE_NAMES[role], stamps)
    problems += _depth_problems(info)
    problems += _label_problems(info)
    return problems


def _sample_problems(name: str, samples: SampleFacts) -> Iterator[str]:
    if samples.unreadable:
        yield (
            f"{samples.unreadable} of the {samples.images} {name} images looked at cannot be decoded; the first "
            f"{samples.problem}"
        )
    if len(samples.sizes) > 1:
        sizes = ", ".join(f"{width}x{height}" for width, height in samples.sizes)
        yield f"The {name} images are of several sizes ({sizes}): the camera was reconfigured while recording"


def _stamp_problems(name: str, stamps: StampFacts) -> Iterator[str]:
    if stamps.unset:
        consequence = {
            "colour": "such frames get no depth and no label files",
            "depth": "such images are dropped",
            "label": "such labels fit no frame",
        }[name]
        yield (
            f"{stamps.unset} of {stamps.images} {name} images have no header stamp: {consequence}; have the driver "
            "set it"
        )
    if stamps.repeated:
        consequence = "the last one counts" if name == "label" else "the later one is dropped"
        yield f"{stamps.repeated} of {stamps.images} {name} images repeat the stamp of another one: {consequence}"
    if stamps.back and name != "label":  # labels are found by stamp, in whatever order they were recorded
        longest = stamps.longest_step_back_s
        consequence = (
            "pairing starts anew there, and stamps no longer tell frames apart; was a bag recorded in a loop, or the "
            "clock set?"
            if longest > _NEW_EPOCH_S
            else "images that come too late are dropped"
        )
        yield f"The stamps of {name} go back {stamps.back} times, by up to {longest:.3f} s: {consequence}"


def _depth_problems(info: BagInfo) -> Iterator[str]:
    if info.pairs is None:
        return
    depth = info.samples.get("depth")
    if depth is None:
        yield (
            "There is no depth topic, so nothing is learnt about depth; name it with --depth-topic if there is one"
            f"{_looks_like_depth(info)}"
        )
        return
    if info.registration:
        yield _sentence(info.registration)
    elif not _sizes_fit(info):
        rgb_size, depth_size = info.samples["rgb"].sizes[0], depth.sizes[0]
        yield (
            f"Depth of {depth_size[0]}x{depth_size[1]} is not colour of {rgb_size[0]}x{rgb_size[1]} at another scale, "
            "so it is not registered to colour; record the driver's aligned depth"
        )
    elif missing := [_ROLE_NAMES[role] for role in ("rgb", "depth") if not info.chosen[f"{role}_info"].topic]:
        yield (
            "Whether depth is registered to colour cannot be told, as there is no camera info beside "
            f"{' and '.join(missing)}; see that the driver aligns depth"
        )
    if depth.empty:
        share = "All" if depth.empty == depth.images - depth.unreadable else f"{depth.empty}"
        yield (
            f"{share} of the {depth.images - depth.unreadable} depth images looked at have no reading at all, and "
            "count as missing"
        )
    if depth.dtype == "float32" and (depth.median or 0) > _MILLIMETRES_ABOVE:
        yield (
            f"Depth is of floats, which are metres by REP 118, but half of the readings are beyond {depth.median:.0f}: "
            "they seem to be millimetres; convert them, or record 16UC1"
        )
    yield from _pair_problems(info, info.pairs)


def _pair_problems(info: BagInfo, pairs: PairFacts) -> Iterator[str]:
    skew = pairs.depth_minus_rgb
    if pairs.better_slop_s is not None and skew is not None:
        yield (
            f"Depth stamps lie {skew.median_s * 1e3:+.1f} ms (median) from those of colour, beyond the slop of "
            f"{pairs.slop_s * 1e3:g} ms in part or all: --slop {pairs.better_slop_s:g} would pair "
            f"{pairs.better_slop_pairs} of {pairs.frames}, instead of {pairs.with_depth}; in a moving camera's images "
            "it is better to have the driver synchronize them"
        )
    elif pairs.frames and not pairs.with_depth:
        clocks = [info.stamps[role].log_minus_stamp for role in ("rgb", "depth")]
        reason = "none of its images can be paired"
        if skew is not None and clocks[0] is not None and clocks[1] is not None:
            apart = clocks[0].median_s - clocks[1].median_s
            reason = (
                f"its stamps are {skew.median_s:+.3f} s (median) from those of colour, and by log time its clock is "
                f"{apart:+.3f} s from that of colour"
            )
        yield f"No frame has depth although there is a depth topic: {reason}; have both stamped by one clock"


def _label_problems(info: BagInfo) -> Iterator[str]:
    if not info.labels:
        yield (
            "There are no labels: the bag can serve as unlabelled only; `m3l frames` exports frames to annotate, and "
            "--labels says where the masks are"
        )
        return
    for labels in info.labels:
        if labels.labels and not labels.frames:
            yield (
                f"None of the {labels.labels} labels of {labels.source} has the stamp of a frame; a label must carry "
                "the header stamp of the colour image it labels"
            )
    if info.labelled < FEW_LABELS:
        yield f"Only {info.labelled} frames have labels; {FEW_LABELS} or more are advisable"
    if info.label_problem:
        yield f"Labels cannot be used: {info.label_problem}"


def _sizes_fit(info: BagInfo) -> bool:
    rgb, depth = info.samples["rgb"].sizes, info.samples["depth"].sizes
    return not (rgb and depth) or scale_of(rgb[0], depth[0]) is not None


def _looks_like_depth(info: BagInfo) -> str:
    rgb = info.chosen["rgb"].topic
    named = [
        f"{topic.topic} ({topic.encoding})"
        for topic in info.topics
        if topic.encoding is not None and "depth" in topic.topic and topic.topic != rgb
    ]
    if not named:
        return ""
    return (
        f"; by its name it may be {', '.join(named)}, whose encoding is none of depth, which takes 16 bits or floats: "
        "pictures of depth in 8 bits cannot serve"
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
