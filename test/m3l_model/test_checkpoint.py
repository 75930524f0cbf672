# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import pickle
import stat
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from m3l_model import LinearFusionSegmenter, load_checkpoint, save_checkpoint
from m3l_model.checkpoint import TRAINING_FORMAT, CheckpointError, from_reference, read_tensors, write_tensors
from m3l_model.labels import LabelSet
from m3l_model.preprocessing import Preprocessing


@pytest.fixture
def model() -> LinearFusionSegmenter:
    torch.manual_seed(3)
    return LinearFusionSegmenter("mit_b0", 6, fusion_ratio=0.7, skip_missing=True)


def assert_same_weights(a: LinearFusionSegmenter, b: LinearFusionSegmenter) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


def test_round_trip_keeps_weights_and_metadata(tmp_path: Path, model: LinearFusionSegmenter) -> None:
    labels = LabelSet("mine", tuple("abcdef"), ((1, 2, 3),) * 6, {7: 0, 8: 255})
    preprocessing = Preprocessing(120, "metric", (0.3, 6.0), mask_holes=True)
    save_checkpoint(tmp_path / "new" / "model.safetensors", model, labels, preprocessing)
    loaded = load_checkpoint(tmp_path / "new" / "model.safetensors")
    assert_same_weights(loaded, model)
    assert (loaded.backbone, loaded.num_classes, loaded.fusion_ratio) == ("mit_b0", 6, 0.7)
    assert loaded.skip_missing
    assert loaded.metadata is not None
    assert (loaded.metadata.labels, loaded.metadata.preprocessing) == (labels, preprocessing)
    assert not loaded.training
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model.safetensors"]


def test_metadata_survive_loading_and_saving_again(tmp_path: Path, model: LinearFusionSegmenter) -> None:
    save_checkpoint(tmp_path / "a", model, preprocessing=Preprocessing(64))
    save_checkpoint(tmp_path / "b", load_checkpoint(tmp_path / "a"))
    again = load_checkpoint(tmp_path / "b").metadata
    assert again is not None
    assert again.preprocessing.short_side == 64


def test_a_file_that_says_nothing_of_skipping_has_a_mask_token(
    tmp_path: Path, model: LinearFusionSegmenter
) -> None:
    save_checkpoint(tmp_path / "new", model)
    tensors, header = read_tensors(tmp_path / "new")
    del header["skip_missing"]
    save_file(tensors, tmp_path / "old", metadata=header)
    assert not load_checkpoint(tmp_path / "old").skip_missing


def test_whoever_may_read_other_files_may_read_a_model(tmp_path: Path, model: LinearFusionSegmenter) -> None:
    before = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "model.safetensors", model)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.safetensors").stat().st_mode) == 0o640


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, model: LinearFusionSegmenter) -> None:
    path, weights = tmp_path / "model.safetensors", model.state_dict()
    save_checkpoint(path, model)
    before = path.read_bytes()
    weights["decoder.classifier.bias"][0] = float("nan")
    with pytest.raises(CheckpointError, match=r"not written, since decoder\.classifier\.bias"):
        save_checkpoint(path, model)
    assert path.read_bytes() == before
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    save_file(weights, path, metadata=header)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: decoder\.classifier\.bias holds values"):
        load_checkpoint(path)


def test_a_label_set_of_another_size_is_refused(tmp_path: Path, model: LinearFusionSegmenter) -> None:
    with pytest.raises(CheckpointError, match="7 classes, the model 6"):
        save_checkpoint(tmp_path / "model", model, LabelSet.generic(7))


