"""Softplus attention: the reference against loops, the blocked form against the reference, and the edges of both."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from regard.ops import precision, softplus_blocks
from regard.ops.softplus_attention import (
    PHIS,
    key_spans,
    softplus_attention,
    softplus_attention_reference,
    softplus_weights,
    unit_length,
    whole_power,
)
from regard.ops.softplus_blocks import Spans, softplus_attention_macs
from regard.ops.visibility import visible_keys

CPU = torch.device("cpu")
POSITIVE: dict[str, Callable[[float], float]] = {
    "softplus": lambda s: max(s, 0.0) + math.log1p(math.exp(-abs(s))),
    "exp": math.exp,
    "relu": lambda s: max(s, 0.0),
    "sigmoid": lambda s: 1 / (1 + math.exp(-s)),
    "squared_relu": lambda s: max(s, 0.0) ** 2,
}


def past(tokens: int) -> Tensor:
    visible = visible_keys(tokens, tokens, causal=True, device=CPU)
    assert visible is not None
    return visible


def normals(*shapes: tuple[int, ...], gradients: bool = False) -> list[Tensor]:
    return [torch.randn(*shape, dtype=torch.float64).requires_grad_(gradients) for shape in shapes]


def row_by_loops(
    q: Tensor,
    keys: list[Tensor],
    *,
    power: int | None = None,
    free: int = 3,
    eps: float = 0.0,
    phi: str = "softplus",
    l1: bool = True,
    scale: str = "log_length",
    qk_norm: bool = True,
) -> list[float]:
    """One row of weights over its visible keys, as the formula says, in plain numbers."""
    count, width = len(keys), q.shape[0]
    factor = math.log(width) * math.log(count) if scale == "log_length" else 1 / math.sqrt(width)
    row = []
    for key in keys:
        product = sum(float(a) * float(b) for a, b in zip(q, key, strict=True))
        if qk_norm:
            product /= math.sqrt(sum(float(a) ** 2 for a in q)) * math.sqrt(sum(float(b) ** 2 for b in key))
        row.append(POSITIVE[phi](factor * product))
    if l1:
        total = sum(row) + eps
        row = [weight / total if total > 0 else 0.0 for weight in row]
    if power is None:
        return row
    offset = 0.0 if count <= free else 1.0
    raised = [max(count * weight - offset, 0.0) ** power for weight in row]
    total = sum(raised) + eps
    return [weight / total if total > 0 else 0.0 for weight in raised]


def weights_by_loops(q: Tensor, k: Tensor, visible: Tensor, **options: object) -> Tensor:
    weights = torch.zeros(*q.shape[:3], k.shape[2], dtype=torch.float64)
    for b, h, i in itertools.product(*(range(size) for size in q.shape[:3])):
        seen = [j for j in range(k.shape[2]) if bool(visible.expand(len(q), 1, *visible.shape[2:])[b, 0, i, j])]
        row = row_by_loops(q[b, h, i], [k[b, h, j] for j in seen], **options)  # type: ignore[arg-type]
        for j, weight in zip(seen, row, strict=True):
            weights[b, h, i, j] = weight
    return weights


# --------------------------------------------------------------------------------------------------- reference


@pytest.mark.parametrize("power", [None, 1, 3, 15])
@pytest.mark.parametrize("eps", [None, 1e-8])
def test_weights_are_the_formula(power: int | None, eps: float | None) -> None:
    q, k = normals((2, 2, 11, 5), (2, 2, 11, 5))
    expected = weights_by_loops(q, k, past(11), power=power, eps=eps or 0.0)
    torch.testing.assert_close(softplus_weights(q, k, visible=past(11), power=power, eps=eps), expected)


@pytest.mark.parametrize("phi", PHIS)
@pytest.mark.parametrize("power", [None, 3])
def test_each_ablation_is_its_formula(phi: str, power: int | None) -> None:
    q, k = normals((1, 1, 7, 5), (1, 1, 7, 5))
    for l1, scale, qk_norm in itertools.product((True, False), ("log_length", "inverse_sqrt"), (True, False)):
        options = {"power": power, "phi": phi, "l1": l1, "scale": scale, "qk_norm": qk_norm}
        ours = softplus_weights(q, k, visible=past(7), **options)  # type: ignore[arg-type]
        torch.testing.assert_close(ours, weights_by_loops(q, k, past(7), **options), msg=str(options))


def test_exp_with_l1_and_plain_scale_is_softmax() -> None:
    q, k = normals((2, 3, 13, 6), (2, 3, 13, 6))
    ours = softplus_weights(q, k, visible=past(13), phi="exp", scale="inverse_sqrt", qk_norm=False)
    scores = (q @ k.transpose(2, 3) / math.sqrt(6)).masked_fill(~past(13), -torch.inf)
    torch.testing.assert_close(ours, scores.softmax(dim=-1))


def test_rows_without_offset_are_the_first_three() -> None:
    q, k = normals((1, 1, 6, 4), (1, 1, 6, 4))
    for free in (1, 3, 5):
        ours = softplus_weights(q, k, visible=past(6), power=2, offset_free_rows=free)
        zeros = (ours == 0) & past(6)
        assert not zeros[:, :, :free].any()
        assert zeros[:, :, free:].any(dim=-1).all(), "with an offset the smallest weight of a row is cut off"
        torch.testing.assert_close(ours, weights_by_loops(q, k, past(6), power=2, free=free))


def test_a_large_power_is_argmax() -> None:
    q, k = normals((1, 2, 9, 8), (1, 2, 9, 8))
    ours = softplus_weights(q, k, visible=None, power=2001)
    best = (unit_length(q) @ unit_length(k).transpose(2, 3)).argmax(dim=-1)
    torch.testing.assert_close(ours, torch.nn.functional.one_hot(best, 9).double(), rtol=0, atol=1e-6)


def test_bias_is_added_to_scores() -> None:
    q, k = normals((1, 2, 5, 6), (1, 2, 5, 6))
    bias = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    scores = math.log(6) * math.log(5) * unit_length(q) @ unit_length(k).transpose(2, 3) + bias
    expected = torch.log1p(scores.exp())
    ours = softplus_weights(q, k, visible=None, bias=bias)
    torch.testing.assert_close(ours, expected / expected.sum(dim=-1, keepdim=True))


def test_whole_power_is_pow() -> None:
    x = torch.rand(5, dtype=torch.float64, requires_grad=True)
    for power in range(1, 33):
        torch.testing.assert_close(whole_power(x, power), x**power)
        ours, theirs = (torch.autograd.grad(y.sum(), x)[0] for y in (whole_power(x, power), x**power))
        torch.testing.assert_close(ours, theirs)


# --------------------------------------------------------------------------------------------------- blocked


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 7 queries, of two heads at once, so that 6 heads and 31 tokens cross borders both ways."""
    monkeypatch.setattr(softplus_blocks, "BLOCK_ROWS", 7)
    monkeypatch.setattr(softplus_blocks, "BLOCK_ELEMENTS", 2 * 7 * 31)


