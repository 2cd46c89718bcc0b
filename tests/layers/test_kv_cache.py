"""The growing cache of keys and values against a plain list of all that was seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from regard.layers.kv_cache import INITIAL_CAPACITY, KVCache, empty_cache


def empty(*, batch: int = 2, max_len: int | None = None, dtype: torch.dtype = torch.float64) -> KVCache:
    like = torch.zeros(1, dtype=dtype)
    return empty_cache(batch, num_kv_heads=3, head_dim=4, value_dim=7, max_len=max_len, like=like)


def tokens(number: int) -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, number, 4, dtype=torch.float64), torch.randn(2, 3, number, 7, dtype=torch.float64)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("max_len", [None, 131, 200])
@pytest.mark.parametrize("chunks", [[1] * 131, [67, 1, 1, 62], [131]])
def test_holds_everything_in_order(chunks: list[int], max_len: int | None, gradients: bool) -> None:
    keys, values = tokens(131)
    cache = empty(max_len=max_len)
    with torch.set_grad_enabled(gradients):
        for key, value in zip(keys.split(chunks, dim=2), values.split(chunks, dim=2), strict=True):
            cache = cache.append(key, value, None)
    held_keys, held_values = cache.read()
    assert torch.equal(held_keys, keys)
    assert torch.equal(held_values, values)
    assert cache.position.tolist() == [131, 131]
    assert cache.keys.shape[2] == (max_len or max(131, cache.keys.shape[2]))


def test_capacity_doubles_and_is_written_in_place() -> None:
    with torch.no_grad():
        cache, capacities, moves = empty(), [], 0
        for _ in range(INITIAL_CAPACITY * 4):
            before = cache.keys.data_ptr()
            cache = cache.append(*tokens(1), None)
            moves += cache.keys.data_ptr() != before
            capacities.append(cache.keys.shape[2])
    assert sorted(set(capacities)) == [INITIAL_CAPACITY, 2 * INITIAL_CAPACITY, 4 * INITIAL_CAPACITY]
    assert moves == 2


def test_with_max_len_memory_is_taken_once() -> None:
    with torch.no_grad():
        cache = empty(max_len=150)
        place, size = cache.keys.data_ptr(), cache.nbytes
        for count in (7, 1, 1, 140, 1):
            cache = cache.append(*tokens(count), None)
        assert cache.keys.data_ptr() == place
        assert cache.nbytes == size
        with pytest.raises(ValueError, match=r"max_len=150 tokens, 151 are needed"):
            cache.append(*tokens(1), None)


def test_max_len_counts_real_tokens_also_after_padding() -> None:
    with torch.no_grad():
        cache = empty(max_len=5)
        padded = torch.tensor([[True, False, False], [True, True, False]])
        for _ in range(2):
            cache = cache.append(*tokens(3), padded)
        cache = cache.append(*tokens(1), None)
        assert cache.position.tolist() == [3, 5]
        with pytest.raises(ValueError, match=r"max_len=5 tokens, 6 are needed"):
            cache.append(*tokens(1), None)


@pytest.mark.parametrize("gradients", [False, True])
@pytest.mark.parametrize("chunk", [1, 3, 11])
@pytest.mark.parametrize("max_len", [None, 99])
def test_rows_advance_by_their_own_real_tokens(chunk: int, max_len: int | None, gradients: bool) -> None:
    generator = torch.Generator().manual_seed(chunk)
    seen = [torch.zeros(3, 0, 4, dtype=torch.float64) for _ in range(2)]
    cache = empty(max_len=max_len)
    with torch.set_grad_enabled(gradients):
        for _ in range(9):
            keys, values = tokens(chunk)
            counts = torch.randint(0, chunk + 1, (2, 1), generator=generator)
            first = cache.position
            cache = cache.append(keys, values, torch.arange(chunk) < counts)
            seen = [torch.cat((seen[row], keys[row, :, : counts[row, 0]]), dim=1) for row in range(2)]
            visible = cache.visible_to(first, chunk)
            assert visible is not None
            for row in range(2):
                count = seen[row].shape[1]
                assert cache.position[row] == count
                assert torch.equal(cache.read()[0][row, :, :count], seen[row])
                for token in range(counts[row, 0]):
                    last = int(first[row]) + token
                    assert visible[row, 0, token].nonzero().flatten().tolist() == list(range(last + 1))


def test_padding_uses_up_no_room() -> None:
    with torch.no_grad():
        cache = empty(max_len=5)
        for _ in range(4):
            cache = cache.append(*tokens(3), torch.tensor([[True, False, False]] * 2))
        assert cache.position.tolist() == [4, 4]
        cache = cache.append(*tokens(1), None)
        assert cache.position.tolist() == [5, 5]


def test_a_single_token_without_padding_sees_everything() -> None:
    with torch.no_grad():
        before = empty().append(*tokens(6), None)
        after = before.append(*tokens(1), None)
        assert after.visible_to(before.position, 1) is None
        chunk = after.append(*tokens(3), None)
        visible = chunk.visible_to(after.position, 3)
    expected = torch.tensor([[1] * 8 + [0, 0], [1] * 9 + [0], [1] * 10]).bool()
    assert torch.equal(visible, expected.expand(2, 1, 3, 10))


def test_gradients_reach_every_token() -> None:
    keys, values = (x.requires_grad_() for x in tokens(INITIAL_CAPACITY + 3))
    cache = empty()
    for key, value in zip(keys.split(13, dim=2), values.split(13, dim=2), strict=True):
        cache = cache.append(key, value, None)
    weights = tokens(INITIAL_CAPACITY + 3)
    loss = sum((held * weight).sum() for held, weight in zip(cache.read(), weights, strict=True))
    for found, weight in zip(torch.autograd.grad(loss, (keys, values)), weights, strict=True):
        assert torch.equal(found, weight)


def test_a_clone_shares_nothing_and_rows_can_be_reordered() -> None:
    with torch.no_grad():
        cache = empty().append(*tokens(6), None)
        branch = cache.clone()
        kept = branch.keys.clone()
        cache.append(*tokens(1), None)
        swapped = branch.reorder(torch.tensor([1, 1, 0]))
    assert torch.equal(branch.keys, kept)
    assert torch.equal(swapped.read()[1], branch.read()[1][[1, 1, 0]])


def test_tokens_are_stored_in_the_caches_dtype() -> None:
    keys, values = tokens(3)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients):
            cache = empty(dtype=torch.bfloat16).append(keys, values, None)
        assert torch.equal(cache.read()[0], keys.bfloat16())


def test_ill_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="batch=0 and max_len=None"):
        empty(batch=0)
    with pytest.raises(ValueError, match="batch=2 and max_len=0"):
        empty(max_len=0)
