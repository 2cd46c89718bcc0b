"""The ring of keys and values against a plain list of all that was seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.layers.window_cache import WindowCache, empty_window_cache

WINDOW = 5


def empty(batch: int = 2, dtype: torch.dtype = torch.float64) -> WindowCache:
    like = torch.zeros(1, dtype=dtype)
    return empty_window_cache(batch, num_kv_heads=3, head_dim=4, value_dim=7, window_size=WINDOW, like=like)


def tokens(number: int) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, number, 4, dtype=torch.float64), torch.randn(2, 3, number, 7, dtype=torch.float64)


def require_last(cache: WindowCache, seen: list[Tensor], ring_name: str) -> None:
    """The cache holds the last tokens of `seen`, each row's `(heads, tokens, width)`, and says which slots are real."""
    ordered = dict(zip(("keys", "values", "real"), cache.in_order(), strict=True))
    for row, all_of_row in enumerate(seen):
        count = min(WINDOW, all_of_row.shape[1])
        assert cache.position[row] == all_of_row.shape[1]
        assert cache.visible()[row].sum() == count
        assert ordered["real"][row].tolist() == [False] * (WINDOW - count) + [True] * count
        last = all_of_row[:, all_of_row.shape[1] - count :]
        assert torch.equal(ordered[ring_name][row, :, WINDOW - count :], last)
        visible = getattr(cache, ring_name)[row][:, cache.visible()[row, 0, 0]]
        assert sorted(visible[0, :, 0].tolist()) == sorted(last[0, :, 0].tolist())


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("chunks", [[1] * 13, [3, 1, 1, 4, 2], [5, 5, 1], [13], [11, 1, 1], [1, 7, 1, 2]])
def test_holds_the_last_tokens(chunks: list[int], gradients: bool) -> None:
    keys, values = tokens(sum(chunks))
    cache, start = empty(), 0
    with torch.set_grad_enabled(gradients):
        for count in chunks:
            piece = slice(start, start + count)
            cache = cache.append(keys[:, :, piece], values[:, :, piece], None)
            start += count
            require_last(cache, list(keys[:, :, :start]), "keys")
            require_last(cache, list(values[:, :, :start]), "values")


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 7, 12])
def test_rows_advance_by_their_own_real_tokens(chunk: int, gradients: bool) -> None:
    generator = torch.Generator().manual_seed(chunk)
    seen = [torch.zeros(3, 0, 4, dtype=torch.float64) for _ in range(2)]
    cache = empty()
    with torch.set_grad_enabled(gradients):
        for _ in range(9):
            keys, values = tokens(chunk)
            counts = torch.randint(0, chunk + 1, (2, 1), generator=generator)
            cache = cache.append(keys, values, torch.arange(chunk) < counts)
            seen = [torch.cat((seen[row], keys[row, :, : counts[row, 0]]), dim=1) for row in range(2)]
            require_last(cache, seen, "keys")


def test_size_is_constant() -> None:
    cache = empty()
    size = cache.nbytes
    assert size == 2 * (3 * WINDOW * (4 + 7) + 1) * 8
    for count in (1, 100, 1):
        cache = cache.append(*tokens(count), None)
        assert cache.nbytes == size


def test_gradients_reach_what_is_held_and_nothing_else() -> None:
    keys, values = tokens(9)
    keys.requires_grad_()
    cache = empty()
    for piece in (slice(0, 4), slice(4, 5), slice(5, 9)):
        cache = cache.append(keys[:, :, piece], values[:, :, piece], None)
    (gradient,) = torch.autograd.grad(cache.keys.sum(), keys)
    assert torch.equal(gradient[:, :, :4], torch.zeros_like(gradient[:, :, :4]))
    assert torch.equal(gradient[:, :, 4:], torch.ones_like(gradient[:, :, 4:]))


def test_a_clone_is_not_written_to() -> None:
    with torch.no_grad():
        cache = empty().append(*tokens(6), None)
        branch = cache.clone()
        kept = branch.keys.clone()
        cache.append(*tokens(1), None)
    assert torch.equal(branch.keys, kept)


def test_tokens_are_stored_in_the_caches_dtype() -> None:
    with torch.no_grad():
        cache = empty(dtype=torch.bfloat16).append(*tokens(1), None).append(*tokens(3), None)
    assert cache.keys.dtype == cache.values.dtype == torch.bfloat16


def test_ill_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="batch=0 and window_size=5"):
        empty(batch=0)
    with pytest.raises(ValueError, match="batch=2 and window_size=0"):
        empty_window_cache(2, num_kv_heads=1, head_dim=2, value_dim=2, window_size=0, like=torch.zeros(1))
