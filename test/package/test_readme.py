# SPDX-License-Identifier: Apache-2.0
"""The README's tables say what the package has."""

from __future__ import annotations

import re
from importlib.metadata import entry_points

import pytest
import yaml

from m3l_ros.parameters import parameter_infos


@pytest.fixture(scope="module")
def readme(repository):
    return (repository / "README.md").read_text(encoding="utf-8")


def first_cells(text, heading_row):
    """The code in the first column of the table with this heading."""
    table = text[text.index(heading_row) :].split("\n\n")[0].splitlines()[2:]
    return [code for row in table for code in re.findall(r"`([^`]+)`", row.split("|")[1])]


def test_parameters(readme):
    rows = re.findall(r"^\| `(\w+)` \| `([^`]+)` \| ([\w ]+) \| (.+) \|$", readme, flags=re.MULTILINE)
    for (name, default, changes, text), info in zip(rows, parameter_infos(), strict=True):
        assert (name, yaml.safe_load(default)) == (
            info.name,
            list(info.default) if isinstance(info.default, tuple) else info.default,
        )
        assert changes == info.changes.value
        assert text == info.description + (f" ({info.allowed()})" if info.limits else "")


def test_commands(readme):
    commands = {f"m3l {entry.name}" for entry in entry_points(group="m3l.commands")}
    assert set(first_cells(readme, "| command |")) == commands


def test_topics(readme, run_python):
    listed = first_cells(readme, "| topic |")
    said = run_python("-m", "m3l_ros.segmentation_node", "--help").stdout
    for topic in listed:
        if topic != "segmentation/label_info":
            assert topic in said, topic


def test_make_targets(readme, repository):
    makefile = (repository / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", readme, flags=re.MULTILINE)
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target
