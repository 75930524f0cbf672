# SPDX-License-Identifier: Apache-2.0
"""The live node answers as the offline pass does: a process, played to over DDS under scenarios of the evaluation."""

from __future__ import annotations

from itertools import pairwise

import pytest

from m3l_model.bag_dataset import RgbdBagDataset
from m3l_model.bag_frames import REASONS
from m3l_model.bags import DEFAULT_TOPICS, BagWriter
from m3l_model.offline import decide
from m3l_model.predictor import Predictor
from m3l_model.scenarios import SCENARIOS
from m3l_model.sync import Reason
from m3l_ros.live import check_live

SCENARIO = {scenario.name: scenario for scenario in SCENARIOS}
FRAMES = 37
START_NS = 1_700_000_000 * 10**9
PERIOD_NS = 66_666_667
IN_STEP = ("depth_bursts_25", "depth_delayed", "depth_skewed", "both_holes")
SEED = 1
SLOWLY = 0.5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, images_of):
    """15 Hz, with depth that is stamped up to 8 ms later and arrives up to 40 ms later."""
    path = tmp_path_factory.mktemp("live") / "bag"
    with BagWriter(path) as writer:
        for index in range(FRAMES):
            rgb, depth = images_of(index)
            at = START_NS + index * PERIOD_NS
            late = index % 3 * 4_000_000
            writer.write_rgb(DEFAULT_TOPICS.rgb, at, "camera", rgb, at + 5_000_000)
            writer.write_depth(DEFAULT_TOPICS.depth, at + late, "camera", depth, at + 20_000_000 + 2 * late)
    return RgbdBagDataset([path])


@pytest.fixture(scope="module")
def predictor(checkpoint):
    return Predictor.from_checkpoint(checkpoint)


def reasons(dataset, name):
    return [REASONS[decision["reason"]] for decision in decide(dataset.bags[0], SCENARIO[name], SEED)]


def test_in_lock_step_every_decision_and_every_byte_is_the_offline_ones(dataset, predictor, checkpoint):
    seen = {reason for name in IN_STEP for reason in reasons(dataset, name)}
    assert seen == {Reason.PAIRED, Reason.DEADLINE, Reason.DEPTH_LOST}, "the scenarios try them all"
    scenarios = [SCENARIO[name] for name in IN_STEP]
    checked = {
        scenario.name: agreement
        for scenario, agreement in check_live(dataset, predictor, checkpoint, scenarios, SEED)
    }
    assert {name: str(agreement) for name, agreement in checked.items()} == dict.fromkeys(
        IN_STEP, f"{FRAMES} frames, decisions and masks equal"
    )
    assert all(agreement.holds(timed=False) for agreement in checked.values())


def test_at_a_rate_that_the_machine_holds_bytes_are_equal_and_decisions_but_for_edges_of_outages(
    dataset, predictor, checkpoint
):
    made = reasons(dataset, "depth_bursts_25")
    assert Reason.DEPTH_LOST in made
    [(_, agreement)] = check_live(
        dataset, predictor, checkpoint, [SCENARIO["depth_bursts_25"]], SEED, rate=SLOWLY
    )
    edges = sum((before is Reason.PAIRED) != (after is Reason.PAIRED) for before, after in pairwise(made))
    assert agreement.outage_edges == edges == 3
    assert not agreement.unanswered
    assert not agreement.surplus
    assert not agreement.masked_otherwise
    assert len(agreement.decided_otherwise) <= 2 * agreement.outage_edges, str(agreement)
    assert agreement.holds(timed=True)


def test_a_node_with_another_model_is_found_out(dataset, predictor, tmp_path):
    import torch

    from m3l_model.checkpoint import save_checkpoint
    from m3l_model.segmenter import LinearFusionSegmenter

    torch.manual_seed(2)
    other = tmp_path / "other.safetensors"
    save_checkpoint(other, LinearFusionSegmenter("mit_b0", num_classes=5))
    [(_, agreement)] = check_live(dataset, predictor, other, [SCENARIO["clean"]], SEED)
    assert len(agreement.masked_otherwise) == FRAMES
    assert not agreement.decided_otherwise
    assert not agreement.holds(timed=True)
