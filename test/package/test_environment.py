# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os


def test_ci_has_ros_so_that_no_test_of_the_node_is_skipped_there() -> None:
    if os.environ.get("CI"):
        import rclpy
        import sensor_msgs.msg

        assert rclpy.ok is not None
        assert sensor_msgs.msg.Image is not None


def test_ci_has_pycocotools_so_that_masks_are_compared_with_its_own() -> None:
    if os.environ.get("CI"):
        from pycocotools import mask

        assert mask.decode is not None


def test_ci_has_onnx_so_that_exported_files_are_run_there() -> None:
    if os.environ.get("CI"):
        import onnxruntime
        import onnxscript

        assert "CPUExecutionProvider" in onnxruntime.get_available_providers()
        assert onnxscript.__version__
