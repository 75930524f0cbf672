# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch import nn

from m3l_model import ranks
from m3l_model.dropout import SampleDropout, take_rows


def test_drops_the_channels_that_torch_s_dropout2d_does() -> None:
    x = torch.randn(6, 8, 5, 4)
    torch.manual_seed(3)
    expected = nn.Dropout2d(0.1)(x)
    torch.manual_seed(3)
    assert torch.equal(SampleDropout(0.1)(x), expected)
    assert not torch.equal(expected, x)


def test_leaves_all_as_it_is_in_eval_mode_and_at_0() -> None:
    x = torch.randn(2, 3, 5, 4)
    assert SampleDropout(0.9).eval()(x) is x
    assert SampleDropout(0.0)(x) is x


@pytest.mark.parametrize(
    ("shape", "own"),
    [((8, 5, 3), (4, 5, 3)), ((8, 6, 5, 3), (4, 6, 5, 3))],
    ids=["samples", "channels"],
)
def test_two_processes_drop_what_one_does(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], own: tuple[int, ...]
) -> None:
    """Four samples in two modalities, of which one process has the first and the third."""
    x_MBX = torch.randn(shape).view(2, 4, -1, 5, 3)
    torch.manual_seed(3)
    whole = SampleDropout(0.5)(x_MBX.view(shape)).view_as(x_MBX)
    monkeypatch.setattr(ranks, "count", lambda: 2)
    for rows in ([0, 2], [1, 3]):
        network = nn.Sequential(SampleDropout(0.5))
        take_rows(network, torch.tensor([*rows, *(row + 4 for row in rows)]))
        torch.manual_seed(3)
        found = network(x_MBX[:, rows].reshape(own))
        assert torch.equal(found.view(2, 2, -1, 5, 3), whole[:, rows])
    assert (whole == 0).any()
    assert (whole != 0).any()


def test_what_is_left_out_changes_nothing_for_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(8, 5, 3)
    torch.manual_seed(3)
    whole = SampleDropout(0.5)(x)
    monkeypatch.setattr(ranks, "count", lambda: 2)
    network = nn.Sequential(SampleDropout(0.5))
    rows, taken = torch.tensor([1, 3, 5, 7]), torch.tensor([0, 2, 3])
    take_rows(network, rows)
    torch.manual_seed(3)
    assert torch.equal(network[0](x[rows[taken]], taken), whole[rows[taken]])