def reference_content(kind: str, network: dict[str, torch.Tensor]) -> object:
    other = {name: torch.zeros_like(tensor) for name, tensor in network.items()}
    both = OrderedDict(
        [("student." + k, v) for k, v in other.items()] + [("teacher." + k, v) for k, v in network.items()]
    )
    optimizer = [{"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4, "params": [0]}]}]
    return {
        "m3l": {"epoch": 3, "model_state_dict": both, "optimizer_state_dict": optimizer, "current_idx": 9},
        "bare wrapper": both,
        "teacher only": {"model_state_dict": {"teacher." + k: v for k, v in network.items()}},
        "supervised": {"iter": 300, "model_state_dict": network, "current_idx": 300},
        "bare network": network,
        "left by DDP": {"model_state_dict": {"module." + k: v for k, v in both.items()}},
    }[kind]


@pytest.mark.data
@pytest.mark.parametrize(
    "kind", ["m3l", "bare wrapper", "teacher only", "supervised", "bare network", "left by DDP"]
)
def test_reads_every_layout_of_the_reference_and_takes_the_teacher(
    tmp_path: Path, reference_network: dict[str, torch.Tensor], kind: str
) -> None:
    torch.save(reference_content(kind, reference_network), tmp_path / "model.pth")
    expected = LinearFusionSegmenter("mit_b0", 13)
    expected.load_state_dict(from_reference(reference_network))
    loaded = load_checkpoint(tmp_path / "model.pth")
    assert_same_weights(loaded, expected)
    assert loaded.metadata is not None
    assert loaded.metadata.preprocessing == Preprocessing.reference()


@pytest.mark.data
def test_reads_the_reference_s_baselines_without_mask_tokens_and_says_so(
    tmp_path: Path, reference_network: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    network = {k: v for k, v in reference_network.items() if "mask_token" not in k}
    torch.save({"model_state_dict": network}, tmp_path / "mt.pth")
    assert not load_checkpoint(tmp_path / "mt.pth").encoder.mask_token.any()
    assert "without a mask token" in caplog.text


@pytest.mark.data
def test_a_reference_file_with_a_key_missing_names_it(
    tmp_path: Path, reference_network: dict[str, torch.Tensor]
) -> None:
    network = dict(reference_network)
    del network["encoder.block2.1.mlp.fc2.module.bias"]
    torch.save({"model_state_dict": network}, tmp_path / "model.pth")
    with pytest.raises(CheckpointError, match=r"model\.pth.*stages\.1\.blocks\.1\.mlp\.fc2\.bias is missing"):
        load_checkpoint(tmp_path / "model.pth")


class RunsCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(RunsCode.target),)

    target = Path()


@pytest.mark.parametrize("form", ["torch zip", "plain pickle"])
def test_a_pickle_that_wants_code_is_refused_and_does_not_run(tmp_path: Path, form: str) -> None:
    RunsCode.target = tmp_path / "pwned"
    path = tmp_path / "evil.pth"
    if form == "torch zip":
        torch.save({"model_state_dict": RunsCode()}, path)
    else:
        path.write_bytes(pickle.dumps(RunsCode()))
    with pytest.raises(CheckpointError, match=r"evil\.pth: refused"):
        load_checkpoint(path)
    assert not RunsCode.target.exists()


def test_a_file_of_text_is_no_attack(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("checkpoint: run/x.foo\ndevice: auto\n")
    with pytest.raises(CheckpointError, match="neither an m3l safetensors file"):
        load_checkpoint(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "header",
    [
        {"labels": "{}"},
        {"labels": LabelSet.generic(4).to_json()},
        {"num_classes": "9" * 12},
        {"preprocessing": "{"},
    ],
)
def test_metadata_are_not_trusted(
    tmp_path: Path, model: LinearFusionSegmenter, header: dict[str, str]
) -> None:
    save_checkpoint(tmp_path / "whole", model)
    with safe_open(tmp_path / "whole", framework="pt") as file:
        save_file(model.state_dict(), tmp_path / "bad", metadata=file.metadata() | header)
    with pytest.raises(CheckpointError, match="bad: damaged metadata"):
        load_checkpoint(tmp_path / "bad")


def test_a_device_that_is_not_there_is_named(tmp_path: Path, model: LinearFusionSegmenter) -> None:
    save_checkpoint(tmp_path / "model", model)
    with pytest.raises(CheckpointError, match="cannot be put on 'gpu'"):
        load_checkpoint(tmp_path / "model", map_location="gpu")


def test_other_files_are_named_with_the_reason(tmp_path: Path, model: LinearFusionSegmenter) -> None:
    with pytest.raises(CheckpointError, match=r"absent\.pth: no such"):
        load_checkpoint(tmp_path / "absent.pth")
    with pytest.raises(
        CheckpointError, match=r"a folder; name the file in it, such as .*/checkpoint\.safetensors"
    ):
        load_checkpoint(tmp_path)
    write_tensors(tmp_path / "state", {"x": torch.zeros(2)}, {"format": TRAINING_FORMAT})
    with pytest.raises(CheckpointError, match=r"state: the state of a training run, .* take its checkpoint"):
        load_checkpoint(tmp_path / "state")
    (tmp_path / "text").write_text("hello, I am no checkpoint")
    (tmp_path / "empty").write_bytes(b"")
    save_file({"weight": torch.zeros(2)}, tmp_path / "foreign")
    torch.save([1, 2], tmp_path / "list")
    torch.save({"resnet.weight": torch.zeros(2)}, tmp_path / "resnet")
    save_checkpoint(tmp_path / "whole", model)
    (tmp_path / "cut").write_bytes((tmp_path / "whole").read_bytes()[:5000])
    (tmp_path / "broken.safetensors").write_bytes(b"no such thing as a header")
    for name in ("text", "empty", "foreign", "list", "resnet", "cut", "broken.safetensors"):
        with pytest.raises(CheckpointError, match=f"{name}: "):
            load_checkpoint(tmp_path / name)
