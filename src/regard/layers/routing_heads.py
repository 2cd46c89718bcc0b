"""Heads of routing attention between their projections: centroids, learned memory slots, and where positions enter.

Paper: "Efficient Content-Based Sparse Attention with Routing Transformers", Roy et al., TACL 2021,
https://arxiv.org/abs/2003.05997, section 4.1.
Compared with lucidrains/routing-transformer@3f6c461a, `routing_transformer.py:KmeansAttention`.
In mode "compat" queries, keys and values are rotated, in pairs of neighbouring channels, before anything is routed, as
there. In mode "paper" the rotary embedding stands in the place of the paper's relative positions: it turns queries and
keys after they were routed, so that content alone decides the clusters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.centroids import Centroids
from regard.layers.reference_names import rename_all
from regard.ops.centroid_update import commitment_loss
from regard.ops.kmeans_routing import (
    Memory,
    attend_in_clusters,
    compared,
    find_members,
    routed_weights,
    similarities,
)
from regard.ops.prefix_routing import PrefixRouter, no_members, prefix_routed_attention, prefix_routed_weights
from regard.ops.rotary import rotate
from regard.ops.routing_form import RoutingForm

Heads = Float[Tensor, "batch heads tokens head_dim"]
KeyHeads = Float[Tensor, "batch heads keys head_dim"]
Positions = Int[Tensor, "#batch tokens"]
Mask = Bool[Tensor, "batch tokens"]
KeyMask = Bool[Tensor, "batch keys"]

REFERENCE_NAMES = (
    (r"kmeans\.means$", "centroids.means"),
    (r"kmeans\.initted$", "centroids.initialised"),
    (r"mem_key$", "memory_keys"),
    (r"mem_value$", "memory_values"),
)


@dataclass(frozen=True)
class Routed:
    """What enters the clusters.

    Args:
        q_items: what is routed of the queries.
        k_items: what is routed of the keys; not read where they are routed as the queries.
        q: what scores are made of.
        k: the same of the keys.
        v: values.
    """

    q_items: Heads
    k_items: KeyHeads
    q: Heads
    k: KeyHeads
    v: KeyHeads


def rotate_pairs(x: Heads, positions: Positions, *, base: float) -> Heads:
    """The rotary embedding with channel 2 c paired with channel 2 c + 1."""
    halves = x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2)
    return rotate(halves, positions, base=base).unflatten(-1, (2, -1)).transpose(-1, -2).flatten(-2)


def parameters_version(module: nn.Module) -> int:
    """A number that changes with every step of an optimizer."""
    return sum(parameter._version for parameter in module.parameters())


class RoutingHeads(nn.Module):
    """Attention inside clusters for projected queries, keys and values.

    Args:
        form: how tokens are routed.
        num_heads: routing heads.
        num_clusters: C, centroids of a head.
        head_dim: width of queries, keys and values.
        num_memory: learned keys and values that every query of a cluster sees.
        commitment: beta, factor of the commitment loss.
        decay: lambda, what is kept of the centroids' averages in an update.
        rope_base: base of the rotary embedding; None = no positions.

    Raises:
        ValueError: a size that is not positive, a negative number of slots or factor, or a head that is too narrow.
    """

    def __init__(
        self,
        form: RoutingForm,
        *,
        num_heads: int,
        num_clusters: int,
        head_dim: int,
        num_memory: int = 0,
        commitment: float = 1e-4,
        decay: float = 0.999,
        rope_base: float | None = None,
    ) -> None:
        super().__init__()
        if num_memory < 0:
            raise ValueError(f"num_memory must not be negative, got {num_memory}")
        if commitment < 0:
            raise ValueError(f"commitment must not be negative, got {commitment}")
        if form.mode == "paper" and head_dim < 2:
            raise ValueError(f"mode='paper' norms heads over their width, which must be at least 2, got {head_dim}")
        self.form, self.commitment, self.rope_base = form, commitment, rope_base
        self.centroids = Centroids(
            num_heads=num_heads, num_clusters=num_clusters, head_dim=head_dim, mode=form.mode, decay=decay
        )
        shape = (num_heads, num_clusters, num_memory, head_dim)
        self.memory_keys = nn.Parameter(torch.randn(shape)) if num_memory else None
        self.memory_values = nn.Parameter(torch.randn(shape)) if num_memory else None

    @property
    def memory(self) -> Memory | None:
        """Learned keys and values; None where there are none."""
        if self.memory_keys is None or self.memory_values is None:
            return None
        return self.memory_keys, self.memory_values

    def items(self, q: Heads, k: KeyHeads, positions: Positions | None = None) -> tuple[Heads, KeyHeads]:
        """What is routed of queries and keys, in at least float32."""
        if self.form.mode == "compat" and self.rope_base is not None and positions is not None:
            q, k = (rotate_pairs(x, positions, base=self.rope_base) for x in (q, k))
        return self.form.items(q), self.form.items(k)

    def prepare(self, q: Heads, k: KeyHeads, v: KeyHeads, positions: Positions | None = None) -> Routed:
        """Normalise and rotate projected queries, keys and values; scores are made in the type of the values.

        Args:
            q: queries.
            k: keys; with shared queries and keys, the queries.
            v: values.
            positions: of the tokens; None = no rotation, as between two sequences.
        """
        base = self.rope_base
        if positions is not None and base is not None and self.form.mode == "compat":
            q, k, v = (rotate_pairs(x, positions, base=base) for x in (q, k, v))
        q_items, k_items = self.form.items(q), self.form.items(k)
        q, k = compared(q, k, q_items, k_items, self.form)
        if positions is not None and base is not None and self.form.mode == "paper":
            q, k = rotate(q, positions, base=base), rotate(k, positions, base=base)
        return Routed(q_items, k_items, q.to(v.dtype), k.to(v.dtype), v)

    def forward(
        self,
        routed: Routed,
        *,
        query_mask: Mask | None = None,
        key_mask: KeyMask | None = None,
        owner: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> Heads:
        """Fill the clusters from all tokens, attend, average; in training, the centroids take notice.

        Args:
            routed: from `prepare`.
            query_mask: True = real query.
            key_mask: True = real key.
            owner: whose parameters' changes let the centroids move in training; None = these heads.
            dropout: probability of dropping a weight.
        """
        if self.training:
            self._begin(routed, query_mask, key_mask, owner or self)
        members = find_members(
            routed.q_items, routed.k_items, self.centroids.means, self.form, query_mask=query_mask, key_mask=key_mask
        )
        return attend_in_clusters(
            routed.q, routed.k, routed.v, members, self.form, key_mask=key_mask, memory=self.memory, dropout=dropout
        )

    def from_prefix(
        self, routed: Routed, mask: Mask | None, *, owner: nn.Module | None = None, dropout: float = 0.0
    ) -> Heads:
        """The same with clusters that hold, for every token, the nearest of the tokens up to it."""
        if self.training:
            self._begin(routed, mask, mask, owner or self)
        query_scores, key_scores = self.scores(routed, mask)
        batch = len(routed.q)
        return prefix_routed_attention(
            routed.q,
            routed.k,
            routed.v,
            query_scores,
            key_scores,
            PrefixRouter(no_members(batch, self.centroids.means, 0), self.form),
            self.form,
            first=torch.zeros(batch, dtype=torch.int64, device=routed.q.device),
            memory=self.memory,
            dropout=dropout,
        )

    def scores(self, routed: Routed, mask: Mask | None) -> tuple[Tensor, Tensor]:
        """Similarities of queries and of keys with the centroids; one tensor where they are routed together."""
        queries = similarities(routed.q_items, self.centroids.means, mask)
        return queries, queries if self.form.shared_qk else similarities(routed.k_items, self.centroids.means, mask)

    def weights(
        self, routed: Routed, *, query_mask: Mask | None, key_mask: KeyMask | None, prefix: bool = False
    ) -> Float[Tensor, "batch heads queries keys"]:
        """The whole map of weights.

        Raises:
            ValueError: there are memory slots, which are no tokens.
        """
        if self.memory is not None:
            raise ValueError(
                f"a map over tokens cannot show the {self.memory[0].shape[2]} memory slots of every cluster"
            )
        if prefix:
            query_scores, key_scores = self.scores(routed, query_mask)
            router = PrefixRouter(no_members(len(routed.q), self.centroids.means, 0), self.form)
            return prefix_routed_weights(routed.q, routed.k, query_scores, key_scores, router, self.form)
        members = find_members(
            routed.q_items, routed.k_items, self.centroids.means, self.form, query_mask=query_mask, key_mask=key_mask
        )
        return routed_weights(routed.q, routed.k, members, self.form, key_mask=key_mask)

    def commitment_loss(
        self,
        q_items: Heads,
        k_items: KeyHeads,
        *,
        query_mask: Mask | None = None,
        key_mask: KeyMask | None = None,
    ) -> Float[Tensor, ""]:
        """Beta times the mean squared distance of what is routed from its nearest centroid.

        In mode "paper" the means of queries and of keys are added; in mode "compat" the mean is over both together,
        and over the queries alone where keys are routed as they are.
        """
        means = self.centroids.means
        if self.form.mode == "paper":
            losses = commitment_loss(q_items, means, query_mask) + commitment_loss(k_items, means, key_mask)
            return self.commitment * losses
        items, mask = self._together(q_items, k_items, query_mask, key_mask)
        return self.commitment * commitment_loss(items, means, mask)

    def _together(
        self,
        q_items: Float[Tensor, "batch heads queries head_dim"],
        k_items: Float[Tensor, "batch heads keys head_dim"],
        query_mask: Bool[Tensor, "batch queries"] | None,
        key_mask: Bool[Tensor, "batch keys"] | None,
    ) -> tuple[Float[Tensor, "batch heads routed head_dim"], Bool[Tensor, "batch routed"] | None]:
        """All that is routed, one behind the other."""
        if self.form.shared_qk:
            return q_items, query_mask
        items = torch.cat((q_items, k_items), dim=2)
        if query_mask is None and key_mask is None:
            return items, None
        masks = [
            torch.ones(x.shape[0], x.shape[2], dtype=torch.bool, device=x.device) if mask is None else mask
            for x, mask in ((q_items, query_mask), (k_items, key_mask))
        ]
        return items, torch.cat(masks, dim=1)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _begin(self, routed: Routed, query_mask: Mask | None, key_mask: KeyMask | None, owner: nn.Module) -> None:
        items, mask = self._together(routed.q_items, routed.k_items, query_mask, key_mask)
        self.centroids.settle(items, mask, version=parameters_version(owner))
        self.centroids.observe(items, mask)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the compared code's layout; memory slots of size 0, which it always has, are left out.

        Raises:
            KeyError: an unknown or a missing key, named.
        """
        named = rename_all(state_dict, REFERENCE_NAMES)
        load_strictly(self, {name: tensor for name, tensor in named.items() if tensor.numel()})
