"""Attention of the latest queries against the equation under the whole map, and what it holds in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.measure import peak_bytes
from regard.ops.latest_attention import latest_attention
from regard.ops.softmax_attention import softmax_attention_reference
from regard.ops.visibility import visible_keys


def tensors(queries: int, keys: int, *, batch: int = 2, kv_heads: int = 3, shared: int = 2) -> tuple[Tensor, ...]:
    heads = kv_heads * shared
    # slices of larger buffers, as a cache hands them out
    k, v = (torch.randn(batch, kv_heads, keys + 7, width)[:, :, :keys] for width in (10, 10))
    return torch.randn(batch, heads, queries, 10), k, v


def expected(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    visible = visible_keys(q.shape[2], k.shape[2], causal=True, device=q.device)
    return softmax_attention_reference(q, k, v, visible=visible)


@pytest.mark.parametrize("shared", [1, 2, 3])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 29), (2, 3), (7, 29), (28, 29), (29, 29), (130, 301)])
def test_it_is_the_equation_under_the_whole_map(queries: int, keys: int, shared: int) -> None:
    q, k, v = tensors(queries, keys, shared=shared)
    torch.testing.assert_close(latest_attention(q, k, v), expected(q, k, v), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_other_types(dtype: torch.dtype, bound: float) -> None:
    q, k, v = (x.to(dtype) for x in tensors(11, 53))
    found = latest_attention(q, k, v)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected(*(x.double() for x in (q, k, v))), rtol=bound, atol=bound)


def test_values_may_have_another_width() -> None:
    q, k, _ = tensors(11, 53)
    v = torch.randn(2, 3, 53, 5)
    torch.testing.assert_close(latest_attention(q, k, v), expected(q, k, v), rtol=1e-5, atol=1e-5)


def test_gradients_are_those_of_the_equation() -> None:
    inputs = [x.double().requires_grad_() for x in tensors(5, 13)]
    weight = torch.randn(2, 6, 5, 10, dtype=torch.float64)
    found = torch.autograd.grad((latest_attention(*inputs) * weight).sum(), inputs)
    for ours, reference in zip(found, torch.autograd.grad((expected(*inputs) * weight).sum(), inputs), strict=True):
        torch.testing.assert_close(ours, reference)


def test_no_map_is_held() -> None:
    """For 512 of 16,384 tokens a map takes 8 MiB, and 32 MiB in the type of the scores."""
    q, k, v = tensors(512, 16384, batch=1, kv_heads=1, shared=2)
    assert peak_bytes(lambda: latest_attention(q, k, v), device=q.device, warmup=1) < 6 * 2**20


def test_more_queries_than_keys_are_refused() -> None:
    with pytest.raises(ValueError, match="3 queries and 2 keys do not fit"):
        latest_attention(*tensors(3, 2))
