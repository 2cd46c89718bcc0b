"""Linear maps and layer norms that compute in at least float32, whatever their parameters and autocast say.

For what decides something discrete, such as which keys are kept: rounding would not change it a little, but decide
otherwise.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import layer_norm, linear

from regard.ops.precision import compute_dtype, without_autocast


@without_autocast
def wide_linear(x: Float[Tensor, "*batch in_width"], module: nn.Linear) -> Float[Tensor, "*batch out_width"]:
    """`module(x)` in at least float32."""
    dtype = compute_dtype(x)
    bias = None if module.bias is None else module.bias.to(dtype)
    return linear(x.to(dtype), module.weight.to(dtype), bias)


@without_autocast
def wide_layer_norm(x: Float[Tensor, "*batch width"], module: nn.LayerNorm) -> Float[Tensor, "*batch width"]:
    """`module(x)` in at least float32."""
    dtype = compute_dtype(x)
    weight, bias = (None if each is None else each.to(dtype) for each in (module.weight, module.bias))
    return layer_norm(x.to(dtype), module.normalized_shape, weight, bias, module.eps)
