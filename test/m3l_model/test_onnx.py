# SPDX-License-Identifier: Apache-2.0
"""An exported file computes what torch computes, and the Predictor runs it like a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from m3l_model import LinearFusionSegmenter, M3LError, Predictor, onnx_check, save_checkpoint
from m3l_model.checkpoint import Metadata
from m3l_model.cli import main
from m3l_model.labels import LabelSet
from m3l_model.mit import BACKBONES, MitConfig
from m3l_model.onnx_check import check_onnx, export_checked
from m3l_model.onnx_export import export_onnx
from m3l_model.preprocessing import Preprocessing

onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime: pip install 'm3l_ros[onnx]'")
pytest.importorskip("onnxscript", reason="needs onnxscript: pip install 'm3l_ros[onnx]'")

SIZE = (96, 128)


@pytest.fixture(scope="module")
def shallow() -> Iterator[str]:
    """A backbone of one block a stage: exporting takes time by the block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "mit_shallow", MitConfig((32, 64, 160, 256), (1, 1, 1, 1)))
        yield "mit_shallow"


def network(
    backbone: str, short_side: int | None, depth: str = "metric", skip_missing: bool = False
) -> LinearFusionSegmenter:
    torch.manual_seed(0)
    model = LinearFusionSegmenter(backbone, 5, skip_missing=skip_missing).eval()
    model.metadata = Metadata(LabelSet.generic(5), Preprocessing(short_side, depth, mask_holes=True))
    return model


class Export:
    """A network and the file that ``m3l export`` made of its checkpoint."""

    def __init__(self, folder: Path, model: LinearFusionSegmenter, *options: str) -> None:
        self.path = folder / "model.onnx"
        self.model = model
        save_checkpoint(folder / "model", model)
        arguments = ["--checkpoint", str(folder / "model"), "--out", str(self.path)]
        assert main(["export", *arguments, *options]) == 0
        self.torch = Predictor(model, "cpu", "fp32")
        self.onnx = Predictor.from_checkpoint(self.path, "cpu", threads=1)


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory, shallow: str) -> Export:
    """Scales images itself, gives labels only."""
    return Export(tmp_path_factory.mktemp("fixed"), network(shallow, 48), "--size", "96x128")


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory, shallow: str) -> Export:
    """Takes any size, gives logits too, and leaves out a missing modality's branch."""
    model = network(shallow, None, skip_missing=True)
    return Export(tmp_path_factory.mktemp("dynamic"), model, "--logits")


def states(size: tuple[int, int]) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (*size, 3), np.uint8)
    depth = rng.integers(0, 9000, size, np.uint16)
    depth[: size[0] // 2, : size[1] // 2] = 0
    return [(rgb, depth), (rgb, None), (None, depth), (rgb, depth.astype(np.float32) / 1000)]


def test_labels_of_a_fixed_size_are_torch_s(fixed: Export) -> None:
    for frame in states(SIZE):
        expected = fixed.torch.predict(*frame, with_confidence=False)
        found = fixed.onnx.predict(*frame, with_confidence=False)
        assert found.labels.dtype == np.uint8
        assert found.used == expected.used
        assert (found.labels == expected.labels).mean() > 0.995  # a grey level may be rounded otherwise


@pytest.mark.parametrize("size", [(64, 96), (75, 101)])
def test_labels_and_confidence_of_any_size_are_torch_s(dynamic: Export, size: tuple[int, int]) -> None:
    for frame in states(size):
        expected, found = dynamic.torch.predict(*frame), dynamic.onnx.predict(*frame)
        assert (found.labels == expected.labels).mean() > 0.999
        assert (dynamic.onnx.predict(*frame, with_confidence=False).labels == expected.labels).mean() > 0.999
        assert found.confidence is not None
        assert expected.confidence is not None
        np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-4)


def test_a_batch_of_any_number(dynamic: Export) -> None:
    session = onnxruntime.InferenceSession(str(dynamic.path))
    rgb, depth = states((64, 96))[3]
    assert rgb is not None
    missing = np.array([[False, False], [True, False], [False, True]])
    labels, logits = session.run(
        None, {"rgb": np.stack([rgb] * 3), "depth": np.stack([depth] * 3), "missing": missing}
    )
    assert labels.shape == (3, 64, 96)
    assert logits.shape == (3, 5, 16, 24)
    alone = dynamic.onnx.predict(None, depth, with_confidence=False).labels
    assert (labels[1] == alone).mean() > 0.999


@pytest.mark.parametrize("options", [["--size", "96x128"], []])
def test_normals_of_depth_are_part_of_the_file(tmp_path: Path, shallow: str, options: list[str]) -> None:
    export = Export(tmp_path, network(shallow, 240, "normals"), *options)
    smooth = np.add.outer(np.linspace(900, 2000, 96), np.linspace(0, 900, 128)).astype(np.uint16)
    smooth[:20, :30] = 0
    for rgb, depth in [(states(SIZE)[0][0], smooth), (None, smooth)]:
        expected = export.torch.predict(rgb, depth, with_confidence=False)
        found = export.onnx.predict(rgb, depth, with_confidence=False)
        assert len(np.unique(expected.labels)) > 1
        assert (found.labels == expected.labels).mean() > 0.99


