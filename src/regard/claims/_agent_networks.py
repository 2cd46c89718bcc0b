"""What the claims about agent attention are measured on: small classifiers, and layers of a diffusion U-Net's size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from regard.layers.agent_sd import AgentSDAttention, MergingPhase
from regard.mixers.sequence.agent import AgentAttention
from regard.mixers.spatial.agent import AgentAttention2d
from regard.models.vision.agent_deit import AgentDeiT
from regard.models.vision.vit import ViT
from regard.ops.heads import merge_heads, split_heads
from regard.ops.softmax_attention import softmax_attention
from regard.ops.token_merging import match_tokens

SIDE, HEADS, HEAD_DIM = 64, 8, 40
"""The finest map of Stable Diffusion 1.5 at 512 x 512 pixels, and the heads of its attention there."""
AGENTS = 9

MERGED_TO_AGENTS = MergingPhase(cell=(4, 4), ratio=15 / 16, agent_ratio=0.0)
"""All tokens but one per cell of 4 x 4 are merged: as many are left as AgentSD has agents early on."""


def classifiers() -> Mapping[str, Callable[[], nn.Module]]:
    """Networks of equal width and depth on 64 patches of one pixel, by the name of their attention."""
    vit = replace(ViT.SMALL, patch_size=1)
    deit = replace(AgentDeiT.SMALL, patch_size=1, agent_layers=AgentDeiT.SMALL.num_layers, num_agents=AGENTS)
    return {
        "agent": lambda: ViT(replace(vit, mixer=AgentAttention.registered_name, mixer_options={"num_agents": AGENTS})),
        "linear": lambda: ViT(replace(vit, mixer="linear")),
        "softmax": lambda: ViT(vit),
        "agent with biases and convolution": lambda: AgentDeiT(deit),
    }


def diffusion_attention(seed: int) -> AgentSDAttention:
    """A layer of Stable Diffusion's size whose projections are random and keep the variance; nothing follows them."""
    generator = torch.Generator().manual_seed(seed)
    width = HEADS * HEAD_DIM
    projections = [nn.Linear(width, width, bias=False) for _ in range(3)]
    with torch.no_grad():
        for projection in projections:
            projection.weight.copy_(torch.randn(width, width, generator=generator) * width**-0.5)
    q_proj, k_proj, v_proj = projections
    return AgentSDAttention(q_proj, k_proj, v_proj, nn.Identity(), num_heads=HEADS).eval()


def smooth_tokens(cutoff: int, seed: int) -> Float[Tensor, "1 tokens channels"]:
    """Normed tokens of a map whose channels are random fields without frequencies above `cutoff` cycles per side."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(HEADS * HEAD_DIM, SIDE, SIDE, generator=generator)
    cycles = torch.fft.fftfreq(SIDE, d=1 / SIDE)
    kept = cycles[:, None].square() + cycles.square() <= cutoff**2
    field = torch.fft.ifft2(torch.fft.fft2(noise) * kept).real
    return F.layer_norm(field.flatten(1).T[None], (HEADS * HEAD_DIM,))


def few_keys(layer: AgentSDAttention, x: Float[Tensor, "batch tokens channels"]) -> Tensor:
    """Every token as a query, keys and values merged to as many as there are agents."""
    merged = match_tokens(x, (SIDE, SIDE), MERGED_TO_AGENTS.cell).merge(x, x.shape[1])
    q = split_heads(layer.q_proj(x), HEADS)
    k, v = (split_heads(project(merged), HEADS) for project in (layer.k_proj, layer.v_proj))
    return merge_heads(softmax_attention(q, k, v))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float((actual - expected).norm() / expected.norm())


def silence(mixer: AgentAttention2d) -> None:
    """Make biases and convolution zero, so that the attention alone is left."""
    with torch.no_grad():
        for parameter in (*mixer.agents.bias.parameters(), *mixer.agents.local.parameters()):
            parameter.zero_()


def rectangle_means(q: Float[Tensor, "batch y x *channels"], side: int) -> Float[Tensor, "batch agents *channels"]:
    """Means over `side` x `side` rectangles, written out: from floor(i l / side) to ceil((i + 1) l / side)."""
    rows, columns = ([(i * size // side, -(-(i + 1) * size // side)) for i in range(side)] for size in q.shape[1:3])
    parts = [q[:, top:bottom, left:right].mean(dim=(1, 2)) for top, bottom in rows for left, right in columns]
    return torch.stack(parts, dim=1)


def published_macs(call: Callable[[], object]) -> float:
    """MACs as tables of image networks give them: contractions, 5 per normed number, 1 per pooled, 4 per interpolated.

    Args:
        call: a forward on the meta device.
    """
    mapping = {
        torch.ops.aten.native_layer_norm: lambda x, *_, **__: 2 * 5 * math.prod(x),
        torch.ops.aten._adaptive_avg_pool2d: lambda x, *_, **__: 2 * math.prod(x),
        torch.ops.aten.upsample_bilinear2d: lambda *_, out_shape, **__: 2 * 4 * math.prod(out_shape),
    }
    # deterministic interpolation is made of many other operations
    was_on, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(False)
    try:
        with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=mapping) as counter:
            call()
    finally:
        torch.use_deterministic_algorithms(was_on, warn_only=warn_only)
    return counter.get_total_flops() / 2
