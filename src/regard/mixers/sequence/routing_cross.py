"""Routing Transformer attention between two sequences: queries and a context's keys meet in the same clusters.

Paper: "Efficient Content-Based Sparse Attention with Routing Transformers", Roy et al., TACL 2021,
https://arxiv.org/abs/2003.05997, section 4.1, as an encoder-decoder network uses it.
Compared with lucidrains/routing-transformer@3f6c461a, `routing_transformer.py:SelfAttention` with `receives_context`
(`mode="compat"`), and read beside google-research/google-research@0c1bbe5f, `routing_transformer/utils.py`.
All heads route, as there: local heads have no place in a context. Without a context the sequence attends to itself,
without causality. Different from both: padding takes no place in a cluster.
"""

from __future__ import annotations

from types import SimpleNamespace

from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.contract import SequenceMixer
from regard.layers.routing_heads import Routed, RoutingHeads
from regard.layers.wide_precision import wide_linear
from regard.metadata import Example, No, Traits
from regard.mixers.sequence.routing import ROUTING_PAPER
from regard.ops.heads import head_width, merge_heads, split_heads
from regard.ops.kmeans_routing import routing_macs
from regard.ops.routing_form import Mode, RoutingForm
from regard.registry import register

Heads = Float[Tensor, "batch heads tokens head_dim"]


@register(
    name="routing_cross",
    system="routing",
    paper=ROUTING_PAPER,
    traits=Traits(
        causal=No("a context has no order relative to x; routing is the causal form"),
        segments=No("the tokens of a whole row compete for the places in a cluster"),
        bias=No("tokens are chosen by their products with centroids, to which no bias is added"),
        decodes=No("what joins the sequence would change the clusters of all that came before"),
        step_exact=No("it does not decode"),
        row_stochastic=No("a query that is in no cluster attends to nothing"),
        causality="values",
        time="n^1.5",
        memory="n",
    ),
    example=Example(
        kwargs={"dim": 30, "num_heads": 3, "num_clusters": 5, "window_size": 6}, batch=2, tokens=13, context=11
    ),
)
class RoutingCrossAttention(SequenceMixer):
    """Every head attends inside clusters that hold the nearest queries and the nearest keys of each centroid.

    Args:
        dim: width of the model.
        num_heads: number of heads.
        head_dim: width of a head; None = dim / num_heads.
        causal: there is no causal form.
        mode: "paper" or "compat" (the compared code); see `regard.ops.routing_form.RoutingForm`.
        num_clusters: C, centroids of a head.
        window_size: w, queries in a cluster, and keys.
        num_memory: learned keys and values in every cluster.
        commitment: beta, factor of `commitment_loss`.
        decay: lambda, what is kept of the centroids' averages in an update.
        attn_drop: probability of dropping a weight in training.

    Raises:
        ValueError: sizes that do not fit, or an unknown mode.

    Cost: per head (queries + keys) C d MACs to route and 2 C w^2 d to attend.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        head_dim: int | None = None,
        causal: bool = False,
        mode: Mode = "paper",
        num_clusters: int = 16,
        window_size: int = 64,
        num_memory: int = 0,
        commitment: float = 1e-4,
        decay: float = 0.999,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        if head_dim is not None and head_dim < 1:
            raise ValueError(f"head_dim must be positive, got {head_dim}")
        if not 0 <= attn_drop < 1:
            raise ValueError(f"attn_drop must be in [0, 1), got {attn_drop}")
        self.head_dim = head_width(dim, num_heads) if head_dim is None else head_dim
        self.attn_drop = attn_drop
        width = num_heads * self.head_dim
        self.q_proj = nn.Linear(dim, width, bias=False)
        self.k_proj = nn.Linear(dim, width, bias=False)
        self.v_proj = nn.Linear(dim, width, bias=False)
        self.routing = RoutingHeads(
            RoutingForm(window_size=window_size, causal=False, shared_qk=False, mode=mode),
            num_heads=num_heads,
            num_clusters=num_clusters,
            head_dim=self.head_dim,
            num_memory=num_memory,
            commitment=commitment,
            decay=decay,
        )
        self.o_proj = nn.Linear(width, dim, bias=False)

    def inert_parameters(self) -> set[str]:
        """With one key in a cluster and no memory slots there is nothing to compare."""
        alone = self.routing.form.window_size == 1 and self.routing.memory is None
        return {"q_proj.weight", "k_proj.weight"} if alone else set()

    def _routed(self, x: Tensor, source: Tensor) -> Routed:
        # in at least float32: a rounded similarity would not change a cluster a little, but fill it otherwise
        q = split_heads(wide_linear(x, self.q_proj), self.num_heads)
        k = split_heads(wide_linear(source, self.k_proj), self.num_heads)
        return self.routing.prepare(q, k, split_heads(self.v_proj(source), self.num_heads))

    def mix(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Heads:
        """Fill the clusters from both sequences, attend, average."""
        return self.routing(
            self._routed(x, x if context is None else context),
            query_mask=mask if context is None else None,
            key_mask=mask,
            owner=self,
            dropout=self.attn_drop if self.training else 0.0,
        )

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.o_proj(merge_heads(mixed))

    def commitment_loss(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        context: Float[Tensor, "batch keys dim"] | None = None,
        mask: Bool[Tensor, "batch keys"] | None = None,
    ) -> Float[Tensor, ""]:
        """What training adds to the task's loss, for a layer's input: it draws tokens towards their centroids.

        Args:
            x: the layer's input.
            context: the other sequence; None = `x`.
            mask: True = real token of the context, or of `x` where there is none.
        """
        routed = self._routed(x, x if context is None else context)
        return self.routing.commitment_loss(
            routed.q_items, routed.k_items, query_mask=mask if context is None else None, key_mask=mask
        )

    def update_centroids(self) -> None:
        """Move the centroids by the training calls since the last update, now instead of in the next one."""
        self.routing.centroids.update()

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The means over clusters of the softmax weights inside them."""
        routed = self._routed(x, x if context is None else context)
        return self.routing.weights(routed, query_mask=mask if context is None else None, key_mask=mask)

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values."""
        return split_heads(self.v_proj(x if context is None else context), self.num_heads)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections, routing, and whole clusters."""
        width = options.head_dim or options.dim // options.num_heads
        form = RoutingForm(window_size=options.window_size, causal=False, shared_qk=False, mode=options.mode)
        operator = routing_macs(
            form,
            clusters=options.num_clusters,
            tokens=tokens,
            keys=keys,
            head_dim=width,
            value_dim=width,
            slots=options.num_memory,
        )
        projections = 2 * (tokens + keys) * options.dim * width
        return batch * options.num_heads * (projections + operator)
