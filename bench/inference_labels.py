# SPDX-License-Identifier: Apache-2.0
"""Compare the labels of the prepared network with those of the plain one on the labelled frames of a bag.

    python bench/inference_labels.py --checkpoint run/checkpoint.safetensors --bag nyu_val

For each precision and each state (both modalities, colour only, depth only): the share of pixels on which the labels
agree with the plain network in float32 on the CPU, the mean IoU, in percent, and whether what is asked for holds.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from m3l_model.bags import BagFrame, read_frames
from m3l_model.checkpoint import load_checkpoint
from m3l_model.metrics import confusion, miou
from m3l_model.predictor import Predictor
from m3l_model.preprocessing import resize_nearest, resize_rgb, to_metres
from m3l_model.segmenter import LinearFusionSegmenter, upsample

STATES = ("both", "rgb_only", "depth_only")
LEAST_EQUAL = {"fp32": 99.95, "fp16": 99.5}
"""Percent of the labels that are to be those of the plain network."""
MOST_LOST = {"bf16": 0.2}
"""Points of mean IoU that may be lost."""


def main() -> int:
    """Run and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--bag", type=Path, required=True, help="rosbag2 folder with labelled frames")
    parser.add_argument("--frames", type=int, default=100)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    parser.add_argument("--onnx", type=Path, help="compare this export of the checkpoint too")
    args = parser.parse_args()
    plain = load_checkpoint(args.checkpoint)
    predictors = {
        f"{args.device} {precision}": Predictor(load_checkpoint(args.checkpoint), args.device, precision)
        for precision in args.precision
    }
    if args.onnx:
        predictors["onnx"] = Predictor.from_checkpoint(args.onnx, args.device)
    labelled = (frame for frame in read_frames(args.bag) if frame.labels is not None)
    compare(plain, predictors, list(itertools.islice(labelled, args.frames)))
    return 0


def compare(plain: LinearFusionSegmenter, predictors: dict[str, Predictor], frames: list[BagFrame]) -> None:
    """Print agreement and mean IoU of each predictor in each state."""
    assert plain.metadata is not None
    labels = plain.metadata.labels
    print(f"{len(frames)} frames\n{'':<14}{'state':<12}{'labels equal %':>16}{'mIoU %':>10}{'loss':>8}")
    for state in STATES:
        classes = len(labels.classes)
        truth = np.zeros((classes, classes), np.int64)
        found = {name: np.zeros_like(truth) for name in predictors}
        equal: dict[str, list[float]] = {name: [] for name in predictors}
        for frame in tqdm(frames, desc=state, leave=False):
            assert frame.labels is not None
            ids = labels.decode(frame.labels, f"label image at {frame.stamp_ns}")
            rgb = None if state == "depth_only" else frame.rgb
            depth = None if state == "rgb_only" else frame.depth
            expected = plain_labels(plain, rgb, depth)
            truth += confusion(ids, expected, classes)
            for name, predictor in predictors.items():
                prediction = predictor.predict(rgb, depth, with_confidence=False).labels
                equal[name].append(float((prediction == expected).mean()))
                found[name] += confusion(ids, prediction, classes)
        print(f"{'plain fp32':<14}{state:<12}{100:>16.4f}{100 * miou(truth):>10.3f}")
        for name, matrix in found.items():
            loss = float(100 * (miou(truth) - miou(matrix)))
            agreement = 100 * float(np.mean(equal[name]))
            verdict = _verdict(name.split()[-1], agreement, loss)
            print(f"{name:<14}{state:<12}{agreement:>16.4f}{100 * miou(matrix):>10.3f}{loss:>8.3f}{verdict}")


def _verdict(precision: str, agreement: float, loss: float) -> str:
    if precision in LEAST_EQUAL:
        least = LEAST_EQUAL[precision]
        return f"  at least {least} % equal: {'holds' if agreement >= least else 'does not hold'}"
    if precision in MOST_LOST:
        most = MOST_LOST[precision]
        return f"  at most {most} lost: {'holds' if loss <= most else 'does not hold'}"
    return ""


@torch.inference_mode()
def plain_labels(
    model: LinearFusionSegmenter, rgb: npt.NDArray[np.uint8] | None, depth: npt.NDArray[np.generic] | None
) -> npt.NDArray[np.uint8]:
    """Segment a frame by the network as it was trained, step by step."""
    assert model.metadata is not None
    preprocessing = model.metadata.preprocessing
    given = rgb if rgb is not None else depth
    assert given is not None
    shape = (given.shape[0], given.shape[1])
    size = preprocessing.input_size(*shape)
    colour = np.zeros((*size, 3), np.uint8) if rgb is None else resize_rgb(rgb, size)
    metres = np.zeros(size, np.float32)
    if depth is not None:
        metres = resize_nearest(to_metres(depth), size)  # type: ignore[arg-type]
    inputs = preprocessing.encode(torch.from_numpy(colour.copy())[None], torch.from_numpy(metres)[None])
    missing = torch.tensor([[rgb is None, depth is None]])
    logits = model.quarter_logits(inputs.rgb, inputs.depth, missing, inputs.depth_valid).fused
    return upsample(logits, shape)[0].argmax(0).to(torch.uint8).numpy()


if __name__ == "__main__":
    raise SystemExit(main())
