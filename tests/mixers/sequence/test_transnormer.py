"""Gated, normalised linear attention against its formula, token by token, in every variant."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.mixers.sequence.transnormer import NormLinearAttention

VARIANTS: dict[str, dict[str, Any]] = {
    "first layer": {"num_layers": 6},
    "deep layer": {"layer_idx": 2, "num_layers": 6, "bias": True},
    "lrpe only": {"lrpe": True, "decay": "none", "layer_idx": 1, "num_layers": 3},
    "both": {"lrpe": True, "decay": "paper", "layer_idx": 1, "num_layers": 3, "norm": "rmsnorm"},
    "no temperature": {"decay": "constant", "layer_idx": 2, "num_layers": 3, "activation": "none"},
    "no gate": {"gate": False, "activation": "elu", "norm": "layernorm", "lrpe": False},
}
BY_NAME = pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)


def slopes_of(variant: dict[str, Any]) -> list[float]:
    """Slopes of 4 heads once more: ALiBi's 1/4, 1/16, 1/64, 1/256, or 8 h / H, with their layer's factor."""
    layer, layers, decay = variant.get("layer_idx", 0), variant.get("num_layers", 1), variant.get("decay", "tnl")
    if decay == "none":
        return [0.0] * 4
    if decay == "paper":
        return [2 * head * (1 - layer / layers) for head in (1, 2, 3, 4)]
    factor = 1.0 if decay == "constant" else 1 - layer / max(1, layers - 1) + 1e-5
    return [factor * 4.0**-head for head in (1, 2, 3, 4)]


def activate(x: Tensor, variant: dict[str, Any]) -> Tensor:
    kind = variant.get("activation", "silu")
    if kind == "none":
        return x
    return x * torch.sigmoid(x) if kind == "silu" else torch.where(x > 0, 1 + x, torch.exp(x))


def normalise(x: Tensor, mixer: NormLinearAttention, variant: dict[str, Any]) -> Tensor:
    kind = variant.get("norm", "srmsnorm")
    if kind == "layernorm":
        x = x - x.mean(dim=-1, keepdim=True)
        x = x / (x.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        return x * mixer.norm.weight + mixer.norm.bias  # type: ignore[operator]
    x = x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()
    return x * mixer.norm.weight if kind == "rmsnorm" else x  # type: ignore[operator]


def layer_by_loops(mixer: NormLinearAttention, x: Tensor, variant: dict[str, Any]) -> Tensor:
    """The whole layer once more, from distances, without a matrix of scores and without a state."""
    width, slopes = mixer.head_dim, slopes_of(variant)
    with_lrpe = variant.get("lrpe")
    with_lrpe = variant.get("layer_idx", 0) == 0 if with_lrpe is None else with_lrpe
    with torch.no_grad():
        q, k, v = (x @ w.T for w in mixer.qkv.weight.chunk(3))
        if mixer.qkv.bias is not None:
            q, k, v = (part + b for part, b in zip((q, k, v), mixer.qkv.bias.chunk(3), strict=True))
        q, k = activate(q, variant), activate(k, variant)
        mixed = torch.zeros_like(x)
        for h in range(4):
            part = slice(h * width, (h + 1) * width)
            theta = mixer.theta[h, 0] if with_lrpe else torch.zeros(width)  # type: ignore[index]
            for i in range(x.shape[1]):
                for j in range(i + 1):
                    products = q[:, i, part] * k[:, j, part] * torch.cos((i - j) * theta.double())
                    scores = products.sum(dim=-1, keepdim=True) * math.exp(-slopes[h] * (i - j))
                    mixed[:, i, part] += scores * v[:, j, part]
        mixed = normalise(mixed, mixer, variant)
        return mixer.o_proj(mixed if mixer.u_proj is None else mixed * mixer.u_proj(x))


def made(variant: dict[str, Any], **more: Any) -> NormLinearAttention:
    mixer = NormLinearAttention(20, num_heads=4, **variant, **more).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return mixer


@BY_NAME
def test_layer_is_the_formula(variant: dict[str, Any]) -> None:
    mixer = made(variant, block_size=3)
    x = torch.randn(2, 11, 20, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), layer_by_loops(mixer, x, variant), rtol=1e-9, atol=1e-11)


@BY_NAME
@pytest.mark.parametrize("tokens", [1, 131])
def test_values_and_gradients_are_those_of_the_whole_map(variant: dict[str, Any], tokens: int) -> None:
    mixer = made(variant)
    x = torch.randn(2, tokens, 20, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, tokens, 20, dtype=torch.float64)
    leaves = [x, *mixer.parameters()]
    forms = (mixer(x), mixer.out(mixer.attention_map(x) @ mixer.values(x), x))
    results = [[y, *torch.autograd.grad((y * weight).sum(), leaves)] for y in forms]
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-8)


def test_derivatives_by_differences() -> None:
    mixer = NormLinearAttention(6, num_heads=2, block_size=2).double()
    x = torch.randn(1, 5, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(mixer, (x,))


@BY_NAME
@pytest.mark.parametrize("chunks", [[1] * 41, [17, 1, 1, 22]])
def test_decoding_equals_forward_in_constant_memory(variant: dict[str, Any], chunks: list[int]) -> None:
    mixer = made(variant, block_size=7)
    x = torch.randn(2, 41, 20, dtype=torch.float64)
    with torch.no_grad():
        state = mixer.init_state(2)
        size, pieces = state.nbytes, []
        for piece in x.split(chunks, dim=1):
            y, state = mixer.step(piece, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, dim=1), mixer(x), rtol=1e-9, atol=1e-10)
    keys = 5 if mixer.theta is None else 10
    assert state.nbytes == size == 2 * (4 * keys * 5 + 1) * 8
    assert state.position.tolist() == [41, 41]


def test_positions_advance_by_real_tokens_alone() -> None:
    mixer = made({"lrpe": True, "decay": "none"})
    x, real = torch.randn(2, 9, 20, dtype=torch.float64), torch.rand(2, 9) < 0.6
    with torch.no_grad():
        state, pieces = mixer.init_state(2), []
        for piece, mask in zip(x.split([4, 1, 4], dim=1), real.split([4, 1, 4], dim=1), strict=True):
            y, state = mixer.step(piece, state, mask=mask)
            pieces.append(y)
        stepped = torch.cat(pieces, dim=1)
        for row in range(2):
            alone = mixer(x[row : row + 1, real[row]])
            torch.testing.assert_close(stepped[row, real[row]], alone[0], rtol=1e-9, atol=1e-10)
    assert state.position.tolist() == real.sum(dim=1).tolist()


def test_steps_carry_gradients() -> None:
    mixer = made({"lrpe": True})
    x = torch.randn(1, 13, 20, dtype=torch.float64, requires_grad=True)
    first, state = mixer.step(x[:, :7], mixer.init_state(1))
    second, _ = mixer.step(x[:, 7:], state)
    stepped = torch.autograd.grad(torch.cat((first, second), dim=1).square().sum(), x)[0]
    whole = torch.autograd.grad(mixer(x).square().sum(), x)[0]
    torch.testing.assert_close(stepped, whole)


def test_the_norm_joins_all_heads() -> None:
    # halving what one head gives changes the others' outputs
    mixer = made({"gate": False, "lrpe": False})
    with torch.no_grad():
        mixer.o_proj.weight.copy_(torch.eye(20))
        x = torch.randn(1, 5, 20, dtype=torch.float64)
        before = mixer(x)
        mixer.qkv.weight[40:45] *= 0.5
        assert (mixer(x)[..., 5:] - before[..., 5:]).abs().min() > 1e-6


def test_paper_puts_lrpe_in_the_first_layer_alone() -> None:
    thetas = [NormLinearAttention(20, num_heads=4, layer_idx=layer, num_layers=3).theta for layer in range(3)]
    assert [theta is None for theta in thetas] == [False, True, True]
    assert NormLinearAttention(20, num_heads=4, lrpe=False).theta is None


def test_long_inputs_stay_finite_and_accurate() -> None:
    mixer = NormLinearAttention(32, num_heads=8, lrpe=True, decay="paper")
    x = 3 * torch.randn(1, 4096, 32)
    y = mixer(x)
    y.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in mixer.parameters())
    with torch.no_grad():
        # with 8 h / H the keys of the last 64 tokens are all that counts: exp(-64) of the rest
        x, mixer = x.double(), mixer.double()
        short = x[:, -64:]
        assert (y[:, -1:] - mixer(short)[:, -1:]).norm() / y[:, -1:].norm() < 1e-3


@BY_NAME
def test_bfloat16_stays_within_two_percent(variant: dict[str, Any]) -> None:
    mixer = NormLinearAttention(64, num_heads=4, **variant).bfloat16()
    x = torch.randn(2, 251, 64).bfloat16()
    with torch.no_grad():
        y = mixer(x)
        expected = mixer.float()(x.float())
    assert y.dtype == torch.bfloat16
    assert (y - expected).norm() / expected.norm() < 0.02


def authors_layer(*, lrpe: bool = True) -> dict[str, Tensor]:
    made = {"qkvu_proj.weight": torch.randn(80, 20), "out_proj.weight": torch.randn(20, 20)}
    return made | ({"lrpe.theta": torch.rand(4, 1, 5)} if lrpe else {})


def test_reference_layout_is_loaded_strictly() -> None:
    mixer, theirs = NormLinearAttention(20, num_heads=4), authors_layer()
    mixer.load_reference(theirs)
    assert mixer.u_proj is not None
    assert torch.equal(torch.cat((mixer.qkv.weight, mixer.u_proj.weight)), theirs["qkvu_proj.weight"])
    assert mixer.theta is not None
    assert torch.equal(mixer.theta, theirs["lrpe.theta"])
    with pytest.raises(KeyError, match="unknown keys: none; missing keys: theta"):
        mixer.load_reference(authors_layer(lrpe=False))
    with pytest.raises(KeyError, match=r"unknown keys: reference qkv\.weight; missing keys: none"):
        mixer.load_reference({**theirs, "qkv.weight": torch.zeros(60, 20)})
    with pytest.raises(ValueError, match=r"qkvu_proj\.weight has shape \(81, 20\), its rows must be 4 equal parts"):
        mixer.load_reference({**theirs, "qkvu_proj.weight": torch.zeros(81, 20)})
    with pytest.raises(ValueError, match=r"qkv\.weight has shape \(63, 20\), it must be \(60, 20\)"):
        mixer.load_reference({**theirs, "qkvu_proj.weight": torch.zeros(84, 20)})
    plain = NormLinearAttention(20, num_heads=4, gate=False, norm="rmsnorm", lrpe=False)
    plain.load_reference(
        {"qkvu_proj.weight": torch.ones(60, 20), "out_proj.weight": torch.ones(20, 20), "norm.weight": torch.ones(20)}
    )
    assert plain.qkv.weight.min() == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10, "num_heads": 3}, "dim=10 and num_heads=3"),
        ({"dim": 12, "num_heads": 3, "causal": False}, "its decay is defined over the past alone"),
        ({"dim": 12, "num_heads": 3, "decay": "fast"}, "tnl, constant, paper, none, got 'fast'"),
        ({"dim": 12, "num_heads": 3, "layer_idx": 4, "num_layers": 4}, "layer_idx=4, num_layers=4"),
        ({"dim": 12, "num_heads": 3, "norm": "rms"}, "srmsnorm, rmsnorm, layernorm, got 'rms'"),
        ({"dim": 12, "num_heads": 3, "activation": "relu"}, "silu, none, elu, got 'relu'"),
        ({"dim": 12, "num_heads": 3, "block_size": 0}, "block_size must be positive, got 0"),
    ],
)
def test_ill_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NormLinearAttention(**options)


def test_states_and_inputs_that_do_not_fit_are_named() -> None:
    mixer, x = NormLinearAttention(12, num_heads=3), torch.randn(2, 5, 12)
    with pytest.raises(ValueError, match="state has 3 rows and x has 2"):
        mixer.step(x, mixer.init_state(3))
    with pytest.raises(ValueError, match=r"the state has shape \(2, 3, 4, 4\), it must be \(2, 3, 8, 4\)"):
        mixer.step(x, NormLinearAttention(12, num_heads=3, lrpe=False).init_state(2))
    with pytest.raises(ValueError, match="must be floating point"):
        mixer(torch.zeros(2, 5, 12, dtype=torch.int64))
    with pytest.raises(ValueError, match="mask"):
        mixer(x, mask=torch.ones(2, 4, dtype=torch.bool))
