"""Routing Transformer attention: some heads look at blocks near the token, the others at clusters of similar tokens.

Paper: "Efficient Content-Based Sparse Attention with Routing Transformers", Roy et al., TACL 2021,
https://arxiv.org/abs/2003.05997, sections 3 and 4.
Compared with lucidrains/routing-transformer@3f6c461a, `routing_transformer.py:SelfAttention` (`mode="compat"`), and
read beside google-research/google-research@0c1bbe5f, `routing_transformer/utils.py` (`mode="paper"`).
Different from both: padding takes no place in a cluster; local blocks take any length; a decoder, in which a token
attends in the clusters that hold it among the tokens so far (`prefix_topk` makes the parallel form choose so, too).
Different from the authors' code: positions are rotary where there relative ones are learned; heads are merged by the
usual projection; and what is told in `regard.ops.kmeans_routing` and `regard.layers.centroids`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.contract import SequenceMixer, load_strictly
from regard.layers.block_local_heads import BlockLocalHeads
from regard.layers.head_split import split_of
from regard.layers.reference_names import rename_all
from regard.layers.routing_heads import REFERENCE_NAMES, Routed, RoutingHeads
from regard.layers.routing_state import RoutingState, empty_routing_state
from regard.layers.wide_precision import wide_linear
from regard.metadata import Example, No, Paper, Traits
from regard.ops.block_local_attention import block_local_macs, check_blocks
from regard.ops.heads import merge_heads, split_heads
from regard.ops.kmeans_routing import routing_macs
from regard.ops.prefix_routing import prefix_routing_macs
from regard.ops.rotary import check_rotary
from regard.ops.routing_form import Mode, RoutingForm
from regard.registry import register

Heads = Float[Tensor, "batch heads tokens head_dim"]

ROUTING_PAPER = Paper(
    title="Efficient Content-Based Sparse Attention with Routing Transformers",
    authors="Roy et al.",
    venue="TACL",
    year=2021,
    url="https://arxiv.org/abs/2003.05997",
    code="lucidrains/routing-transformer@3f6c461a",
    where="sections 3 and 4",
)
LAYER_NAMES = (
    (r"^local_to_qkv\.", "local.qkv."),
    (r"^to_([qkv])\.", r"\1_proj."),
    (r"^to_out\.", "o_proj."),
    (r"^global_attn\.", "routing."),
    *REFERENCE_NAMES,
)
CONSTANTS = ("local_attn.rel_pos.inv_freq",)
"""Tables of the compared layer that are no parameters."""


def own_layout(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A layer of the compared code under our names; memory slots of size 0, which it always has, are left out."""
    named = rename_all({name: tensor for name, tensor in state_dict.items() if name not in CONSTANTS}, LAYER_NAMES)
    return {name: tensor for name, tensor in named.items() if tensor.numel()}


