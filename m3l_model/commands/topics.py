# SPDX-License-Identifier: Apache-2.0
"""The options by which every command that reads bags lets the user name topics."""

from __future__ import annotations

import argparse
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


def chosen_topics(bag: Path, args: argparse.Namespace) -> Topics:
    """Guess a bag's topics and put those the user named in their place.

    Raises:
        M3LError: the bag cannot be read or lacks a named topic.
    """
    from m3l_model.bags import guess_topics

    named = {field: getattr(args, f"{field}_topic") for field in _FIELDS}
    return guess_topics(bag, **{field: topic for field, topic in named.items() if topic})
