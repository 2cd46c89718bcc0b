"""Attention in a sliding window beside a prefix that every query sees: projections, rotary positions, cache."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.contract import State, state
from regard.layers.window_cache import WindowCache, empty_window_cache
from regard.ops.heads import head_width, split_heads
from regard.ops.prefix_window import prefix_window_attention
from regard.ops.rotary import check_rotary, rotate

Heads = Float[Tensor, "batch heads tokens head_dim"]
Prefix = Float[Tensor, "#batch heads prefix head_dim"]


@state
class PrefixWindowState(State):
    """The window's keys and values, and those of the prefix."""

    window: WindowCache
    prefix_k: Float[Tensor, "batch heads prefix head_dim"]
    prefix_v: Float[Tensor, "batch heads prefix head_dim"]


class PrefixWindowAttention(nn.Module):
    """Softmax attention to the last `window_size` tokens and to a prefix; heads are not merged.

    Args:
        dim: width of the model.
        num_heads: number of heads; must divide `dim`.
        window_size: keys of the sequence that a query sees, its own among them.
        rope_base: base of the rotary embedding, which leaves the prefix as it is; None = no positions.

    Raises:
        ValueError: sizes that do not divide, a window that is not positive, or a rotary embedding with an odd head
            width.
    """

    def __init__(self, dim: int, *, num_heads: int, window_size: int, rope_base: float | None) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, head_width(dim, num_heads)
        check_rotary(self.head_dim, rope_base)
        if window_size < 1:
            raise ValueError(f"window_size must be positive, got {window_size}")
        self.window_size, self.rope_base = window_size, rope_base
        self.q_proj = nn.Linear(dim, dim, bias=False)
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim, bias=False)

    def prefix(self, tokens: Float[Tensor, "#batch prefix dim"]) -> tuple[Prefix, Prefix]:
        """Keys and values of the prefix."""
        return split_heads(self.k_proj(tokens), self.num_heads), split_heads(self.v_proj(tokens), self.num_heads)

    def forward(self, x: Float[Tensor, "batch tokens dim"], prefix: tuple[Prefix, Prefix]) -> Heads:
        """Attention of a whole sequence."""
        q, turned, k, v = self._project(x, torch.arange(x.shape[1], device=x.device)[None])
        return prefix_window_attention(turned, k, v, q, *prefix, window_size=self.window_size)

    def init_state(self, batch: int, prefix: tuple[Prefix, Prefix]) -> PrefixWindowState:
        """An empty window after a prefix of one row."""
        window = empty_window_cache(
            batch,
            num_kv_heads=self.num_heads,
            head_dim=self.head_dim,
            value_dim=self.head_dim,
            window_size=self.window_size,
            like=self.k_proj.weight,
        )
        keys, values = (part.repeat(batch, 1, 1, 1) for part in prefix)
        return PrefixWindowState(position=window.position.clone(), window=window, prefix_k=keys, prefix_v=values)

    def step(
        self,
        x: Float[Tensor, "batch tokens dim"],
        state: PrefixWindowState,
        *,
        mask: Bool[Tensor, "batch tokens"] | None,
    ) -> tuple[Heads, PrefixWindowState]:
        """New tokens after those of the state."""
        tokens, window = x.shape[1], state.window
        q, turned, k, v = self._project(x, window.position[:, None] + torch.arange(tokens, device=x.device))
        old_k, old_v, real = window.in_order()
        mixed = prefix_window_attention(
            turned,
            torch.cat((old_k.to(k.dtype), k), dim=2),
            torch.cat((old_v.to(v.dtype), v), dim=2),
            q,
            state.prefix_k,
            state.prefix_v,
            window_size=self.window_size,
            mask=torch.nn.functional.pad(real, (0, tokens), value=True),
        )
        after = window.append(k, v, mask)
        return mixed, PrefixWindowState(
            position=after.position, window=after, prefix_k=state.prefix_k, prefix_v=state.prefix_v
        )

    def _project(self, x: Tensor, places: Int[Tensor, "#batch tokens"]) -> tuple[Heads, Heads, Heads, Heads]:
        """Queries, turned queries, turned keys, and values."""
        q, k, v = (split_heads(proj(x), self.num_heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.rope_base is None:
            return q, q, k, v
        return q, rotate(q, places, base=self.rope_base), rotate(k, places, base=self.rope_base), v
