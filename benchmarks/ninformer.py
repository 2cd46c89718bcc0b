"""NiNformer's block against a Transformer's with materialised and with fused attention, and against timm's Mixer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from harness import Outcome, at_most
from timm.models.mlp_mixer import MixerBlock as PeerBlock
from torch import Tensor, nn

from regard.layers.encoder_block import EncoderBlock
from regard.layers.mixer_block import MixerBlock
from regard.measure import contraction_macs, race
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.models.vision.ninformer import NiNformerBlock

DIM, HIDDEN, HEADS = 256, 512, 8
ROUNDS = {64: 31, 256: 21, 1024: 11}


class MaterialisedAttention(nn.Module):
    """Softmax attention as it was written before fused kernels: all scores in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(DIM, 3 * DIM)
        self.proj = nn.Linear(DIM, DIM)

    def forward(self, x: Tensor, *, mask: None = None) -> Tensor:
        """Full attention; the block hands on that there is no mask."""
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, DIM // HEADS)).permute(2, 0, 3, 1, 4)
        weights = (q * (DIM // HEADS) ** -0.5 @ k.mT).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


def blocks(tokens: int) -> dict[str, nn.Module]:
    fused = SoftmaxAttention(DIM, num_heads=HEADS, qkv_bias=True)
    return {
        "ours": NiNformerBlock(tokens, DIM, hidden=HIDDEN).eval(),
        "materialised": EncoderBlock(MaterialisedAttention(), dim=DIM, hidden=HIDDEN).eval(),
        "fused": EncoderBlock(fused, dim=DIM, hidden=HIDDEN).eval(),
    }


def forward() -> Iterator[Outcome]:
    """The target is set at 1,024 tokens; where the curves cross is reported beside it."""
    ratios, shown = {}, []
    for tokens, rounds in ROUNDS.items():
        x = torch.randn(1, tokens, DIM)
        runs = {name: partial(block, x) for name, block in blocks(tokens).items()}
        with torch.no_grad():
            times = race(runs, rounds=rounds)
        macs = {name: contraction_macs(run) for name, run in runs.items()}
        ratios[tokens] = times.ratio("ours", "materialised")
        shown.append(
            f"{tokens}: {ratios[tokens]:.2f}x (fused {times.ratio('ours', 'fused'):.2f}x, "
            f"MACs {macs['ours'] / macs['materialised']:.2f}x)"
        )
    slower = max((tokens for tokens, ratio in ratios.items() if ratio > 1), default=0)
    crossing = min((tokens for tokens in ratios if tokens > slower), default=None)
    detail = f"{'; '.join(shown)}; faster from {crossing} tokens on"
    what = f"NiNformer block / ViT block with materialised attention, forward, 1,024 tokens, dim {DIM}, MLP {HIDDEN}"
    yield at_most("ninformer forward 1024", what, ratios[1024], 1.0, detail=detail)


def training() -> Outcome:
    x, contestants = torch.randn(1, 1024, DIM, requires_grad=True), blocks(1024)
    upstream = torch.randn_like(x)

    def train(block: nn.Module) -> None:
        block.zero_grad()
        block(x).backward(upstream)

    times = race({name: lambda block=block: train(block) for name, block in contestants.items()}, rounds=7)
    what = f"NiNformer block / ViT block with materialised attention, forward and backward, 1,024 tokens, dim {DIM}"
    detail = f"fused {times.ratio('ours', 'fused'):.2f}x"
    return at_most("ninformer training 1024", what, times.ratio("ours", "materialised"), 1.0, detail=detail)


def against_peer(tokens: int, batch: int) -> Outcome:
    """The block inside the gating unit, with the same weights as timm's."""
    ours = MixerBlock(tokens, DIM, token_hidden=HIDDEN, channel_hidden=HIDDEN, norm_eps=1e-6).eval()
    theirs = PeerBlock(DIM, tokens, mlp_ratio=(HIDDEN / DIM, HIDDEN / DIM)).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(batch, tokens, DIM)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
        times = race({"ours": lambda: ours(x), "theirs": lambda: theirs(x)}, rounds=ROUNDS[tokens])
    what = f"mixer block / timm's, forward, {batch} x {tokens} tokens, dim {DIM}, MLPs {HIDDEN}"
    return at_most(f"ninformer peer {tokens}", what, times.ratio("ours", "theirs"), 1.0)


def races() -> Iterator[Outcome]:
    yield from forward()
    yield training()
    yield against_peer(64, 32)
    yield against_peer(1024, 1)
