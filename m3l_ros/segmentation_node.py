# SPDX-License-Identifier: Apache-2.0
"""The program ``segmentation_node``: runs the node until SIGINT or SIGTERM and leaves within two seconds."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from m3l_model.allocator import keep_freed_memory
from m3l_model.errors import M3LError
from m3l_model.openmp import share_cores
from m3l_ros.availability import start_ros, without_ros_arguments
from m3l_ros.parameters import parameter_infos
from m3l_ros.transport import fastdds_environment

if TYPE_CHECKING:
    from rclpy.executors import Executor
    from rclpy.node import Node

EXIT_ERROR = 2

_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_LAST_RESORT = 1.0
_EXECUTOR_THREADS = 4
_ARENAS = 1

_TOPICS = """\
topics, relative; remap them with --ros-args -r rgb/image:=/camera/color/image_raw
  in   rgb/image, depth/image            sensor_msgs/Image (CompressedImage with rgb_transport, depth_transport)
       rgb/camera_info, depth/camera_info  optional
  out  segmentation/mask                 mono8 class ids
       segmentation/color, segmentation/overlay  rgb8
       segmentation/confidence           32FC1, 0..1
       segmentation/camera_info          of colour, with the mask's stamp
       segmentation/decision             with which depth an image was paired, or why with none
       segmentation/receipt              what was dealt with, for m3l replay --step
       segmentation/classes              names and colours as JSON, latched
       /diagnostics
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node with these arguments (the process's own by default).

    Once the node has run, the process ends here with code 0; otherwise the exit code is returned.
    """
    share_cores(os.environ)
    keep_freed_memory(_ARENAS)
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Blocked, in every thread to come, they wait for _run to ask for them: none is lost, whatever runs meanwhile.
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        _parser().parse_args(without_ros_arguments(arguments))
        os.environ.update(fastdds_environment(os.environ))
        start_ros(arguments)
        _run()
        _end_process()
    except M3LError as error:
        print(f"segmentation_node: error: {error}", file=sys.stderr)
    return EXIT_ERROR


def _run() -> None:
    """Run the node until a signal comes, unless one came while Python was still importing."""
    import rclpy

    try:
        if not signal.sigpending() & _SIGNALS:
            _spin_until_signalled()
            gc.collect()  # what is left of the node keeps its DDS participant alive, and others would go on seeing it
    finally:
        rclpy.shutdown()


def _spin_until_signalled() -> None:
    """Run the node's callbacks in threads of their own, so that this one can wait and then end things in order."""
    from rclpy.executors import MultiThreadedExecutor

    from m3l_ros.node import SegmentationNode

    node = SegmentationNode()
    executor = MultiThreadedExecutor(_EXECUTOR_THREADS)
    executor.add_node(node)
    ending = threading.Event()
    spinning = threading.Thread(target=_spin, args=(executor, node, ending), name="executor", daemon=True)
    spinning.start()
    signal.sigwait(_SIGNALS)
    _leave_within(_LAST_RESORT)
    ending.set()
    executor.shutdown(timeout_sec=0)
    spinning.join()
    node.shut_down()
    node.destroy_node()


def _spin(executor: Executor, node: Node, ending: threading.Event) -> None:
    """Spin until the executor is shut down; a callback that raises is logged and the others go on."""
    while not ending.is_set():
        try:
            executor.spin()
        except Exception as error:
            if not ending.is_set():
                node.get_logger().error(f"{type(error).__name__}: {' '.join(str(error).split())}")


def _leave_within(seconds: float) -> None:
    """End the process then, whatever it does: loading a model or one slow inference cannot be interrupted."""
    last_resort = threading.Timer(seconds, _end_process)
    last_resort.daemon = True
    last_resort.start()


def _end_process() -> NoReturn:
    """Leave without the interpreter's farewell: torch's takes longer than all the rest."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="segmentation_node",
        usage="segmentation_node [-h] [--ros-args -p checkpoint:=FILE -r rgb/image:=TOPIC ...]",
        description="ROS 2 lifecycle node that segments colour and depth images, and goes on when depth drops out.",
        epilog=f"{_TOPICS}\n{_parameter_help()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def _parameter_help() -> str:
    lines = ["parameters; set them with --ros-args -p NAME:=VALUE or --params-file FILE"]
    for info in parameter_infos():
        allowed = f" ({info.allowed()})" if info.allowed() else ""
        lines.append(f"  {info.name} = {_yaml(info.default)}")
        lines.append(f"      {info.description}{allowed}")
    return "\n".join(lines)


def _yaml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(value)}]"
    return str(value) or "''"


if __name__ == "__main__":
    sys.exit(main())
