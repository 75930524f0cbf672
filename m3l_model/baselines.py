# SPDX-License-Identifier: Apache-2.0
"""The networks that inference is measured against: the paper's reference implementation and transformers' SegFormer.

Both with random weights, as their users would run them: eager, logits upsampled to the image, arg-max.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from torch import Tensor, nn

from m3l_model.errors import M3LError
from m3l_model.mit import BACKBONES

REFERENCE_COMMIT = "01ce42a168dfcd20b7fa6bb4ce1b0ca9f6145850"
"""Of GitHub's harshm121/M3L."""

_NETWORK = Path("src/models/segmentation_models/linearfusemaskedconsmixbatch")

Frame = Callable[[], Tensor]
"""Segments one frame; the labels (1, H, W) are on the CPU when it returns."""


def reference_frame(
    folder: Path, backbone: str, num_classes: int, size: tuple[int, int], device: torch.device
) -> Frame:
    """Prepare the reference's Linear Fusion network for normalised colour and depth of ``size``, in float32.

    Args:
        folder: a clone of the reference.
        backbone, num_classes: of the network.
        size: (H, W) of the images.
        device: where it runs.

    Raises:
        M3LError: ``folder`` is no unchanged clone at ``REFERENCE_COMMIT``.
    """
    check_reference(folder)
    network_class = import_reference(folder).LinearFusionMaskedConsistencyMixBatch
    settings = SimpleNamespace(ratio=0.8, masking_ratio=1.0)
    with contextlib.redirect_stdout(None):  # it says that it trains from scratch
        network = network_class(backbone, settings, num_classes=num_classes, pretrained=False)
    network = network.eval().to(device)
    images = [torch.randn(1, 3, *size).to(device) for _ in range(2)]

    @torch.inference_mode()
    def frame() -> Tensor:
        return network(images)[2].argmax(1).cpu()

    return frame


def transformers_frame(
    backbone: str, num_classes: int, size: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> Frame:
    """Prepare transformers' SegFormer, its decoder as wide as ours, for normalised colour of ``size``.

    Raises:
        M3LError: transformers is not installed.
    """
    try:
        from transformers import SegformerConfig, SegformerForSemanticSegmentation
    except ImportError:
        raise M3LError(
            "transformers is not installed: pip install 'm3l_ros[bench]', or measure without it"
        ) from None

    spec = BACKBONES[backbone]
    config = SegformerConfig(
        num_labels=num_classes,
        depths=list(spec.depths),
        hidden_sizes=list(spec.dims),
        decoder_hidden_size=256,
        attn_implementation="eager",
    )
    network = SegformerForSemanticSegmentation(config).eval().to(device, dtype)
    image = torch.randn(1, 3, *size).to(device, dtype)

    @torch.inference_mode()
    def frame() -> Tensor:
        logits = network(image).logits
        full = nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)
        return full.argmax(1).cpu()

    return frame


def check_reference(folder: Path) -> None:
    """Make sure that ``folder`` holds the reference at the commit measured, unchanged.

    Raises:
        M3LError: it does not; the message says why.
    """
    source = folder / _NETWORK
    if not source.is_dir():
        raise M3LError(f"{folder}: not a clone of https://github.com/harshm121/M3L (no {_NETWORK})")
    if shutil.which("git") is None:
        raise M3LError(f"{folder}: which commit it is at cannot be told: install git")
    git = ["git", "-c", "safe.directory=*", "-C", str(folder)]  # a clone may be somebody else's
    told = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    head = told.stdout.strip()
    if told.returncode:
        raise M3LError(f"{folder}: which commit it is at cannot be told: {' '.join(told.stderr.split())}")
    if head != REFERENCE_COMMIT:
        raise M3LError(f"{folder}: at commit {head}; git checkout {REFERENCE_COMMIT}")
    if subprocess.run([*git, "diff", "--quiet", "HEAD", "--", str(source.resolve())]).returncode:
        raise M3LError(f"{source}: changed since the commit; git restore it")


def import_reference(folder: Path) -> ModuleType:
    """Import its network; the four names it takes from timm and mmcv are given where those are not installed."""
    import importlib
    import sys
    import warnings

    class ConvModule(nn.Sequential):
        """1x1 convolution without bias, BatchNorm, ReLU."""

        def __init__(self, in_channels: int, out_channels: int, kernel_size: int, norm_cfg: object) -> None:
            conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=False)
            super().__init__(conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True))

    class DropPath(nn.Module):
        """Does nothing in eval mode."""

        def __init__(self, drop_prob: float) -> None:
            super().__init__()
            self.drop_prob = drop_prob

        def forward(self, x: Tensor) -> Tensor:
            return x

    warnings.simplefilter("ignore")
    timm = {
        "DropPath": DropPath,
        "to_2tuple": lambda x: x if isinstance(x, tuple) else (x, x),
        "trunc_normal_": torch.nn.init.trunc_normal_,
    }
    for name, content in (
        ("timm", {}),
        ("timm.models", {}),
        ("timm.models.layers", timm),
        ("mmcv", {}),
        ("mmcv.cnn", {"ConvModule": ConvModule}),
    ):
        module = ModuleType(name)
        module.__dict__.update(content)
        sys.modules.setdefault(name, module)
    # The package's own __init__ imports every other network of the reference, and what those need.
    package = ModuleType("reference_linear_fusion")
    package.__path__ = [str((folder / _NETWORK).resolve())]
    sys.modules[package.__name__] = package
    return importlib.import_module(f"{package.__name__}.segformer")
