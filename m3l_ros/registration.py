# SPDX-License-Identifier: Apache-2.0
"""Tells whether depth images are registered to the colour images; the rule is that of ``m3l info``."""

from __future__ import annotations

from m3l_model.registration import CameraInfo, registration_problem

__all__ = ["CameraInfo", "registration_problem"]
