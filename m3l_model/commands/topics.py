# SPDX-License-Identifier: Apache-2.0
"""The options by which every command that reads bags lets the user name topics."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from m3l_model.bags import Topics

_FIELDS = ("rgb", "depth", "label")


def add_topic_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--rgb-topic``, ``--depth-topic`` and ``--label-topic``."""
    for field in _FIELDS:
        parser.add_argument(
            f"--{field}-topic", metavar="TOPIC", help="default: guessed by type, encoding and name"
        )


def chosen_topics(bag: Path, args: argparse.Namespace, labels_required: bool = True) -> Topics:
    """Guess a bag's topics and put those the user named in their place.

    Args:
        bag: the bag.
        args: parsed arguments of ``add_topic_arguments``.
        labels_required: else a bag may lack the named label topic, and counts as one without labels.

    Raises:
        M3LError: the bag cannot be read or lacks a named topic.
    """
    from m3l_model.bags import BagReader

    named = {field: getattr(args, f"{field}_topic") for field in _FIELDS}
    with BagReader(bag) as reader:
        recorded = {connection.topic for connection in reader.connections}
        without_labels = not labels_required and bool(named["label"]) and named["label"] not in recorded
        if without_labels:
            del named["label"]
        topics = reader.choose_topics(**{field: topic for field, topic in named.items() if topic})
        return replace(topics, label=None) if without_labels else topics
