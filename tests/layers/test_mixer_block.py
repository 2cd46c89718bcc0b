"""MLP-Mixer's block against its equation and timm's block; its cost."""

from __future__ import annotations

import pytest
import torch

from regard.layers.mixer_block import MixerBlock, mixer_block_macs
from regard.measure import contraction_macs


def test_is_the_equation_channel_by_channel_and_token_by_token() -> None:
    block = MixerBlock(5, 3, token_hidden=7, channel_hidden=11).double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    normed, mixed = block.token_norm(x), x.clone()
    for row in range(2):
        for channel in range(3):
            inner = torch.nn.functional.gelu(block.token_mlp.up_proj(normed[row, :, channel]))
            mixed[row, :, channel] += block.token_mlp.down_proj(inner)
    normed, expected = block.channel_norm(mixed), mixed.clone()
    for row in range(2):
        for token in range(5):
            expected[row, token] += block.channel_mlp(normed[row, token])
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-12)


def test_equals_timms_block() -> None:
    timm = pytest.importorskip("timm.models.mlp_mixer")
    theirs = timm.MixerBlock(12, 9, mlp_ratio=(0.5, 2.0)).eval()
    ours = MixerBlock(9, 12, token_hidden=6, channel_hidden=24, norm_eps=1e-6).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(3, 9, 12)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_cost_is_what_a_forward_counts() -> None:
    block = MixerBlock(13, 6, token_hidden=7, channel_hidden=10)
    wanted = mixer_block_macs(seq_len=13, dim=6, token_hidden=7, channel_hidden=10)
    assert contraction_macs(lambda: block(torch.zeros(3, 13, 6))) == 3 * wanted
