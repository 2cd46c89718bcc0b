"""Window attention beside a prefix: blocks against the whole map."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from regard.ops.prefix_window import prefix_window_attention, prefix_window_attention_reference


def inputs(queries: int, keys: int, prefix: int) -> list[Tensor]:
    lengths = (queries, keys, keys, queries, prefix, prefix)
    return [torch.randn(2, 3, length, 5, dtype=torch.float64, requires_grad=True) for length in lengths]


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("window_size", [1, 7, 80, 300])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 9), (13, 13), (67, 90), (151, 151), (5, 200)])
def test_is_the_whole_map(queries: int, keys: int, window_size: int, prefix: int) -> None:
    given = inputs(queries, keys, prefix)
    mask = torch.rand(2, keys) < 0.8
    mask[:, -queries:] = True
    for which in (None, mask):
        got = prefix_window_attention(*given, window_size=window_size, mask=which)
        expected = prefix_window_attention_reference(*given, window_size=window_size, mask=which)
        torch.testing.assert_close(got, expected)
        upstream = torch.randn_like(got)
        ours = torch.autograd.grad((got * upstream).sum(), given[: 6 if prefix else 3], allow_unused=True)
        theirs = torch.autograd.grad((expected * upstream).sum(), given[: 6 if prefix else 3], allow_unused=True)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other)


def test_is_the_loop() -> None:
    q, k, v, prefix_q, prefix_k, prefix_v = (x.detach() for x in inputs(11, 11, 2))
    got = prefix_window_attention(q, k, v, prefix_q, prefix_k, prefix_v, window_size=4)
    for i in range(11):
        seen = range(max(0, i - 3), i + 1)
        scores = [prefix_q[1, 2, i] @ prefix_k[1, 2, j] for j in range(2)] + [q[1, 2, i] @ k[1, 2, j] for j in seen]
        values = [prefix_v[1, 2, j] for j in range(2)] + [v[1, 2, j] for j in seen]
        weights = [math.exp(float(score) / math.sqrt(5)) for score in scores]
        expected = sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
        torch.testing.assert_close(got[1, 2, i], expected)


def test_ill_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="window_size must be positive, got 0"):
        prefix_window_attention(*inputs(3, 3, 1), window_size=0)
    with pytest.raises(ValueError, match="2 keys and 3 queries"):
        prefix_window_attention(*inputs(3, 2, 1), window_size=4)
