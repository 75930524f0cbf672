# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from collections import namedtuple
from xml.etree import ElementTree

import pytest
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from m3l_ros import transport
from m3l_ros.transport import PROFILE_VARIABLES, fastdds_environment

PROFILES = "{http://www.eprosima.com/XMLSchemas/fastRTPS_Profiles}"
IMAGES = 40

CAMERA = f"""
import time
from array import array
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

rclpy.init()
node = rclpy.create_node("camera")
qos = QoSProfile(depth={IMAGES}, reliability=ReliabilityPolicy.BEST_EFFORT)
publisher = node.create_publisher(Image, "image", qos)
image = Image(height=480, width=640, step=1920, encoding="rgb8", data=array("B", bytes(480 * 1920)))
while publisher.get_subscription_count() == 0:
    time.sleep(0.01)
for index in range({IMAGES}):
    image.header.stamp.sec = index
    publisher.publish(image)
    time.sleep(0.01)
input()
"""
"""Publishes VGA images, best effort, at 100 Hz, and stays until it may go."""


@pytest.mark.parametrize(
    "environ",
    [{}, {"RMW_IMPLEMENTATION": "rmw_fastrtps_cpp"}, {"RMW_IMPLEMENTATION": "rmw_fastrtps_dynamic_cpp"}],
)
def test_profile_is_set_under_both_names(environ, repository):
    profile = str(repository / "config" / "fastdds_shm.xml")
    assert fastdds_environment(environ) == dict.fromkeys(PROFILE_VARIABLES, profile)
    assert PROFILE_VARIABLES == ("FASTRTPS_DEFAULT_PROFILES_FILE", "FASTDDS_DEFAULT_PROFILES_FILE")


@pytest.mark.parametrize(
    "environ",
    [
        {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"},
        {"FASTRTPS_DEFAULT_PROFILES_FILE": "/etc/mine.xml"},
        {"FASTDDS_DEFAULT_PROFILES_FILE": "/etc/mine.xml"},
        {"FASTDDS_BUILTIN_TRANSPORTS": "LARGE_DATA"},
    ],
)
def test_choice_of_the_user_stands(environ):
    assert fastdds_environment(environ) == {}


def test_profile_of_the_folder_stands(tmp_path, monkeypatch):
    (tmp_path / "DEFAULT_FASTRTPS_PROFILES.xml").touch()
    monkeypatch.chdir(tmp_path)
    assert fastdds_environment({}) == {}


def test_profile_is_left_out_where_shared_memory_is_short(monkeypatch, caplog):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(transport.shutil, "disk_usage", lambda path: usage(free=64 * 2**20))
    assert fastdds_environment({}) == {}
    assert "--shm-size" in caplog.text


def test_profile_adds_a_segment_of_64_mib_and_keeps_udp(repository):
    root = ElementTree.parse(repository / "config" / "fastdds_shm.xml").getroot()
    transports = {
        descriptor.findtext(f"{PROFILES}type"): descriptor
        for descriptor in root.iter(f"{PROFILES}transport_descriptor")
    }
    assert set(transports) == {"SHM", "UDPv4"}
    assert transports["SHM"].findtext(f"{PROFILES}segment_size") == str(64 * 2**20)
    used = [element.text for element in root.iterfind(f".//{PROFILES}userTransports/")]
    assert used == [transports[kind].findtext(f"{PROFILES}transport_id") for kind in ("SHM", "UDPv4")]


def test_with_the_profile_no_image_is_lost_even_by_best_effort(environment, node, wait_until):
    if not fastdds_environment({}):
        pytest.skip("shared memory is too small")
    heard: list[Image] = []
    qos = QoSProfile(depth=IMAGES, reliability=ReliabilityPolicy.BEST_EFFORT)
    node.create_subscription(Image, "image", heard.append, qos)
    camera = subprocess.Popen(
        [sys.executable, "-c", CAMERA], env=environment, stdin=subprocess.PIPE, text=True
    )
    wait_until(lambda: len(heard) >= IMAGES, "every image")
    camera.communicate("\n")
    assert [image.header.stamp.sec for image in heard] == list(range(IMAGES))
