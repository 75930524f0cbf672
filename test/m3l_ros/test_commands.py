# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import argparse
import os
import subprocess
import sys

import pytest

from m3l_ros import segmentation_node
from m3l_ros.availability import without_ros_arguments
from m3l_ros.commands import node, replay
from m3l_ros.parameters import parameter_infos


def parse(command, *arguments):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(arguments)


def test_ros_arguments_are_passed_on_whole():
    args = parse(replay, "bag", "--clock", "--ros-args", "-r", "/a:=/b", "--log-level", "debug")
    assert args.ros_args == ["-r", "/a:=/b", "--log-level", "debug"]
    assert args.clock
    assert parse(replay, "bag").ros_args == []


def test_node_command_is_the_node_with_a_checkpoint(monkeypatch):
    given: list[list[str]] = []

    def main(argv):
        given.append(argv)
        return 0

    monkeypatch.setattr(segmentation_node, "main", main)
    node.run(parse(node, "--checkpoint", "my model.safetensors", "--ros-args", "-p", "slop:=0.1"))
    node.run(parse(node))
    assert given == [
        ["--ros-args", "-p", "slop:=0.1", "-p", "checkpoint:=my model.safetensors"],
        ["--ros-args"],
    ]


def test_own_arguments_are_told_from_those_of_ros():
    arguments = ["--help", "--ros-args", "-p", "a:=b", "--", "--more", "--ros-args", "-r", "c:=d"]
    assert without_ros_arguments(arguments) == ["--help", "--more"]


def run_node(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "m3l_ros.segmentation_node", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_help_names_every_parameter_and_topic():
    done = run_node("--help")
    assert done.returncode == 0
    for info in parameter_infos():
        assert f"  {info.name} = " in done.stdout
        assert info.description in done.stdout
    for topic in ("rgb/image", "depth/image", "segmentation/mask", "/diagnostics"):
        assert topic in done.stdout


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--ros-args", "-p", "slop:=wide"], "parameter slop must be a float"),
        (["--ros-args", "-p", "overload:=oldest"], "'oldest' is not one of newest, queue"),
        (["--ros-args", "--nonsense"], "ROS cannot be started: "),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_wrong_use_is_one_line_and_an_exit_code(environment, arguments, complaint):
    done = run_node(*arguments, **environment)
    assert done.returncode == 2
    assert complaint in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