def compare_with_reference(
    leaves: list[Tensor], visible: Tensor | None, spans: object, power: int | None, **options: int
) -> None:
    q, k, v = leaves
    ours = softplus_attention(q, k, v, visible=spans, power=power, **options)  # type: ignore[arg-type]
    theirs = softplus_attention_reference(q, k, v, visible=visible, power=power, **options)
    torch.testing.assert_close(ours, theirs)
    weight = torch.randn_like(ours)
    for mine, other in zip(
        torch.autograd.grad((ours * weight).sum(), leaves),
        torch.autograd.grad((theirs * weight).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("power", [None, 1, 2, 3, 15])
@pytest.mark.parametrize("kv_heads", [3, 1])
def test_blocked_equals_reference(power: int | None, kv_heads: int) -> None:
    leaves = normals((2, 3, 31, 5), (2, kv_heads, 31, 5), (2, kv_heads, 31, 11), gradients=True)
    compare_with_reference(leaves, past(31), "past", power)
    compare_with_reference(leaves, past(31), "past", power, offset_free_rows=0)
    q, k, v = leaves
    fewer = [x[:, :, :17].detach().requires_grad_() for x in (k, v)]
    compare_with_reference([q, *fewer], None, "all", power)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("power", [None, 3])
def test_blocked_equals_reference_on_spans(causal: bool, power: int | None) -> None:
    segments = torch.tensor([[0] * 9 + [1] * 2 + [0] * 20, [5] * 1 + [6] * 30])
    mask = torch.arange(31) < torch.tensor([[27], [4]])
    leaves = normals((2, 3, 31, 5), (2, 3, 31, 5), (2, 3, 31, 4), gradients=True)
    for given in ({"segments": segments}, {"mask": mask}, {"segments": segments, "mask": mask}):
        spans = key_spans(31, 31, causal=causal, device=CPU, **given)
        if causal and "segments" not in given:
            assert spans == "past"
            continue
        kept = {name: value for name, value in given.items() if name != "mask" or not causal}
        visible = visible_keys(31, 31, causal=causal, device=CPU, **kept)
        compare_with_reference(leaves, visible, spans, power)


def test_spans_say_what_the_map_says() -> None:
    segments = torch.tensor([[3, 3, 1, 3, 3, 3, 2]])
    column = torch.arange(7)
    for causal, mask in ((True, None), (False, None), (False, column[None] < 5)):
        spans = key_spans(7, 7, causal=causal, mask=mask, segments=segments, device=CPU)
        assert isinstance(spans, Spans)
        seen = (column >= spans.first[..., None]) & (column < spans.stop[..., None])
        expected = visible_keys(7, 7, causal=causal, mask=mask, segments=segments, device=CPU)
        assert expected is not None
        assert torch.equal(seen, expected[:, 0])


@pytest.mark.parametrize("power", [None, 1, 15])
def test_blocked_gradients_by_differences(power: int | None) -> None:
    leaves = normals((1, 2, 6, 3), (1, 2, 6, 3), (1, 2, 6, 2), gradients=True)
    assert torch.autograd.gradcheck(lambda *x: softplus_attention(*x, visible="past", power=power), leaves)


def test_wide_scores_take_another_softplus(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = normals((1, 2, 13, 5), (1, 2, 13, 5), (1, 2, 13, 3), gradients=True)
    monkeypatch.setattr(softplus_blocks, "LARGEST_EXPONENT", 0.0)
    for power in (None, 15):
        compare_with_reference(leaves, past(13), "past", power)


def test_nothing_quadratic_is_kept_for_backward() -> None:
    def kept(tokens: int) -> int:
        sizes: list[int] = []

        def note(x: Tensor) -> Tensor:
            sizes.append(x.numel())
            return x

        q, k, v = (torch.randn(1, 2, tokens, 8, requires_grad=True) for _ in range(3))
        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            softplus_attention(q, k, v, visible="past", power=15)
        return sum(sizes)

    assert kept(200) <= kept(100) * 2.05


def test_fused_blocks_compile_with_gradients() -> None:
    torch.compiler.reset()
    q, k, v = (torch.randn(1, 2, 70, 8, requires_grad=True) for _ in range(3))

    def mix(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return softplus_attention(q, k, v, visible="past", power=15)

    compiled = torch.compile(mix, fullgraph=True, backend="eager")
    found = [torch.autograd.grad(f(q, k, v).square().sum(), (q, k, v)) for f in (compiled, mix)]
    torch.compiler.reset()
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected)


def test_macs_count_the_visible_blocks() -> None:
    assert softplus_attention_macs(100, 100, head_dim=3, value_dim=4, past_only=True) == (64 * 64 + 36 * 100) * 7
    assert softplus_attention_macs(100, 9, head_dim=3, value_dim=4, past_only=False) == 100 * 9 * 7


# --------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("power", [None, 3, 15])
def test_bfloat16_is_within_two_percent(native: bool, power: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "NATIVE_BFLOAT16", native)
    q, k, v = (torch.randn(1, 2, 150, 64).bfloat16().requires_grad_() for _ in range(3))
    wide = [x.detach().float().requires_grad_() for x in (q, k, v)]
    ours = softplus_attention(q, k, v, visible="past", power=power)
    theirs = softplus_attention_reference(*wide, visible=past(150), power=power)
    assert ours.dtype == torch.bfloat16
    assert (ours - theirs).norm() <= 0.02 * theirs.norm()
    weight = torch.randn_like(theirs)
    for mine, other in zip(
        torch.autograd.grad((ours * weight).sum(), (q, k, v)),
        torch.autograd.grad((theirs * weight).sum(), wide),
        strict=True,
    ):
        assert mine.dtype == torch.bfloat16
        assert (mine - other).norm() <= 0.05 * other.norm()


@pytest.mark.parametrize("form", [softplus_attention, softplus_attention_reference])
def test_extreme_and_empty_vectors_stay_finite(form: Callable[..., Tensor]) -> None:
    visible = "past" if form is softplus_attention else past(400)
    q, k, v = (torch.randn(1, 1, 400, 16) for _ in range(3))
    for size in (0.0, 1e-12, 1e4, 1e15):
        leaves = [(size * x).requires_grad_() for x in (q, k)] + [v.clone().requires_grad_()]
        y = form(*leaves, visible=visible, power=15)
        for x in (y, *torch.autograd.grad(y.square().sum(), leaves)):
            assert x.isfinite().all(), f"size {size:g}"


def test_uniform_rows_are_the_mean_where_the_epsilon_loses_them() -> None:
    q, v = torch.randn(1, 1, 50, 8), torch.randn(1, 1, 50, 3)
    same = torch.randn(1, 1, 1, 8).expand(1, 1, 50, 8)
    means = v.cumsum(dim=2) / torch.arange(1, 51)[:, None]
    for power in (None, 3, 15):
        torch.testing.assert_close(softplus_attention(q, same, v, visible="past", power=power), means)
    lossy = softplus_weights(q, same, visible=past(50), power=15, eps=1e-8).sum(dim=-1)
    torch.testing.assert_close(lossy[..., :3], torch.ones(1, 1, 3))
    assert lossy[..., 3:].max() < 1e-3


def test_powers_overflow_with_an_epsilon_alone() -> None:
    """One key of 600 takes nearly all: (600 a - 1) ** 15 is beyond float32."""
    k = -torch.ones(1, 1, 600, 64)
    k[:, :, 7] *= -1
    q = torch.ones(1, 1, 1, 64)
    assert softplus_weights(q, k, visible=None, power=15, eps=1e-8).isnan().any()
    expected = torch.nn.functional.one_hot(torch.tensor(7), 600).float()
    torch.testing.assert_close(softplus_weights(q, k, visible=None, power=15)[0, 0, 0], expected)


def test_a_row_that_sees_nothing_is_zero() -> None:
    q, k, v = normals((1, 2, 4, 5), (1, 2, 4, 5), (1, 2, 4, 3), gradients=True)
    spans = Spans(first=torch.tensor([[0, 2, 1, 0]]), stop=torch.tensor([[4, 2, 3, 0]]))
    visible = (torch.arange(4) >= spans.first[..., None]) & (torch.arange(4) < spans.stop[..., None])
    for power in (None, 3):
        y = softplus_attention(q, k, v, visible=spans, power=power)
        assert (y[:, :, [1, 3]] == 0).all()
        torch.testing.assert_close(y, softplus_attention_reference(q, k, v, visible=visible[:, None], power=power))
        for x in torch.autograd.grad(y.sum(), (q, k, v)):
            assert x.isfinite().all()


# --------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"power": 0}, "at least 1, got 0"),
        ({"power": 2.5}, "whole number of at least 1, got 2.5"),
        ({"offset_free_rows": -1}, "must not be negative, got -1"),
        ({"v": torch.zeros(1, 2, 4, 3)}, r"\(1, 2, 5\) for k and \(1, 2, 4\) for v"),
        ({"v": torch.zeros(1, 1, 5, 3)}, r"\(1, 2, 5\) for k and \(1, 1, 5\) for v"),
        ({"q": torch.zeros(2, 2, 5, 6)}, "with batch 2 for q"),
        ({"q": torch.zeros(1, 3, 5, 6)}, "multiple of those of k, got 3 and 2"),
        ({"q": torch.zeros(1, 2, 5, 7)}, "head_dim 7 and k has 6"),
        ({"q": torch.zeros(1, 2, 5, 6).long()}, "q must be floating point, got torch.int64"),
        ({"v": torch.zeros(1, 2, 5, 3).int()}, "v must be floating point, got torch.int32"),
        ({"q": torch.zeros(1, 2, 4, 6)}, "as many queries as keys, got 4 and 5"),
        ({"visible": None}, "scores grow with the number of keys, got None"),
    ],
)
def test_ill_arguments_are_named(changes: dict[str, object], message: str) -> None:
    q, k, v = torch.randn(1, 2, 5, 6), torch.randn(1, 2, 5, 6), torch.randn(1, 2, 5, 3)
    given = {"q": q, "k": k, "v": v, "visible": "past", "power": 3, "offset_free_rows": 3, **changes}
    tensors = [given.pop(name) for name in ("q", "k", "v")]
    with pytest.raises(ValueError, match=message):
        softplus_attention(*tensors, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"phi": "tanh"}, "phi must be one of softplus, exp, relu, sigmoid, squared_relu, got 'tanh'"),
        ({"scale": "none"}, "scale must be one of log_length, inverse_sqrt, got 'none'"),
        ({"eps": 0.0}, "eps must be positive"),
    ],
)
def test_ill_options_are_named(options: dict[str, object], message: str) -> None:
    x = torch.randn(1, 2, 5, 6)
    with pytest.raises(ValueError, match=message):
        softplus_weights(x, x, visible=None, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("native", [True, False], ids=["native", "emulated"])
@pytest.mark.parametrize("power", [None, 3, 15])
def test_bfloat16_stays_within_one_percent_at_any_power(
    power: int | None, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "NATIVE_BFLOAT16", native)
    wide = [torch.randn(2, 3, 263, 12).bfloat16().double().requires_grad_() for _ in range(3)]
    narrow = [x.detach().bfloat16().requires_grad_() for x in wide]
    y = softplus_attention(*narrow, visible="past", power=power)
    exact = softplus_attention_reference(*wide, visible=past(263), power=power)
    assert y.dtype == torch.bfloat16
    assert (y - exact).norm() / exact.norm() < 0.01
    upstream = torch.randn_like(exact)
    exact.backward(upstream)
    y.backward(upstream.bfloat16())
    for got, expected in zip(narrow, wide, strict=True):
        assert got.grad is not None
        assert expected.grad is not None
        assert (got.grad - expected.grad).norm() / expected.grad.norm() < 0.02
