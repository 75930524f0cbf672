# SPDX-License-Identifier: Apache-2.0
"""Subcommands of ``m3l`` that need ROS 2. They can be imported, and explain themselves, without it."""
