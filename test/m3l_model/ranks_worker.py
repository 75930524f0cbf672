# SPDX-License-Identifier: Apache-2.0
"""Five steps of a recipe, in one of some processes; prints losses as JSON.

torchrun --nproc-per-node 2 test/m3l_model/ranks_worker.py m3l 64-true
"""

from __future__ import annotations

import json
import os
import sys

import torch
from lightning_fabric import Fabric
from training_samples import batches, small

from m3l_model import ranks
from m3l_model.labels import LabelSet
from m3l_model.learner import Learner
from m3l_model.recipe import load_config
from m3l_model.training import learn, new_network


def main() -> None:
    """Run."""
    recipe, precision = sys.argv[1:]
    torch.set_num_threads(1)
    torch.manual_seed(0)
    processes = int(os.environ["LOCAL_WORLD_SIZE"])
    fabric = Fabric(accelerator="cpu", strategy="ddp", devices=processes, precision=precision)  # type: ignore[arg-type]
    fabric.launch()
    config = small(
        load_config(recipe), steps=5, labelled_batch=4, unlabelled_batch=4, ohem_share=0.9, learning_rate=1e-4
    )
    network = new_network(config, LabelSet.generic(3), seed=0)
    if precision == "64-true":
        network.double()
        torch.set_default_dtype(torch.float64)
    learner = Learner(config, network, fabric)
    frames = batches(config, 0, 16, 8, fabric.global_rank, fabric.world_size)
    losses = []
    for result, _ in learn(learner, frames, 0, 0, fabric):
        losses += [result.loss_supervised, result.loss_pseudo]
    bn = learner.network.decoder.bn
    assert bn.running_mean is not None
    assert bn.running_var is not None
    found = {
        "ranks": ranks.count(),
        "losses": losses,
        "running_mean": bn.running_mean.tolist(),
        "running_var": bn.running_var.tolist(),
    }
    if fabric.is_global_zero:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
