# SPDX-License-Identifier: Apache-2.0
"""Everything of the package that speaks ROS 2: the segmentation node and the replay of bags."""
