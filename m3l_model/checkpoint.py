# SPDX-License-Identifier: Apache-2.0
"""Read and write models: our safetensors files with their metadata, and the reference implementation's checkpoints.

Nothing is ever unpickled beyond tensors and plain containers: reference files are read with ``weights_only=True``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from m3l_model.errors import M3LError
from m3l_model.labels import CHANNELS, LabelSet
from m3l_model.mit import BACKBONES
from m3l_model.preprocessing import Preprocessing
from m3l_model.segmenter import LinearFusionSegmenter

_logger = logging.getLogger(__name__)

FORMAT = "m3l"
FORMAT_VERSION = "1"
TRAINING_FORMAT = "m3l-training"

_UNREADABLE = (
    *(RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError),
    *(zipfile.BadZipFile, SafetensorError),
)
"""What torch raises for files that are none of its own; it takes those named .safetensors for such."""

_UNKNOWN_FILE = "neither an m3l safetensors file nor a PyTorch checkpoint"


class CheckpointError(M3LError):
    """A checkpoint that cannot be read or written; the message names the file."""


@dataclass(frozen=True)
class Metadata:
    """What a checkpoint says beside its weights."""

    labels: LabelSet
    preprocessing: Preprocessing = field(default_factory=Preprocessing)


def save_checkpoint(
    path: str | Path,
    model: LinearFusionSegmenter,
    labels: LabelSet | None = None,
    preprocessing: Preprocessing | None = None,
) -> None:
    """Write a model as safetensors with metadata: backbone, fusion ratio, classes, colours, preprocessing.

    Args:
        path: file to write; it is replaced whole or not at all.
        model: the network; its own metadata fill in what is not given.
        labels: names and colours of the classes.
        preprocessing: what was done to the images it was trained on.

    Raises:
        CheckpointError: the label set has another number of classes than the model, or the file cannot be written.
    """
    path = Path(path)
    known = model.metadata or Metadata(LabelSet.generic(model.num_classes))
    labels = labels or known.labels
    preprocessing = preprocessing or known.preprocessing
    if len(labels.classes) != model.num_classes:
        raise CheckpointError(
            f"{path}: label set {labels.name!r} has {len(labels.classes)} classes, the model {model.num_classes}"
        )
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "backbone": model.backbone,
        "num_classes": str(model.num_classes),
        "fusion_ratio": repr(model.fusion_ratio),
        "skip_missing": json.dumps(model.skip_missing),
        "labels": labels.to_json(),
        "preprocessing": json.dumps(asdict(preprocessing)),
    }
    write_tensors(path, model.state_dict(), header)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    """Write a safetensors file whole or not at all: what was there stays until the new file is on the disk.

    Raises:
        CheckpointError: it cannot be written, or a tensor holds what is no finite number.
    """
    if name := not_finite(tensors):
        raise CheckpointError(
            f"{path}: not written, since {name} has come to hold values that are not finite; make learning_rate smaller"
        )
    contiguous = {name: tensor.detach().contiguous().cpu() for name, tensor in tensors.items()}
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.touch()
        mode = partial.stat().st_mode  # as the umask says; safetensors leaves the file to its owner alone
        save_file(contiguous, partial, metadata=header)
        partial.chmod(mode)
        _flush(partial)
        partial.replace(path)
        _flush(path.parent)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise CheckpointError(f"{path}: cannot write the checkpoint: {_line(error)}") from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file: its tensors and its header.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a mapping
            return tensors, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error


def _flush(path: Path) -> None:
    """Have the disk keep a file, or a folder's entries, before anything else is done."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_metadata(path: str | Path) -> Metadata | None:
    """Read what a checkpoint says of itself without reading its weights; None for the reference's, which say nothing.

    Raises:
        CheckpointError: the file is missing, not a checkpoint, or not one of this m3l.
    """
    path = Path(path)
    begin = _beginning(path)
    if _is_safetensors(begin):
        return _read_header(path).metadata
    if not is_pickle(begin):
        raise CheckpointError(f"{path}: {_UNKNOWN_FILE}")
    return None


