# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning_fabric import Fabric
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training_samples import batches, block_frames, blocks, draws_of, small

from m3l_model import load_checkpoint
from m3l_model.bag_writer import BagWriter
from m3l_model.bags import BagFrames
from m3l_model.checkpoint import CheckpointError
from m3l_model.cli import main
from m3l_model.data import NetworkFrame
from m3l_model.labels import CHANNELS, LabelSet
from m3l_model.learner import Learner
from m3l_model.recipe import TrainConfig, load_config
from m3l_model.reconstruction import (
    DEPTH_WEIGHT,
    ReconstructionViews,
    make_reconstruction_views,
    reconstruction_loss,
)
from m3l_model.run_log import read_log
from m3l_model.training import CHECKPOINT_FILE, Intervals, Machine, learn, new_network, train
from m3l_model.training_frames import TrainingFrames

CPU = torch.device("cpu")
LABELS = LabelSet.generic(3)


def views_of(
    config: TrainConfig, count: int = 8, recorded: torch.Tensor | None = None
) -> ReconstructionViews:
    columns = [torch.from_numpy(np.stack(column)) for column in zip(*block_frames(count), strict=True)]
    frames = NetworkFrame(*columns)
    if recorded is not None:
        frames = frames._replace(missing=recorded, depth_m=frames.depth_m * ~recorded[:, 1, None, None])
    return make_reconstruction_views(config, frames, draws_of(count), CPU)


def told(views: ReconstructionViews) -> torch.Tensor:
    """What a network would say that is always right, at a quarter of the size: blocks have no edges there."""
    whole = torch.cat((views.whole.rgb, views.whole.depth), 1)
    return torch.nn.functional.avg_pool2d(whole, 4)


@given(recorded=st.lists(st.booleans(), min_size=8, max_size=8))
def test_every_sample_lacks_one_modality_and_never_more_than_was_recorded(recorded: list[bool]) -> None:
    no_depth = torch.tensor(recorded)
    config = small(load_config("pretrain"))
    views = views_of(config, recorded=torch.stack((torch.zeros(8, dtype=torch.bool), no_depth), 1))
    assert (views.student.missing.sum(1) == 1).all()
    assert views.student.missing[no_depth, 1].all()
    assert torch.equal(views.student.missing[~no_depth], views_of(config).student.missing[~no_depth])
    assert not views.seen[no_depth].any()


def test_either_modality_is_as_likely_to_be_taken() -> None:
    views = views_of(small(load_config("pretrain")), count=400)
    assert views.student.missing.float().mean(0).tolist() == pytest.approx([0.5, 0.5], abs=0.08)


def test_what_is_to_be_told_is_not_disturbed() -> None:
    config = small(load_config("pretrain"), scales=(1.0, 1.0))
    plain, disturbed = (
        views_of(small(config, scales=(1.0, 1.0), strong_augmentation=strong)) for strong in (False, True)
    )
    for name in ("rgb", "depth", "depth_valid"):
        whole = getattr(plain.whole, name)
        assert torch.equal(whole, getattr(disturbed.whole, name)), name
        assert torch.equal(whole, getattr(plain.student.inputs, name)), name
        assert not torch.equal(whole, getattr(disturbed.student.inputs, name)), name


def test_the_loss_is_of_what_is_missing_and_was_seen() -> None:
    views = views_of(small(load_config("pretrain"), depth_encoding="metric", scales=(1.0, 1.0)))
    right = told(views)
    assert float(reconstruction_loss(right, views)) == pytest.approx(0, abs=1e-6)
    no_rgb, no_depth = views.student.missing.T
    assert no_rgb.any()
    assert no_depth.any()
    other = right.clone()
    other[~no_rgb, :3] += 5
    other[~no_depth, 3:] -= 5
    assert float(reconstruction_loss(other, views)) == pytest.approx(0, abs=1e-6)
    for channels, missing, weight in (
        (slice(0, 3), no_rgb, 1.0),
        (slice(3, 6), no_depth, DEPTH_WEIGHT),
    ):
        other = right.clone()
        other[missing, channels] += 2
        assert float(reconstruction_loss(other, views)) == pytest.approx(weight * (2 - 0.25), abs=1e-5)


def test_holes_are_not_to_be_told_and_take_nothing_from_what_is_beside_them() -> None:
    config = small(load_config("pretrain"), depth_encoding="metric", scales=(1.0, 1.0))
    views = views_of(config)
    other = told(views)
    holes = torch.zeros_like(views.seen)
    holes[:, :, :, 18:30] = 1
    views = views._replace(
        seen=views.seen * (1 - holes), whole=views.whole._replace(depth=views.whole.depth * (1 - holes))
    )
    other[:, 3:, :, 5:7] += 9
    assert float(reconstruction_loss(other, views)) == pytest.approx(0, abs=1e-6)


