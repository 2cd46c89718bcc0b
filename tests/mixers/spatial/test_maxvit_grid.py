"""MaxViT's grid attention against a loop over combs, its map, its reach, and both layouts."""

from __future__ import annotations

import pytest
import torch

from regard.mixers.spatial.maxvit_grid import MaxViTGridAttention

SPACES = [(6, 9), (4, 4), (1, 1), (3, 17)]


def members(height: int, width: int, side: int) -> list[list[tuple[int, int]]]:
    """The positions of every one of the combs, row by row; those beyond the map are padding."""
    down, across = -(-height // side), -(-width // side)
    return [
        [(row * down + top, column * across + left) for row in range(side) for column in range(side)]
        for top in range(down)
        for left in range(across)
    ]


def by_loop(mixer: MaxViTGridAttention, x: torch.Tensor) -> torch.Tensor:
    """Head by head, over the positions that are there; biases are looked up by their places in the window."""
    channels, height, width = x.shape[1:]
    side, heads = mixer.size, mixer.num_heads
    wide = channels // heads
    y = torch.empty_like(x)
    for window in members(height, width, side):
        inside = [(place, at) for place, at in enumerate(window) if at[0] < height and at[1] < width]
        tokens = torch.stack([x[:, :, row, column] for _, (row, column) in inside], dim=1)
        q, k, v = (tokens @ mixer.qkv.weight.T + mixer.qkv.bias).chunk(3, dim=-1)
        mixed = []
        for head in range(heads):
            own = slice(head * wide, (head + 1) * wide)
            scores = q[..., own] @ k[..., own].transpose(1, 2) / wide**0.5
            bias = torch.stack(
                [
                    torch.stack(
                        [
                            mixer.bias_table[
                                head, key // side - query // side + side - 1, key % side - query % side + side - 1
                            ]
                            for key, _ in inside
                        ]
                    )
                    for query, _ in inside
                ]
            )
            mixed.append((scores + bias).softmax(dim=-1) @ v[..., own])
        out = torch.cat(mixed, dim=-1) @ mixer.o_proj.weight.T + mixer.o_proj.bias
        for number, (_, (row, column)) in enumerate(inside):
            y[:, :, row, column] = out[:, number]
    return y


@pytest.mark.parametrize(("channels", "heads", "side"), [(15, 3, 4), (7, 1, 5), (6, 6, 1)])
@pytest.mark.parametrize("space", SPACES)
def test_is_a_loop_over_windows(channels: int, heads: int, side: int, space: tuple[int, int]) -> None:
    mixer = MaxViTGridAttention(channels, num_heads=heads, grid_size=side).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(2, channels, *space, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), by_loop(mixer, x))


def test_gradients_are_those_of_the_loop() -> None:
    mixer = MaxViTGridAttention(6, num_heads=2, grid_size=3).double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    leaves = (x, *mixer.parameters())
    ours = torch.autograd.grad((mixer(x) * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((by_loop(mixer, x) * weights).sum(), leaves))


def test_the_map_ends_at_the_window() -> None:
    shown = MaxViTGridAttention(6, num_heads=2, grid_size=3).attention_map(torch.randn(2, 6, 5, 7))
    owner = torch.empty(5, 7, dtype=torch.long)
    for number, window in enumerate(members(5, 7, 3)):
        for row, column in window:
            if row < 5 and column < 7:
                owner[row, column] = number
    same = owner.flatten()[:, None] == owner.flatten()[None, :]
    assert (shown[:, :, same] > 0).all()
    assert (shown[:, :, ~same] == 0).all()
    torch.testing.assert_close(shown.sum(dim=-1), torch.ones(2, 2, 35))


def test_loads_the_authors_layout_strictly() -> None:
    mixer = MaxViTGridAttention(6, num_heads=3, grid_size=2)
    layout = {f"attention/{letter}/weight": torch.randn(6, 3, 2) for letter in "qkv"}
    layout |= {f"attention/{letter}/bias": torch.randn(3, 2) for letter in "qkv"}
    layout |= {"attention/o/weight": torch.randn(3, 2, 6), "attention/o/bias": torch.randn(6)}
    layout["attention/relative_bias"] = torch.randn(3, 3, 3)
    mixer.load_reference(layout)
    # head 2, feature 1 of the values
    assert torch.equal(mixer.qkv.weight[12 + 2 * 2 + 1], layout["attention/v/weight"][:, 2, 1])
    assert torch.equal(mixer.o_proj.weight[:, 2 * 2 + 1], layout["attention/o/weight"][2, 1])
    assert torch.equal(mixer.bias_table, layout["attention/relative_bias"])
    with pytest.raises(KeyError, match=r"unknown keys: none; missing keys: qkv\.bias"):
        mixer.load_reference({name: value for name, value in layout.items() if name != "attention/k/bias"})
    with pytest.raises(KeyError, match="unknown keys: attention/p/bias"):
        mixer.load_reference({**layout, "attention/p/bias": torch.zeros(6)})


def test_loads_timms_layout_strictly() -> None:
    mixer = MaxViTGridAttention(6, num_heads=3, grid_size=2)
    renamed = {"o_proj": "proj", "bias_table": "rel_pos.relative_position_bias_table"}
    layout = {}
    for name, value in mixer.state_dict().items():
        for own, theirs in renamed.items():
            name = name.replace(own, theirs)
        layout[name] = torch.rand_like(value)
    mixer.load_reference(layout)
    assert torch.equal(mixer.bias_table, layout["rel_pos.relative_position_bias_table"])
    with pytest.raises(KeyError, match=r"missing keys: o_proj\.bias"):
        mixer.load_reference({name: value for name, value in layout.items() if name != "proj.bias"})
