# SPDX-License-Identifier: Apache-2.0
"""A ROS graph of one's own on this machine, for demos and tests that must not meet a robot, or one another."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from m3l_model.errors import M3LError
from m3l_ros.transport import fastdds_environment

_DOMAINS = range(1, 102)  # those whose ports Linux gives to nobody else


@contextmanager
def isolated_environment(environ: Mapping[str, str] = os.environ) -> Iterator[dict[str, str]]:
    """Environment for processes that are to see one another and nobody else; theirs while the context is open.

    It has a ROS domain that no other holder of such an environment on this machine has, discovery that stays on this
    machine, and shared memory for images where ``transport`` would set it.

    Args:
        environ: what else the processes' environment holds.

    Raises:
        M3LError: every domain is taken.
    """
    with _leased_domain() as domain:
        own = {**environ, **fastdds_environment(environ), "ROS_DOMAIN_ID": str(domain)}
        if environ.get("ROS_DISTRO") == "humble":
            own["ROS_LOCALHOST_ONLY"] = "1"
        else:
            own.pop("ROS_LOCALHOST_ONLY", None)  # it would override the newer variable
            own["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
        yield own


@contextmanager
def isolated_process() -> Iterator[None]:
    """Have this process and those that it starts see one another and nobody else, while the context is open.

    Raises:
        M3LError: every domain is taken.
    """
    before = dict(os.environ)
    with isolated_environment() as own:
        _set_environment(own)
        try:
            yield
        finally:
            _set_environment(before)


def _set_environment(environ: Mapping[str, str]) -> None:
    for name in os.environ.keys() - environ.keys():
        del os.environ[name]
    os.environ.update(environ)


@contextmanager
def _leased_domain() -> Iterator[int]:
    """A domain id; held by an abstract socket, which the system withdraws with the process."""
    for domain in random.sample(_DOMAINS, len(_DOMAINS)):
        with socket.socket(socket.AF_UNIX) as lease:
            try:
                lease.bind(f"\0m3l_ros_domain_{domain}")
            except OSError:
                continue
            yield domain
            return
    raise M3LError(
        "every ROS domain of this machine is taken by demos or tests that are still running; end them"
    )
