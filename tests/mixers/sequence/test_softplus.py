"""LSSA and LSSAR as mixers: the formula with projections and positions, counts of visible keys, the cache."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.mixers.sequence.softplus import LSSAAttention, LSSARAttention

Mixer = type[LSSAAttention] | type[LSSARAttention]
BOTH = [LSSAAttention, LSSARAttention]


def turned(x: Tensor, base: float) -> Tensor:
    """Rotary embedding of `(tokens, width)` with plain complex numbers."""
    half = x.shape[1] // 2
    result = torch.empty_like(x)
    for position in range(len(x)):
        for pair in range(half):
            angle = position * base ** (-pair / half)
            number = complex(float(x[position, pair]), float(x[position, pair + half]))
            number *= complex(math.cos(angle), math.sin(angle))
            result[position, pair], result[position, pair + half] = number.real, number.imag
    return result


def mixed_by_loops(mixer: Any, x: Tensor, power: int | None) -> Tensor:
    """One sequence through a causal mixer, row by row and head by head."""
    tokens, heads, width = len(x), mixer.num_heads, mixer.head_dim
    merged = torch.zeros(tokens, heads * width, dtype=x.dtype)
    for head in range(heads):
        group = head // (heads // mixer.num_kv_heads)
        own, shared = (slice(n * width, (n + 1) * width) for n in (head, group))
        q = turned(mixer.q_proj(x)[:, own], mixer.rope_base)
        k = turned(mixer.k_proj(x)[:, shared], mixer.rope_base)
        v = mixer.v_proj(x)[:, shared]
        for i in range(tokens):
            count = i + 1
            cosine = torch.stack([q[i] @ k[j] / (q[i].norm() * k[j].norm()) for j in range(count)])
            row = (1 + (math.log(width) * math.log(count) * cosine).exp()).log()
            row = row / row.sum()
            if power is not None:
                row = (count * row - (1 if i >= 3 else 0)).clamp(min=0) ** power
                row = row / row.sum()
            merged[i, own] = row @ v[:count]
    return mixer.o_proj(merged)


@pytest.mark.parametrize(("cls", "power"), [(LSSAAttention, None), (LSSARAttention, 3), (LSSARAttention, 15)])
def test_forward_is_the_formula(cls: Mixer, power: int | None) -> None:
    options: dict[str, Any] = {} if power is None else {"power": power}
    mixer = cls(36, num_heads=6, num_kv_heads=3, causal=True, **options).double()
    assert mixer.rope_base == 10000.0
    x = torch.randn(2, 11, 36, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([mixed_by_loops(mixer, row, power) for row in x])
        torch.testing.assert_close(mixer(x), expected, rtol=1e-9, atol=1e-11)


def test_defaults_are_the_papers() -> None:
    mixer = LSSARAttention(24, num_heads=3)
    assert (mixer.power, mixer.offset_free_rows, mixer.rope_base) == (15, 3, 10000.0)
    assert LSSAAttention(24, num_heads=3).power is None
    assert (LSSARAttention.registered_name, LSSAAttention.registered_name) == ("softplus", "lssa")
    assert LSSARAttention.system == LSSAAttention.system == "softplus"


@pytest.mark.parametrize("cls", BOTH)
def test_as_many_parameters_as_softmax(cls: Mixer) -> None:
    ours, theirs = (
        {name: parameter.shape for name, parameter in each(36, num_heads=6, num_kv_heads=2).named_parameters()}
        for each in (cls, SoftmaxAttention)
    )
    assert ours == theirs


@pytest.mark.parametrize("cls", BOTH)
def test_the_length_scale_counts_visible_keys_alone(cls: Mixer) -> None:
    """Without positions, a bidirectional token's result depends on the real keys, wherever and whatever the rest."""
    mixer = cls(24, num_heads=3, rope_base=None).double()
    x = torch.randn(1, 9, 24, dtype=torch.float64)
    more = torch.cat((x, 5 * torch.randn(1, 40, 24, dtype=torch.float64)), dim=1)
    mask = torch.arange(49)[None] < 9
    torch.testing.assert_close(mixer(more, mask=mask)[:, :9], mixer(x))
    order = torch.randperm(49)
    shuffled = mixer(more[:, order], mask=mask[:, order])
    torch.testing.assert_close(shuffled[:, order.argsort()][:, :9], mixer(x))
    context = mixer(x, context=more, mask=mask)
    torch.testing.assert_close(context, mixer(x))
    assert (mixer(more)[:, :9] - mixer(x)).abs().max() > 1e-3


