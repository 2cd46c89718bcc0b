"""The memory's recurrence: chunks against loops over tokens, states, gradients, rates at their ends."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from regard.ops.memory_network import memory_widths
from regard.ops.neural_memory import (
    Memory,
    Rates,
    neural_memory,
    neural_memory_reference,
    neural_memory_step,
    neural_memory_with_state,
    stand_still,
)

ROWS, HEADS, TOKENS, WIDTH = 2, 3, 17, 5


class Setting:
    """Random inputs of one form of the memory."""

    def __init__(
        self, *, depth: int = 2, residual_norm: bool = False, momentum: bool = True, forgetting: bool = True
    ) -> None:
        widths = memory_widths(WIDTH, depth=depth, expansion=2)
        shapes = [*pairwise(widths), *[(1, WIDTH)] * residual_norm]
        weights = [(torch.randn(ROWS, HEADS, *shape, dtype=torch.float64) * 0.4).requires_grad_() for shape in shapes]
        held = tuple(torch.randn_like(weight) * 0.01 for weight in weights) if momentum else ()
        self.residual_norm = residual_norm
        self.memory = Memory(tuple(weights), tuple(weights), held)
        q, k, v = torch.randn(3, ROWS, HEADS, TOKENS, WIDTH, dtype=torch.float64)
        self.qkv = [normalize(q, dim=-1).requires_grad_(), normalize(k, dim=-1).requires_grad_(), v.requires_grad_()]
        raw = [torch.randn(ROWS, HEADS, TOKENS, dtype=torch.float64).requires_grad_() for _ in range(3)]
        self.rates = Rates(
            torch.sigmoid(raw[0] - 2),
            logsigmoid(raw[1] + 2) if forgetting else None,
            logsigmoid(raw[2]) if momentum else None,
        )
        self.leaves = [*self.qkv, raw[0], *weights, *[raw[1]] * forgetting, *[raw[2]] * momentum]

    def run(self, function: Any, **options: Any) -> Any:
        return function(*self.qkv, self.rates, self.memory, residual_norm=self.residual_norm, **options)

    def part(self, tokens: slice) -> tuple[list[Tensor], Rates]:
        rates = [None if rate is None else rate[:, :, tokens] for rate in self.rates[:3]]
        assert rates[0] is not None
        return [x[:, :, tokens] for x in self.qkv], Rates(rates[0], rates[1], rates[2])


FORMS = [
    {"depth": depth, "residual_norm": residual_norm, "momentum": momentum, "forgetting": forgetting}
    for depth, residual_norm, momentum, forgetting in (
        (1, False, False, False),
        (1, False, True, True),
        (2, False, True, True),
        (2, True, True, True),
        (2, False, True, False),
        (3, False, False, True),
    )
]


def linear_memory_by_loops(setting: Setting, chunk_size: int) -> Tensor:
    """The recurrence of a linear memory, gradients written out and taken at each chunk's start."""
    q, k, v = setting.qkv
    reads = torch.zeros_like(q)
    for row in range(ROWS):
        for head in range(HEADS):
            weight = setting.memory.weights[0][row, head]
            held = setting.memory.momentum[0][row, head]
            start = weight
            for t in range(TOKENS):
                if t % chunk_size == 0:
                    start = weight
                key, value = k[row, head, t], v[row, head, t]
                gradient = torch.outer(key, 2 * (key @ start - value))
                assert setting.rates.log_momentum is not None
                assert setting.rates.log_keep is not None
                held = (
                    setting.rates.log_momentum[row, head, t].exp() * held - setting.rates.step[row, head, t] * gradient
                )
                weight = setting.rates.log_keep[row, head, t].exp() * weight + held
                reads[row, head, t] = (q[row, head, t] @ weight).detach()
    return reads


@pytest.mark.parametrize("chunk_size", [1, 4, 17, 64])
def test_linear_memory_is_the_loop(chunk_size: int) -> None:
    setting = Setting(depth=1)
    expected = linear_memory_by_loops(setting, chunk_size)
    torch.testing.assert_close(setting.run(neural_memory, chunk_size=chunk_size), expected)


@pytest.mark.parametrize("chunk_size", [1, 5, 17, 64])
@pytest.mark.parametrize("form", FORMS)
def test_chunks_are_the_recurrence(form: dict[str, Any], chunk_size: int) -> None:
    setting = Setting(**form)
    expected, after = setting.run(neural_memory_reference, chunk_size=chunk_size)
    y, memory = setting.run(neural_memory_with_state, chunk_size=chunk_size)
    torch.testing.assert_close(y, expected)
    for ours, theirs in zip(memory, after, strict=True):
        torch.testing.assert_close(ours, theirs)
    upstream = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * upstream).sum(), setting.leaves, retain_graph=True)
    for recompute in (False, True):
        y = setting.run(neural_memory, chunk_size=chunk_size, recompute=recompute)
        torch.testing.assert_close(y, expected)
        got = torch.autograd.grad((y * upstream).sum(), setting.leaves, retain_graph=True)
        for name, (ours, theirs) in enumerate(zip(got, wanted, strict=True)):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9, msg=f"gradient {name}")


