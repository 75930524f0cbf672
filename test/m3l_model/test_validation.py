# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
from training_samples import small

from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.bag_writer import BagWriter
from m3l_model.labels import LabelSet
from m3l_model.recipe import load_config
from m3l_model.training import new_network
from m3l_model.validation import PANEL_HEIGHT, panels


def white_bag(path: Path, height: int, width: int) -> Path:
    """A bag of one white frame, of which every pixel has a class."""
    with BagWriter(path) as bag:
        rgb, depth = np.full((height, width, 3), 255, np.uint8), np.full((height, width), 900, np.uint16)
        bag.write_frame(1_000_000_000, "camera", rgb, depth, np.zeros((height, width), np.uint8), np.eye(3))
    return path


def test_frames_of_two_aspect_ratios_are_shown_together(tmp_path: Path) -> None:
    labels = LabelSet.generic(3)
    bags = [white_bag(tmp_path / "wide", 32, 48), white_bag(tmp_path / "square", 40, 40)]
    network = new_network(small(load_config("m3l")), labels, seed=0)
    image = panels(network, network, RgbdBagDataset(bags, labels), np.array([0, 1]), labels)
    height, wide, square = PANEL_HEIGHT, 5 * PANEL_HEIGHT * 48 // 32, 5 * PANEL_HEIGHT
    assert image.shape == (2 * height, wide, 3)
    for row, tile in ((0, wide // 5), (1, square // 5)):
        assert (image[row * height : (row + 1) * height, :tile] == 255).all()
    assert image[height:, square - tile : square].any()
    assert not image[height:, square:].any()
