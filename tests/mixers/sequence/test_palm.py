"""Partial attention against its formula, row by row, and what is special: the mask, the kept keys, the cost."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from regard.mixers.sequence.palm import PartialAttention


def source_states_by_loops(mixer: PartialAttention, source: Tensor) -> Tensor:
    """P of one row, written out: the activation is ReLU."""
    rows = []
    for h in source:
        raw = mixer.source_fc1.weight @ h + mixer.source_fc1.bias
        first = torch.stack([torch.maximum(z, torch.zeros_like(z)) for z in raw])
        rows.append(first + mixer.source_fc2.weight @ first + mixer.source_fc2.bias)
    return torch.stack(rows)


@torch.no_grad()
def attention_by_loops(mixer: PartialAttention, x: Tensor, source: Tensor) -> Tensor:
    """The formula for one row, token by token and head by head."""
    heads, width = mixer.num_heads, mixer.head_dim
    group = heads // mixer.num_kv_heads
    p = source_states_by_loops(mixer, source)
    outputs = []
    for token in x:
        q, parts = mixer.q_proj.weight @ token, []
        for head in range(heads):
            of_head = slice(head * width, (head + 1) * width)
            of_group = slice(head // group * width, (head // group + 1) * width)
            keys = [mixer.k_proj.weight[of_group] @ state for state in p]
            values = [mixer.v_proj.weight[of_group] @ state for state in p]
            scores = [math.exp(float(q[of_head] @ key) / math.sqrt(width)) for key in keys]
            parts.append(sum(score / sum(scores) * value for score, value in zip(scores, values, strict=True)))
        outputs.append(mixer.o_proj(torch.cat(parts)))
    return torch.stack(outputs)


@pytest.mark.parametrize("num_kv_heads", [1, 3, 6])
def test_is_the_formula_with_a_mask_per_row(num_kv_heads: int) -> None:
    mixer = PartialAttention(30, num_heads=6, num_kv_heads=num_kv_heads).double()
    x, source = torch.randn(2, 11, 30).double(), torch.randn(2, 7, 30).double()
    real = torch.tensor([[True] * 7, [False, True, True, False, True, False, False]])
    y = mixer(x, context=source, mask=real)
    for row in range(2):
        expected = attention_by_loops(mixer, x[row], source[row][real[row]])
        torch.testing.assert_close(y[row], expected, rtol=1e-10, atol=1e-11)


def test_what_is_padding_for_one_source_does_not_leak() -> None:
    # the compared code reads as many tokens of every row as the longest source has
    mixer = PartialAttention(12, num_heads=3)
    states = torch.randn(2, 13, 12)
    real = torch.arange(7) < torch.tensor([[7], [4]])
    kept = mixer.keys_values(states[:, :7], torch.arange(7)[None])
    q = mixer.queries(states, torch.arange(13)[None])
    y = mixer.attend(q, *kept, visible=real[:, None, None, :])
    changed = states.clone()
    changed[1, 4:7] = 100.0
    other = mixer.keys_values(changed[:, :7], torch.arange(7)[None])
    torch.testing.assert_close(mixer.attend(q, *other, visible=real[:, None, None, :]), y)
    assert not torch.allclose(mixer.attend(q, *other), mixer.attend(q, *kept))


def test_parts_equal_the_whole_and_keep_separate_positions() -> None:
    mixer = PartialAttention(24, num_heads=4, num_kv_heads=2, rope_base=30.0, activation="silu", limit=100.0)
    source, target = torch.randn(3, 5, 24), torch.randn(3, 8, 24)
    kept = mixer.keys_values(source, torch.arange(5)[None])
    of_target = mixer.attend(mixer.queries(target, torch.arange(8)[None]), *kept)
    torch.testing.assert_close(of_target, mixer(target, context=source))
    places = torch.cat((torch.arange(5), torch.arange(8)))[None]
    together = mixer.attend(mixer.queries(torch.cat((source, target), dim=1), places), *kept)
    torch.testing.assert_close(together[:, 5:], of_target)
    torch.testing.assert_close(together[:, :5], mixer(source))


def test_the_limit_cuts_and_passes_no_gradient_beyond() -> None:
    mixer = PartialAttention(8, num_heads=2, limit=0.5)
    source = (10 * torch.randn(1, 3, 8)).requires_grad_()
    states = mixer.source_states(source)
    assert float(states.detach().abs().max()) == 0.5
    free = PartialAttention(8, num_heads=2)
    free.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(states, free.source_states(source).clamp(-0.5, 0.5))


def test_gradients_pass_gradcheck() -> None:
    mixer = PartialAttention(6, num_heads=3, num_kv_heads=1, activation="silu", rope_base=10.0).double()
    x, source = torch.randn(1, 3, 6).double().requires_grad_(), torch.randn(1, 4, 6).double().requires_grad_()
    real = torch.tensor([[True, True, False, True]])
    assert torch.autograd.gradcheck(lambda a, b: mixer(a, context=b, mask=real), (x, source))


def test_bfloat16_and_extreme_values_stay_finite() -> None:
    mixer = PartialAttention(24, num_heads=4)
    x, source = torch.randn(2, 5, 24), torch.randn(2, 7, 24)
    exact, low = mixer(x, context=source), PartialAttention(24, num_heads=4).bfloat16()
    low.load_state_dict(mixer.state_dict())
    narrow = low(x.bfloat16(), context=source.bfloat16()).float()
    assert float(((narrow - exact).norm() / exact.norm()).detach()) < 0.02
    assert torch.isfinite(mixer(1e4 * x, context=1e4 * source)).all()


def test_parameters_beyond_cross_attention_are_two_squares_and_two_biases() -> None:
    dim = 26
    count = sum(p.numel() for p in PartialAttention(dim, num_heads=2, out_bias=False).parameters())
    assert count == 4 * dim**2 + 2 * dim**2 + 2 * dim


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 5}, "dim=12 and num_heads=5"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads=4, got 3"),
        ({"num_heads": 4, "causal": True}, "refuses causal=True: keys are the source's alone"),
        ({"num_heads": 4, "activation": "tanh"}, "relu, silu, gelu, got 'tanh'"),
        ({"num_heads": 4, "limit": 0.0}, "limit must be positive or None, got 0.0"),
        ({"num_heads": 4, "rope_base": 10.0}, "even head_dim, got 3"),
    ],
)
def test_ill_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PartialAttention(12, **options)  # type: ignore[arg-type]


def test_keys_of_other_sources_are_refused() -> None:
    mixer = PartialAttention(12, num_heads=3)
    kept = mixer.keys_values(torch.randn(2, 5, 12), torch.arange(5)[None])
    with pytest.raises(ValueError, match="2 rows and the queries have 3"):
        mixer.attend(mixer.queries(torch.randn(3, 4, 12), torch.arange(4)[None]), *kept)


def test_loading_is_strict() -> None:
    mixer = PartialAttention(12, num_heads=3, out_bias=False)
    names = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "dense": "o_proj"}
    names |= {"Fp_linear1": "source_fc1", "Fp_linear2": "source_fc2"}
    own = mixer.state_dict()
    theirs = {
        f"{name}.{kind}": torch.randn_like(own[f"{mine}.{kind}"])
        for name, mine in names.items()
        for kind in ("weight", "bias")
        if f"{mine}.{kind}" in own
    }
    mixer.load_reference(theirs)
    assert torch.equal(mixer.k_proj.weight, theirs["key.weight"])
    with pytest.raises(KeyError, match=r"unknown keys: other.weight; missing keys: k_proj.weight"):
        mixer.load_reference({("other.weight" if name == "key.weight" else name): t for name, t in theirs.items()})
