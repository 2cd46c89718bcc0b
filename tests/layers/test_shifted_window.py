"""Shifted windows: by a loop over pairs of positions, which ones see each other, biases of offsets, and small maps."""

from __future__ import annotations

import pytest
import torch

from regard.layers.shifted_window import ShiftedWindowAttention, fitted_window, offset_bias


def by_pairs(layer: ShiftedWindowAttention, x: torch.Tensor) -> torch.Tensor:
    """Every position by itself: its window in the padded map, cut where the roll has joined two ends."""
    batch, height, width, channels = x.shape
    side = layer.window_size
    sy, sx = min(side, height), min(side, width)
    full = (-(-height // sy) * sy, -(-width // sx) * sx)
    padded = x.new_zeros(batch, *full, channels)
    padded[:, :height, :width] = x
    shift = [side // 2 if layer.shifted and length > side else 0 for length in (height, width)]
    qkv = padded @ layer.qkv.weight.T + (0 if layer.qkv.bias is None else layer.qkv.bias)
    q, k, v = qkv.unflatten(-1, (3, layer.num_heads, -1)).unbind(3)
    mixed = torch.zeros_like(q)

    def home(place: int, length: int, size: int, by: int) -> tuple[int, bool]:
        moved = (place - by) % length
        return moved // size, moved >= length - by

    everywhere = [(y, x) for y in range(full[0]) for x in range(full[1])]
    for y, x_ in everywhere:
        own = (home(y, full[0], sy, shift[0]), home(x_, full[1], sx, shift[1]))
        seen = [
            (y2, x2)
            for y2, x2 in everywhere
            if (home(y2, full[0], sy, shift[0]), home(x2, full[1], sx, shift[1])) == own
        ]
        for head in range(layer.num_heads):
            scores = []
            for y2, x2 in seen:
                offset = (y - y2 + side - 1) * (2 * side - 1) + x_ - x2 + side - 1
                score = (q[:, y, x_, head] * k[:, y2, x2, head]).sum(dim=-1) / q.shape[-1] ** 0.5
                scores.append(score + layer.offset_bias[offset, head])
            weights = torch.stack(scores, dim=-1).softmax(dim=-1)
            values = torch.stack([v[:, y2, x2, head] for y2, x2 in seen], dim=1)
            mixed[:, y, x_, head] = (weights[..., None] * values).sum(dim=1)
    return layer.o_proj(mixed.flatten(3))[:, :height, :width]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("space", [(6, 6), (4, 3), (7, 5), (2, 8), (1, 1)])
def test_is_a_loop_over_pairs(shifted: bool, space: tuple[int, int]) -> None:
    layer = ShiftedWindowAttention(6, num_heads=2, window_size=3, shifted=shifted).double()
    x = torch.randn(2, *space, 6, dtype=torch.float64)
    with torch.no_grad():
        expected = by_pairs(layer, x)
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer(x), expected)


def test_gradients_are_those_of_the_loop() -> None:
    layer = ShiftedWindowAttention(4, num_heads=2, window_size=2, shifted=True, qkv_bias=False).double()
    x = torch.randn(1, 4, 3, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    leaves = (x, *layer.parameters())
    ours = torch.autograd.grad((layer(x) * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((by_pairs(layer, x) * weights).sum(), leaves))


def test_windows_are_no_larger_than_the_map() -> None:
    assert fitted_window((14, 7), 7, shifted=True) == ((7, 7), (3, 0))
    assert fitted_window((5, 20), 7, shifted=True) == ((5, 7), (0, 3))
    assert fitted_window((14, 14), 7, shifted=False) == ((7, 7), (0, 0))


def test_offsets_of_a_smaller_window_are_in_the_middle_of_the_table() -> None:
    table = torch.randn(25, 2)
    whole, part = offset_bias(table, 3, (3, 3)), offset_bias(table, 3, (2, 3))
    assert torch.equal(part, whole[:, :6, :6])
    assert torch.equal(whole[:, 4, 4], table[12])
    assert torch.equal(whole[:, 0, 8], table[0])


def test_inference_keeps_the_bias_of_a_size() -> None:
    layer = ShiftedWindowAttention(4, num_heads=2, window_size=2, shifted=True)
    x = torch.randn(1, 4, 4, 4)
    with torch.no_grad():
        before = layer(x)
        layer.offset_bias.normal_()
        assert not torch.allclose(layer(x), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 4, "window_size": 3}, "multiple of num_heads"),
        ({"num_heads": 2, "window_size": 0}, "window_size must be positive, got 0"),
    ],
)
def test_ill_options_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShiftedWindowAttention(6, **options)
