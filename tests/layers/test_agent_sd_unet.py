"""AgentSD in a network: which attentions are replaced, what they see, steps, coarse layers, and the way back."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from regard.layers.agent_sd import AgentSDAttention, AgentSDSchedule
from regard.layers.agent_sd_unet import install_agent_sd

DIM = 12


class Attention(nn.Module):
    """Latent diffusion's: `to_q`, `to_k`, `to_v`, `to_out`, `heads`."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = 3
        self.to_q, self.to_k, self.to_v = (nn.Linear(DIM, DIM, bias=False) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(DIM, DIM), nn.Dropout(0.0))
        self.calls = 0

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        self.calls += 1
        context = x if context is None else context
        q, k, v = (
            project(of).unflatten(-1, (3, -1)).transpose(1, 2)
            for project, of in ((self.to_q, x), (self.to_k, context), (self.to_v, context))
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Self-attention, cross-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attn1, self.attn2 = Attention(), Attention()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x), context=None)
        return x + self.attn2(self.norm2(x), context=context)


class UNet(nn.Module):
    """A block on the latent's own map, and one on a map of half its size."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = Block(), Block()

    def forward(self, latent: Tensor, context: Tensor) -> Tensor:
        x = self.fine(latent.flatten(2).transpose(1, 2), context).transpose(1, 2).unflatten(2, latent.shape[2:])
        small = nn.functional.avg_pool2d(x, 2)
        return self.coarse(small.flatten(2).transpose(1, 2), context)


def inputs(batch: int = 1) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, DIM, 8, 12), torch.randn(batch, 5, DIM)


def test_fine_self_attention_alone_is_replaced() -> None:
    unet = UNet().eval()
    latent, context = inputs()
    original = unet.fine.attn1
    before = unet(latent, context)
    control = install_agent_sd(unet)
    assert control.layers == 2
    calls = (original.calls, unet.fine.attn2.calls, control._replaced[1][1].calls)
    after = unet(latent=latent, context=context)
    assert not torch.allclose(after, before)
    assert (original.calls, unet.fine.attn2.calls, control._replaced[1][1].calls) == (
        calls[0],
        calls[1] + 1,
        calls[2] + 1,
    )
    control.remove()
    assert unet.fine.attn1 is original
    assert torch.equal(unet(latent, context), before)
    assert control.layers == 0


def test_blocks_see_the_layer_and_the_tokens_before_the_norm() -> None:
    unet = UNet().eval()
    latent, context = inputs()
    x = latent.flatten(2).transpose(1, 2)
    block = unet.fine
    layer = AgentSDAttention.around(block.attn1)
    normed = block.norm1(x)
    schedule = AgentSDSchedule()
    expected = [layer(normed, (8, 12), phase, metric=x) for phase in (schedule.early, schedule.late)]
    control = install_agent_sd(unet)
    seen = []
    block.attn1.register_forward_hook(lambda module, args, output: seen.append(output))
    for control.step in (0, 30):
        unet(latent, context)
    torch.testing.assert_close(seen, expected)


def test_random_tokens_leave_the_global_generator_alone() -> None:
    unet = UNet().eval()
    latent, context = inputs(batch=2)
    results = []
    for seed in (0, 0, 1):
        control = install_agent_sd(unet, seed=seed)
        state = torch.get_rng_state()
        results.append(unet(latent, context))
        assert torch.equal(torch.get_rng_state(), state)
        control.remove()
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])


def test_coarser_layers_merge_where_the_schedule_says_so() -> None:
    unet = UNet().eval()
    latent, context = inputs()
    control = install_agent_sd(unet, schedule=AgentSDSchedule(max_downsample=2))
    originals = [attention for _, attention in control._replaced]
    unet(latent, context)
    assert [original.calls for original in originals] == [0, 0]
    assert control.space(96) == (8, 12)
    assert control.space(24) == (4, 6)
    assert control.space(6) is None


def test_masks_lead_to_the_original() -> None:
    unet = UNet().eval()
    latent, context = inputs()
    control = install_agent_sd(unet)
    unet(latent, context)
    x = torch.randn(1, 96, DIM)
    mask = torch.rand(96, 96) < 0.8
    original = control._replaced[0][1]
    assert torch.equal(unet.fine.attn1(x, mask=mask), original(x, mask=mask))
    assert torch.equal(unet.fine.attn1(x, context=context), original(x, context=context))


def test_misuse_is_named() -> None:
    with pytest.raises(ValueError, match="has no block with norm1 and an attn1 with to_q, to_k, to_v, to_out, heads"):
        install_agent_sd(nn.Linear(3, 3))
    unet = UNet()
    control = install_agent_sd(unet)
    with pytest.raises(ValueError, match="installed in this network already"):
        install_agent_sd(unet)
    with pytest.raises(RuntimeError, match="outside of its network"):
        unet.fine.attn1(torch.zeros(1, 96, DIM))
    control.step = 50
    with pytest.raises(ValueError, match=r"step must be in \[0, 50\), got 50"):
        unet(*inputs())
