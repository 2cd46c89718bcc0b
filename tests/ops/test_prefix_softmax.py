"""Softmax over every prefix in all its forms against the formula, token by token."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from regard.ops.prefix_softmax import (
    PrefixSums,
    empty_prefix_sums,
    merge,
    prefix_softmax,
    prefix_softmax_macs,
    prefix_softmax_recurrent,
    prefix_softmax_reference,
    prefix_softmax_scan,
    prefix_softmax_step,
    prefix_softmax_weights,
    prefix_softmax_with_state,
)

PACKED = [[0, 0, 1, 1, 1, 0, 2, 2, 2, 2, 2], [4] * 7 + [3] * 4]


def by_loops(scores: Tensor, values: Tensor, segments: list[list[int]] | None = None) -> Tensor:
    """The formula once more, without a maximum that is carried along."""
    scores, values = scores.detach(), values.detach()
    mixed = torch.zeros_like(values)
    for b in range(scores.shape[0]):
        for h in range(scores.shape[1]):
            for i in range(scores.shape[2]):
                start = 0
                while segments is not None and len(set(segments[b][start : i + 1])) > 1:
                    start += 1
                seen = scores[b, h, start : i + 1].tolist()
                weights = [math.exp(score - max(seen)) for score in seen]
                for j, weight in enumerate(weights, start=start):
                    mixed[b, h, i] += weight / sum(weights) * values[b, h, j]
    return mixed


def inputs(tokens: int, *, batch: int = 2, size: float = 2.0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    scores = (size * torch.randn(batch, 3, tokens, dtype=dtype)).requires_grad_()
    return scores, torch.randn(batch, 3, tokens, 5, dtype=dtype).requires_grad_()


def every_form(scores: Tensor, values: Tensor) -> dict[str, Tensor]:
    forms = {
        "reference": prefix_softmax_reference(scores, values),
        "recurrent": prefix_softmax_recurrent(scores, values)[0],
        "scan": prefix_softmax_scan(scores, values),
        "with state": prefix_softmax_with_state(scores, values, block_size=4)[0],
    }
    return forms | {f"blocks of {size}": prefix_softmax(scores, values, block_size=size) for size in (2, 3, 11, 16, 64)}


@pytest.mark.parametrize("tokens", [1, 2, 11, 37])
def test_all_forms_are_the_formula(tokens: int) -> None:
    scores, values = inputs(tokens)
    expected = by_loops(scores, values)
    for name, found in every_form(scores, values).items():
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize("size", [1.0, 200.0])
@pytest.mark.parametrize("tokens", [15, 16, 17, 131, 257, 523])
def test_forms_have_the_references_values_and_gradients(tokens: int, size: float) -> None:
    # uniform scores of up to 200 have prefixes whose later scores are larger and smaller by hundreds
    scores = ((torch.rand(1, 3, tokens, dtype=torch.float64) * 2 - 1) * size).requires_grad_()
    _, values = inputs(tokens, batch=1)
    weight = torch.randn_like(values)
    results = []
    for form in (prefix_softmax_reference, prefix_softmax, prefix_softmax_scan):
        y = form(scores, values)
        results.append([y, *torch.autograd.grad((y * weight).sum(), (scores, values))])
    for found in results[1:]:
        for ours, expected in zip(found, results[0], strict=True):
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("order", ["rising", "falling", "one peak"])
def test_single_precision_survives_any_order_of_large_scores(order: str) -> None:
    ramp = torch.linspace(-200, 200, 397)
    scores = {"rising": ramp, "falling": ramp.flip(0), "one peak": -ramp.abs()}[order].expand(1, 1, -1).clone()
    values = torch.randn(1, 1, 397, 7)
    exact = prefix_softmax_reference(scores.double(), values.double())
    for name, found in every_form(scores, values).items():
        error = float((found.double() - exact).abs().max() / exact.abs().max())
        assert error < 2e-5, f"{name}: {error}"
    leaf = scores.requires_grad_()
    (gradient,) = torch.autograd.grad(prefix_softmax(leaf, values).square().sum(), leaf)
    wide = scores.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(prefix_softmax_reference(wide, values.double()).square().sum(), wide)
    assert (gradient.double() - wanted).abs().max() < 1e-4 * wanted.abs().max()


def test_infinitely_small_scores_have_no_weight() -> None:
    scores, values = (x.detach() for x in inputs(23))
    scores[:, :, 3:9] = -torch.inf
    kept = torch.cat((torch.arange(3), torch.arange(9, 23)))
    expected = prefix_softmax_reference(scores[:, :, kept], values[:, :, kept])
    for form in (prefix_softmax, prefix_softmax_scan):
        torch.testing.assert_close(form(scores, values)[:, :, kept], expected)


def test_block_form_passes_gradcheck() -> None:
    scores, values = inputs(7, batch=1)
    assert torch.autograd.gradcheck(lambda s, v: prefix_softmax(s, v, block_size=3), (scores, values))


@pytest.mark.parametrize("block_size", [2, 3, 16])
def test_packed_sequences_restart_at_borders(block_size: int) -> None:
    scores, values = inputs(11)
    with torch.no_grad():
        # what came before a border must not swamp what follows
        scores[0, :, :5] += 900
    segments = torch.tensor(PACKED)
    expected = by_loops(scores, values, PACKED)
    torch.testing.assert_close(prefix_softmax_reference(scores, values, segments=segments), expected)
    y = prefix_softmax(scores, values, segments=segments, block_size=block_size)
    torch.testing.assert_close(y, expected)
    before = torch.autograd.grad(y[1, :, :7].square().sum(), (scores, values), retain_graph=True)
    assert all(gradient[1, :, 7:].abs().max() == 0 for gradient in before)
    after = torch.autograd.grad(y[1, :, 7:].square().sum(), (scores, values))
    assert all(gradient[1, :, :7].abs().max() == 0 for gradient in after)


def test_long_packed_sequences_equal_separate_ones() -> None:
    scores, values = inputs(331, batch=1)
    lengths = (1, 97, 16, 60, 157)
    segments = torch.repeat_interleave(torch.tensor([5, 2, 5, 5, 0]), torch.tensor(lengths))[None]
    pieces = zip(scores.split((1, 97, 76, 157), 2), values.split((1, 97, 76, 157), 2), strict=True)
    expected = torch.cat([prefix_softmax_reference(*piece) for piece in pieces], dim=2)
    torch.testing.assert_close(prefix_softmax(scores, values, segments=segments), expected)


def test_state_joins_any_chunks() -> None:
    scores, values = inputs(71)
    expected, final = prefix_softmax_recurrent(scores, values)
    state, outputs = None, []
    for piece in zip(scores.split((1, 40, 3, 27), 2), values.split((1, 40, 3, 27), 2), strict=True):
        y, state = prefix_softmax_with_state(*piece, state)
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=2), expected)
    assert state is not None
    for ours, wanted in zip(state, final, strict=True):
        torch.testing.assert_close(ours, wanted)
    loss = torch.cat(outputs, dim=2).square().sum()
    for ours, wanted in zip(
        torch.autograd.grad(loss, (scores, values)),
        torch.autograd.grad(prefix_softmax_reference(scores, values).square().sum(), (scores, values)),
        strict=True,
    ):
        torch.testing.assert_close(ours, wanted)


def test_masked_tokens_leave_the_state() -> None:
    scores, values = (x.detach() for x in inputs(29))
    mask = torch.rand(2, 29) < 0.5
    mask[0, :18] = False
    y, state = prefix_softmax_with_state(scores, values, mask=mask, block_size=4)
    assert y[0, :, :18].abs().max() == 0
    for row, real in enumerate(mask):
        alone, final = prefix_softmax_recurrent(scores[row : row + 1, :, real], values[row : row + 1, :, real])
        torch.testing.assert_close(y[row : row + 1, :, real], alone)
        for ours, wanted in zip(state, final, strict=True):
            torch.testing.assert_close(ours[row : row + 1], wanted)


def test_nothing_but_masked_tokens_is_zero_with_finite_gradients() -> None:
    scores, values = inputs(19)
    y, state = prefix_softmax_with_state(scores, values, mask=torch.zeros(2, 19, dtype=torch.bool))
    empty = empty_prefix_sums(2, num_heads=3, value_dim=5, like=values)
    assert y.abs().max() == 0
    assert all(torch.equal(ours, wanted) for ours, wanted in zip(state, empty, strict=True))
    for gradient in torch.autograd.grad(y.sum(), (scores, values)):
        assert gradient.abs().max() == 0
    step, after = prefix_softmax_step(scores[:, :, :1], values[:, :, 0], empty, mask=torch.tensor([[False], [True]]))
    assert step[0].abs().max() == 0
    torch.testing.assert_close(step[1], values[1, :, 0])
    assert after.total.flatten().tolist() == [0, 0, 0, 1, 1, 1]


def test_merging_is_associative_and_has_an_identity() -> None:
    stretches = []
    for seed in range(3):
        scores, values = (x.detach() for x in inputs(5 + seed, size=40.0))
        stretches.append(prefix_softmax_with_state(scores, values)[1])
    first, second, third = stretches
    left, right = merge(merge(first, second), third), merge(first, merge(second, third))
    for one, other in zip(left, right, strict=True):
        torch.testing.assert_close(one, other)
    empty = empty_prefix_sums(2, num_heads=3, value_dim=5, like=first.peak)
    for merged in (merge(empty, first), merge(first, empty)):
        assert all(torch.equal(one, other) for one, other in zip(merged, first, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(merge(empty, empty), empty, strict=True))


def test_map_rows_are_distributions_over_the_past() -> None:
    scores, values = (x.detach() for x in inputs(13))
    weights = prefix_softmax_weights(scores)
    assert weights.triu(1).abs().max() == 0
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 13, dtype=torch.float64))
    torch.testing.assert_close(weights @ values, by_loops(scores, values))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_values_are_summed_in_single_precision(dtype: torch.dtype) -> None:
    scores, values = torch.randn(1, 2, 1999), torch.randn(1, 2, 1999, 32).to(dtype)
    exact = prefix_softmax_reference(scores.double(), values.double())
    y, state = prefix_softmax_with_state(scores.to(dtype), values)
    assert y.dtype == dtype
    assert {x.dtype for x in state} == {torch.float32}
    assert (y.double() - exact).norm() / exact.norm() < 0.02


def test_memory_and_work_are_linear() -> None:
    assert prefix_softmax_macs(2**17, value_dim=8) < 2.02 * prefix_softmax_macs(2**16, value_dim=8)


@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 150, 300])
def test_macs_are_those_of_the_counter(tokens: int) -> None:
    scores, values = torch.randn(2, 3, tokens), torch.randn(2, 3, tokens, 5)
    with FlopCounterMode(display=False) as counter:
        prefix_softmax(scores, values)
    assert counter.get_total_flops() == 2 * 2 * 3 * prefix_softmax_macs(tokens, value_dim=5)


def test_contiguity_does_not_matter() -> None:
    scores, values = torch.randn(2, 67, 3).transpose(1, 2), torch.randn(2, 67, 3, 8).transpose(1, 2)
    torch.testing.assert_close(prefix_softmax(scores, values), prefix_softmax_reference(scores, values))


def test_ill_arguments_are_named() -> None:
    scores, values = (x.detach() for x in inputs(11))
    with pytest.raises(ValueError, match=r"\(2, 3, 11\) and \(2, 3, 9, 5\)"):
        prefix_softmax(scores, values[:, :, :9])
    with pytest.raises(ValueError, match="0 tokens"):
        prefix_softmax(scores[:, :, :0], values[:, :, :0])
    with pytest.raises(ValueError, match="block_size must be at least 2, got 1"):
        prefix_softmax(scores, values, block_size=1)
    with pytest.raises(ValueError, match=r"floating point, got torch.int64"):
        prefix_softmax(scores.long(), values)
    with pytest.raises(ValueError, match="batch must be positive, got 0"):
        empty_prefix_sums(0, num_heads=3, value_dim=5, like=values)
    four = empty_prefix_sums(2, num_heads=4, value_dim=5, like=values)
    with pytest.raises(ValueError, match=r"\(2, 4, 1\) and \(2, 4, 5\), they must have \(2, 3, 1\) and \(2, 3, 5\)"):
        prefix_softmax_with_state(scores, values, four)
    narrow = PrefixSums(*(x.float() for x in empty_prefix_sums(2, num_heads=3, value_dim=5, like=values)))
    with pytest.raises(ValueError, match=r"state is torch.float32, scores and values are torch.float64"):
        prefix_softmax_step(scores[:, :, :1], values[:, :, 0], narrow)
