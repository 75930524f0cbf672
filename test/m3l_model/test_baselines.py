# SPDX-License-Identifier: Apache-2.0
"""What inference is compared with is what it is said to be, or an error says why not."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from m3l_model import M3LError
from m3l_model.baselines import REFERENCE_COMMIT, check_reference
from m3l_model.cli import main

NETWORK = "src/models/segmentation_models/linearfusemaskedconsmixbatch"


def test_a_folder_that_is_no_clone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(M3LError, match="not a clone of https://github"):
        check_reference(tmp_path)


def test_a_clone_at_another_commit_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / NETWORK).mkdir(parents=True)
    (tmp_path / NETWORK / "segformer.py").touch()
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "other"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    with pytest.raises(M3LError, match=f"at commit [0-9a-f]{{40}}; git checkout {REFERENCE_COMMIT}"):
        check_reference(tmp_path)


def test_where_there_is_no_git_a_clone_is_refused_saying_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / NETWORK).mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(M3LError, match="install git"):
        check_reference(tmp_path)


def test_the_command_says_that_transformers_is_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "transformers.py").write_text("raise ImportError")
    monkeypatch.syspath_prepend(tmp_path)  # which the process that measures takes over
    arguments = ["--device", "cpu", "--size", "64x96", "--threads", "1", "--frames", "1", "--state", "both"]
    assert main(["bench", *arguments, "--precision", "fp32", "--transformers"]) != 0
    assert "m3l_ros[bench]" in capsys.readouterr().err
