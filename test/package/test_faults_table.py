# SPDX-License-Identifier: Apache-2.0
"""The table of faults names tests that there are."""

from __future__ import annotations

import ast
import re

import pytest


@pytest.fixture(scope="module")
def table(repository):
    return (repository / "docs" / "faults.md").read_text(encoding="utf-8")


def test_every_fault_has_tests_that_there_are(table, repository):
    tests = {
        f"{path.stem}::{statement.name}"
        for path in (repository / "test").rglob("test_*.py")
        for statement in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(statement, ast.FunctionDef)
    }
    rows = re.findall(r"^\| (?!fault |---)(.+?) \| (.+) \| (.+) \|$", table, flags=re.MULTILINE)
    assert len(rows) > 30
    for fault, _, named in rows:
        assert (listed := re.findall(r"`([^`]+)`", named)), fault
        assert set(listed) <= tests, fault
    assert set(re.findall(r"`(test_\w+::\w+)`", table)) <= tests
