# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import save_file

from m3l_model import LinearFusionSegmenter, M3LError
from m3l_model.checkpoint import CheckpointError, Metadata, save_checkpoint
from m3l_model.labels import LabelSet
from m3l_model.learner import Learner
from m3l_model.preprocessing import Preprocessing
from m3l_model.pretrained import load_pretrained
from m3l_model.recipe import load_config

DIMS, REDUCTIONS = (32, 64, 160, 256), (8, 4, 2, 1)
Weights = dict[str, torch.Tensor]


def original() -> Weights:
    """A mit_b0 as SegFormer's authors keep it, of random numbers, with its classifier."""
    torch.manual_seed(5)
    found: Weights = {}

    def add(name: str, *shape: int) -> None:
        found[f"{name}.weight"] = torch.randn(*shape)
        found[f"{name}.bias"] = torch.randn(shape[0])

    for stage, (dim, reduction) in enumerate(zip(DIMS, REDUCTIONS, strict=True), 1):
        before, side = (3, 7) if stage == 1 else (DIMS[stage - 2], 3)
        add(f"patch_embed{stage}.proj", dim, before, side, side)
        add(f"patch_embed{stage}.norm", dim)
        for block in (f"block{stage}.0", f"block{stage}.1"):
            for norm in ("norm1", "norm2"):
                add(f"{block}.{norm}", dim)
            add(f"{block}.attn.q", dim, dim)
            add(f"{block}.attn.kv", 2 * dim, dim)
            add(f"{block}.attn.proj", dim, dim)
            if reduction > 1:
                add(f"{block}.attn.sr", dim, dim, reduction, reduction)
                add(f"{block}.attn.norm", dim)
            add(f"{block}.mlp.fc1", 4 * dim, dim)
            add(f"{block}.mlp.dwconv.dwconv", 4 * dim, 1, 3, 3)
            add(f"{block}.mlp.fc2", dim, 4 * dim)
        add(f"norm{stage}", dim)
    add("head", 1000, 256)
    return found


RENAMES = (
    ("attn.q.", "attention.self.query."),
    ("attn.proj.", "attention.output.dense."),
    ("attn.sr.", "attention.self.sr."),
    ("attn.norm.", "attention.self.layer_norm."),
    ("mlp.fc", "mlp.dense"),
)


def hugging_face(weights: Weights) -> Weights:
    """The same weights as transformers keeps them."""
    found: Weights = {}
    for name, tensor in weights.items():
        kind = name.rpartition(".")[2]
        first, _, rest = name.partition(".")
        stage = first[-1]
        if first == "head":
            found[f"classifier.{kind}"] = tensor
        elif first.startswith("patch_embed"):
            part = rest.replace("norm.", "layer_norm.")
            found[f"segformer.encoder.patch_embeddings.{int(stage) - 1}.{part}"] = tensor
        elif first.startswith("norm"):
            found[f"segformer.encoder.layer_norm.{int(stage) - 1}.{kind}"] = tensor
        else:
            number, _, part = rest.partition(".")
            block = f"segformer.encoder.block.{int(stage) - 1}.{number}."
            if part.startswith("attn.kv"):
                key, value = tensor.chunk(2)
                found[f"{block}attention.self.key.{kind}"] = key.clone()
                found[f"{block}attention.self.value.{kind}"] = value.clone()
                continue
            for before, after in RENAMES:
                part = part.replace(before, after)
            part = part.replace("norm1.", "layer_norm_1.").replace("norm2.", "layer_norm_2.")
            found[block + part] = tensor
    return found


def write(path: Path, weights: Weights) -> str:
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return str(path)


def assert_loaded(network: LinearFusionSegmenter, weights: Weights) -> None:
    """Every weight of the encoder is where the network computes with it: compare with the layout's own names."""
    own = network.encoder.state_dict()
    for name, tensor in weights.items():
        if name.startswith("head"):
            continue
        first, _, rest = name.partition(".")
        stage = f"stages.{int(first[-1]) - 1}"
        kind = {"p": "patch_embed", "b": "blocks", "n": "norm"}[first[0]]
        found = own.pop(f"{stage}.{kind}.{rest}".replace("dwconv.dwconv", "dwconv"))
        assert torch.equal(found, tensor.expand_as(found)), name
    assert own.keys() == {"mask_token"}


@pytest.mark.parametrize("name", ["mit_b0.pth", "model.safetensors", "pytorch_model.bin"])
def test_all_layouts_fill_the_encoder(tmp_path: Path, name: str) -> None:
    weights = original()
    written = weights if name == "mit_b0.pth" else hugging_face(weights)
    source = write(tmp_path / name, written)
    network = LinearFusionSegmenter("mit_b0", 5)
    token = network.encoder.mask_token.clone()
    decoder = {key: tensor.clone() for key, tensor in network.decoder.state_dict().items()}
    load_pretrained(network, source if name == "mit_b0.pth" else str(tmp_path))
    assert_loaded(network, weights)
    assert torch.equal(network.encoder.mask_token, token)
    assert all(torch.equal(tensor, decoder[key]) for key, tensor in network.decoder.state_dict().items())


