# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import re
from dataclasses import asdict

import pytest
import yaml
from rclpy.node import Node
from rclpy.parameter import Parameter

from m3l_ros.parameters import (
    Changes,
    NodeParameters,
    ParameterError,
    check_change,
    declare_parameters,
    parameter_infos,
    read_parameters,
)


@pytest.fixture
def make_node(context):
    """A node with the parameters declared, given these at the start."""
    nodes = []

    def make(**given):
        overrides = [Parameter(name, value=value) for name, value in given.items()]
        nodes.append(Node("parameters", context=context, parameter_overrides=overrides))
        declare_parameters(nodes[-1])
        return nodes[-1]

    yield make
    for node in nodes:
        node.destroy_node()


def test_file_of_parameters_has_every_one_with_its_default(repository, make_node):
    file = yaml.safe_load((repository / "config" / "segmentation_node.yaml").read_text())
    documented = file["/**"]["ros__parameters"]
    node = make_node()
    declared = {info.name: node.get_parameter(info.name).value for info in parameter_infos()}
    assert documented == declared
    assert {name: type(value) for name, value in documented.items()} == {
        name: type(value) for name, value in declared.items()
    }


def test_file_says_when_each_may_be_set(repository):
    comments = comments_by_name((repository / "config" / "segmentation_node.yaml").read_text())
    for info in parameter_infos():
        said = re.search(r"\((any time|at the start)\)", comments[info.name])
        assert (said[1] if said else "unconfigured") == info.changes.value, info.name


def test_file_says_what_is_allowed(repository):
    comments = comments_by_name((repository / "config" / "segmentation_node.yaml").read_text())
    for info in parameter_infos():
        for choice in info.choices or ():
            assert choice in comments[info.name], info.name
        if info.limits:
            assert info.allowed() in comments[info.name], info.name


def comments_by_name(text):
    """The comment above each parameter."""
    comments, above = {}, ""
    for line in text.splitlines():
        if line.lstrip().startswith("#"):
            above += line
        else:
            comments[line.partition(":")[0].strip()], above = above, ""
    return comments


def test_values_are_read_as_they_were_given(make_node):
    given = {
        "checkpoint": "model.safetensors",
        "slop": 0.5,
        "queue_size": 7,
        "autostart": False,
        "anchor": "either",
    }
    assert asdict(read_parameters(make_node(**given))) == {**asdict(NodeParameters()), **given}


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("slop", 1, "parameter slop must be a float, as in 0.02"),
        ("slop", 1.5, "parameter slop must be 0 to 1"),
        ("queue_size", 0, "parameter queue_size must be 1 to 1000"),
        ("overload", "oldest", "parameter overload: 'oldest' is not one of newest, queue"),
    ],
)
def test_wrong_value_at_the_start_is_refused(make_node, name, value, complaint):
    with pytest.raises(ParameterError, match=complaint) as raised:
        make_node(**{name: value})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "value", "done"),
    [
        ("slop", 0.1, True),
        ("slop", -0.1, False),
        ("max_wait", "long", False),
        ("autostart", False, False),
    ],
)
def test_wrong_value_later_is_refused_with_the_reason(make_node, name, value, done):
    node = make_node()
    before = node.get_parameter(name).value
    result = node.set_parameters([Parameter(name, value=value)])[0]
    assert result.successful == done
    assert bool(result.reason) != done
    assert node.get_parameter(name).value == (value if done else before)


@pytest.mark.parametrize(
    ("values", "state", "complaint"),
    [
        ({"input_qos": "best_effort"}, "unconfigured", None),
        ({"input_qos": "fast"}, "unconfigured", "'fast' is not one of auto, reliable, best_effort"),
        (
            {"input_qos": "best_effort"},
            "active",
            "is read when the node is configured, and it is active: deact",
        ),
        ({"slop": 0.1, "outputs": ["mask"]}, "active", None),
        ({"outputs": ["mask", "masks"]}, "active", "'masks' is not one of mask, color"),
        ({"use_sim_time": True}, "active", None),
    ],
)
def test_change_is_checked_against_choices_and_state(values, state, complaint):
    if complaint is None:
        check_change(values, state)
        return
    with pytest.raises(ParameterError, match=complaint):
        check_change(values, state)


def test_every_parameter_is_described(make_node):
    node = make_node()
    for info in parameter_infos():
        descriptor = node.describe_parameter(info.name)
        assert descriptor.description
        assert info.allowed() in descriptor.additional_constraints
        assert f"set {info.changes.value}" in descriptor.additional_constraints
        assert descriptor.read_only == (info.changes is Changes.AT_START)
