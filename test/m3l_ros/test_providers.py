# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
import sys

import pytest

from m3l_ros.providers import find_ros2_package

MODULES = {
    "message_filters": "import rclpy\nclass SimpleFilter: pass\nclass Subscriber: pass\n",
    "cv_bridge": "class CvBridge:\n    def encoding_to_dtype_with_channels(self, encoding): return 'uint8', 3\n",
}
REPORT = (
    "import m3l_ros.providers as p; print(p.MESSAGE_FILTERS, p.CONVERSION, p.Subscriber.__module__, sep=',')"
)


@pytest.fixture
def prefix(tmp_path):
    """An installation of message_filters and cv_bridge as far as it can be told from outside; not in any index."""
    for name, source in MODULES.items():
        folder = tmp_path / "lib" / name
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text(source)
    return tmp_path


def index(prefix):
    """Make it one of ROS 2."""
    packages = prefix / "share" / "ament_index" / "resource_index" / "packages"
    packages.mkdir(parents=True)
    for name in MODULES:
        (packages / name).touch()


def chosen(prefix):
    paths = [str(prefix / "lib"), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "AMENT_PREFIX_PATH": str(prefix),
    }
    done = subprocess.run(
        [sys.executable, "-c", REPORT], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip().split(",")


def test_packages_of_ros_2_are_preferred(prefix):
    index(prefix)
    assert chosen(prefix) == ["message_filters", "cv_bridge", "message_filters"]


def test_cv_bridge_that_cannot_be_loaded_is_named_and_done_without(prefix):
    index(prefix)
    broken = "class CvBridge:\n    def encoding_to_dtype_with_channels(self, encoding): import no_numpy_1\n"
    (prefix / "lib" / "cv_bridge" / "__init__.py").write_text(broken)
    assert chosen(prefix)[1] == (
        "rosbags-image (cv_bridge is installed and does not work: No module named 'no_numpy_1')"
    )


def test_packages_of_ros_1_are_not_taken(prefix):
    """Debian's own python3-message-filters and python3-cv-bridge can be imported, but are in no ament index."""
    assert chosen(prefix) == ["built in", "rosbags-image", "m3l_ros.filters"]


def test_package_must_lie_under_the_prefix_whose_index_names_it(prefix, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    index(other)
    monkeypatch.syspath_prepend(str(prefix / "lib"))
    monkeypatch.delitem(sys.modules, "message_filters", raising=False)
    assert find_ros2_package("message_filters", {"AMENT_PREFIX_PATH": str(other)}) is None
    assert find_ros2_package("message_filters", {"AMENT_PREFIX_PATH": ""}) is None
    index(prefix)
    environ = {"AMENT_PREFIX_PATH": os.pathsep.join([str(other), str(prefix)])}
    assert find_ros2_package("message_filters", environ) == prefix
    assert find_ros2_package("surely_not_installed", environ) is None