@pytest.mark.parametrize("cls", BOTH)
def test_segments_count_anew(cls: Mixer) -> None:
    mixer = cls(24, num_heads=3, causal=True).double()
    x = torch.randn(1, 20, 24, dtype=torch.float64)
    segments = torch.tensor([[0] * 4 + [1] * 1 + [0] * 15])
    alone = torch.cat([mixer(piece) for piece in x.split([4, 1, 15], dim=1)], dim=1)
    torch.testing.assert_close(mixer(x, segments=segments), alone)


@pytest.mark.parametrize("cls", BOTH)
def test_map_and_blocks_agree_beyond_one_block(cls: Mixer) -> None:
    mixer = cls(24, num_heads=3, causal=True).double()
    x = torch.randn(1, 150, 24, dtype=torch.float64)
    square = mixer.attention_map(x)
    torch.testing.assert_close(square.sum(dim=-1), torch.ones(1, 3, 150, dtype=torch.float64))
    mixed = square @ mixer.values(x)
    torch.testing.assert_close(mixer(x), mixer.o_proj(mixed.transpose(1, 2).flatten(2)))


@pytest.mark.parametrize("cls", BOTH)
def test_cache_holds_normalised_keys_and_keeps_to_max_len(cls: Mixer) -> None:
    mixer = cls(24, num_heads=3, num_kv_heads=1, causal=True)
    x = torch.randn(2, 90, 24)
    with torch.no_grad():
        state = mixer.init_state(2, max_len=90)
        pieces = []
        for piece in x.split([37, 1, 1, 20, 1, 30], dim=1):
            y, state = mixer.step(piece, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, dim=1), mixer(x), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state.keys.norm(dim=-1), torch.ones(2, 1, 90))
        with pytest.raises(ValueError, match=r"max_len=90 tokens, 91 are needed"):
            mixer.step(x[:, :1], state)


def test_reweighting_sharpens() -> None:
    """The larger the exponent, the fewer keys matter."""
    x = torch.randn(1, 64, 24)
    entropies = []
    for build in (
        lambda: LSSAAttention(24, num_heads=3, causal=True),
        lambda: LSSARAttention(24, num_heads=3, causal=True, power=3),
        lambda: LSSARAttention(24, num_heads=3, causal=True),
    ):
        torch.manual_seed(1)
        row = build().attention_map(x)[0, :, -1].detach()
        entropies.append(float(-(row * row.clamp(min=1e-30).log()).sum(dim=-1).mean()))
    assert entropies[0] > entropies[1] > entropies[2]


def test_dropped_weights_keep_their_mean() -> None:
    mixer = LSSARAttention(24, num_heads=3, causal=True, attn_drop=0.3)
    x = torch.randn(1, 10, 24)
    with torch.no_grad():
        exact = mixer.eval().mix(x, context=None, mask=None, segments=None, bias=None)
        mixer.train()
        drawn = [mixer.mix(x, context=None, mask=None, segments=None, bias=None) for _ in range(400)]
    assert (torch.stack(drawn).mean(dim=0) - exact).abs().mean() < 0.1 * exact.abs().mean()
    firsts = torch.stack(drawn)[:, 0, 0, 0]
    kept = firsts.abs().sum(dim=-1) > 0
    assert 0.6 < kept.float().mean() < 0.8, "the first token has one weight, which is dropped or not"
    torch.testing.assert_close(firsts[kept], (exact[0, 0, 0] / 0.7).expand_as(firsts[kept]))


@pytest.mark.parametrize("cls", BOTH)
def test_one_channel_per_head_is_warned_of(cls: Mixer) -> None:
    with pytest.warns(UserWarning, match="head_dim=1: scores are scaled by ln 1 = 0"):
        mixer = cls(3, num_heads=3, causal=True, rope_base=None, qkv_bias=True)
    x = torch.randn(1, 7, 3)
    means = mixer.values(x).cumsum(dim=2) / torch.arange(1, 8)[:, None]
    torch.testing.assert_close(mixer(x), mixer.o_proj(means.transpose(1, 2).flatten(2)))
    assert mixer.inert_parameters() == {"q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"}


@pytest.mark.parametrize("cls", BOTH)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10, "num_heads": 3}, "dim=10 and num_heads=3"),
        ({"dim": 24, "num_heads": 4, "num_kv_heads": 3}, "num_heads=4, got 3"),
        ({"dim": 9, "num_heads": 3}, "even head_dim, got 3"),
        ({"dim": 12, "num_heads": 3, "rope_base": 0.5}, "greater than 1, got 0.5"),
    ],
)
def test_ill_sizes_are_named(cls: Mixer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"power": 0}, "at least 1, got 0"), ({"offset_free_rows": -2}, "must not be negative, got -2")],
)
def test_ill_reweighting_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LSSARAttention(12, num_heads=3, **options)