def load_checkpoint(
    path: str | Path, map_location: str | torch.device = "cpu", classes_needed: bool = True
) -> LinearFusionSegmenter:
    """Read a model, in eval mode, with its ``metadata`` set.

    Reads our safetensors files and the reference implementation's (``.pth``; the teacher where there is one). Those
    carry no metadata: backbone and classes are read off the weights, the preprocessing is the reference's (depth
    scaled by each image's own minimum and maximum, full resolution) and the classes get generic names.

    Args:
        path: the file.
        map_location: device the weights are put on.
        classes_needed: refuse a model that was pretrained without labels and tells no classes yet.

    Raises:
        CheckpointError: the file is missing, unreadable, wants to run code, does not hold this network, or is refused.
    """
    path = Path(path)
    model = _load_own(path) if _is_safetensors(_beginning(path)) else _load_reference(path)
    if classes_needed and model.metadata and model.metadata.labels == CHANNELS:
        raise CheckpointError(
            f"{path}: was pretrained without labels and tells no classes yet; train it with m3l train --pretrained"
        )
    try:
        return model.to(map_location).eval()
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"{path}: cannot be put on {str(map_location)!r}: {_line(error)}") from error


def from_reference(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the reference's state dict to ours, stacking each LayerNorm's two modalities.

    Args:
        tensors: reference names without ``student.`` or ``teacher.``; the mask tokens of stages 2 to 4, which the
            reference never uses, are left out.

    Returns:
        A state dict of ``LinearFusionSegmenter``.

    Raises:
        KeyError: a LayerNorm lacks one of its two modalities.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if re.fullmatch(r"encoder\.patch_embed[234]\.mask_token", name) or ".ln_1." in name:
            continue
        if ".ln_0." in name:
            tensor = torch.stack((tensor, tensors[name.replace(".ln_0.", ".ln_1.")]))
        renamed[reference_to_own_name(name)] = tensor
    return renamed


_RENAMES = (
    (r"encoder\.patch_embed1\.mask_token", r"encoder.mask_token"),
    (r"encoder\.patch_embed(\d)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.patch_embed."),
    (r"encoder\.block(\d)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.blocks."),
    (r"encoder\.norm(\d)\.", lambda m: f"encoder.stages.{int(m[1]) - 1}.norm."),
    (r"decoder\.linear_c(\d)\.proj\.", lambda m: f"decoder.linears.{int(m[1]) - 1}."),
    (r"decoder\.linear_fuse\.conv\.", r"decoder.fuse."),
    (r"decoder\.linear_fuse\.bn\.", r"decoder.bn."),
    (r"decoder\.linear_pred\.", r"decoder.classifier."),
    (r"\.dwconv\.dwconv\.", r".dwconv."),
    (r"\.module\.", r"."),
    (r"\.ln_[01]\.", r"."),
)


def reference_to_own_name(name: str) -> str:
    """Give the name in our state dict of the reference's entry ``name`` (without ``student.`` or ``teacher.``)."""
    for pattern, replacement in _RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _beginning(path: Path) -> bytes:
    """Read a file's first bytes, which tell what it is."""
    try:
        if path.is_file():
            with path.open("rb") as file:
                return file.read(9)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if path.is_dir():
        raise CheckpointError(
            f"{path}: a folder; name the file in it, such as {path / 'checkpoint.safetensors'}"
        )
    raise CheckpointError(f"{path}: no such checkpoint file")


def is_pickle(begin: bytes) -> bool:
    """Tell by content: torch writes a zip archive or, formerly, a pickle of protocol 2 or later."""
    return begin[:1] in (b"P", b"\x80")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _is_safetensors(begin: bytes) -> bool:
    """Tell by content: a safetensors file opens with a header length and a JSON object."""
    return begin[8:] == b"{"


class _Header(NamedTuple):
    metadata: Metadata
    backbone: str
    num_classes: int
    fusion_ratio: float
    skip_missing: bool


def _load_own(path: Path) -> LinearFusionSegmenter:
    header = _read_header(path)
    try:
        model = LinearFusionSegmenter(
            header.backbone, header.num_classes, header.fusion_ratio, header.skip_missing
        )
    except (ValueError, M3LError) as error:
        raise _damaged(path, error) from error
    _load_weights(model, read_tensors(path)[0], path)
    model.metadata = header.metadata
    return model


def _read_header(path: Path) -> _Header:
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from error
    if header.get("format") == TRAINING_FORMAT:
        raise CheckpointError(
            f"{path}: the state of a training run, to go on from with --resume; take its checkpoint.safetensors"
        )
    if header.get("format") != FORMAT:
        raise CheckpointError(f"{path}: a safetensors file, but not one of m3l; train one with `m3l train`")
    if header.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {header.get('format_version')}, this m3l reads {FORMAT_VERSION}"
        )
    try:
        labels = LabelSet.from_json(header["labels"])
        preprocessing = Preprocessing(**json.loads(header["preprocessing"]))
        num_classes = int(header["num_classes"])
        if num_classes != len(labels.classes):
            raise ValueError(f"{len(labels.classes)} class names for {num_classes} classes")
        return _Header(
            Metadata(labels, preprocessing),
            header["backbone"],
            num_classes,
            float(header["fusion_ratio"]),
            _flag(header.get("skip_missing", "false")),
        )
    except (KeyError, TypeError, ValueError, M3LError) as error:
        raise _damaged(path, error) from error


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError(f"{text!r} is neither true nor false")
    return text == "true"


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: not a readable safetensors file ({error}); copy it again")


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path}: damaged metadata ({_line(error)}); train or export it again")


