# SPDX-License-Identifier: Apache-2.0
"""The model that comes with the package: its file, its name, and what its card says of it."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

from m3l_model.checkpoint import load_checkpoint, read_tensors
from m3l_model.labels import LabelSet
from m3l_model.metrics import confusion, miou
from m3l_model.predictor import Predictor
from m3l_model.pretrained import load_pretrained
from m3l_model.segmenter import LinearFusionSegmenter
from m3l_model.shipped import DEFAULT_MODEL, model_file

CARD = model_file(DEFAULT_MODEL).with_name("README.md")


def test_it_is_small_in_half_precision_and_tells_the_classes_of_nyu13() -> None:
    path = model_file(DEFAULT_MODEL)
    assert path.stat().st_size < 10e6
    kinds = {tensor.dtype for tensor in read_tensors(path)[0].values() if tensor.is_floating_point()}
    assert kinds == {torch.float16}
    model = load_checkpoint(path)
    assert model.backbone == "mit_b0"
    assert model.skip_missing
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.metadata is not None
    assert model.metadata.labels.classes == LabelSet.load("nyu13").classes


def test_its_name_is_for_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / DEFAULT_MODEL).write_text("something else")
    shipped = model_file(DEFAULT_MODEL)
    assert shipped.is_file()
    assert shipped.name == f"{DEFAULT_MODEL}.safetensors"
    for other in ("nyu13", f"{DEFAULT_MODEL}.safetensors", f"./{DEFAULT_MODEL}", tmp_path / "no" / "model"):
        assert model_file(other) == Path(other)


@pytest.mark.parametrize("missing", ["nothing", "rgb", "depth"])
def test_it_segments_whatever_is_there(missing: str) -> None:
    predictor = Predictor.from_checkpoint(DEFAULT_MODEL, device="cpu")
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (240, 320, 3), np.uint8)
    depth = rng.integers(500, 9000, (240, 320)).astype(np.uint16)
    prediction = predictor.predict(None if missing == "rgb" else rgb, None if missing == "depth" else depth)
    assert prediction.labels.shape == (240, 320)
    assert prediction.labels.max() < 13
    assert prediction.used == tuple(name for name in ("rgb", "depth") if name != missing)


def test_training_goes_on_from_it_by_its_name() -> None:
    shipped = load_checkpoint(model_file(DEFAULT_MODEL))
    network = LinearFusionSegmenter("mit_b0", 13, skip_missing=True)
    network.metadata = shipped.metadata
    load_pretrained(network, DEFAULT_MODEL)
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(tensor, shipped.state_dict()[name], rtol=0, atol=0)


def read(path: Path) -> npt.NDArray[np.uint8]:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    return image.astype(np.uint8)


def test_it_scores_what_its_card_says(shared_data: Path, repository: Path) -> None:
    """On the validation frames of docs/experiments.md, with both modalities and without either."""
    nyu = shared_data / "data" / "nyuv2"
    names = (repository / "experiments" / "nyuv2" / "validation.txt").read_text().split()
    labels = LabelSet.load("nyu13")
    predictor = Predictor.from_checkpoint(DEFAULT_MODEL, device="cpu", precision="fp32")
    counts = np.zeros((3, 13, 13), np.int64)
    for name in names:
        rgb = cv2.cvtColor(read(nyu / "rgb" / f"{name}.jpg"), cv2.COLOR_BGR2RGB)
        depth = np.round((read(nyu / "depth" / f"{name}.png") + 0.5) / 25.5 * 1000).astype(np.uint16)
        truth = labels.decode(read(nyu / "label40" / f"{name}.png"), name)
        for index, (colour, millimetres) in enumerate(((rgb, depth), (rgb, None), (None, depth))):
            found = predictor.predict(colour, millimetres, with_confidence=False).labels  # type: ignore[arg-type]
            counts[index] += confusion(truth, found, 13)
    row = re.search(r"^\| validation \| (\S+) \| (\S+) \| (\S+) \|", CARD.read_text(), re.MULTILINE)
    assert row
    assert [100 * float(miou(count)) for count in counts] == pytest.approx(
        [float(figure) for figure in row.groups()], abs=0.2
    )
