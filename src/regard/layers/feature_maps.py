"""Hedgehog's feature map: one trainable matrix per head, then an activation that keeps weights spiky and monotone.

Paper: "The Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax Mimicry", Zhang et al., ICLR 2024,
https://arxiv.org/abs/2402.04347, section 4. Compared with HazyResearch/lolcats@375df84f `src/model/feature_map.py`.
Different from the code: "taylor" is offered as a map without parameters, and `stabilize=False` gives the paper's exp.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.ops.feature_maps import (
    FEATURE_EPS,
    elu_features,
    exp_features,
    project_per_head,
    relu_features,
    softmax_features,
    taylor_features,
)

Activation = Literal["softmax_dim", "exp_dim", "pos_elu", "relu", "taylor"]
ACTIVATIONS: tuple[Activation, ...] = ("softmax_dim", "exp_dim", "pos_elu", "relu", "taylor")
Start = Literal["identity", "kaiming"]

_REFERENCE_NAMES = {"mlp.layer": "weight", "mlp.bias": "bias"}


class HedgehogFeatureMap(nn.Module):
    """phi(x) = f(x W_h + b_h), with one matrix W_h and, as an option, one scalar b_h per head.

    Args:
        num_heads: number of heads.
        head_dim: width of a head.
        activation: f: "softmax_dim", "exp_dim", "pos_elu" (1 + elu), "relu" (T2R), or "taylor" (no parameters).
        feature_dim: width of x W_h; None = `head_dim`.
        fullspace: whether "softmax_dim" and "exp_dim" also take the negated half, which doubles the features.
        skip: x + x W_h instead of x W_h; needs `feature_dim == head_dim`.
        bias: add b_h.
        stabilize: for "exp_dim", lower each token's exponents to at most 0, as the code does.
        start: W_h at first: "identity" (zero with `skip`), as in the paper, or "kaiming".

    Raises:
        ValueError: an unknown activation or start, sizes that do not fit, or options of a matrix given to "taylor".
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        *,
        activation: Activation = "softmax_dim",
        feature_dim: int | None = None,
        fullspace: bool = True,
        skip: bool = False,
        bias: bool = False,
        stabilize: bool = True,
        start: Start = "identity",
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"the feature map must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        if start not in ("identity", "kaiming"):
            raise ValueError(f"the start of a feature map must be identity or kaiming, got {start!r}")
        if num_heads < 1 or head_dim < 1 or (feature_dim is not None and feature_dim < 1):
            raise ValueError(
                "num_heads, head_dim and feature_dim must be positive, "
                f"got num_heads={num_heads}, head_dim={head_dim} and feature_dim={feature_dim}"
            )
        if activation == "taylor" and (feature_dim is not None or skip or bias):
            raise ValueError("the taylor map has no matrix: feature_dim, skip and bias do not apply to it")
        inner = head_dim if feature_dim is None else feature_dim
        if skip and inner != head_dim:
            raise ValueError(f"skip needs feature_dim == head_dim, got feature_dim={inner} and head_dim={head_dim}")
        self.activation, self.fullspace, self.skip = activation, fullspace, skip
        self.stabilize, self.start = stabilize, start
        self.head_dim, self.feature_dim = head_dim, inner
        learned = activation != "taylor"
        self.weight = nn.Parameter(torch.empty(num_heads, head_dim, inner)) if learned else None
        self.bias = nn.Parameter(torch.empty(1, num_heads, 1, 1)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the matrices and the scalars to their start."""
        if self.weight is not None:
            with torch.no_grad():
                if self.start == "kaiming":
                    nn.init.kaiming_uniform_(self.weight)
                elif self.skip:
                    nn.init.zeros_(self.weight)
                else:
                    for of_head in self.weight:
                        nn.init.eye_(of_head)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def width(self) -> int:
        """Number of features of a token."""
        return feature_width(
            self.activation, head_dim=self.head_dim, feature_dim=self.feature_dim, fullspace=self.fullspace
        )

    @property
    def bias_cancels(self) -> bool:
        """Whether the scalar has no effect on normalised attention: it scales all features of a token alike."""
        if self.activation == "exp_dim":
            return self.stabilize or not self.fullspace
        return self.activation == "softmax_dim"

    def forward(self, x: Float[Tensor, "batch heads tokens head_dim"]) -> Float[Tensor, "batch heads tokens features"]:
        """Features of queries or keys, in at least float32."""
        if self.weight is None:
            return taylor_features(x)
        z = project_per_head(x, self.weight, bias=self.bias, skip=self.skip)
        if self.activation == "softmax_dim":
            return softmax_features(z, fullspace=self.fullspace)
        if self.activation == "exp_dim":
            return exp_features(z, fullspace=self.fullspace, stabilize=self.stabilize)
        return relu_features(z) if self.activation == "relu" else elu_features(z, eps=FEATURE_EPS)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the layout of the compared code: `mlp.layer` and, with a bias, `mlp.bias`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor has the wrong shape.
        """
        load_strictly(self, {_REFERENCE_NAMES.get(name, f"reference {name}"): t for name, t in state_dict.items()})

    def extra_repr(self) -> str:
        """The activation and the widths."""
        return f"{self.activation}, head_dim={self.head_dim}, features={self.width}"


def feature_width(activation: Activation, *, head_dim: int, feature_dim: int, fullspace: bool) -> int:
    """Number of features that a map gives for each token."""
    if activation == "taylor":
        return 1 + head_dim + head_dim**2
    doubled = fullspace and activation in ("softmax_dim", "exp_dim")
    return feature_dim * (2 if doubled else 1)
