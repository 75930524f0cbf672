# SPDX-License-Identifier: Apache-2.0
"""Start from the weights of a model of ours, or of a MiT trained on ImageNet.

Those are SegFormer's own files, or Hugging Face's ``nvidia/mit-b0`` to ``b5``. Every key of the file is used or known
to be of the classifier that is left out, and every encoder weight is found.
"""

from __future__ import annotations

import logging
import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from m3l_model.checkpoint import FORMAT, CheckpointError, is_pickle, load_checkpoint, misfit, read_tensors
from m3l_model.errors import M3LError
from m3l_model.mit import MODALITIES, ModalityLayerNorm
from m3l_model.segmenter import RGB_ALONE, LinearFusionSegmenter
from m3l_model.shipped import model_file

_logger = logging.getLogger(__name__)

HUB_FILES = ("model.safetensors", "pytorch_model.bin")

_ORIGINAL = (
    (r"^patch_embed(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.patch_embed."),
    (r"^block(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.blocks."),
    (r"^norm(\d)\.", lambda m: f"stages.{int(m[1]) - 1}.norm."),
    (r"\.dwconv\.dwconv\.", r".dwconv."),
)
_HUGGING_FACE = (
    (r"(?:segformer\.)?encoder\.", r""),
    (r"patch_embeddings\.(\d)\.layer_norm\.", r"stages.\1.patch_embed.norm."),
    (r"patch_embeddings\.(\d)\.proj\.", r"stages.\1.patch_embed.proj."),
    (r"^block\.(\d)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"^layer_norm\.(\d)\.", r"stages.\1.norm."),
    (r"\.layer_norm_([12])\.", r".norm\1."),
    (r"\.attention\.self\.query\.", r".attn.q."),
    (r"\.attention\.self\.sr\.", r".attn.sr."),
    (r"\.attention\.self\.layer_norm\.", r".attn.norm."),
    (r"\.attention\.output\.dense\.", r".attn.proj."),
    (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
    (r"\.dwconv\.dwconv\.", r".dwconv."),
)
_CLASSIFIER = re.compile(r"(head|classifier)\.(weight|bias)")
_KEY = re.compile(r"(.*\.attention\.self)\.key\.(weight|bias)")


def load_pretrained(network: LinearFusionSegmenter, source: str) -> None:
    """Put a trained model's weights into a network, or ImageNet's into its encoder.

    Of a model as ``save_checkpoint`` writes it everything is taken, but the classifier where its classes are not the
    network's, and ``alpha`` where it is a model of colour alone. ImageNet's LayerNorms go to both modalities.

    Args:
        network: its backbone must be that of the weights; with metadata.
        source: a file (``.safetensors``, ``.pth``, ``.bin``), a folder as Hugging Face keeps them, or a name there.

    Raises:
        M3LError: there is no such file, it is neither a model of ours nor a MiT, or one of another size.
    """
    path = _find(source)
    if path.suffix == ".safetensors" and read_tensors(path)[1].get("format") == FORMAT:
        _take_model(network, path)
    else:
        _take_imagenet(network, path)


def _take_model(network: LinearFusionSegmenter, path: Path) -> None:
    model = load_checkpoint(path, classes_needed=False)
    assert model.metadata
    assert network.metadata
    if model.backbone != network.backbone:
        raise CheckpointError(
            f"{path}: is a {model.backbone}, to be trained is a {network.backbone}; choose --backbone {model.backbone}"
        )
    learnt, now = (
        f"{preprocessing.depth_encoding} {preprocessing.depth_range}"
        for preprocessing in (model.metadata.preprocessing, network.metadata.preprocessing)
    )
    if learnt != now:
        _logger.warning("%s: learnt depth as %s, now it is %s", path, learnt, now)
    learnt, now = (
        "the images' own size"
        if preprocessing.short_side is None
        else f"short_side {preprocessing.short_side}"
        for preprocessing in (model.metadata.preprocessing, network.metadata.preprocessing)
    )
    if learnt != now:
        _logger.warning("%s: learnt at %s, now it is %s", path, learnt, now)
    if model.skip_missing != network.skip_missing:
        learnt = (
            "leave out what is missing" if model.skip_missing else "put the mask token for what is missing"
        )
        _logger.warning("%s: learnt to %s, now skip_missing is %s", path, learnt, network.skip_missing)
    tensors = model.state_dict()
    fresh, kept = network.state_dict(), []
    if model.metadata.labels.classes != network.metadata.labels.classes:
        tensors |= {name: fresh[name] for name in tensors if name.startswith("decoder.classifier.")}
        kept.append("the classifier, whose classes are others")
    if tuple(model.alpha.tolist()) == RGB_ALONE:
        tensors["alpha"] = fresh["alpha"]
        kept.append("alpha, since it is a model of colour alone")
    network.load_state_dict(tensors)
    if kept:
        _logger.warning("%s: taken all but %s", path, " and ".join(kept))


def _take_imagenet(network: LinearFusionSegmenter, path: Path) -> None:
    tensors = _as_own(_read(path), path)
    expected = network.encoder.state_dict()
    del expected["mask_token"]
    norms = {
        f"{name}.{kind}"
        for name, module in network.encoder.named_modules()
        if isinstance(module, ModalityLayerNorm)
        for kind in ("weight", "bias")
    }
    for name in tensors.keys() & norms:
        tensors[name] = tensors[name].expand(len(MODALITIES), -1)
    if problem := misfit(tensors, expected, "a MiT"):
        raise CheckpointError(f"{path}: does not fit the encoder of {network.backbone}: {problem}")
    network.encoder.load_state_dict({**tensors, "mask_token": network.encoder.mask_token})
    _logger.warning("%s: taken all %d weights of the encoder; the decoder starts anew", path, len(expected))


def _find(source: str) -> Path:
    path = model_file(source)
    if path.is_dir():
        for name in HUB_FILES:
            if (path / name).is_file():
                return path / name
        raise M3LError(
            f"{path}: holds neither {' nor '.join(HUB_FILES)}; of a run of m3l train name checkpoint.safetensors in it"
        )
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or path.suffix in (".pth", ".bin", ".safetensors"):
        raise M3LError(f"{source}: no such file; give a model, MiT weights, or a name such as nvidia/mit-b0")
    return _download(source)


def _download(name: str) -> Path:
    """Fetch weights by name.

    Raises:
        M3LError: huggingface_hub is not installed, or there is no such model, or no network.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError
    except ImportError as error:
        raise M3LError(
            f"{name}: no such file here, and fetching it needs huggingface_hub: pip install huggingface_hub, or give "
            "a file"
        ) from error
    try:
        try:
            return Path(hf_hub_download(name, HUB_FILES[0]))
        except EntryNotFoundError:
            return Path(hf_hub_download(name, HUB_FILES[1]))
    except Exception as error:  # it raises what its transport raises
        raise M3LError(f"{name}: cannot be fetched: {' '.join(str(error).split())}; give a file") from error


def _read(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        with path.open("rb") as file:
            if not is_pickle(file.read(1)):
                raise ValueError("another format")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused: it holds more than tensors and could run code") from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: not a file of PyTorch weights") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(x, Tensor) for x in content.values()):
        raise CheckpointError(f"{path}: holds no plain weights")
    return {str(name): tensor for name, tensor in content.items()}


def _as_own(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Rename a file's tensors to those of our encoder, without the classifier."""
    hugging_face = any(".attention.self." in name for name in tensors)
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        key = _KEY.fullmatch(name)
        if _CLASSIFIER.fullmatch(name) or (not key and ".attention.self.value." in name):
            continue
        if key:
            value = tensors.get(f"{key[1]}.value.{key[2]}")
            if value is None:
                raise CheckpointError(f"{path}: {key[1]}.value.{key[2]} is missing")
            tensor = torch.cat((tensor, value))
            name = f"{key[1]}.kv.{key[2]}"
        for pattern, replacement in _HUGGING_FACE if hugging_face else _ORIGINAL:
            name = re.sub(pattern, replacement, name)
        renamed[name.replace(".attention.self.kv.", ".attn.kv.")] = tensor.float()
    return renamed
