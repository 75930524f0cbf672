# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
from contextlib import ExitStack

import pytest

from m3l_model.errors import M3LError
from m3l_ros import isolation
from m3l_ros.isolation import isolated_environment


def test_no_two_holders_share_a_domain(monkeypatch):
    monkeypatch.setattr(isolation, "_DOMAINS", range(91, 96))
    with ExitStack() as stack:
        held = [stack.enter_context(isolated_environment({}))["ROS_DOMAIN_ID"] for _ in range(3)]
        assert len(set(held)) == 3


def test_domains_are_given_back(monkeypatch):
    with isolated_environment({}) as environment:
        domain = int(environment["ROS_DOMAIN_ID"])
        monkeypatch.setattr(isolation, "_DOMAINS", [domain])
        with pytest.raises(M3LError, match="every ROS domain"), isolated_environment({}):
            pass
    with isolated_environment({}) as again:
        assert int(again["ROS_DOMAIN_ID"]) == domain


@pytest.mark.parametrize(
    ("distro", "expected"),
    [
        ("humble", {"ROS_LOCALHOST_ONLY": "1"}),
        ("jazzy", {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}),
    ],
)
def test_discovery_stays_on_this_machine(distro, expected):
    with isolated_environment({"ROS_DISTRO": distro, "PATH": "/bin"}) as environment:
        discovery = {
            name: value for name, value in environment.items() if "LOCAL" in value or "LOCAL" in name
        }
        assert discovery == expected
        assert environment["PATH"] == "/bin"


def test_this_process_is_isolated_for_a_while(monkeypatch):
    monkeypatch.setenv("ROS_LOCALHOST_ONLY", "0")
    monkeypatch.delenv("ROS_DISTRO", raising=False)
    before = dict(os.environ)
    with isolation.isolated_process():
        assert "ROS_LOCALHOST_ONLY" not in os.environ
        assert int(os.environ["ROS_DOMAIN_ID"]) > 0
    assert dict(os.environ) == before