def test_processes_give_parts_of_one_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts of two halves of a batch, each divided by the counts of both, add up to the loss of all of it."""
    views = views_of(small(load_config("pretrain")))
    output = torch.randn(8, 6, 8, 12, generator=torch.Generator().manual_seed(0))
    whole = reconstruction_loss(output, views)
    counts: list[torch.Tensor] = []

    def counted(value: torch.Tensor) -> torch.Tensor:
        counts.append(value)
        return value

    monkeypatch.setattr("m3l_model.ranks.total", counted)
    reconstruction_loss(output, views)
    parts = []
    for half in (slice(0, 4), slice(4, 8)):
        left = iter(counts)
        monkeypatch.setattr("m3l_model.ranks.total", lambda value, left=left: next(left))
        student = views.student._replace(missing=views.student.missing[half])
        part = ReconstructionViews(
            student,
            views.whole._replace(rgb=views.whole.rgb[half], depth=views.whole.depth[half]),
            views.seen[half],
        )
        parts.append(reconstruction_loss(output[half], part))
    torch.testing.assert_close(sum(parts), whole)


def test_colour_and_depth_of_blocks_are_learnt_from_each_other() -> None:
    """A block's colour says how far it is, and the other way round."""
    config = small(
        load_config("pretrain"),
        steps=60,
        unlabelled_batch=8,
        learning_rate=2e-3,
        strong_augmentation=False,
        scales=(1.0, 1.0),
    )
    fabric = Fabric(accelerator="cpu", devices=1)
    learner = Learner(config, new_network(config, LABELS, 0), fabric)
    results = [result for result, _ in learn(learner, batches(config, count=12, labelled=0), 0, 0, fabric)]
    assert learner.teacher is None
    assert all(parameter.grad is not None for parameter in learner.network.parameters())
    first, last = (np.mean([r.loss_supervised for r in part]) for part in (results[:5], results[-5:]))
    assert last < 0.4 * first


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    rgb, depth, _ = blocks(6)
    with BagWriter(tmp_path / "bag") as writer:
        for index in range(6):
            writer.write_frame(10**9 + index * 10**8, "camera", rgb[index], depth[index], None, np.eye(3))
    return tmp_path / "bag"


def test_a_bag_without_labels_pretrains_what_training_starts_from(
    tmp_path: Path, bag: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        "{mean_teacher: false, task: reconstruct, skip_missing: true, short_side: 32, crop: 1.0, steps: 3, "
        "unlabelled_batch: 4}"
    )
    out = tmp_path / "pre"
    command = ["train", "--config", str(recipe), "--bag", str(bag), "--device", "cpu", "--workers", "0"]
    assert main([*command, "--out", str(out)]) == 0
    bar = capsys.readouterr().err
    assert "reconstruction=" in bar
    assert "pseudo=" not in bar
    assert (out / "run.json").is_file()
    facts = json.loads((out / "run.json").read_text())
    assert (facts["labelled_frames"], facts["unlabelled_frames"]) == (0, 6)
    assert all(step["loss_supervised"] > 0 == step["loss_pseudo"] for step in read_log(out))
    board = EventAccumulator(str(out / "tensorboard")).Reload()
    (name,) = board.Tags()["images"]
    assert (board.Images(name)[0].height, board.Images(name)[0].width) == (3 * 120, 4 * 180)

    checkpoint = out / CHECKPOINT_FILE
    with pytest.raises(CheckpointError, match=r"tells no classes yet; train it with m3l train --pretrained"):
        load_checkpoint(checkpoint)
    pretrained = load_checkpoint(checkpoint, classes_needed=False)
    assert pretrained.metadata
    assert pretrained.metadata.labels == CHANNELS
    config = small(load_config("m3l"), depth_encoding="metric")
    started = new_network(config, LABELS, 1, str(checkpoint)).state_dict()
    fresh = new_network(config, LABELS, 1).state_dict()
    for key, tensor in pretrained.state_dict().items():
        kept = key.startswith("decoder.classifier.")
        assert torch.equal(started[key], fresh[key] if kept else tensor), key


def test_pretraining_goes_on_to_the_same_bits(
    tmp_path: Path, bag: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(load_config("pretrain"), steps=5)
    frames = TrainingFrames.without_labels([BagFrames.open(bag)])
    machine = Machine("cpu", workers=0)
    whole = train(config, frames, tmp_path / "whole", 3, machine)
    step = Learner.step

    class Killed(Exception):
        pass

    def killed(self: Learner, index: int, views: object) -> object:
        if index == 3:
            raise Killed
        return step(self, index, views)  # type: ignore[arg-type]

    monkeypatch.setattr(Learner, "step", killed)
    with pytest.raises(Killed):
        train(config, frames, tmp_path / "run", 3, machine, Intervals(2, 0))
    monkeypatch.undo()
    again = train(config, frames, tmp_path / "run", 3, machine, resume=True)
    assert whole
    assert again
    expected, found = (load_checkpoint(path, classes_needed=False).state_dict() for path in (whole, again))
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert read_log(tmp_path / "run") == read_log(tmp_path / "whole")