@pytest.mark.parametrize("make", [original, lambda: hugging_face(original())])
def test_every_key_is_accounted_for(tmp_path: Path, make: object) -> None:
    weights: Weights = make()  # type: ignore[operator]
    for name in [key for key in weights if not key.startswith(("head", "classifier"))][::7]:
        fewer = {key: tensor for key, tensor in weights.items() if key != name}
        with pytest.raises(CheckpointError, match=r"(is missing|is not of a MiT|is \(|and \d+ more)"):
            load_pretrained(LinearFusionSegmenter("mit_b0", 5), write(tmp_path / "some.safetensors", fewer))
    more = {**weights, "decode_head.linear.weight": torch.zeros(3)}
    with pytest.raises(CheckpointError, match=r"decode_head\.linear\.weight is not of a MiT"):
        load_pretrained(LinearFusionSegmenter("mit_b0", 5), write(tmp_path / "more.safetensors", more))


def test_another_backbone_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "mit_b0.pth", original())
    with pytest.raises(CheckpointError, match=r"mit_b0\.pth: does not fit the encoder of mit_b1: .* more"):
        load_pretrained(LinearFusionSegmenter("mit_b1", 5), source)


def test_what_is_no_weights_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = LinearFusionSegmenter("mit_b0", 5)
    (tmp_path / "text.pth").write_text("no weights")
    (tmp_path / "empty").mkdir()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for source, message in (
        (str(tmp_path / "nowhere.pth"), r"no such file; give a model, MiT weights"),
        (str(tmp_path / "text.pth"), r"text\.pth: not a file of PyTorch weights"),
        (
            str(tmp_path / "empty"),
            r"holds neither model\.safetensors nor pytorch_model\.bin; .* name checkpoint\.safetensors",
        ),
        ("nvidia/mit-b0", r"nvidia/mit-b0: .* pip install huggingface_hub"),
    ):
        with pytest.raises(M3LError, match=message):
            load_pretrained(network, source)


def new(
    classes: int, seed: int, depth_range: tuple[float, float] = (0.0, 10.0), short_side: int | None = 96
) -> LinearFusionSegmenter:
    torch.manual_seed(seed)
    network = LinearFusionSegmenter("mit_b0", classes)
    network.metadata = Metadata(LabelSet.generic(classes), Preprocessing(short_side, depth_range=depth_range))
    return network


@pytest.mark.parametrize("classes", [5, 7])
def test_a_model_of_ours_gives_all_that_fits(tmp_path: Path, classes: int) -> None:
    trained, network = new(5, 1), new(classes, 2)
    with torch.no_grad():
        trained.alpha.fill_(0.3)
        trained.state_dict()["decoder.bn.running_mean"].fill_(0.7)
    save_checkpoint(tmp_path / "model.safetensors", trained)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    load_pretrained(network, str(tmp_path / "model.safetensors"))
    source = trained.state_dict()
    for name, tensor in network.state_dict().items():
        kept = classes == 7 and name.startswith("decoder.classifier.")
        assert torch.equal(tensor, (before if kept else source)[name]), name


def test_a_model_of_colour_alone_leaves_the_depth_branch_its_share(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = new(5, 1)
    Learner(load_config("rgb_supervised"), trained, Fabric(accelerator="cpu", devices=1))
    save_checkpoint(tmp_path / "model.safetensors", trained)
    network = new(5, 2)
    with caplog.at_level(logging.WARNING):
        load_pretrained(network, str(tmp_path / "model.safetensors"))
    assert network.alpha.tolist() == [1, 1]
    assert "taken all but alpha, since it is a model of colour alone" in caplog.text
    assert torch.equal(network.decoder.fuse.weight, trained.decoder.fuse.weight)


def test_a_model_that_saw_depth_in_another_way_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_checkpoint(tmp_path / "model.safetensors", new(5, 1, (0.0, 6.0)))
    with caplog.at_level(logging.WARNING):
        load_pretrained(new(5, 2), str(tmp_path / "model.safetensors"))
    assert "learnt depth as metric (0.0, 6.0), now it is metric (0.0, 10.0)" in caplog.text
    assert "skip_missing" not in caplog.text
    assert "short_side" not in caplog.text


@pytest.mark.parametrize(("size", "learnt"), [(120, "short_side 120"), (None, "the images' own size")])
def test_a_model_of_another_size_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, size: int | None, learnt: str
) -> None:
    save_checkpoint(tmp_path / "model.safetensors", new(5, 1, short_side=size))
    with caplog.at_level(logging.WARNING):
        load_pretrained(new(5, 2), str(tmp_path / "model.safetensors"))
    assert f"learnt at {learnt}, now it is short_side 96" in caplog.text
    assert "learnt depth" not in caplog.text


def test_a_model_that_did_otherwise_about_what_is_missing_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trained = new(5, 1)
    trained.skip_missing = True
    save_checkpoint(tmp_path / "model.safetensors", trained)
    with caplog.at_level(logging.WARNING):
        load_pretrained(new(5, 2), str(tmp_path / "model.safetensors"))
    assert "learnt to leave out what is missing, now skip_missing is False" in caplog.text


def test_a_model_of_another_backbone_is_refused(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "model.safetensors", new(5, 1))
    network = LinearFusionSegmenter("mit_b1", 5)
    network.metadata = Metadata(LabelSet.generic(5))
    with pytest.raises(CheckpointError, match=r"is a mit_b0, to be trained is a mit_b1; .*--backbone mit_b0"):
        load_pretrained(network, str(tmp_path / "model.safetensors"))