def _load_reference(path: Path) -> LinearFusionSegmenter:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if not is_pickle(_beginning(path)):
            raise CheckpointError(f"{path}: {_UNKNOWN_FILE}") from error
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise CheckpointError(
            f"{path}: refused: it holds more than tensors{what} and could run code"
        ) from error
    except _UNREADABLE as error:
        raise CheckpointError(f"{path}: {_UNKNOWN_FILE}") from error
    tensors = _teacher_tensors(content, path)
    backbone, num_classes = _identify(tensors, path)
    model = LinearFusionSegmenter(backbone, num_classes)
    try:
        renamed = from_reference(tensors)
    except KeyError as error:
        raise CheckpointError(f"{path}: {error.args[0]} is missing") from error
    if "encoder.mask_token" not in renamed:
        _logger.warning(
            "%s: trained without a mask token; zeros stand in for it where a modality is missing", path
        )
        renamed["encoder.mask_token"] = torch.zeros_like(model.encoder.mask_token)
    _load_weights(model, renamed, path)
    model.metadata = Metadata(LabelSet.generic(num_classes), Preprocessing.reference())
    return model


def _teacher_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Find the teacher's tensors, or the only network's, in what a reference file holds."""
    if isinstance(content, Mapping) and isinstance(content.get("model_state_dict"), Mapping):
        content = content["model_state_dict"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a checkpoint")
    tensors = {str(k).removeprefix("module."): v for k, v in content.items() if isinstance(v, Tensor)}
    for prefix in ("teacher.", "student."):
        chosen = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if chosen:
            return chosen
    return tensors


def _identify(tensors: Mapping[str, Tensor], path: Path) -> tuple[str, int]:
    """Read backbone and number of classes off the shapes of a reference state dict."""
    try:
        num_classes = tensors["decoder.linear_pred.weight"].shape[0]
        dims = tuple(tensors[f"encoder.norm{stage}.ln_0.weight"].shape[0] for stage in range(1, 5))
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"{path}: not a Linear Fusion network of the reference implementation ({error})"
        ) from error
    depths = tuple(
        len({match[1] for name in tensors if (match := re.match(rf"encoder\.block{stage}\.(\d+)\.", name))})
        for stage in range(1, 5)
    )
    for backbone, config in BACKBONES.items():
        if (config.dims, config.depths) == (dims, depths):
            return backbone, num_classes
    raise CheckpointError(f"{path}: no mit_b0 to mit_b5 has dims {dims} and depths {depths}")


def not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name a tensor that holds NaN or infinity; None where none does."""
    return next((name for name, tensor in tensors.items() if not tensor.isfinite().all()), None)


def misfit(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], network: str) -> str:
    """Say in a line why tensors are not a network's, by its expected names and shapes; '' where they are."""
    problems = [f"{name} is missing" for name in expected.keys() - tensors.keys()]
    problems += [f"{name} is not of {network}" for name in tensors.keys() - expected.keys()]
    problems += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected.keys() & tensors.keys()
        if tensors[name].shape != expected[name].shape
    ]
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{min(problems)}{more}" if problems else ""


def _load_weights(model: LinearFusionSegmenter, tensors: Mapping[str, Tensor], path: Path) -> None:
    if problem := misfit(tensors, model.state_dict(), "this network"):
        raise CheckpointError(f"{path}: does not fit {model.backbone}: {problem}")
    if name := not_finite(tensors):
        raise CheckpointError(
            f"{path}: {name} holds values that are not finite, as after a training that diverged; take another model"
        )
    model.load_state_dict(dict(tensors))
