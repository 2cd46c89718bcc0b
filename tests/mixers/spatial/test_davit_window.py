"""DaViT's window attention against a loop over windows, its map, its reach, and the authors' layout."""

from __future__ import annotations

import pytest
import torch

import regard
from regard.mixers.spatial.davit_window import DaViTWindowAttention


def by_loop(mixer: DaViTWindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Window by window and head by head, on the map padded with zeros."""
    batch, channels, height, width = x.shape
    side, heads = mixer.window_size, mixer.num_heads
    padded = x.new_zeros(batch, channels, -(-height // side) * side, -(-width // side) * side)
    padded[:, :, :height, :width] = x
    y = torch.empty_like(padded)
    for top in range(0, padded.shape[2], side):
        for left in range(0, padded.shape[3], side):
            tokens = padded[:, :, top : top + side, left : left + side].flatten(2).transpose(1, 2)
            q, k, v = (tokens @ mixer.qkv.weight.T + mixer.qkv.bias).chunk(3, dim=-1)
            mixed = []
            for part in range(heads):
                own = slice(part * channels // heads, (part + 1) * channels // heads)
                scores = q[..., own] @ k[..., own].transpose(1, 2) / (channels // heads) ** 0.5
                mixed.append(scores.softmax(dim=-1) @ v[..., own])
            out = torch.cat(mixed, dim=-1) @ mixer.o_proj.weight.T + mixer.o_proj.bias
            y[:, :, top : top + side, left : left + side] = out.transpose(1, 2).unflatten(2, (side, side))
    return y[:, :, :height, :width]


@pytest.mark.parametrize(("channels", "heads", "side"), [(15, 3, 4), (7, 1, 5), (6, 6, 1)])
@pytest.mark.parametrize("space", [(6, 9), (4, 4), (1, 1), (3, 17)])
def test_is_a_loop_over_windows(channels: int, heads: int, side: int, space: tuple[int, int]) -> None:
    mixer = DaViTWindowAttention(channels, num_heads=heads, window_size=side).double()
    x = torch.randn(2, channels, *space, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), by_loop(mixer, x))


def test_gradients_are_those_of_the_loop() -> None:
    mixer = DaViTWindowAttention(6, num_heads=2, window_size=3).double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    leaves = (x, *mixer.parameters())
    ours = torch.autograd.grad((mixer(x) * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((by_loop(mixer, x) * weights).sum(), leaves))


def test_the_map_ends_at_the_window() -> None:
    mixer = DaViTWindowAttention(6, num_heads=2, window_size=3)
    x = torch.randn(2, 6, 3, 6)
    shown = mixer.attention_map(x)
    assert shown.shape == (2, 2, 18, 18)
    torch.testing.assert_close(shown.sum(dim=-1), torch.ones(2, 2, 18))
    column = torch.arange(18) % 6
    same = (column[:, None] < 3) == (column[None, :] < 3)
    assert (shown[:, :, same] > 0).all()
    assert (shown[:, :, ~same] == 0).all()


def test_padding_takes_a_part_of_the_weight() -> None:
    shown = DaViTWindowAttention(6, num_heads=2, window_size=4).attention_map(torch.randn(1, 6, 5, 4))
    sums = shown.sum(dim=-1)
    torch.testing.assert_close(sums[..., :16], torch.ones(1, 2, 16))
    assert (sums[..., 16:] < 0.9).all()


def test_loads_the_authors_layout_strictly() -> None:
    mixer = DaViTWindowAttention(6, num_heads=2)
    layout = {name.replace("o_proj", "proj"): torch.rand_like(value) for name, value in mixer.state_dict().items()}
    mixer.load_reference(layout)
    assert torch.equal(mixer.o_proj.weight, layout["proj.weight"])
    with pytest.raises(KeyError, match=r"missing keys: o_proj\.bias"):
        mixer.load_reference({name: value for name, value in layout.items() if name != "proj.bias"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 6, "num_heads": 4}, "num_heads must divide channels=6, got 4"),
        ({"channels": 6, "num_heads": 0}, "num_heads must divide channels=6, got 0"),
        ({"channels": 6, "num_heads": 2, "window_size": 0}, "window_size must be positive, got 0"),
    ],
)
def test_ill_options_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regard.create("davit_window", **options)
