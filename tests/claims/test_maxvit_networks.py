"""What MaxViT's claims measure with."""

from __future__ import annotations

import torch
from torch import nn

from regard.claims._maxvit_networks import SIDE, PairReader, far_pairs, influence, same_window


def test_influence_is_where_the_jacobian_is_not_zero() -> None:
    conv = nn.Conv2d(2, 2, (1, 3), padding=(0, 1)).double()
    found = influence(conv, torch.randn(1, 2, 2, 3, dtype=torch.float64))
    row = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]], dtype=torch.bool)
    none = torch.zeros(3, 3, dtype=torch.bool)
    assert torch.equal(found, torch.cat([torch.cat([row, none], dim=1), torch.cat([none, row], dim=1)]))


def test_windows_and_combs_are_shared_by_their_members() -> None:
    assert same_window(4, 2, "window")[0].nonzero().flatten().tolist() == [0, 1, 4, 5]
    assert same_window(4, 2, "grid")[0].nonzero().flatten().tolist() == [0, 2, 8, 10]


def test_partners_are_half_a_map_away() -> None:
    signs, same = far_pairs(0, 3, 5)
    assert signs.shape == same.shape == (5, 1, SIDE, SIDE)
    assert bool(same[2, 0, 3, 12]) == bool(signs[2, 0, 3, 12] == signs[2, 0, 3 + 8, 12 - 8])
    assert not torch.equal(signs, far_pairs(0, 4, 5)[0])
    assert not torch.equal(signs, far_pairs(1, 3, 5)[0])


def test_every_position_is_answered() -> None:
    assert PairReader(("block", "grid"))(far_pairs(0, 0, 2)[0]).shape == (2, 1, SIDE, SIDE)
