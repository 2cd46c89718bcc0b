"""Norms by name against their formulas."""

from __future__ import annotations

import pytest
import torch

from regard.layers.norms import SimpleRMSNorm, norm_by_name


def test_norms_are_their_formulas() -> None:
    x = torch.randn(2, 3, 13, dtype=torch.float64)
    root = (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm_by_name("srmsnorm", 13)(x), x / root)
    rms = norm_by_name("rmsnorm", 13).double()
    weight = rms.get_parameter("weight")
    torch.nn.init.normal_(weight)
    torch.testing.assert_close(rms(x), x / root * weight)
    layer = norm_by_name("layernorm", 13).double()
    centred = x - x.mean(dim=-1, keepdim=True)
    torch.testing.assert_close(layer(x), centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt())


def test_only_the_simple_norm_has_no_parameters() -> None:
    names = {
        name: [parameter for parameter, _ in norm_by_name(name, 5).named_parameters()]
        for name in ("srmsnorm", "rmsnorm", "layernorm")
    }
    assert names == {"srmsnorm": [], "rmsnorm": ["weight"], "layernorm": ["weight", "bias"]}
    assert not norm_by_name("srmsnorm", 5).state_dict()
    assert "eps=0.1" in repr(SimpleRMSNorm(eps=0.1))


def test_epsilon_is_used() -> None:
    x = torch.full((1, 3), 2.0)
    torch.testing.assert_close(SimpleRMSNorm(eps=12.0)(x), x / 4)


def test_ill_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="srmsnorm, rmsnorm, layernorm, got 'batch'"):
        norm_by_name("batch", 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"eps must not be negative, got -1\.0"):
        SimpleRMSNorm(eps=-1.0)
