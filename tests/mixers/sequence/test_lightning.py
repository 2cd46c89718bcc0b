"""Lightning attention's layer against its formula, token by token, in every variant."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

import regard
from regard.mixers.sequence.lightning import LightningAttention
from regard.ops.decay import decay_slopes

VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"decay": "tnl", "layer_idx": 2, "num_layers": 6, "bias": True},
    {"decay": "paper", "layer_idx": 1, "num_layers": 3, "norm": "srmsnorm", "gate": "full_rank"},
    {"decay": "none", "value_activation": False, "norm": "srmsnorm", "gate": "full_rank", "gate_activation": "none"},
)


def slopes_of(variant: dict[str, Any], heads: int) -> list[float]:
    """Slopes of 4 heads once more: ALiBi's 1/4, 1/16, 1/64, 1/256, or 8 h / H, with their layer's factor."""
    layer, layers = variant.get("layer_idx", 0), variant.get("num_layers", 1)
    if variant.get("decay", "tnl") == "tnl":
        return [4.0**-head * (1 - layer / max(1, layers - 1) + 1e-5) for head in range(1, heads + 1)]
    if variant["decay"] == "paper":
        return [8 * head / heads * (1 - layer / layers) for head in range(1, heads + 1)]
    return [0.0] * heads


def layer_by_loops(mixer: LightningAttention, x: Tensor, variant: dict[str, Any]) -> Tensor:
    """The whole layer once more, without a matrix of scores and without a state."""
    heads, width = mixer.num_heads, mixer.head_dim
    slopes = slopes_of(variant, heads)
    with torch.no_grad():
        q, k, v = (project(x) for project in (mixer.q_proj, mixer.k_proj, mixer.v_proj))
        q, k = q * torch.sigmoid(q), k * torch.sigmoid(k)
        v = v * torch.sigmoid(v) if variant.get("value_activation", True) else v
        mixed = torch.zeros_like(x)
        for b in range(x.shape[0]):
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                for i in range(x.shape[1]):
                    for j in range(i + 1):
                        score = float((q[b, i, part] * k[b, j, part]).sum()) * math.exp(-slopes[h] * (i - j))
                        mixed[b, i, part] += score * v[b, j, part]
        if variant.get("norm") == "srmsnorm":
            mixed = mixed / (mixed.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
        else:
            centred = mixed - mixed.mean(dim=-1, keepdim=True)
            mixed = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
            mixed = mixed * mixer.norm.weight + mixer.norm.bias
        gate = x
        for linear in mixer.output_gate:
            gate = gate @ linear.weight.T + (0 if linear.bias is None else linear.bias)
        gate = gate if variant.get("gate_activation") == "none" else torch.sigmoid(gate)
        return mixer.o_proj(mixed * gate)


@pytest.mark.parametrize("variant", VARIANTS, ids=["code", "deep layer", "paper", "no decay"])
def test_layer_is_the_formula(variant: dict[str, Any]) -> None:
    mixer = LightningAttention(20, num_heads=4, block_size=3, **variant).double()
    x = torch.randn(2, 11, 20, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), layer_by_loops(mixer, x, variant), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("variant", VARIANTS, ids=["code", "deep layer", "paper", "no decay"])
@pytest.mark.parametrize("tokens", [1, 64, 131])
def test_values_and_gradients_are_those_of_the_whole_map(variant: dict[str, Any], tokens: int) -> None:
    mixer = LightningAttention(20, num_heads=4, **variant).double()
    x = torch.randn(2, tokens, 20, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, tokens, 20, dtype=torch.float64)
    leaves = [x, *mixer.parameters()]
    forms = (mixer(x), mixer.out(mixer.attention_map(x) @ mixer.values(x), x))
    results = [[y, *torch.autograd.grad((y * weight).sum(), leaves)] for y in forms]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-9)


def test_derivatives_by_differences() -> None:
    mixer = LightningAttention(6, num_heads=2, block_size=2).double()
    x = torch.randn(1, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x,))


@pytest.mark.parametrize("variant", VARIANTS, ids=["code", "deep layer", "paper", "no decay"])
@pytest.mark.parametrize("chunks", [[1] * 131, [67, 1, 1, 62]])
def test_decoding_equals_forward_in_constant_memory(variant: dict[str, Any], chunks: list[int]) -> None:
    mixer = LightningAttention(20, num_heads=4, **variant).double()
    x = torch.randn(2, 131, 20, dtype=torch.float64)
    with torch.no_grad():
        state = mixer.init_state(2)
        size, pieces = state.nbytes, []
        for piece in x.split(chunks, dim=1):
            y, state = mixer.step(piece, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, dim=1), mixer(x), rtol=1e-9, atol=1e-10)
    assert state.nbytes == size == 2 * (4 * 5 * 5 + 1) * 8


def test_steps_carry_gradients() -> None:
    mixer = LightningAttention(20, num_heads=4).double()
    x = torch.randn(1, 13, 20, dtype=torch.float64, requires_grad=True)
    first, state = mixer.step(x[:, :7], mixer.init_state(1))
    second, _ = mixer.step(x[:, 7:], state)
    stepped = torch.autograd.grad(torch.cat((first, second), dim=1).square().sum(), x)[0]
    whole = torch.autograd.grad(mixer(x).square().sum(), x)[0]
    torch.testing.assert_close(stepped, whole)


@pytest.mark.parametrize("decay", ["tnl", "paper", "none"])
def test_long_inputs_stay_finite_and_accurate(decay: str) -> None:
    # with 8 h / H a head loses a factor e^8 per token: e^32,000 over the sequence, were it ever formed
    mixer = LightningAttention(32, num_heads=8, decay=decay)
    x = 3 * torch.randn(1, 4096, 32)
    y = mixer(x)
    y.square().mean().backward()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())
    with torch.no_grad():
        x, mixer = x.double(), mixer.double()
        q, k = (silu(project(x)).view(4096, 8, 4) for project in (mixer.q_proj, mixer.k_proj))
        slopes = torch.tensor(slopes_of({"decay": decay}, 8) if decay != "tnl" else [2.0**-h for h in range(1, 9)])
        weights = (k * q[-1]).sum(dim=-1) * torch.exp(-slopes.double() * torch.arange(4095, -1, -1)[:, None])
        mixed = torch.einsum("nh,hnd->hd", weights, mixer.values(x)[0])
        expected = mixer.out(mixed[None, :, None], x[:, -1:])
    assert (y[:, -1:] - expected).norm() / expected.norm() < 1e-4


@pytest.mark.parametrize("variant", VARIANTS, ids=["code", "deep layer", "paper", "no decay"])
def test_bfloat16_stays_within_two_percent(variant: dict[str, Any]) -> None:
    mixer = LightningAttention(64, num_heads=4, **variant).bfloat16()
    x = torch.randn(2, 499, 64).bfloat16()
    with torch.no_grad():
        y = mixer(x)
        expected = mixer.float()(x.float())
    assert y.dtype == torch.bfloat16
    assert (y - expected).norm() / expected.norm() < 0.02


@pytest.mark.parametrize("decay", ["tnl", "paper"])
def test_later_layers_decay_less(decay: str) -> None:
    first, later = (
        LightningAttention(20, num_heads=4, decay=decay, layer_idx=layer, num_layers=5).slopes for layer in (0, 3)
    )
    assert all(b < a for a, b in zip(first, later, strict=True))
    assert first == decay_slopes(4, decay=decay, layer_idx=0, num_layers=5)
    assert LightningAttention(20, num_heads=4, decay="none").slopes is None


def test_head_widths_that_the_compared_code_refuses() -> None:
    for width in (1, 2, 16):
        mixer = LightningAttention(3 * width, num_heads=3)
        assert mixer(torch.randn(1, 7, 3 * width)).isfinite().all()


def test_reference_layout_is_loaded_strictly() -> None:
    mixer, other = LightningAttention(20, num_heads=4), LightningAttention(20, num_heads=4)
    theirs = {
        **{f"{name}.weight": torch.randn(20, 20) for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
        "norm.weight": torch.randn(20),
        "norm.bias": torch.randn(20),
        "output_gate.0.weight": torch.randn(5, 20),
        "output_gate.1.weight": torch.randn(20, 5),
    }
    for layer in (mixer, other):
        layer.load_reference(theirs)
    x = torch.randn(1, 7, 20)
    assert torch.equal(mixer(x), other(x))
    assert torch.equal(mixer.output_gate[0].weight, theirs["output_gate.0.weight"])
    missing = {name: tensor for name, tensor in theirs.items() if name != "norm.bias"}
    with pytest.raises(KeyError, match=r"unknown keys: slopes; missing keys: norm\.bias"):
        mixer.load_reference({**missing, "slopes": torch.zeros(4)})
    with pytest.raises(ValueError, match=r"norm\.bias has shape \(19,\), it must be \(20,\)"):
        mixer.load_reference({**theirs, "norm.bias": torch.zeros(19)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10, "num_heads": 3}, "dim=10 and num_heads=3"),
        ({"dim": 12, "num_heads": 3, "causal": False}, "its decay is defined over the past alone"),
        ({"dim": 12, "num_heads": 3, "decay": "fast"}, "tnl, paper, none, got 'fast'"),
        ({"dim": 12, "num_heads": 3, "layer_idx": 4, "num_layers": 4}, "layer_idx=4, num_layers=4"),
        ({"dim": 12, "num_heads": 3, "norm": "rms"}, "layernorm, srmsnorm, got 'rms'"),
        ({"dim": 12, "num_heads": 3, "gate": "none"}, "low_rank, full_rank, got 'none'"),
        ({"dim": 12, "num_heads": 3, "gate_activation": "silu"}, "sigmoid, none, got 'silu'"),
        ({"dim": 12, "num_heads": 3, "block_size": 0}, "block_size must be positive, got 0"),
    ],
)
def test_ill_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regard.create("lightning", **options)
