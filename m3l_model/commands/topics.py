# SPDX-License-Identifier: Apache-2.0
"""The options by which every command that reads bags lets the user name topics."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m3l_model.bags import BagIndex, Topics

TOPIC_ROLES = ("rgb", "depth", "label")


def add_topic_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--rgb-topic``, ``--depth-topic`` and ``--label-topic``."""
    for role in TOPIC_ROLES:
        parser.add_argument(
            f"--{role}-topic", metavar="TOPIC", help="default: guessed by type, encoding and name"
        )


def named_topics(args: argparse.Namespace) -> dict[str, str]:
    """The topics that the user named, by role."""
    named = {role: getattr(args, f"{role}_topic") for role in TOPIC_ROLES}
    return {role: topic for role, topic in named.items() if topic}


def chosen_topics(bag: Path | BagIndex, args: argparse.Namespace, labels_required: bool = True) -> Topics:
    """Guess a bag's topics and put those the user named in their place.

    Args:
        bag: the bag, or its index.
        args: parsed arguments of ``add_topic_arguments``.
        labels_required: else a bag may lack the named label topic, and counts as one without labels.

    Raises:
        M3LError: the bag cannot be read or lacks a named topic.
    """
    from m3l_model.bags import open_index

    index = open_index(bag) if isinstance(bag, Path) else bag
    named = named_topics(args)
    recorded = {known.topic for known in index.topics}
    without_labels = not labels_required and "label" in named and named["label"] not in recorded
    if without_labels:
        del named["label"]
    topics = index.choose_topics(**named)
    return replace(topics, label=None) if without_labels else topics
