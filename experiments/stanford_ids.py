# SPDX-License-Identifier: Apache-2.0
"""Prepare Stanford 2D-3D-S for `m3l import-images` (docs/published.md): label images of class ids, and lists of frames.

    python experiments/stanford_ids.py 2D-3D-S

Pixels of area_*/data/semantic/*_semantic.png are 24-bit numbers of instances, whose names, such as chair_3_office_1_1,
are in assets/semantic_labels.json. Ids of config/labels/stanford13.yaml go to area_*/data/ids/*_ids.png, and the names
of the frames to train.txt (areas 1, 2, 4 and 6), val.txt (3) and test.txt (5a and 5b), as in the reference's lists.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m3l_model.errors import M3LError
from m3l_model.labels import IGNORE_ID, LabelSet

PARTS = {"area_3": "val", "area_5a": "test", "area_5b": "test"}
"""Of the areas that are not trained on."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Write ids and lists."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of the data set, with assets/ and area_1/ to area_6/")
    folder: Path = parser.parse_args(arguments).folder
    try:
        prepare(folder)
    except (M3LError, OSError, json.JSONDecodeError) as error:
        sys.exit(f"error: {error}")
    return 0


def prepare(folder: Path) -> None:
    """Write the label images and lists.

    Raises:
        M3LError: there are no label images, or one cannot be read.
        OSError: the names cannot be read, or something cannot be written.
        json.JSONDecodeError: the names are no JSON.
    """
    ids = instance_ids(json.loads((folder / "assets" / "semantic_labels.json").read_text()))
    found = sorted(folder.glob("area_*/data/semantic/*_semantic.png"))
    if not found:
        raise M3LError(f"{folder}: no area_*/data/semantic/*_semantic.png; give the folder of the data set")
    names: dict[str, list[str]] = {"train": [], "val": [], "test": []}
    for path in tqdm(found):
        bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if bgr is None:
            raise M3LError(f"{path}: no such image")
        name, area = path.stem.removesuffix("_semantic"), path.parents[2].name
        out = path.parents[1] / "ids" / f"{name}_ids.png"
        out.parent.mkdir(exist_ok=True)
        if not cv2.imwrite(str(out), class_ids(np.asarray(bgr, np.uint8), ids)):
            raise OSError(f"{out}: cannot be written")
        names[PARTS.get(area, "train")].append(name)
    for part, listed in names.items():
        (folder / f"{part}.txt").write_text("".join(f"{name}\n" for name in listed))


def instance_ids(names: Sequence[str]) -> npt.NDArray[np.uint8]:
    """Give each instance the id of its class, (N,); ``IGNORE_ID`` where it has none, such as ``<UNK>``."""
    classes = LabelSet.load("stanford13").classes
    kinds = [name.split("_")[0] for name in names]
    return np.array([classes.index(kind) if kind in classes else IGNORE_ID for kind in kinds], np.uint8)


def class_ids(bgr_HW3: npt.NDArray[np.uint8], ids: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Turn the numbers of instances into ids, (H, W); what is no instance's, such as 0x0D0D0D for no data, is void."""
    blue, green, red = np.moveaxis(bgr_HW3.astype(np.uint32), 2, 0)
    numbers = red << 16 | green << 8 | blue
    known = numbers < len(ids)
    return np.where(known, ids[np.where(known, numbers, 0)], IGNORE_ID).astype(np.uint8)


if __name__ == "__main__":
    sys.exit(main())
