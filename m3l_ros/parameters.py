# SPDX-License-Identifier: Apache-2.0
"""The node's parameters: each declared once, with default, description, allowed values and when it may change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from enum import Enum
from typing import Any, NamedTuple

from m3l_model.errors import M3LError
from m3l_model.shipped import DEFAULT_MODEL


class ParameterError(M3LError):
    """A parameter with a value that it cannot have, or not now."""


class Changes(Enum):
    """When a parameter may be set, in the words of the README's table."""

    AT_START = "at the start"  # read-only for ROS
    UNCONFIGURED = "unconfigured"  # it is read when the node is configured
    ANY_TIME = "any time"  # and it acts at once


def _parameter(
    default: Any,
    description: str,
    changes: Changes = Changes.UNCONFIGURED,
    *,
    limits: tuple[float, float] | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    metadata = {"description": description, "changes": changes, "limits": limits, "choices": choices}
    return field(default=default, metadata=metadata)


OUTPUTS = ("mask", "color", "overlay", "confidence", "camera_info")
"""Topics below segmentation/ that there are for every frame."""


@dataclass(frozen=True)
class NodeParameters:
    """What the node was told, checked."""

    checkpoint: str = _parameter(
        DEFAULT_MODEL,
        "model file, as m3l train or m3l export writes it, or nyu13_b0, which comes with the package. A configured "
        "node loads another one aside and swaps it in between two frames",
        Changes.ANY_TIME,
    )
    num_classes: int = _parameter(
        0, "classes that a model must have, for whoever reads the masks; 0: any number", limits=(0, 255)
    )
    device: str = _parameter("auto", "auto (a GPU where there is one), cpu, cuda or cuda:N")
    precision: str = _parameter(
        "auto",
        "auto (on a GPU bf16 or fp16; on a CPU bf16 where it computes with it, else fp32)",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    num_threads: int = _parameter(0, "CPU threads for inference; 0 leaves it to torch", limits=(0, 1024))
    autostart: bool = _parameter(
        True, "configure and activate at the start; false for a lifecycle manager", Changes.AT_START
    )

    rgb_transport: str = _parameter(
        "raw", "raw, or what is appended to the topic's resolved name", choices=("raw", "compressed")
    )
    depth_transport: str = _parameter(
        "raw", "as rgb_transport", choices=("raw", "compressed", "compressedDepth")
    )
    input_qos: str = _parameter(
        "auto",
        "auto: reliable where every publisher offers it, else best effort",
        choices=("auto", "reliable", "best_effort"),
    )
    input_depth: int = _parameter(5, "images a subscription keeps until they are received", limits=(1, 100))

    slop: float = _parameter(
        0.02, "greatest difference of the stamps of a pair, s", Changes.ANY_TIME, limits=(0.0, 1.0)
    )
    max_wait: float = _parameter(
        0.1, "longest wait of a colour image for its depth, s", Changes.ANY_TIME, limits=(0.0, 1.0)
    )
    depth_timeout: float = _parameter(
        0.5,
        "time without depth after which colour stops waiting for it, s",
        Changes.ANY_TIME,
        limits=(0.01, 3600.0),
    )
    queue_size: int = _parameter(30, "colour images that may wait, and depth images kept", limits=(1, 1000))
    anchor: str = _parameter(
        "rgb",
        "rgb: one mask per colour image; either: masks from depth alone too while colour is lost",
        choices=("rgb", "either"),
    )

    overload: str = _parameter(
        "newest",
        "newest: a frame that has waited 1/60 s for the model gives way to a newer one; queue: frames queue up",
        choices=("newest", "queue"),
    )
    overload_queue_size: int = _parameter(
        100, "frames that may queue up with overload: queue; beyond it they are dropped", limits=(1, 10000)
    )

    outputs: tuple[str, ...] = _parameter(
        OUTPUTS, "what is published when somebody subscribes to it", Changes.ANY_TIME, choices=OUTPUTS
    )
    overlay_opacity: float = _parameter(
        0.5, "of the classes' colours over the image", Changes.ANY_TIME, limits=(0.0, 1.0)
    )

    diagnostics_period: float = _parameter(
        1.0, "time between diagnostics, s", Changes.AT_START, limits=(0.1, 60.0)
    )
    stale_after: float = _parameter(
        3.0, "time without a colour image before STALE, s", Changes.ANY_TIME, limits=(0.1, 3600.0)
    )
    outage_warn_after: float = _parameter(
        0.0, "length of a depth outage before WARN, s", Changes.ANY_TIME, limits=(0.0, 86400.0)
    )
    outage_error_after: float = _parameter(
        0.0, "length of a depth outage before ERROR, s; 0: never", Changes.ANY_TIME, limits=(0.0, 86400.0)
    )
    frozen_warn_after: float = _parameter(
        2.0,
        "time with the same depth image under new stamps before WARN, s; 0: never, for simulators without noise",
        Changes.ANY_TIME,
        limits=(0.0, 86400.0),
    )
    latency_warn: float = _parameter(
        1.0, "latency of the slowest 5 % before WARN, s", Changes.ANY_TIME, limits=(0.001, 3600.0)
    )
    pair_ratio_warn: float = _parameter(
        0.5,
        "share of colour images with depth, while there is depth, below which WARN; 0: never",
        Changes.ANY_TIME,
        limits=(0.0, 1.0),
    )
    missing_warn: float = _parameter(
        0.02,
        "share of colour images lost between publisher and node before WARN; 1: never",
        Changes.ANY_TIME,
        limits=(0.0, 1.0),
    )
    dropped_warn: float = _parameter(
        0.0,
        "share of colour images dropped (damaged, old, model failed) before WARN; 1: never",
        Changes.ANY_TIME,
        limits=(0.0, 1.0),
    )


class ParameterInfo(NamedTuple):
    """What is known of a parameter before anybody sets it."""

    name: str
    default: Any
    description: str
    changes: Changes
    limits: tuple[float, float] | None
    choices: tuple[str, ...] | None

    def allowed(self) -> str:
        """The allowed values in words; empty where any of the type will do."""
        if self.choices:
            return ", ".join(self.choices)
        return f"{self.limits[0]:g} to {self.limits[1]:g}" if self.limits else ""

    def check(self, value: Any) -> None:
        """Refuse a value that is not one of the choices; ROS itself checks type and limits.

        Raises:
            ParameterError: it is not.
        """
        for each in value if isinstance(self.default, tuple) else (value,):
            if self.choices and each not in self.choices:
                raise ParameterError(f"parameter {self.name}: {each!r} is not one of {self.allowed()}")

    def check_change(self, state: str) -> None:
        """Refuse to change the parameter in a lifecycle state in which that would do nothing.

        Raises:
            ParameterError: it is read when the node is configured, which it is.
        """
        if self.changes is Changes.UNCONFIGURED and state != "unconfigured":
            raise ParameterError(
                f"parameter {self.name} is read when the node is configured, and it is {state}: deactivate and clean "
                "it up, then set it"
            )


def parameter_infos() -> Iterator[ParameterInfo]:
    """All parameters, in the order of their declaration."""
    for each in fields(NodeParameters):
        yield ParameterInfo(each.name, each.default, **each.metadata)


def declare_parameters(node: Any) -> None:
    """Declare every parameter on an ``rclpy.node.Node``; from then on ROS refuses what is of another type or range.

    Raises:
        ParameterError: a value given at the start has the wrong type, or is not allowed.
    """
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
    from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

    for info in parameter_infos():
        descriptor = ParameterDescriptor(
            description=info.description,
            additional_constraints="; ".join(filter(None, (info.allowed(), f"set {info.changes.value}"))),
            read_only=info.changes is Changes.AT_START,
        )
        if info.limits and isinstance(info.default, float):
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=info.limits[0], to_value=info.limits[1])
            ]
        elif info.limits:
            descriptor.integer_range = [
                IntegerRange(from_value=int(info.limits[0]), to_value=int(info.limits[1]), step=1)
            ]
        default = list(info.default) if isinstance(info.default, tuple) else info.default
        try:
            info.check(node.declare_parameter(info.name, default, descriptor).value)
        except InvalidParameterTypeException as error:
            kind = "list of strings" if isinstance(info.default, tuple) else type(info.default).__name__
            raise ParameterError(
                f"parameter {info.name} must be a {kind}, as in {default!r}: {error}"
            ) from error
        except InvalidParameterValueException as error:
            raise ParameterError(f"parameter {info.name} must be {info.allowed()}: {error}") from error


def read_parameters(node: Any) -> NodeParameters:
    """The values that the parameters have now."""
    return with_parameters(
        NodeParameters(), {info.name: node.get_parameter(info.name).value for info in parameter_infos()}
    )


def with_parameters(parameters: NodeParameters, values: Mapping[str, Any]) -> NodeParameters:
    """These parameters with some changed; names that are not the node's, such as use_sim_time, are passed over."""
    changed: dict[str, Any] = {
        info.name: tuple(values[info.name]) if isinstance(info.default, tuple) else values[info.name]
        for info in parameter_infos()
        if info.name in values
    }
    return replace(parameters, **changed)


def check_change(values: Mapping[str, Any], state: str) -> None:
    """Check values that somebody sets, whose types and ranges ROS has checked.

    Args:
        values: by the parameters' names.
        state: the node's lifecycle state.

    Raises:
        ParameterError: one is not allowed, or not in this state.
    """
    for info in parameter_infos():
        if info.name in values:
            info.check(values[info.name])
            info.check_change(state)
