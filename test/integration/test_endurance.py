# SPDX-License-Identifier: Apache-2.0
"""Short runs of bench/'s long tests of the node; each says what it found, which is shown where it fails."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow


def run(repository, tmp_path, program, *arguments):
    out = tmp_path / "report.json"
    command = [sys.executable, str(repository / "bench" / program), *arguments, "--out", str(out)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    print(done.stdout, done.stderr, out.with_suffix(".log").read_text())
    assert out.is_file()
    report = json.loads(out.read_text())
    assert report["passed"], report.get("checks")
    assert done.returncode == 0
    return report


def test_every_image_is_accounted_for_through_two_minutes_of_faults(repository, tmp_path):
    report = run(repository, tmp_path, "node_soak.py", "--seconds", "120", "--seed", "1")
    assert len(report["faults"]) == 18
    assert report["masks"] > 0.8 * report["published"]


def test_lifecycle_can_be_gone_through_again_and_again(repository, tmp_path):
    report = run(repository, tmp_path, "node_cycles.py", "--cycles", "6")
    assert report["wrong"] == []
