"""The pre-norm block: its two branches, sizes handed on, stochastic depth, and initialisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from regard.layers.pre_norm_block import PreNormBlock, initialise_linear


class Sized(nn.Module):
    """Shows whether it was given a size."""

    def forward(self, x: Tensor, space: tuple[int, int] | None = None) -> Tensor:
        return x if space is None else x * space[0] + space[1]


def test_is_two_branches_on_tokens_and_on_maps() -> None:
    block = PreNormBlock(nn.Linear(5, 5), channels=5, hidden=7, norm_eps=1e-3).eval()
    for x in (torch.randn(2, 11, 5), torch.randn(2, 3, 4, 5)):
        centred = x - x.mean(dim=-1, keepdim=True)
        normed = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-3).sqrt()
        expected = x + block.mixer(normed)
        torch.testing.assert_close(block(x), expected + block.mlp(block.mlp_norm(expected)))


def test_hands_the_size_on() -> None:
    block = PreNormBlock(Sized(), channels=5, hidden=7).eval()
    x = torch.randn(2, 6, 5)
    mixed = x + block.mixer_norm(x) * 2 + 3
    torch.testing.assert_close(block(x, (2, 3)), mixed + block.mlp(block.mlp_norm(mixed)))


def test_both_branches_are_dropped_by_sample() -> None:
    block = PreNormBlock(nn.Linear(5, 5), channels=5, hidden=7, drop_path=0.999).train()
    x = torch.randn(4, 6, 5)
    assert torch.equal(block(x), x)


def test_linear_maps_begin_small_and_without_bias() -> None:
    layer = nn.Linear(200, 300)
    initialise_linear(layer)
    assert (layer.bias == 0).all()
    assert 0.018 < layer.weight.std().item() < 0.022
    initialise_linear(nn.Linear(3, 3, bias=False))
