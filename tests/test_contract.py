"""The contract's own parts: packing, states, strict loading, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import regard
from regard.contract import State, load_strictly, pack_rows, state, static, take_tokens
from regard.layers.kv_cache import empty_cache


@state
class Pair(State):
    first: Tensor
    count: int = static()


def test_pack_rows_moves_real_tokens_to_the_front_in_order() -> None:
    mask = torch.tensor([[False, True, False, True, True], [True, False, False, False, False], [False] * 5])
    order, packed = pack_rows(mask)
    assert order[0, :3].tolist() == [1, 3, 4]
    assert order[1, 0].item() == 0
    assert packed.tolist() == [[True] * 3 + [False] * 2, [True] + [False] * 4, [False] * 5]


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_take_tokens_is_undone_by_the_inverse_order(dim: int) -> None:
    shape = [3, 7, 7, 7]
    x = torch.randn(shape)
    order = torch.stack([torch.randperm(7) for _ in range(3)])
    taken = take_tokens(x, order, dim=dim)
    for row in range(3):
        torch.testing.assert_close(taken[row], x[row].index_select(dim - 1, order[row]))
    torch.testing.assert_close(take_tokens(taken, order.argsort(dim=1), dim=dim), x)


def test_state_reorders_detaches_clones_and_counts_bytes() -> None:
    value = Pair(position=torch.tensor([3, 5]), first=torch.randn(2, 7, requires_grad=True), count=11)
    swapped = value.reorder(torch.tensor([1, 0, 1]))
    assert swapped.position.tolist() == [5, 3, 5]
    assert swapped.first.shape == (3, 7)
    assert swapped.count == 11
    assert not value.detach().first.requires_grad
    clone = value.detach().clone()
    clone.first.zero_()
    assert value.first.abs().sum() > 0
    assert value.nbytes == 2 * 8 + 2 * 7 * 4


def test_state_is_a_pytree_whose_plain_fields_are_not_leaves() -> None:
    value = Pair(position=torch.tensor([3]), first=torch.randn(1, 2), count=11)
    leaves, spec = pytree.tree_flatten(value)
    assert len(leaves) == 2
    assert pytree.tree_unflatten(leaves, spec).count == 11


def test_strict_loading_names_keys_and_shapes() -> None:
    layer = nn.Linear(3, 5)
    with pytest.raises(KeyError, match=r"unknown keys: extra; missing keys: bias"):
        load_strictly(layer, {"weight": torch.zeros(5, 3), "extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"weight has shape \(3, 5\), it must be \(5, 3\)"):
        load_strictly(layer, {"weight": torch.zeros(3, 5), "bias": torch.zeros(5)})


def test_step_refuses_what_is_not_a_state() -> None:
    mixer = regard.create("softmax", dim=12, num_heads=3, causal=True)
    with pytest.raises(ValueError, match="init_state or step, got dict"):
        mixer.step(torch.randn(1, 2, 12), {})
    with pytest.raises(ValueError, match="state has 2 rows and x has 1"):
        mixer.step(torch.randn(1, 2, 12), mixer.init_state(2))
    both = regard.create("softmax", dim=12, num_heads=3)
    with pytest.raises(ValueError, match="bidirectional mixer has no past"):
        both.step(torch.randn(1, 2, 12), both.init_state(1))


def test_cache_refuses_sizes_that_hold_nothing() -> None:
    like = torch.zeros(1)
    with pytest.raises(ValueError, match="batch=0 and max_len=None"):
        empty_cache(0, num_kv_heads=1, head_dim=2, value_dim=2, max_len=None, like=like)
    with pytest.raises(ValueError, match="batch=1 and max_len=0"):
        empty_cache(1, num_kv_heads=1, head_dim=2, value_dim=2, max_len=0, like=like)


def test_macs_refuse_options_that_the_constructor_lacks() -> None:
    with pytest.raises(TypeError, match="the constructor's own arguments"):
        regard.get_class("softmax").macs(batch=1, tokens=5, dim=12, width=3)
