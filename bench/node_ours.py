# SPDX-License-Identifier: Apache-2.0
"""The segmentation node as `bench/node_overhead.py` measures it."""

from __future__ import annotations

import sys
from typing import Any

from node_meter import Meter
from node_standin import StandIn

from m3l_ros import node, pipeline, segmentation_node, worker

meter = Meter()


class MeteredStandIn(StandIn):
    """Says how long it takes."""

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        with meter.modelling():
            return super().predict(*args, **kwargs)


class MeteredWorker(worker.FrameWorker):
    """What it does for a frame is own code."""

    def __init__(self, handle: Any, *args: Any) -> None:
        super().__init__(meter.metered(handle), *args)


if __name__ == "__main__":
    meter.install()
    meter.answer()
    node.load_model = lambda parameters: MeteredStandIn(0.0)
    pipeline.FrameWorker = MeteredWorker  # type: ignore[misc, assignment]
    sys.exit(segmentation_node.main())
