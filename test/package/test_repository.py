# SPDX-License-Identifier: Apache-2.0
"""What holds for every file of the repository."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

# Absolute paths that mean something on one machine only.
ONE_MACHINE = re.compile(r"(?<![\w.~])/(?:home|root|Users|work|tmp/\w)/\w")


@pytest.fixture(scope="module")
def texts(repository: Path) -> dict[str, str]:
    """The text files that are, or would be, in git."""
    if shutil.which("git") is None:
        pytest.skip("needs git")
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    result = subprocess.run(listing, cwd=repository, capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip(f"needs a git checkout: {result.stderr.strip()}")
    texts = {}
    for name in filter(None, result.stdout.split("\0")):
        try:
            texts[name] = (repository / name).read_text(encoding="utf-8")
        except (FileNotFoundError, UnicodeDecodeError):
            continue
    return texts


def test_every_source_file_says_its_licence(texts):
    sources = [name for name in texts if name.endswith(".py")]
    assert "setup.py" in sources
    assert [name for name in sources if "SPDX-License-Identifier: Apache-2.0" not in texts[name][:200]] == []


def test_no_path_of_one_machine(texts):
    found = {name: match[0] for name, text in texts.items() if (match := ONE_MACHINE.search(text))}
    assert found == {}
