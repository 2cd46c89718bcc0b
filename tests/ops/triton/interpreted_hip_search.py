"""The kernel of HiP's search under Triton's interpreter; run by `test_hip_search.py` in a process of its own.

The interpreter is chosen when Triton is first imported: TRITON_INTERPRET=1 must be set before.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.ops.block_sparse import BlockChoice
from regard.ops.hip_search import search_key_blocks

if os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("these tests need TRITON_INTERPRET=1 before Triton is imported")

SIZES: dict[str, Any] = {"mask_k": 12, "block_q": 4, "block_k": 3, "window": 5}


def tensors(
    lengths: tuple[int, int], *, batch: int = 1, heads: tuple[int, int] = (2, 1), width: int = 7
) -> list[Tensor]:
    return [torch.randn(batch, count, length, width) for count, length in zip(heads, lengths, strict=True)]


def compare(q: Tensor, k: Tensor, **options: Any) -> BlockChoice:
    """The kernel's choice, which is that of the plain search in float64."""
    found = search_key_blocks(q, k, backend="triton", **options)
    expected = search_key_blocks(q.double(), k.double(), backend="torch", **options)
    assert (found.starts.dtype, found.counts.dtype) == (torch.int64, torch.int64)
    assert torch.equal(found.counts, expected.counts)
    assert torch.equal(found.starts, expected.starts)
    assert (found.block_q, found.block_k) == (expected.block_q, expected.block_k)
    return found


@pytest.mark.parametrize("sample", ["first", "center"])
@pytest.mark.parametrize(
    ("lengths", "sizes"),
    [
        ((37, 37), SIZES),
        ((1, 47), {**SIZES, "block_q": 1}),
        ((5, 101), {**SIZES, "block_q": 5, "block_k": 2, "mask_k": 8}),
        ((3, 3), SIZES),
        pytest.param((61, 61), SIZES, marks=pytest.mark.slow),
        pytest.param((23, 211), {**SIZES, "block_q": 7, "block_k": 1, "mask_k": 16}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_choice_is_that_of_the_plain_search(lengths: tuple[int, int], sizes: dict[str, Any], sample: str) -> None:
    compare(*tensors(lengths), first=lengths[1] - lengths[0], sample=sample, **sizes)


@pytest.mark.parametrize(
    ("keys", "mask_k", "block_k"),
    [(41, 1, 1), (283, 67, 67), pytest.param(1201, 512, 1, marks=pytest.mark.slow)],
    ids=["budget 1", "a block in parts", "budget 512"],
)
def test_smallest_and_largest_budgets(keys: int, mask_k: int, block_k: int) -> None:
    sizes = {"mask_k": mask_k, "block_q": 3, "block_k": block_k, "window": block_k}
    compare(*tensors((3, keys), heads=(1, 1)), first=keys - 3, **sizes)


def test_more_keys_than_a_tile_has_and_any_width() -> None:
    compare(*tensors((5, 307), heads=(1, 1), width=21), first=302, mask_k=128, block_q=5, block_k=2, window=9)


def test_rows_of_other_lengths() -> None:
    choice = compare(*tensors((23, 23), batch=3), first=0, lengths=torch.tensor([23, 18, 1]), **SIZES)
    assert not choice.counts[2].any()


def test_rows_at_other_places() -> None:
    first = torch.tensor([20, 59])
    compare(*tensors((5, 64), batch=2), first=first, lengths=first + 5, **SIZES)


def test_strided_inputs_are_read_in_place() -> None:
    q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors((5, 47), heads=(2, 2)))
    compare(q, k.mT.contiguous().mT, first=42, **SIZES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_narrow_storage_chooses_by_unrounded_products(dtype: torch.dtype) -> None:
    q, k = (x.to(dtype) for x in tensors((5, 83), width=13))
    compare(q, k, first=78, **SIZES)


def test_negative_scores_are_in_order() -> None:
    q, k = (x.abs() for x in tensors((5, 83)))
    compare(-q, k, first=78, **SIZES)
    compare(1e-30 * q, 1e-12 * k, first=78, **SIZES)


def test_of_equal_scores_the_earlier_are_kept() -> None:
    q, k = torch.ones(1, 1, 1, 4), torch.ones(1, 1, 101, 4)
    sizes = {"mask_k": 8, "block_q": 1, "block_k": 2, "window": 4}
    choice = search_key_blocks(q, k, first=100, backend="triton", **sizes)
    assert choice.starts.flatten().tolist() == [0, 2, 4, 6]
    assert choice.counts.flatten().tolist() == [4]


@pytest.mark.filterwarnings("ignore:invalid value encountered in matmul:RuntimeWarning")
def test_not_a_number_is_chosen_last_and_spoils_nothing() -> None:
    q, k = tensors((8, 99))
    k[..., 10, :] = torch.nan
    q[..., 1, :] = torch.nan
    k[..., 20, :] = torch.inf
    choice = search_key_blocks(q, k, first=91, backend="triton", **SIZES)
    assert bool(((choice.starts >= 0) & (choice.starts < 99)).all())
    assert bool((choice.starts.diff(dim=-1) > 0).all())
    assert 9 not in choice.starts[0, 0, 1].tolist()


def test_compiles_as_one_graph() -> None:
    q, k = tensors((5, 47))

    def run(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        choice = search_key_blocks(q, k, first=42, backend="triton", **SIZES)
        return choice.starts, choice.counts

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(compiled(q, k), run(q, k), strict=True):
        assert torch.equal(ours, eager)


def test_the_operator_keeps_pytorchs_rules() -> None:
    from regard.ops.triton.hip_search import search_operator

    arguments = (*tensors((3, 17)), torch.tensor([14]), torch.tensor([17]), 2, 2, 2, 3, True)
    torch.library.opcheck(search_operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_ill_sizes_are_named() -> None:
    q, k = tensors((3, 17))
    with pytest.raises(ValueError, match=r"mask_k must be a positive multiple of block_k=3, got 13"):
        search_key_blocks(q, k, first=0, backend="triton", **{**SIZES, "mask_k": 13})
    with pytest.raises(ValueError, match=r"chooses a power of two of blocks, at most 512, got mask_k / block_k = 3"):
        search_key_blocks(q, k, first=0, backend="triton", **{**SIZES, "mask_k": 9})
