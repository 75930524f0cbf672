# SPDX-License-Identifier: Apache-2.0
"""The node's parameters: each declared once, with default, description and allowed values, and read into one object."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from m3l_model.errors import M3LError


class ParameterError(M3LError):
    """A parameter with a value that it cannot have."""


def _parameter(
    default: Any,
    description: str,
    *,
    limits: tuple[float, float] | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    return field(default=default, metadata={"description": description, "limits": limits, "choices": choices})


@dataclass(frozen=True)
class NodeParameters:
    """What the node was told, checked. They are read when the node is configured."""

    checkpoint: str = _parameter(
        "", "model file, as m3l train writes it; without one the node stays unconfigured"
    )
    device: str = _parameter("auto", "auto (a GPU where there is one), cpu, cuda or cuda:N")
    precision: str = _parameter(
        "auto", "auto (bf16 or fp16 on a GPU, fp32 on the CPU)", choices=("auto", "fp32", "bf16", "fp16")
    )
    num_threads: int = _parameter(0, "CPU threads for inference; 0 leaves it to torch", limits=(0, 1024))
    autostart: bool = _parameter(True, "configure and activate at the start; false for a lifecycle manager")

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

    slop: float = _parameter(0.02, "greatest difference of the stamps of a pair, s", limits=(0.0, 1.0))
    max_wait: float = _parameter(0.1, "longest wait of a colour image for its depth, s", limits=(0.0, 1.0))
    depth_timeout: float = _parameter(
        0.5, "time without depth after which colour stops waiting for it, s", limits=(0.01, 3600.0)
    )
    queue_size: int = _parameter(30, "colour images that may wait, and depth images kept", limits=(1, 1000))
    anchor: str = _parameter(
        "rgb",
        "rgb: one mask per colour image; either: masks from depth alone too while colour is lost",
        choices=("rgb", "either"),
    )

    overload: str = _parameter(
        "newest",
        "newest: frames that come while one is segmented replace one another; queue: they queue up",
        choices=("newest", "queue"),
    )
    overload_queue_size: int = _parameter(
        100, "frames that may queue up with overload: queue; beyond it they are dropped", limits=(1, 10000)
    )

    overlay_opacity: float = _parameter(0.5, "of the classes' colours over the image", limits=(0.0, 1.0))
    diagnostics_period: float = _parameter(1.0, "time between diagnostics, s", limits=(0.1, 60.0))


class ParameterInfo(NamedTuple):
    """What is known of a parameter before anybody sets it."""

    name: str
    default: Any
    description: str
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
        if self.choices and value not in self.choices:
            raise ParameterError(f"parameter {self.name}: {value!r} is not one of {self.allowed()}")


def parameter_infos() -> Iterator[ParameterInfo]:
    """All parameters, in the order of their declaration."""
    for each in fields(NodeParameters):
        yield ParameterInfo(each.name, each.default, **each.metadata)


def declare_parameters(node: Any) -> None:
    """Declare every parameter on an ``rclpy.node.Node``; from then on the node refuses values that are not allowed.

    Raises:
        ParameterError: a value given at the start has the wrong type, or is not allowed.
    """
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
    from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

    for info in parameter_infos():
        descriptor = ParameterDescriptor(description=info.description, additional_constraints=info.allowed())
        if info.limits and isinstance(info.default, float):
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=info.limits[0], to_value=info.limits[1])
            ]
        elif info.limits:
            descriptor.integer_range = [
                IntegerRange(from_value=int(info.limits[0]), to_value=int(info.limits[1]), step=1)
            ]
        try:
            info.check(node.declare_parameter(info.name, info.default, descriptor).value)
        except InvalidParameterTypeException as error:
            kind = type(info.default).__name__
            raise ParameterError(
                f"parameter {info.name} must be a {kind}, as in {info.default!r}: {error}"
            ) from error
        except InvalidParameterValueException as error:
            raise ParameterError(f"parameter {info.name} must be {info.allowed()}: {error}") from error
    node.add_on_set_parameters_callback(_refuse_wrong_choices())


def read_parameters(node: Any) -> NodeParameters:
    """The values that the parameters have now."""
    return NodeParameters(**{info.name: node.get_parameter(info.name).value for info in parameter_infos()})


def _refuse_wrong_choices() -> Callable[[Sequence[Any]], Any]:
    from rcl_interfaces.msg import SetParametersResult

    infos = {info.name: info for info in parameter_infos()}

    def on_set(parameters: Sequence[Any]) -> Any:
        for parameter in parameters:
            try:
                if parameter.name in infos:
                    infos[parameter.name].check(parameter.value)
            except ParameterError as error:
                return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    return on_set
