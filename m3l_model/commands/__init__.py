# SPDX-License-Identifier: Apache-2.0
"""The subcommands of ``m3l`` that need no ROS, a module each; ``m3l_model.cli`` says what such a module has."""