@pytest.mark.data
def test_labels_of_real_frames_are_torch_s(dynamic: Export, shared_data: Path) -> None:
    for name in ("frame-000010", "frame-000100"):
        folder = shared_data / "data" / "redkitchen"
        bgr = cv2.imread(str(folder / f"{name}.color.jpg"))
        depth = cv2.imread(str(folder / f"{name}.depth.png"), cv2.IMREAD_UNCHANGED)
        assert bgr is not None
        assert depth is not None
        rgb = np.ascontiguousarray(bgr[..., ::-1]).astype(np.uint8)
        expected = dynamic.torch.predict(rgb, depth.astype(np.uint16), with_confidence=False)
        found = dynamic.onnx.predict(rgb, depth.astype(np.uint16), with_confidence=False)
        assert (found.labels == expected.labels).mean() > 0.999


def test_the_file_knows_its_classes_and_preprocessing(fixed: Export) -> None:
    assert fixed.onnx.labels == fixed.torch.labels
    assert fixed.onnx.preprocessing == fixed.torch.preprocessing
    assert fixed.onnx.device.type == "cpu"


def test_the_check_passes_and_names_a_file_of_another_network(fixed: Export, shallow: str) -> None:
    assert check_onnx(fixed.path, fixed.model, SIZE).agreement > 0.995
    torch.manual_seed(1)
    other = LinearFusionSegmenter(shallow, 5).eval()
    other.metadata = fixed.model.metadata
    with pytest.raises(M3LError, match=r"model\.onnx: only"):
        check_onnx(fixed.path, other, SIZE)


def test_a_file_that_fails_the_check_replaces_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, shallow: str
) -> None:
    def export(model: LinearFusionSegmenter, path: Path, *_: object) -> None:
        path.write_bytes(b"wrong")

    def check(path: Path, *_: object) -> None:
        assert path.read_bytes() == b"wrong"
        raise M3LError("model.onnx: only 50.0 % of labels are torch's")

    save_checkpoint(tmp_path / "model", network(shallow, None))
    (tmp_path / "model.onnx").write_bytes(b"of before")
    monkeypatch.setattr(onnx_check, "export_onnx", export)
    monkeypatch.setattr(onnx_check, "check_onnx", check)
    arguments = ["--checkpoint", str(tmp_path / "model"), "--out", str(tmp_path / "model.onnx")]
    assert main(["export", *arguments]) == 2
    assert "only 50.0 %" in capsys.readouterr().err
    assert (tmp_path / "model.onnx").read_bytes() == b"of before"
    assert {path.name for path in tmp_path.iterdir()} == {"model", "model.onnx"}


def test_names_other_than_onnx_and_folders_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["export", "--checkpoint", "any", "--out", str(tmp_path / "model.pt")]) == 2
    assert "ends in .onnx" in capsys.readouterr().err
    (tmp_path / "folder.onnx").mkdir()
    assert main(["export", "--checkpoint", "any", "--out", str(tmp_path / "folder.onnx")]) == 2
    assert "folder.onnx: is a folder" in capsys.readouterr().err
    (tmp_path / "file").touch()
    with pytest.raises(M3LError, match=r"file/model\.onnx: cannot write the ONNX file: "):
        export_checked(network("mit_b0", None), tmp_path / "file" / "model.onnx")


def test_what_a_file_cannot_do_is_named(fixed: Export, tmp_path: Path) -> None:
    rgb, depth = states((64, 96))[0]
    with pytest.raises(M3LError, match="takes images of 96x128, not 64x96"):
        fixed.onnx.predict(rgb, depth)
    with pytest.raises(M3LError, match="export it with --logits, or ask Predictor for labels alone"):
        fixed.onnx.predict(*states(SIZE)[0])
    with pytest.raises(M3LError, match="no such ONNX file"):
        Predictor.from_checkpoint(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"no ONNX file")
    with pytest.raises(M3LError, match=r"bad\.onnx: not a readable ONNX file"):
        Predictor.from_checkpoint(tmp_path / "bad.onnx")
    with pytest.raises(M3LError, match="no CUDA"):
        Predictor.from_checkpoint(fixed.path, "cuda")
    for precision in ("bf16", "int8"):
        with pytest.raises(M3LError, match=rf"computes in fp32, not '{precision}'; choose precision auto"):
            Predictor.from_checkpoint(fixed.path, "cpu", precision)
    with pytest.raises(M3LError, match="choose auto"):
        Predictor.from_checkpoint(fixed.path, "tpu")
    for size in ((16, 64), (64, 10_000)):
        with pytest.raises(M3LError, match=f"size {size[0]}x{size[1]}: height and width must be 32 to 8192"):
            export_onnx(fixed.model, tmp_path / "other.onnx", size)
