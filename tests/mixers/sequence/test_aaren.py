"""Aaren against its formula, PyTorch's own attention on every prefix, and its own state."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import regard
from regard.mixers.sequence.aaren import AarenAttention


def scattered(dim: int, num_heads: int, **options: bool) -> AarenAttention:
    """A mixer in float64 whose biases are not 0."""
    mixer = AarenAttention(dim, num_heads=num_heads, **options).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


def by_loops(mixer: AarenAttention, x: Tensor) -> Tensor:
    """The formula, prefix by prefix and head by head, with keys that are projected."""
    heads, width = mixer.num_heads, mixer.head_dim
    q, k, v = mixer.q_proj(mixer.query), mixer.k_proj(x), mixer.v_proj(x)
    mixed = torch.zeros_like(x)
    for b in range(x.shape[0]):
        for h in range(heads):
            part = slice(h * width, (h + 1) * width)
            for i in range(x.shape[1]):
                scores = [float(q[part] @ k[b, j, part]) / math.sqrt(width) for j in range(i + 1)]
                weights = [math.exp(score) for score in scores]
                for j, weight in enumerate(weights):
                    mixed[b, i, part] += weight / sum(weights) * v[b, j, part]
    return mixer.o_proj(mixed)


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_forward_is_the_formula(qkv_bias: bool) -> None:
    mixer, x = scattered(15, 3, qkv_bias=qkv_bias), torch.randn(2, 19, 15, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(mixer(x), by_loops(mixer, x), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 60.0])
def test_equals_pytorchs_own_attention_on_every_prefix(scale: float) -> None:
    mixer = scattered(28, 7)
    theirs = nn.MultiheadAttention(28, 7, batch_first=True).double()
    state = {"query": mixer.query.detach() * scale}
    state |= {f"attn.{name}": value for name, value in theirs.state_dict().items()}
    mixer.load_reference(state)
    x = torch.randn(2, 37, 28, dtype=torch.float64, requires_grad=True)
    query = state["query"].requires_grad_()
    ahead = query.expand(2, 1, 28)
    expected = torch.cat([theirs(ahead, x[:, :end], x[:, :end])[0] for end in range(1, 38)], dim=1)
    y = mixer(x)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-10)
    weight = torch.randn_like(y)
    ours = [x, mixer.query, mixer.q_proj.weight, mixer.k_proj.weight, mixer.v_proj.weight, mixer.o_proj.weight]
    found = torch.autograd.grad((y * weight).sum(), ours)
    packed, out = theirs.in_proj_weight, theirs.out_proj.weight
    wanted = torch.autograd.grad((expected * weight).sum(), [x, query, packed, out])
    for one, other in zip(found, (*wanted[:2], *wanted[2].chunk(3), wanted[3]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_query_does_not_depend_on_the_input() -> None:
    mixer = scattered(12, 3)
    x = torch.randn(1, 9, 12, dtype=torch.float64)
    weights, swapped = mixer.attention_map(x), mixer.attention_map(torch.cat((x[:, :7], x[:, 8:], x[:, 7:8]), dim=1))
    # the ratio of two keys' weights is the same in every row
    torch.testing.assert_close(weights[..., 8, 1] / weights[..., 8, 0], weights[..., 1, 1] / weights[..., 1, 0])
    torch.testing.assert_close(swapped[..., 8, 7], weights[..., 8, 8])


def test_starts_as_pytorchs_own_attention() -> None:
    mixer, theirs = AarenAttention(60, num_heads=4), nn.MultiheadAttention(60, 4)
    ours = torch.cat([p.weight for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj)])
    bound = math.sqrt(6 / (60 + 3 * 60))
    assert ours.abs().max() <= bound
    torch.testing.assert_close(ours.std(), theirs.in_proj_weight.std(), rtol=0.05, atol=0)
    assert all(p.bias.abs().max() == 0 for p in (mixer.q_proj, mixer.k_proj, mixer.v_proj, mixer.o_proj))
    assert sum(p.numel() for p in mixer.parameters()) == sum(p.numel() for p in theirs.parameters()) + 60


def test_steps_follow_changes_of_the_parameters() -> None:
    mixer, x = scattered(12, 3).eval(), torch.randn(2, 4, 12, dtype=torch.float64)
    with torch.no_grad():
        other = scattered(12, 3)
        for change in (lambda: None, lambda: mixer.query.mul_(2), lambda: mixer.load_state_dict(other.state_dict())):
            change()
            state = mixer.init_state(2)
            outputs = []
            for token in x.split(1, dim=1):
                y, state = mixer.step(token, state)
                outputs.append(y)
            torch.testing.assert_close(torch.cat(outputs, dim=1), mixer(x))
        _, state = mixer.step(x, mixer.init_state(2))
        mixer.v_proj.weight.data.add_(1)
        # a change through .data is seen at the next state
        first, _ = mixer.step(x[:, :1], mixer.init_state(2))
        torch.testing.assert_close(first, mixer(x[:, :1]))
    mixer.float()
    with torch.no_grad():
        y, _ = mixer.step(x[:, :1].float(), mixer.init_state(2))
    torch.testing.assert_close(y, mixer(x[:, :1].float()))


def test_single_steps_carry_gradients_to_every_parameter() -> None:
    mixer, x = scattered(12, 3), torch.randn(1, 7, 12, dtype=torch.float64, requires_grad=True)
    state, outputs = mixer.init_state(1), []
    for token in x.split(1, dim=1):
        y, state = mixer.step(token, state)
        outputs.append(y)
    live = [x, *(p for name, p in mixer.named_parameters() if name not in mixer.inert_parameters())]
    stepped = torch.autograd.grad(torch.cat(outputs, dim=1).square().sum(), live)
    for one, other in zip(stepped, torch.autograd.grad(mixer(x).square().sum(), live), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_shortest_way_is_the_general_one(dtype: torch.dtype) -> None:
    mixer, x = scattered(12, 3).to(dtype).eval(), torch.randn(2, 9, 12).to(dtype)
    results = []
    for training in (False, True):
        mixer.train(training)
        with torch.no_grad():
            state, outputs = mixer.init_state(2), []
            for token in x.split(1, dim=1):
                y, state = mixer.step(token, state)
                outputs.append(y)
        results.append((torch.cat(outputs, dim=1), state.peak, state.total, state.weighted, state.position))
    for one, other in zip(*results, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other)
    mixer.eval()
    with torch.no_grad(), pytest.raises(ValueError, match="state has 1 rows and x has 2"):
        mixer.step(x[:, :1], mixer.init_state(1))
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert mixer.step(x[:, :1], mixer.init_state(2))[1].weighted.dtype == torch.float32


def test_state_is_constant_and_small() -> None:
    mixer = AarenAttention(20, num_heads=4)
    with torch.no_grad():
        state = mixer.init_state(1)
        for tokens in (1, 300, 1):
            _, state = mixer.step(torch.randn(1, tokens, 20), state)
            assert state.nbytes - state.position.nbytes == (4 + 4 + 20) * 4


def test_reference_layout_is_strict() -> None:
    mixer, theirs = AarenAttention(12, num_heads=3), nn.MultiheadAttention(12, 3)
    state = {"query": torch.randn(12)} | {f"attn.{name}": value for name, value in theirs.state_dict().items()}
    with pytest.raises(KeyError, match=r"unknown keys: attn\.bias_k"):
        mixer.load_reference(state | {"attn.bias_k": torch.zeros(1)})
    with pytest.raises(KeyError, match=r"missing keys: query"):
        mixer.load_reference({name: value for name, value in state.items() if name != "query"})
    with pytest.raises(KeyError, match=r"missing keys: attn\.in_proj_bias"):
        mixer.load_reference({name: value for name, value in state.items() if name != "attn.in_proj_bias"})
    with pytest.raises(ValueError, match=r"attn\.in_proj_weight has shape \(35, 12\), it must be \(36, 12\)"):
        mixer.load_reference(state | {"attn.in_proj_weight": torch.zeros(35, 12)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10, "num_heads": 3}, "dim=10 and num_heads=3"),
        ({"dim": 12, "num_heads": 3, "causal": False}, "causal=False: the query does not depend on the token"),
    ],
)
def test_ill_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regard.create("aaren", **options)


class Adapted(nn.Module):
    """A projection with a low-rank adapter, which shows the bare projection's weight, as adapter libraries do."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.low_rank = nn.Linear(base.in_features, base.out_features, bias=False).to(base.weight)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.low_rank(x)


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj", "o_proj"])
def test_adapted_projections_are_called(name: str) -> None:
    mixer, x = scattered(15, 3).eval(), torch.randn(2, 7, 15, dtype=torch.float64)
    with torch.no_grad():
        plain = mixer(x)
        setattr(mixer, name, Adapted(getattr(mixer, name)))
        expected = by_loops(mixer, x)
        assert (expected - plain).abs().max() > 1e-3
        torch.testing.assert_close(mixer(x), expected)
        state, outputs = mixer.init_state(2), []
        for token in x.split(1, dim=1):
            y, state = mixer.step(token, state)
            outputs.append(y)
        torch.testing.assert_close(torch.cat(outputs, dim=1), expected)


@pytest.mark.parametrize("name", ["k_proj", "o_proj"])
def test_hooks_are_called(name: str) -> None:
    mixer, x, seen = scattered(15, 3).eval(), torch.randn(2, 3, 15, dtype=torch.float64), []
    getattr(mixer, name).register_forward_hook(lambda *call: seen.append(1))
    with torch.no_grad():
        mixer(x)
        _, state = mixer.step(x[:, :1], mixer.init_state(2))
        mixer.step(x[:, 1:2], state)
    assert len(seen) == 3
