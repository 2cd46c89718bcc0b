"""The gating unit against its equation, written out; the authors' layout; ill sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regard.mixers.sequence.ninformer import MixerGatingUnit

SIZES: dict[str, Any] = {"seq_len": 7, "token_hidden": 5, "channel_hidden": 11}


def by_hand(unit: MixerGatingUnit, x: Tensor) -> Tensor:
    """u * v with explicit transpositions and norms."""

    def norm(tokens: Tensor, layer: torch.nn.LayerNorm) -> Tensor:
        centred = tokens - tokens.mean(dim=-1, keepdim=True)
        return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    def perceptron(rows: Tensor, layer: torch.nn.Module) -> Tensor:
        inner = rows @ layer.up_proj.weight.T + layer.up_proj.bias
        inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
        return inner @ layer.down_proj.weight.T + layer.down_proj.bias

    block = unit.block
    v = x + perceptron(norm(x, block.token_norm).mT, block.token_mlp).mT
    v = v + perceptron(norm(v, block.channel_norm), block.channel_mlp)
    return (x @ unit.u_proj.weight.T + unit.u_proj.bias) * v


def test_is_the_equation() -> None:
    unit = MixerGatingUnit(6, **SIZES).double()
    x = torch.randn(3, 7, 6, dtype=torch.float64, requires_grad=True)
    leaves = [x, *unit.parameters()]
    upstream = torch.randn(3, 7, 6, dtype=torch.float64)
    for ours, expected in zip(
        torch.autograd.grad(unit(x), leaves, upstream),
        torch.autograd.grad(by_hand(unit, x), leaves, upstream),
        strict=True,
    ):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(unit(x), by_hand(unit, x), rtol=1e-10, atol=1e-12)


def test_the_gate_holds_the_token_itself() -> None:
    """With perceptrons of zeros the block is the identity, and u gates x."""
    unit = MixerGatingUnit(6, **SIZES)
    with torch.no_grad():
        for mlp in (unit.block.token_mlp, unit.block.channel_mlp):
            mlp.down_proj.weight.zero_()
            mlp.down_proj.bias.zero_()
    x = torch.randn(2, 7, 6)
    torch.testing.assert_close(unit(x), unit.u_proj(x) * x)


def test_gate_depends_on_other_tokens() -> None:
    unit, x = MixerGatingUnit(6, **SIZES), torch.randn(1, 7, 6)
    moved = x.clone()
    moved[:, 6] += torch.randn(6)
    assert float((unit(moved) - unit(x))[:, 0].detach().abs().max()) > 1e-4


def test_loading_is_strict() -> None:
    unit = MixerGatingUnit(6, **SIZES)
    layout = {
        "proj": unit.u_proj,
        "Mixer.token_mix.0": unit.block.token_norm,
        "Mixer.token_mix.2.net.0": unit.block.token_mlp.up_proj,
        "Mixer.token_mix.2.net.3": unit.block.token_mlp.down_proj,
        "Mixer.channel_mix.0": unit.block.channel_norm,
        "Mixer.channel_mix.1.net.0": unit.block.channel_mlp.up_proj,
        "Mixer.channel_mix.1.net.3": unit.block.channel_mlp.down_proj,
    }
    state = {
        f"{name}.{kind}": torch.randn_like(p) for name, part in layout.items() for kind, p in part.named_parameters()
    }
    unit.load_reference(state)
    for name, part in layout.items():
        assert torch.equal(part.weight, state[f"{name}.weight"])
        assert torch.equal(part.bias, state[f"{name}.bias"])
    state["proj.scale"] = state.pop("proj.weight")
    with pytest.raises(KeyError, match=r"unknown keys: proj\.scale; missing keys: u_proj\.weight"):
        unit.load_reference(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_len": 0}, "seq_len must be positive, got 0"),
        ({"token_hidden": 0}, "got 7 and 0 inside"),
        ({"dropout": -0.1}, "got -0.1"),
        ({"causal": True}, "refuses causal=True: every position's weights"),
    ],
)
def test_ill_sizes_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MixerGatingUnit(6, **{**SIZES, **changes})


def test_other_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"8 tokens .* seq_len=7"):
        MixerGatingUnit(6, **SIZES)(torch.zeros(1, 8, 6))
    with pytest.raises(ValueError, match="tokens=8 and seq_len=7"):
        MixerGatingUnit.macs(tokens=8, dim=6, **SIZES)
