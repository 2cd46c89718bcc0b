"""Local heads: attention to a block of tokens and to the blocks beside it, with projections and rotary positions.

Paper: "Efficient Content-Based Sparse Attention with Routing Transformers", Roy et al., TACL 2021,
https://arxiv.org/abs/2003.05997, section 3. Compared with the local heads of lucidrains/routing-transformer@3f6c461a,
`routing_transformer.py:SelfAttention`, which are those of lucidrains/local-attention 1.4.3.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.layers.window_cache import WindowCache, empty_window_cache
from regard.ops.block_local_attention import block_local_attention, check_blocks, near_blocks
from regard.ops.heads import split_heads
from regard.ops.rotary import check_rotary, rotate
from regard.ops.softmax_attention import softmax_attention, softmax_weights

Heads = Float[Tensor, "batch heads tokens head_dim"]
Positions = Int[Tensor, "#batch tokens"]
Mask = Bool[Tensor, "batch tokens"]


class BlockLocalHeads(nn.Module):
    """Heads that look at blocks of tokens.

    Args:
        dim: width of the model.
        num_heads: local heads.
        head_dim: their width.
        block_size: tokens in a block.
        look_back: blocks before the own one that are seen; without causality also after it.
        causal: hide later tokens.
        bias: bias in the projection.
        rope_base: base of the rotary embedding; None = no positions.

    Raises:
        ValueError: sizes that are not positive, or a rotary embedding with an odd width.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        head_dim: int,
        block_size: int,
        look_back: int,
        causal: bool,
        bias: bool,
        rope_base: float | None,
    ) -> None:
        super().__init__()
        check_blocks(block_size, look_back)
        check_rotary(head_dim, rope_base)
        self.num_heads, self.causal, self.rope_base = num_heads, causal, rope_base
        self.block_size, self.look_back = block_size, look_back
        self.qkv = nn.Linear(dim, 3 * num_heads * head_dim, bias=bias)

    def project(self, x: Float[Tensor, "batch tokens dim"], positions: Positions) -> tuple[Heads, Heads, Heads]:
        """Queries, keys and values; the former two rotated."""
        q, k, v = (split_heads(part, self.num_heads) for part in self.qkv(x).chunk(3, dim=-1))
        if self.rope_base is None:
            return q, k, v
        return rotate(q, positions, base=self.rope_base), rotate(k, positions, base=self.rope_base), v

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], positions: Positions, mask: Mask | None, *, dropout: float = 0.0
    ) -> Heads:
        """Attention of all tokens, in blocks.

        Args:
            x: the layer's input.
            positions: of the tokens, from 0 on.
            mask: True = real token; padding stands at the end.
            dropout: probability of dropping a weight.
        """
        return block_local_attention(
            *self.project(x, positions),
            block_size=self.block_size,
            look_back=self.look_back,
            causal=self.causal,
            # padding lies to the right of every real token, so causality already hides it
            mask=None if self.causal else mask,
            dropout=dropout,
        )

    def _near(self, queries: Tensor, keys: Tensor) -> Bool[Tensor, "batch 1 queries keys"]:
        return near_blocks(
            queries, keys, block_size=self.block_size, look_back=self.look_back, causal=self.causal
        ).unsqueeze(1)

    def weights(
        self, x: Float[Tensor, "batch tokens dim"], positions: Positions, mask: Mask | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The softmax weights, 0 where a key is not seen."""
        q, k, _ = self.project(x, positions)
        near = self._near(positions, positions)
        return softmax_weights(q, k, visible=near if mask is None else near & mask[:, None, None])

    def empty_cache(self, batch: int) -> WindowCache:
        """Room for the tokens that a token may see."""
        width = self.qkv.out_features // (3 * self.num_heads)
        return empty_window_cache(
            batch,
            num_kv_heads=self.num_heads,
            head_dim=width,
            value_dim=width,
            window_size=(self.look_back + 1) * self.block_size,
            like=self.qkv.weight,
        )

    def step(
        self, x: Float[Tensor, "batch tokens dim"], positions: Positions, mask: Mask | None, cache: WindowCache
    ) -> tuple[Heads, WindowCache]:
        """New tokens against their blocks in the cache and each other; the cache with the new tokens."""
        q, k, v = self.project(x, positions)
        window, tokens = cache.keys.shape[2], q.shape[2]
        if tokens == 1:
            after = cache.append(k, v, mask)
            own = after.position[:, None] - 1
            slots = torch.arange(window, device=q.device)
            seen = self._near(own, own - (own - slots) % window)
            keys, values = (stored.to(q.dtype) for stored in (after.keys, after.values))
            return softmax_attention(q, keys, values, visible=seen), after
        old_keys, old_values, _ = cache.in_order()
        keys, values = (torch.cat((old.to(q.dtype), new), dim=2) for old, new in ((old_keys, k), (old_values, v)))
        first, parts = cache.position[:, None], []
        for start in range(0, tokens, window):
            stop = min(start + window, tokens)
            own = first + torch.arange(start, stop, device=q.device)
            seen = self._near(own, first + torch.arange(start - window, stop, device=q.device))
            part = slice(start, stop + window)
            parts.append(softmax_attention(q[:, :, start:stop], keys[:, :, part], values[:, :, part], visible=seen))
        return torch.cat(parts, dim=2), cache.append(k, v, mask)