def test_shortened_gradients_in_chunks() -> None:
    setting = Setting()
    expected, _ = setting.run(neural_memory_reference, chunk_size=5, limit=0.5)
    torch.testing.assert_close(setting.run(neural_memory, chunk_size=5, limit=0.5), expected)
    assert (setting.run(neural_memory, chunk_size=5) - expected).abs().max() > 1e-3


@pytest.mark.parametrize("form", FORMS)
def test_single_tokens_are_the_recurrence(form: dict[str, Any]) -> None:
    setting, chunk_size = Setting(**form), 5
    expected, after = setting.run(neural_memory_reference, chunk_size=chunk_size, limit=3.0)
    memory, reads = setting.memory, []
    for t in range(TOKENS):
        qkv, rates = setting.part(slice(t, t + 1))
        ends = torch.full((ROWS,), (t + 1) % chunk_size == 0)
        y, memory = neural_memory_step(
            *qkv, rates, memory, ends_chunk=ends, residual_norm=setting.residual_norm, limit=3.0
        )
        reads.append(y)
    torch.testing.assert_close(torch.cat(reads, dim=2), expected)
    for ours, theirs in zip(memory, after, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_tokens_that_are_not_real_change_nothing() -> None:
    setting = Setting()
    real = torch.ones(ROWS, TOKENS, dtype=torch.bool)
    real[:, 10:] = False
    rates = stand_still(setting.rates, real)
    _, memory = neural_memory_with_state(
        *setting.qkv,
        rates,
        setting.memory,
        chunk_size=4,
        residual_norm=False,
        filled=torch.tensor([10, 10]),
    )
    qkv, short = setting.part(slice(0, 10))
    _, expected = neural_memory_with_state(*qkv, short, setting.memory, chunk_size=4, residual_norm=False)
    for ours, theirs in zip(memory, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_rates_at_their_ends_stay_finite() -> None:
    setting = Setting()
    far = torch.full((ROWS, HEADS, TOKENS), -1e4, dtype=torch.float64)
    far[:, :, ::2] = 0
    rates = Rates(setting.rates.step, far.requires_grad_(), far.flip(2).detach().requires_grad_())
    y = neural_memory(*setting.qkv, rates, setting.memory, chunk_size=5, residual_norm=False)
    expected, _ = neural_memory_reference(*setting.qkv, rates, setting.memory, chunk_size=5, residual_norm=False)
    torch.testing.assert_close(y, expected)
    assert rates.log_keep is not None
    assert rates.log_momentum is not None
    for gradient in torch.autograd.grad(y.sum(), (rates.log_keep, rates.log_momentum)):
        assert bool(torch.isfinite(gradient).all())


def test_computes_wide_and_returns_narrow() -> None:
    setting = Setting()
    q, k, v = (x.detach().bfloat16() for x in setting.qkv)
    y, memory = neural_memory_with_state(q, k, v, setting.rates, setting.memory, chunk_size=5, residual_norm=False)
    assert y.dtype == torch.bfloat16
    assert all(weight.dtype == torch.float32 for part in memory for weight in part)
    expected = setting.run(neural_memory, chunk_size=5)
    assert (y.double() - expected).norm() < 0.02 * expected.norm()


def test_ill_arguments_are_named() -> None:
    setting = Setting()
    q, k, v = setting.qkv
    with pytest.raises(ValueError, match="chunk_size must be positive, got 0"):
        setting.run(neural_memory, chunk_size=0)
    with pytest.raises(ValueError, match="one shape"):
        neural_memory(q, k[:, :, 1:], v, setting.rates, setting.memory, chunk_size=4, residual_norm=False)
    with pytest.raises(ValueError, match=r"rates have shape \(2, 3, 16\)"):
        neural_memory(q, k, v, setting.part(slice(1, None))[1], setting.memory, chunk_size=4, residual_norm=False)
    narrow = Memory(*(tuple(weight[:1] for weight in part) for part in setting.memory))
    with pytest.raises(ValueError, match="first weight"):
        neural_memory(q, k, v, setting.rates, narrow, chunk_size=4, residual_norm=False)
    with pytest.raises(ValueError, match="momentum"):
        neural_memory(
            q, k, v, setting.rates._replace(log_momentum=None), setting.memory, chunk_size=4, residual_norm=False
        )
