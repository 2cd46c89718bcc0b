"""The centroids of routing attention: buffers that follow the tokens while a network is trained.

In training, every call's tokens are counted; they move the centroids in the first training call after the parameters
have changed, or when training mode ends. So several calls before one optimizer step are averaged, and activations that
are computed anew in the backward pass meet the centroids that they were computed with. `update` moves them at once.
Paper: "Efficient Content-Based Sparse Attention with Routing Transformers", Roy et al., TACL 2021,
https://arxiv.org/abs/2003.05997, section 4.1.
Compared with lucidrains/routing-transformer@3f6c461a, `routing_transformer.py:Kmeans` (mode "compat": the centroid goes
towards the direction of the batch's members, and is not normalised again), and read beside
google-research/google-research@0c1bbe5f, `routing_transformer/utils.py:online_kmeans` (mode "paper": moving averages
of counts and sums, divided). Different: the first centroids of mode "compat" are found by k-means of unit vectors in
the first training call alone, never in evaluation; averages of counts begin at 1 instead of 0, beside which full sums
would make the first centroids too long.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.ops.centroid_update import cluster_sums, directions, kmeans, smoothed_means
from regard.ops.routing_form import MODES, Mode, on_sphere

Items = Float[Tensor, "batch heads tokens head_dim"]
Mask = Bool[Tensor, "batch tokens"]

INITIAL_ITERATIONS = 10


class Centroids(nn.Module):
    """The centroids of all heads, `means`, and how they move.

    Args:
        num_heads: heads, each with centroids of its own.
        num_clusters: C, centroids of a head.
        head_dim: their width.
        mode: "paper" or "compat", how they begin and move.
        decay: lambda, what is kept of an average in an update.

    Raises:
        ValueError: a size that is not positive, an unknown mode, or a decay outside [0, 1).
    """

    counts: Tensor
    sums: Tensor
    initialised: Tensor

    def __init__(
        self, *, num_heads: int, num_clusters: int, head_dim: int, mode: Mode = "paper", decay: float = 0.999
    ) -> None:
        super().__init__()
        if num_clusters < 1:
            raise ValueError(f"num_clusters must be positive, got {num_clusters}")
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.mode, self.decay = mode, decay
        self.means: Tensor
        drawn = on_sphere(torch.randn(num_heads, num_clusters, head_dim), mode=mode)
        # numbers that bfloat16 holds: a network that is cast before it is trained keeps its clusters
        self.register_buffer("means", drawn.bfloat16().to(drawn.dtype))
        if mode == "paper":
            self.register_buffer("counts", torch.ones(num_heads, num_clusters))
            self.register_buffer("sums", self.means.clone())
        else:
            self.register_buffer("initialised", torch.tensor(False))
        self._seen: tuple[Tensor, Tensor] | None = None
        self._calls, self._version = 0, -1

    @torch.no_grad()
    def settle(self, items: Items, mask: Mask | None, *, version: int) -> None:
        """Begin a training call: move the centroids if the parameters have changed, and find the first ones.

        Args:
            items: the call's tokens, on the sphere.
            mask: True = real token.
            version: changes with the parameters.
        """
        if self._seen is not None and version != self._version:
            self.update()
        if self.mode == "compat" and not bool(self.initialised) and (mask is None or bool(mask.any())):
            self.means.copy_(kmeans(items, self.means.shape[1], iterations=INITIAL_ITERATIONS, mask=mask))
            self.initialised.fill_(True)
        self._version = version

    @torch.no_grad()
    def observe(self, items: Items, mask: Mask | None = None) -> None:
        """Count a call's tokens for the next update; further calls before it are averaged."""
        counts, sums = cluster_sums(items.detach(), self.means, mask)
        if self.mode == "compat":
            sums = directions(self.means, counts, sums)
        if self._seen is not None:
            share = 1 / (self._calls + 1)
            counts, sums = (old.lerp(new, share) for old, new in zip(self._seen, (counts, sums), strict=True))
        self._seen, self._calls = (counts, sums), self._calls + 1

    @property
    def observed(self) -> tuple[Float[Tensor, "heads clusters"], Float[Tensor, "heads clusters head_dim"]] | None:
        """What the next update is made of: numbers of tokens, and their sums (in mode "compat", directions)."""
        return self._seen

    @torch.no_grad()
    def update(self) -> None:
        """Move the centroids by what was observed since the last update; nothing observed moves nothing."""
        if self._seen is None:
            return
        counts, sums = (x.to(self.means) for x in self._seen)
        if self.mode == "compat":
            self.means.lerp_(sums, 1 - self.decay)
        else:
            self.counts.lerp_(counts, 1 - self.decay)
            self.sums.lerp_(sums, 1 - self.decay)
            self.means.copy_(smoothed_means(self.counts, self.sums))
        self._seen, self._calls = None, 0

    def train(self, mode: bool = True) -> Centroids:
        """Training mode as usual; when it ends, what was observed last moves the centroids."""
        if self.training and not mode:
            self.update()
        return super().train(mode)
