"""MaxViT's attention as a loop over given windows, and the tests of both kinds of windows against it."""

from __future__ import annotations

import torch

from regard.layers.relative_attention import RelativeAttention

Windows = list[list[tuple[int, int]]]


def by_loop(mixer: RelativeAttention, x: torch.Tensor, windows: Windows) -> torch.Tensor:
    """Attention head by head, over the positions that are there; biases are looked up by their places in the window.

    Args:
        mixer: the layer.
        x: maps.
        windows: row and column of every position of every window; those beyond the map are padding.
    """
    channels, height, width = x.shape[1:]
    side, heads = mixer.size, mixer.num_heads
    wide = channels // heads
    y = torch.empty_like(x)
    for window in windows:
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


def check_gradients(mixer: RelativeAttention, windows: Windows) -> None:
    """On a map of 5 x 7 positions and 6 channels."""
    mixer = mixer.double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    leaves = (x, *mixer.parameters())
    ours = torch.autograd.grad((mixer(x) * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((by_loop(mixer, x, windows) * weights).sum(), leaves))


def check_map_ends_at_windows(mixer: RelativeAttention, windows: Windows) -> None:
    """On a map of 5 x 7 positions and 6 channels."""
    shown = mixer.attention_map(torch.randn(2, 6, 5, 7))
    owner = torch.empty(5, 7, dtype=torch.long)
    for number, window in enumerate(windows):
        for row, column in window:
            if row < 5 and column < 7:
                owner[row, column] = number
    same = owner.flatten()[:, None] == owner.flatten()[None, :]
    assert (shown[:, :, same] > 0).all()
    assert (shown[:, :, ~same] == 0).all()
    torch.testing.assert_close(shown.sum(dim=-1), torch.ones(2, mixer.num_heads, 35))
