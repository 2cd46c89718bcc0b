"""What HiP's claims compare it with inside trained networks: random blocks of keys, and sinks with a window."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import ClassVar

import torch
from torch import Tensor, nn

from regard.claims._long_text import MakeMixer, entering, layers, long_rows, long_text_model
from regard.claims._recall import Passkey, fit_recall
from regard.contract import SequenceMixer
from regard.measure import one_thread
from regard.metadata import Traits
from regard.mixers.sequence.hip import HiPAttention
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.models.language.decoder import Decoder, DecoderConfig
from regard.ops.block_sparse import BlockChoice, block_sparse_attention, block_sparse_macs, block_sparse_visible
from regard.ops.heads import head_width, kv_head_count, merge_heads, split_heads
from regard.ops.hip import HiPSizes, hip_visible
from regard.ops.rotary import rotate
from regard.ops.softmax_attention import softmax_weights
from regard.ops.visibility import visible_keys

BUDGET, WINDOW, SINKS = 128, 32, 4
SIZES = HiPSizes(mask_k=BUDGET - WINDOW, block_q=16, block_k=2, window=WINDOW, sinks=0)
"""As many keys a query as the budget has: those that are searched, and the window."""
PASSKEY, PASSKEY_LENGTH, PASSKEY_STEPS = Passkey(), 192, 500
PASSKEY_SIZES = HiPSizes(mask_k=16, block_q=16, block_k=2, window=16, sinks=0)


def random_choice(q: Tensor, sizes: HiPSizes) -> BlockChoice:
    """For each block of queries as many blocks of keys as HiP keeps, drawn from those before its window."""
    batch, heads, tokens, _ = q.shape
    blocks, generator = -(-tokens // sizes.block_q), torch.Generator().manual_seed(0)
    grid = torch.rand(batch, heads, blocks, -(-tokens // sizes.block_k), generator=generator)
    ends = (sizes.block_q * torch.arange(1, blocks + 1)).clamp(max=tokens)
    before = (ends - sizes.window).clamp(min=0)
    columns = torch.arange(grid.shape[-1])
    grid = grid.masked_fill(columns * sizes.block_k >= before[:, None], -1.0)
    budget = sizes.mask_k // sizes.block_k
    chosen = grid.topk(min(budget, grid.shape[-1]), dim=-1).indices
    counts = (-(-before // sizes.block_k)).clamp(max=budget).expand(batch, heads, -1)
    return BlockChoice(chosen * sizes.block_k, counts, block_q=sizes.block_q, block_k=sizes.block_k)


class RandomBlockAttention(SequenceMixer):
    """HiP with a choice of keys by chance.

    Args:
        dim: width of the model.
        num_heads: number of query heads.
        num_kv_heads: number of key/value heads.
        sizes: as HiP's.
        rope_base: base of the rotary embedding.
    """

    traits: ClassVar[Traits] = HiPAttention.traits

    def __init__(
        self, dim: int, *, num_heads: int, num_kv_heads: int, sizes: HiPSizes, rope_base: float | None
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=True)
        width = head_width(dim, num_heads)
        self.num_kv_heads = kv_head_count(num_heads, num_kv_heads)
        self.sizes, self.rope_base = sizes, rope_base
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, self.num_kv_heads * width, bias=False)
        self.v_proj = nn.Linear(dim, self.num_kv_heads * width, bias=False)
        self.o_proj = nn.Linear(dim, dim)

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Tensor:
        """Attention to random blocks and the window."""
        q = split_heads(self.q_proj(x), self.num_heads)
        k, v = (split_heads(proj(x), self.num_kv_heads) for proj in (self.k_proj, self.v_proj))
        if self.rope_base is not None:
            places = torch.arange(x.shape[1])[None]
            q, k = rotate(q, places, base=self.rope_base), rotate(k, places, base=self.rope_base)
        first = torch.zeros(len(x), dtype=torch.int64)
        choice, reach = random_choice(q, self.sizes), self.sizes.reach(x.shape[1])
        return block_sparse_attention(q, k, v, choice, reach, first=first)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.o_proj(merge_heads(mixed))

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections, and blocks of queries with their keys."""
        width = head_width(options.dim, options.num_heads)
        operator = block_sparse_macs(
            blocks=-(-tokens // options.sizes.block_q),
            block_q=options.sizes.block_q,
            chosen=options.sizes.mask_k,
            reach=options.sizes.reach(tokens),
            head_dim=width,
            value_dim=width,
        )
        projections = 2 * tokens * options.dim * (options.dim + width * options.num_kv_heads)
        return batch * (projections + options.num_heads * operator)


def hip_mixer(sizes: HiPSizes) -> MakeMixer:
    """HiP in the place of softmax attention."""

    def make(trained: SoftmaxAttention) -> SequenceMixer:
        return HiPAttention(
            trained.dim,
            num_heads=trained.num_heads,
            num_kv_heads=trained.num_kv_heads,
            mask_k=sizes.mask_k,
            block_q=sizes.block_q,
            block_k=sizes.block_k,
            window=sizes.window,
            sinks=sizes.sinks,
            rope_base=trained.rope_base,
        )

    return make


def random_mixer(sizes: HiPSizes) -> MakeMixer:
    """Random blocks in its place."""

    def make(trained: SoftmaxAttention) -> SequenceMixer:
        return RandomBlockAttention(
            trained.dim,
            num_heads=trained.num_heads,
            num_kv_heads=trained.num_kv_heads,
            sizes=sizes,
            rope_base=trained.rope_base,
        )

    return make


@functools.cache
def passkey_model(seed: int) -> Decoder:
    """A dense network that finds a digit anywhere in noise."""
    torch.manual_seed(seed)
    model = Decoder(DecoderConfig(vocab_size=PASSKEY.vocab_size, dim=64, num_layers=2, num_heads=4, rotary=True))
    with one_thread():
        fit_recall(
            model,
            lambda step: PASSKEY.examples(batch=32, length=PASSKEY_LENGTH, seed=seed, step=step),
            steps=PASSKEY_STEPS,
            learning_rate=3e-3,
            seed=seed,
        )
    return model.eval().requires_grad_(False)


def _sinks_and_window(length: int) -> Tensor:
    distance = torch.arange(length)[:, None] - torch.arange(length)
    near = (distance >= 0) & (distance < BUDGET - SINKS)
    return near | ((torch.arange(length) < SINKS) & (distance >= 0))


@torch.no_grad()
def recovered_mass(rows: int = 4) -> dict[str, float]:
    """The share of the dense network's attention on the keys that each way keeps; queries of the second half."""
    model = long_text_model()
    tokens = long_rows(rows)[:, :-1]
    found: dict[str, list[float]] = {"HiP": [], "random": [], "sinks and window": []}
    for block, x in zip(layers(model), entering(model, tokens), strict=True):
        mixer = block.mixer
        assert isinstance(mixer, SoftmaxAttention)
        q, k, _ = mixer._project(x, x, None)
        length, first = q.shape[2], torch.zeros(rows, dtype=torch.int64)
        whole = visible_keys(length, length, causal=True, device=q.device)
        weights = softmax_weights(q, k, visible=whole)
        kept = {
            "HiP": hip_visible(q, k, SIZES),
            "random": block_sparse_visible(
                random_choice(q, SIZES), SIZES.reach(length), first=first, queries=length, keys=length
            ),
            "sinks and window": _sinks_and_window(length),
        }
        for name, visible in kept.items():
            shares = torch.where(visible, weights, 0).sum(dim=-1)
            found[name].append(float(shares[:, :, length // 2 :].mean()))
    return {name: sum(values) / len(values) for name, values in found.items()}
