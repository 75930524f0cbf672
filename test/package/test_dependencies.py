# SPDX-License-Identifier: Apache-2.0
"""What the code imports is what package.xml, setup.py and constraints.txt declare."""

from __future__ import annotations

import ast
import re
import sys
from importlib.metadata import requires
from pathlib import Path
from xml.etree import ElementTree

import pytest
from packaging.requirements import Requirement

ROSDEP_KEYS = {
    "PIL": "python3-pil",
    "cv2": "python3-opencv",
    "jinja2": "python3-jinja2",
    "matplotlib": "python3-matplotlib",
    "numpy": "python3-numpy",
    "tqdm": "python3-tqdm",
    "yaml": "python3-yaml",
}
STANDARD = {*sys.stdlib_module_names, "compression"}  # since 3.14
ROSBAGS_OWN = {"apsw", "backports", "lz4"}
"""What pip installs along with rosbags."""
IN_NO_APT_ARCHIVE = {
    *(
        "huggingface_hub",
        "lightning_fabric",
        "onnxruntime",
        "rosbags",
        "safetensors",
        "torch",
        "transformers",
    ),
    *ROSBAGS_OWN,
}
DISTRIBUTIONS = {
    "PIL": "pillow",
    "backports": "backports-zstd",
    "cv2": "opencv-python-headless",
    "yaml": "pyyaml",
}
ON_A_ROBOT_ONLY = {"cv_bridge", "launch", "launch_ros", "message_filters", "tf2_msgs", "vision_msgs"}


@pytest.fixture(scope="module")
def imported(repository: Path) -> set[str]:
    """The packages that the installed code and the launch files import, but for Python's own and ours."""
    names: set[str] = set()
    for folder in ("m3l_model", "m3l_ros", "launch"):
        for path in (repository / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    names.add(node.module or "")
    return {name.partition(".")[0] for name in names} - STANDARD - {"m3l_model", "m3l_ros"}


@pytest.fixture(scope="module")
def requirements() -> list[Requirement]:
    return [Requirement(line) for line in requires("m3l_ros") or []]


def test_package_xml_is_complete(repository, imported):
    package = ElementTree.parse(repository / "package.xml").getroot()
    assert (package.tag, package.get("format")) == ("package", "3")
    for tag in ("name", "version", "description", "maintainer", "license"):
        assert package.findtext(tag), tag
    assert package.findtext("export/build_type") == "ament_python"
    keys = [tag.text for tag in package.iter("exec_depend")]
    assert len(keys) == len(set(keys))
    assert {ROSDEP_KEYS.get(name, name) for name in imported - IN_NO_APT_ARCHIVE} <= set(keys)


def test_setup_py_is_complete(imported, requirements):
    declared = {requirement.name.lower() for requirement in requirements}
    for name in imported - ON_A_ROBOT_ONLY:
        distribution = DISTRIBUTIONS.get(name, name).replace("_", "-")
        assert {distribution, f"ros-{distribution}"} & declared, (
            f"{name} is imported, and setup.py knows nothing of it"
        )


def test_every_requirement_is_pinned(repository, requirements):
    lines = (repository / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    for version in ("3.10", "3.11", "3.12", "3.13"):
        pinned: dict[str, str] = {}
        for pin in pins:
            if pin.marker is None or pin.marker.evaluate({"python_version": version}):
                assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), pin
                assert pin.name not in pinned, f"two pins of {pin.name} for Python {version}"
                pinned[pin.name] = str(pin.specifier)[2:]
        for requirement in requirements:
            assert requirement.specifier.contains(pinned[requirement.name.lower()]), requirement
