# SPDX-License-Identifier: Apache-2.0
"""The package as pip installs it: what the wheel holds, and that it finds its files wherever it is put."""

from __future__ import annotations

import email
import zipfile
from email.message import Message
from pathlib import Path
from xml.etree import ElementTree

import pytest

import m3l_model

DATA = "m3l_ros-0.1.0.data/data/share"


@pytest.fixture(scope="module")
def wheel(source_copy: Path, tmp_path_factory: pytest.TempPathFactory, run_python) -> Path:
    """The wheel that pip builds from the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    result = run_python("-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source_copy)
    assert result.returncode == 0, result.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def members(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_bytes(archive.read("m3l_ros-0.1.0.dist-info/METADATA"))


def test_it_holds_all_code_and_nothing_else(members, source_copy):
    code = {
        path.relative_to(source_copy).as_posix()
        for package in ("m3l_model", "m3l_ros")
        for path in (source_copy / package).rglob("*")
        if path.is_file()
    }
    assert "m3l_model/py.typed" in code
    assert {name for name in members if not name.startswith("m3l_ros-0.1.0.")} == code


def test_it_holds_launch_files_configuration_and_the_ament_index_marker(members, source_copy):
    shared = {
        f"{DATA}/m3l_ros/{path.relative_to(source_copy).as_posix()}"
        for folder in ("config", "launch")
        for path in (source_copy / folder).rglob("*")
        if path.is_file()
    }
    assert f"{DATA}/m3l_ros/launch/segmentation.launch.py" in shared
    assert f"{DATA}/m3l_ros/config/segmentation_node.yaml" in shared
    expected = {
        f"{DATA}/ament_index/resource_index/packages/m3l_ros",
        f"{DATA}/m3l_ros/package.xml",
        *shared,
    }
    assert {name for name in members if ".data/" in name} == expected


def test_package_xml_says_what_the_wheel_says(metadata, source_copy):
    package = ElementTree.parse(source_copy / "package.xml").getroot()
    maintainer = package.find("maintainer")
    assert maintainer is not None
    assert metadata["Name"] == package.findtext("name") == "m3l_ros"
    assert metadata["Version"] == package.findtext("version") == m3l_model.__version__
    assert metadata["License"] == package.findtext("license") == "Apache-2.0"
    assert (metadata["Maintainer"], metadata["Maintainer-email"]) == (
        maintainer.text,
        maintainer.get("email"),
    )
    assert (package.findtext("description") or "").startswith(metadata["Summary"])


@pytest.mark.parametrize("where", ["target", "prefix"])
def test_installed_anywhere_it_finds_its_files_and_has_its_programs_in_bin(
    wheel, tmp_path, run_python, where
):
    pip = (
        "-m",
        "pip",
        "install",
        "--no-deps",
        "--ignore-installed",
        "--no-compile",
        f"--{where}",
        tmp_path,
        wheel,
    )
    result = run_python(*pip)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in tmp_path.rglob("bin/*")} == {"m3l", "segmentation_node"}
    assert not list(tmp_path.rglob("lib/m3l_ros"))
    (cli,) = tmp_path.rglob("m3l_model/cli.py")
    result = run_python(
        "-c",
        "from m3l_model import resources as r\n"
        "print(r.__file__, r.share_path('config/segmentation_node.yaml'), r.share_path('launch'), sep='\\n')",
        path=cli.parent.parent,
    )
    share = tmp_path / "share" / "m3l_ros"
    assert result.stdout.splitlines() == [
        str(cli.with_name("resources.py")),
        str(share / "config" / "segmentation_node.yaml"),
        str(share / "launch"),
    ]
