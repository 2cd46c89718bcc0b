"""How the Routing Transformer routes: what is compared with centroids, and what a token sees inside a cluster.

Paper: "Efficient Content-Based Sparse Attention with Routing Transformers", Roy et al., TACL 2021,
https://arxiv.org/abs/2003.05997, section 4.1. What the modes stand for is told in `regard.ops.kmeans_routing`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import layer_norm, normalize

from regard.ops.precision import compute_dtype, without_autocast

Mode = Literal["paper", "compat"]
MODES: tuple[Mode, ...] = get_args(Mode)

OWN_KEY = -5e4
"""Score of a token's own key in mode "compat" with shared queries and keys: it counts where nothing else is seen."""
LAYER_NORM_EPSILON = 1e-6
COMPAT_EPSILON = 1e-5


@without_autocast
def on_sphere(x: Float[Tensor, "*batch head_dim"], *, mode: Mode) -> Float[Tensor, "*batch head_dim"]:
    """Layer-normed without weights (norm sqrt(d)) in mode "paper", of norm 1 in mode "compat"; in at least float32."""
    x = x.to(compute_dtype(x))
    return layer_norm(x, x.shape[-1:], eps=LAYER_NORM_EPSILON) if mode == "paper" else normalize(x, dim=-1)


@dataclass(frozen=True, kw_only=True)
class RoutingForm:
    """How tokens are routed, and what they see inside a cluster.

    Args:
        window_size: w, tokens in a cluster; all tokens where there are fewer.
        causal: hide later tokens; they still compete for the places in a cluster.
        shared_qk: keys are routed as queries are, so that both of a token are in the same clusters.
        mode: "paper": layer-normed queries and keys are routed and compared, the mean over clusters is exact.
            "compat": unit vectors are routed, raw queries compared with raw (or, if shared, unit) keys, a token's own
            key is a last resort if keys are shared, and 1e-5 is added to the number of clusters.

    Raises:
        ValueError: a window that is not positive, or an unknown mode.
    """

    window_size: int
    causal: bool
    shared_qk: bool
    mode: Mode = "paper"

    def __post_init__(self) -> None:
        if self.window_size < 1:
            raise ValueError(f"window_size must be positive, got {self.window_size}")
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {self.mode!r}")

    @property
    def epsilon(self) -> float:
        """What is added to the number of clusters of a token; 0 = an exact mean."""
        return 0.0 if self.mode == "paper" else COMPAT_EPSILON

    @property
    def avoids_own_key(self) -> bool:
        """Whether a token's own key is a last resort."""
        return self.mode == "compat" and self.shared_qk

    def items(self, x: Float[Tensor, "*batch head_dim"]) -> Float[Tensor, "*batch head_dim"]:
        """What is compared with centroids, in at least float32: on a sphere, whatever the length of `x`."""
        return on_sphere(x, mode=self.mode)
