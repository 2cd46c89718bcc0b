"""MDHA against softmax attention of convolved projections, with filters of each head or shared ones."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from regard.mixers.sequence.mdha import MDHA


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_layer_is_the_formula(causal: bool, shared: bool) -> None:
    mixer = MDHA(15, num_heads=3, causal=causal, shared_filters=shared, qkv_bias=True).double()
    x = torch.randn(2, 11, 15, dtype=torch.float64)
    parts = []
    for name in "qkv":
        projected = mixer.get_submodule(f"{name}_proj")(x)
        weight, bias = (mixer.get_parameter(f"{name}_conv.{part}") for part in ("weight", "bias"))
        filters = weight.repeat(3, 1, 1) if shared else weight
        padded = torch.nn.functional.pad(projected.transpose(1, 2), (2, 0))
        everything = bias.repeat(3) if shared else bias
        y = torch.nn.functional.conv1d(padded, filters, everything, groups=15).transpose(1, 2)
        parts.append(y.view(2, 11, 3, 5).transpose(1, 2))
    mixed = scaled_dot_product_attention(*parts, is_causal=causal).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixer(x), mixer.o_proj(mixed))


@pytest.mark.parametrize(("shared", "filters"), [(True, 5), (False, 15)])
def test_filters(shared: bool, filters: int) -> None:
    mixer = MDHA(15, num_heads=3, shared_filters=shared)
    assert mixer.get_parameter("q_conv.weight").shape == (filters, 1, 3)
    assert mixer.q_proj.bias is None
    assert MDHA(15, num_heads=3, qkv_bias=True).q_proj.bias is not None


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match="dim=10 and num_heads=3"):
        MDHA(10, num_heads=3)