@register(
    name="routing",
    system="routing",
    paper=ROUTING_PAPER,
    traits=Traits(
        cross=No("local heads look near a token's place, and a context has none: routing_cross routes all heads"),
        segments=No("the tokens of a whole row compete for the places in a cluster"),
        bias=No("tokens are chosen by their products with centroids, to which no bias is added"),
        step_exact=No(
            "in parallel all tokens compete for a cluster, in a step those so far; prefix_topk=True makes both equal"
        ),
        row_stochastic=No("a token that is in no cluster attends to nothing"),
        causality="values",
        time="n^1.5",
        memory="n",
    ),
    example=Example(
        kwargs={
            "dim": 30,
            "num_heads": 3,
            "local_heads": 1,
            "num_clusters": 5,
            "window_size": 6,
            "block_size": 4,
            "rope_base": 100.0,
        },
        batch=2,
        tokens=13,
    ),
)
class RoutingAttention(SequenceMixer):
    """Local heads beside heads that attend inside clusters of an online k-means.

    For routing heads, each of C centroids takes the w tokens of largest mu_c . x (x the layer-normed queries and
    keys); these attend to each other, y_i is the mean of token i over its clusters, and 0 if it is in none. Local heads
    attend to their block of tokens and the ones beside it. Centroids are buffers that follow the tokens in training.

    Args:
        dim: width of the model.
        num_heads: number of heads.
        local_heads: heads that look at blocks, the first ones; None = half of them, rounded down.
        head_dim: width of a head; None = dim / num_heads.
        causal: hide the future; it still competes for the places in a cluster, unless `prefix_topk`.
        mode: "paper" or "compat" (the compared code); see `regard.ops.routing_form.RoutingForm`.
        num_clusters: C, centroids of a routing head; the paper takes about sqrt(n).
        window_size: w, tokens in a cluster; the paper takes n / C.
        block_size: tokens in a block of the local heads.
        look_back: blocks before its own that a local head sees; without causality also after it.
        shared_qk: keys of routing heads are their queries; None = if causal.
        num_memory: learned keys and values in every cluster; in mode "compat" at least 1 if causal and not shared.
        prefix_topk: choose a token's clusters among the tokens up to it, exactly causal and as in decoding, but slower.
        commitment: beta, factor of `commitment_loss`.
        decay: lambda, what is kept of the centroids' averages in an update.
        attn_drop: probability of dropping a weight in training.
        rope_base: base of the rotary embedding; None = no positions.

    Raises:
        ValueError: sizes that do not fit, an unknown mode, or `prefix_topk` without causality.

    Cost: per routing head n C d MACs to route and 2 C w^2 d to attend, least at C = w = sqrt(n); with `prefix_topk`
    2 n C (w + chunk) d to attend; per local head 2 n b (look_back + 1) d if causal.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        local_heads: int | None = None,
        head_dim: int | None = None,
        causal: bool = False,
        mode: Mode = "paper",
        num_clusters: int = 16,
        window_size: int = 64,
        block_size: int = 64,
        look_back: int = 1,
        shared_qk: bool | None = None,
        num_memory: int = 0,
        prefix_topk: bool = False,
        commitment: float = 1e-4,
        decay: float = 0.999,
        attn_drop: float = 0.0,
        rope_base: float | None = None,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        split = split_of(
            dim,
            num_heads=num_heads,
            local_heads=local_heads,
            head_dim=head_dim,
            causal=causal,
            shared_qk=shared_qk,
            num_memory=num_memory,
            mode=mode,
        )
        check_blocks(block_size, look_back)
        check_rotary(split.head_dim, rope_base)
        if prefix_topk and not causal:
            raise ValueError("prefix_topk=True needs causal=True: without causality there is no prefix")
        if not 0 <= attn_drop < 1:
            raise ValueError(f"attn_drop must be in [0, 1), got {attn_drop}")
        self.split, self.prefix_topk, self.attn_drop = split, prefix_topk, attn_drop
        form = RoutingForm(window_size=window_size, causal=causal, shared_qk=split.shared_qk, mode=mode)
        routed_width = split.routed * split.head_dim
        self.local = (
            BlockLocalHeads(
                dim,
                num_heads=split.local,
                head_dim=split.head_dim,
                block_size=block_size,
                look_back=look_back,
                causal=causal,
                bias=mode == "compat",
                rope_base=rope_base,
            )
            if split.local
            else None
        )
        self.q_proj = nn.Linear(dim, routed_width, bias=False) if split.routed else None
        self.k_proj = nn.Linear(dim, routed_width, bias=False) if split.routed and not split.shared_qk else None
        self.v_proj = nn.Linear(dim, routed_width, bias=False) if split.routed else None
        self.routing = (
            RoutingHeads(
                form,
                num_heads=split.routed,
                num_clusters=num_clusters,
                head_dim=split.head_dim,
                num_memory=split.slots,
                commitment=commitment,
                decay=decay,
                rope_base=rope_base,
            )
            if split.routed
            else None
        )
        self.o_proj = nn.Linear(num_heads * split.head_dim, dim, bias=False)

    def inert_parameters(self) -> set[str]:
        """With one token in a cluster and no memory slots there is nothing to compare."""
        alone = self.routing is not None and self.routing.form.window_size == 1 and self.split.slots == 0
        return {"q_proj.weight", "k_proj.weight"} & set(dict(self.named_parameters())) if alone else set()

    # -- projections

    def _routed_qk(self, x: Tensor) -> tuple[Heads, Heads]:
        # in at least float32: a rounded similarity would not change a cluster a little, but fill it otherwise
        assert self.q_proj is not None
        q = split_heads(wide_linear(x, self.q_proj), self.split.routed)
        return q, q if self.k_proj is None else split_heads(wide_linear(x, self.k_proj), self.split.routed)

    def _routed(self, x: Tensor, positions: Int[Tensor, "#batch tokens"]) -> Routed:
        assert self.routing is not None
        assert self.v_proj is not None
        return self.routing.prepare(*self._routed_qk(x), split_heads(self.v_proj(x), self.split.routed), positions)

    @property
    def _dropout(self) -> float:
        return self.attn_drop if self.training else 0.0

    # -- hooks of the contract

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Heads:
        """Local heads, then routing heads."""
        positions, parts = torch.arange(x.shape[1], device=x.device)[None], []
        if self.local is not None:
            parts.append(self.local(x, positions, mask, dropout=self._dropout))
        if self.routing is not None:
            routed = self._routed(x, positions)
            if self.prefix_topk:
                parts.append(self.routing.from_prefix(routed, mask, owner=self, dropout=self._dropout))
            else:
                parts.append(self.routing(routed, query_mask=mask, key_mask=mask, owner=self, dropout=self._dropout))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.o_proj(merge_heads(mixed))

    def commitment_loss(
        self, x: Float[Tensor, "batch tokens dim"], *, mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, ""]:
        """What training adds to the task's loss, for a layer's input: it draws tokens towards their centroids.

        Args:
            x: the layer's input.
            mask: True = real token.
        """
        if self.routing is None:
            return x.new_zeros(())
        positions = torch.arange(x.shape[1], device=x.device)[None] if mask is None else mask.cumsum(dim=1) - 1
        items = self.routing.items(*self._routed_qk(x), positions.clamp(min=0))
        return self.routing.commitment_loss(*items, query_mask=mask, key_mask=mask)

    def update_centroids(self) -> None:
        """Move the centroids by the training calls since the last update, now instead of in the next one."""
        if self.routing is not None:
            self.routing.centroids.update()

    def init_state(self, batch: int, *, max_len: int | None = None) -> RoutingState:
        """Empty caches and clusters; without `max_len` the cache grows by doubling."""
        if not self.causal:
            raise ValueError("init_state needs causal=True: a bidirectional mixer has no past to decode from")
        return empty_routing_state(
            batch,
            head_dim=self.split.head_dim,
            local=self.local,
            routing=self.routing,
            max_len=max_len,
            like=self.o_proj.weight,
        )

    def mix_step(self, x: Tensor, state: RoutingState, *, mask: Tensor | None) -> tuple[Heads, RoutingState]:
        """New tokens: each in the blocks before it, and in the clusters that hold it among the tokens so far."""
        tokens, parts = x.shape[1], []
        positions = state.position[:, None] + torch.arange(tokens, device=x.device)
        if self.local is not None:
            mixed, blocks = self.local.step(x, positions, mask, state.local)
            state = replace(state, local=blocks)
            parts.append(mixed)
        if self.routing is not None:
            mixed, state = state.route(self.routing, self._routed(x, positions), mask)
            parts.append(mixed)
        counts = tokens if mask is None else mask.sum(dim=1)
        return torch.cat(parts, dim=1), replace(state, position=state.position + counts)

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The softmax weights of the local heads, and the routing heads' means over clusters."""
        positions, parts = torch.arange(x.shape[1], device=x.device)[None], []
        if self.local is not None:
            parts.append(self.local.weights(x, positions, mask))
        if self.routing is not None:
            routed = self._routed(x, positions)
            parts.append(self.routing.weights(routed, query_mask=mask, key_mask=mask, prefix=self.prefix_topk))
        return torch.cat(parts, dim=1)

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values; in mode "compat" those of routing heads are rotated with their keys."""
        positions, parts = torch.arange(x.shape[1], device=x.device)[None], []
        if self.local is not None:
            parts.append(self.local.project(x, positions)[2])
        if self.routing is not None:
            parts.append(self._routed(x, positions).v)
        return torch.cat(parts, dim=1)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the compared code's layout of a layer.

        Raises:
            KeyError: an unknown or a missing key, named.
        """
        load_strictly(self, own_layout(state_dict))

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Projections, whole blocks of the local heads, routing, and whole clusters, hidden keys included."""
        split = split_of(
            options.dim,
            num_heads=options.num_heads,
            local_heads=options.local_heads,
            head_dim=options.head_dim,
            causal=options.causal,
            shared_qk=options.shared_qk,
            num_memory=options.num_memory,
            mode=options.mode,
        )
        projected = 3 * split.local + (2 if split.shared_qk else 3) * split.routed + split.local + split.routed
        form = RoutingForm(
            window_size=options.window_size, causal=options.causal, shared_qk=split.shared_qk, mode=options.mode
        )
        sizes = {"tokens": tokens, "head_dim": split.head_dim, "value_dim": split.head_dim}
        local = block_local_macs(
            block_size=options.block_size, look_back=options.look_back, causal=options.causal, **sizes
        )
        if options.prefix_topk:
            routed = prefix_routing_macs(form, clusters=options.num_clusters, slots=split.slots, **sizes)
        else:
            routed = routing_macs(form, clusters=options.num_clusters, keys=tokens, slots=split.slots, **sizes)
        operators = split.local * local + split.routed * routed
        return batch * (tokens * options.dim * projected * split.head_dim + operators)
