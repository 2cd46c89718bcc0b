"""The block-sparse kernels under Triton's interpreter; run by `test_block_sparse.py` in a process of its own.

The interpreter is chosen when Triton is first imported: TRITON_INTERPRET=1 must be set before.
"""

from __future__ import annotations

import os

import pytest
import torch
from torch import Tensor

from regard.mixers.sequence.hip import HiPAttention
from regard.ops import block_sparse, hip_search
from regard.ops.block_sparse import BlockChoice, Reach, block_sparse_attention

if os.environ.get("TRITON_INTERPRET") != "1":
    raise RuntimeError("these tests need TRITON_INTERPRET=1 before Triton is imported")

Leaves = tuple[Tensor, Tensor, Tensor]


def random_choice(batch: int, heads: int, queries: int, keys: int, *, block_q: int, block_k: int) -> BlockChoice:
    """For each block of queries none to three blocks of the grid of `block_k`, in any order."""
    blocks, grid = -(-queries // block_q), -(-keys // block_k)
    chosen = min(3, grid)
    starts = torch.rand(batch, heads, blocks, grid).argsort(dim=-1)[..., :chosen] * block_k
    return BlockChoice(starts, torch.randint(0, chosen + 1, (batch, heads, blocks)), block_q=block_q, block_k=block_k)


def by_rows(q: Tensor, k: Tensor, v: Tensor, choice: BlockChoice, reach: Reach, first: Tensor) -> Tensor:
    """Each query for itself in float64: the set of keys that it sees, softmax over them; 0 where it is empty."""
    q, k, v = q.double(), k.double(), v.double()
    batch, heads, queries, width = q.shape
    shared, keys = heads // k.shape[1], k.shape[2]
    mixed = []
    for b, h, i in ((b, h, i) for b in range(batch) for h in range(heads) for i in range(queries)):
        block, row = i // choice.block_q, int(first[b]) + i
        held = choice.starts[b, h, block, : int(choice.counts[b, h, block])].tolist()
        seen = {start + j for start in held for j in range(choice.block_k)}
        seen |= set(range(reach.sinks)) | set(range(row - reach.window + 1, row + 1))
        columns = sorted(j for j in seen if 0 <= j <= min(row, keys - 1))
        weights = (k[b, h // shared, columns] @ q[b, h, i] / width**0.5).softmax(dim=0)
        mixed.append(weights @ v[b, h // shared, columns])
    return torch.stack(mixed).view(batch, heads, queries, -1)


def tensors(batch: int, heads: tuple[int, int], lengths: tuple[int, int], widths: tuple[int, int] = (7, 5)) -> Leaves:
    shapes = (
        (batch, heads[0], lengths[0], widths[0]),
        (batch, heads[1], lengths[1], widths[0]),
        (batch, heads[1], lengths[1], widths[1]),
    )
    q, k, v = (torch.randn(shape).requires_grad_() for shape in shapes)
    return q, k, v


def compare(leaves: Leaves, choice: BlockChoice, reach: Reach, first: Tensor, *, bound: float = 2e-6) -> None:
    y = block_sparse_attention(*leaves, choice, reach, first=first, backend="triton")
    expected = by_rows(*leaves, choice, reach, first)
    upstream = torch.randn_like(y)
    found = torch.autograd.grad(y, leaves, upstream)
    wanted = torch.autograd.grad(expected, leaves, upstream.double())
    for name, ours, theirs in zip(("y", "dq", "dk", "dv"), (y, *found), (expected, *wanted), strict=True):
        assert ours.isfinite().all(), name
        error = (ours.detach().double() - theirs.detach().double()).norm()
        # where nothing but oneself is seen, the gradients of queries and keys are 0
        assert float(error) <= bound * max(1.0, float(theirs.detach().norm())), name


def zeros(batch: int) -> Tensor:
    return torch.zeros(batch, dtype=torch.int64)


@pytest.mark.parametrize(
    ("lengths", "blocks", "reach"),
    [
        ((17, 17), (4, 3), Reach(4, 2)),
        ((7, 23), (5, 1), Reach(3, 0)),
        ((1, 13), (1, 2), Reach(1, 1)),
        ((1, 1), (4, 3), Reach(1, 0)),
        pytest.param((17, 17), (1, 2), Reach(1, 0), marks=pytest.mark.slow),
        pytest.param((13, 29), (5, 3), Reach(31, 37), marks=pytest.mark.slow),
        pytest.param((53, 53), (7, 5), Reach(11, 3), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_values_and_gradients(lengths: tuple[int, int], blocks: tuple[int, int], reach: Reach) -> None:
    choice = random_choice(1, 4, *lengths, block_q=blocks[0], block_k=blocks[1])
    compare(tensors(1, (4, 2), lengths), choice, reach, torch.tensor([lengths[1] - lengths[0]]))


def test_rows_may_stand_at_different_places() -> None:
    choice = random_choice(2, 2, 5, 29, block_q=2, block_k=2)
    compare(tensors(2, (2, 1), (5, 29)), choice, Reach(3, 1), torch.tensor([6, 24]))


def test_more_rows_and_keys_than_a_tile_has() -> None:
    """Blocks of 130 queries are three tiles of rows, the last without a real one."""
    choice = random_choice(1, 1, 67, 131, block_q=130, block_k=31)
    compare(tensors(1, (1, 1), (67, 131)), choice, Reach(37, 5), torch.tensor([64]))


@pytest.mark.parametrize("widths", [(20, 3), pytest.param((33, 67), marks=pytest.mark.slow)], ids=str)
def test_any_widths(widths: tuple[int, int]) -> None:
    choice = random_choice(1, 1, 11, 11, block_q=6, block_k=2)
    compare(tensors(1, (1, 1), (11, 11), widths), choice, Reach(2, 1), zeros(1))


def test_what_is_chosen_and_near_counts_once() -> None:
    everything = BlockChoice(torch.arange(7).expand(1, 2, 7, 7), torch.full((1, 2, 7), 7), block_q=1, block_k=1)
    leaves = tensors(1, (2, 2), (7, 7))
    compare(leaves, everything, Reach(4, 3), zeros(1))
    y = block_sparse_attention(*leaves, everything, Reach(4, 3), first=zeros(1), backend="triton")
    full = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=True)
    torch.testing.assert_close(y, full)


@pytest.mark.parametrize("room", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_nothing_chosen_leaves_window_and_sinks(room: int) -> None:
    nothing = BlockChoice(zeros(1).expand(1, 2, 4, room), torch.zeros(1, 2, 4, dtype=torch.int64), block_q=3, block_k=2)
    compare(tensors(1, (2, 1), (11, 11)), nothing, Reach(2, 1), zeros(1))


def test_rows_behind_the_last_key_do_no_harm() -> None:
    """What such a row sees of the keys that there are it attends to; one that sees none is 0."""
    leaves = tensors(1, (1, 1), (5, 13))
    choice = BlockChoice(torch.full((1, 1, 2, 1), 4), torch.zeros(1, 1, 2, dtype=torch.int64), block_q=4, block_k=2)
    compare(leaves, choice, Reach(2, 0), torch.tensor([10]))
    y = block_sparse_attention(*leaves, choice, Reach(2, 0), first=torch.tensor([12]), backend="triton")
    assert not y[:, :, :2].eq(0).any()
    assert y[:, :, 2:].eq(0).all()
    gradients = torch.autograd.grad(y.sum(), leaves)
    assert all(bool(x.isfinite().all()) for x in gradients)


def test_keys_after_the_last_query_are_never_read() -> None:
    q, k, v = (x.detach() for x in tensors(1, (1, 1), (3, 19)))
    k[:, :, 11:], v[:, :, 11:] = torch.nan, torch.nan
    leaves = (q.requires_grad_(), k.requires_grad_(), v.requires_grad_())
    choice = BlockChoice(torch.tensor([2, 10]).expand(1, 1, 1, 2), torch.full((1, 1, 1), 2), block_q=8, block_k=4)
    y = block_sparse_attention(*leaves, choice, Reach(2, 1), first=torch.tensor([8]), backend="triton")
    d_q, d_k, d_v = torch.autograd.grad(y.sum(), leaves)
    assert all(bool(x.isfinite().all()) for x in (y, d_q, d_k, d_v))
    assert not d_k[:, :, 11:].any()
    assert not d_v[:, :, 11:].any()


def test_not_a_number_in_a_query_stays_in_its_row() -> None:
    leaves = tuple(x.detach() for x in tensors(1, (1, 1), (5, 5)))
    leaves[0][:, :, 2] = torch.nan
    y = block_sparse_attention(
        *leaves, random_choice(1, 1, 5, 5, block_q=5, block_k=2), Reach(2), first=zeros(1), backend="triton"
    )
    assert y.isnan().all(dim=-1).flatten().tolist() == [False, False, True, False, False]


def test_large_scores_stay_finite() -> None:
    q, k, v = (x.detach() for x in tensors(1, (1, 1), (13, 13)))
    leaves = ((100 * q).requires_grad_(), (100 * k).requires_grad_(), v.requires_grad_())
    choice = random_choice(1, 1, 13, 13, block_q=4, block_k=2)
    compare(leaves, choice, Reach(3, 1), zeros(1), bound=5e-4)


def test_strided_inputs_are_read_in_place() -> None:
    q, k, v = (x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in tensors(1, (2, 2), (7, 7), (6, 6)))
    leaves = (q.requires_grad_(), k.mT.contiguous().mT.requires_grad_(), v.requires_grad_())
    choice = random_choice(1, 2, 7, 7, block_q=3, block_k=2)
    compare(leaves, choice, Reach(2), zeros(1))
    # the gradient of a sum is one number, expanded
    y = block_sparse_attention(*leaves, choice, Reach(2), first=zeros(1), backend="triton")
    found = torch.autograd.grad(y.sum(), leaves)
    wanted = torch.autograd.grad(by_rows(*leaves, choice, Reach(2), zeros(1)).sum(), leaves)
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    "types", ["bfloat16", *(pytest.param(types, marks=pytest.mark.slow) for types in ("float16", "float32 bfloat16"))]
)
def test_narrow_storage(types: str) -> None:
    """The values may be narrower than queries and keys."""
    of_keys, of_values = (getattr(torch, types.split()[place]) for place in (0, -1))
    q, k, v = (x.detach() for x in tensors(1, (2, 1), (13, 13)))
    leaves = (q.to(of_keys).requires_grad_(), k.to(of_keys).requires_grad_(), v.to(of_values).requires_grad_())
    choice, reach = random_choice(1, 2, 13, 13, block_q=4, block_k=2), Reach(3, 1)
    y = block_sparse_attention(*leaves, choice, reach, first=zeros(1), backend="triton")
    assert y.dtype == of_keys
    compare(leaves, choice, reach, zeros(1), bound=2 * torch.finfo(of_values).eps)


def test_gradients_beyond_float16_on_the_way_are_right() -> None:
    q, k, v = (x.detach().half() for x in tensors(1, (1, 1), (9, 9)))
    leaves = (q.requires_grad_(), k.requires_grad_(), (300 * v).requires_grad_())
    choice, reach = random_choice(1, 1, 9, 9, block_q=3, block_k=2), Reach(3)
    y = block_sparse_attention(*leaves, choice, reach, first=zeros(1), backend="triton")
    upstream = torch.full_like(y, 300)
    (found,) = torch.autograd.grad(y, leaves[:1], upstream)
    (wanted,) = torch.autograd.grad(by_rows(*leaves, choice, reach, zeros(1)), leaves[:1], upstream.double())
    torch.testing.assert_close(found, wanted, rtol=0.01, atol=0.01 * float(wanted.abs().max()))


def test_gradients_are_refused_where_they_must_be_deterministic() -> None:
    q, k, v = tensors(1, (1, 1), (3, 3))
    choice = random_choice(1, 1, 3, 3, block_q=3, block_k=1)
    torch.use_deterministic_algorithms(True)
    with pytest.raises(ValueError, match="deterministic algorithms are asked for"):
        block_sparse_attention(q, k, v, choice, Reach(1), first=zeros(1), backend="triton")
    with torch.no_grad():
        y = block_sparse_attention(q, k, v, choice, Reach(1), first=zeros(1), backend="triton")
    assert y.isfinite().all()


def test_compiles_as_one_graph() -> None:
    leaves = tensors(1, (2, 1), (5, 5))
    choice = random_choice(1, 2, 5, 5, block_q=2, block_k=2)

    def run(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, counts: Tensor) -> Tensor:
        chosen = BlockChoice(starts, counts, block_q=2, block_k=2)
        first = torch.zeros(1, dtype=torch.int64)
        return block_sparse_attention(q, k, v, chosen, Reach(2, 1), first=first, backend="triton")

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    results = []
    for function in (compiled, run):
        y = function(*leaves, choice.starts, choice.counts)
        results.append([y, *torch.autograd.grad(y.square().sum(), leaves)])
    for ours, eager in zip(*results, strict=True):
        torch.testing.assert_close(ours, eager)


def test_the_operator_keeps_pytorchs_rules() -> None:
    from regard.ops.triton.block_sparse import block_sparse_operator

    choice = random_choice(1, 2, 3, 5, block_q=2, block_k=2)
    arguments = (*tensors(1, (2, 1), (3, 5)), choice.starts, choice.counts, torch.tensor([2]), 2, 2, 2, 1)
    torch.library.opcheck(block_sparse_operator, arguments, test_utils=("test_schema", "test_faketensor"))


def test_the_mixer_gives_the_same_through_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"mask_k": 2, "block_q": 5, "block_k": 1, "window": 3, "sinks": 1, "refresh": 2}
    mixer = HiPAttention(12, num_heads=2, num_kv_heads=1, **options)  # type: ignore[arg-type]
    x = torch.randn(2, 11, 12)
    mask = torch.tensor([[True] * 11, [False] + [True] * 10])
    results = {}
    for backend in ("triton", "torch"):
        for op, name in ((block_sparse, "_in_kernels"), (hip_search, "_in_kernel")):
            monkeypatch.setattr(op, name, lambda *_, backend=backend: backend == "triton")
        y, state = mixer.step(x, mixer.init_state(2), mask=mask)
        after, _ = mixer.step(x[:, :1], state)
        whole = mixer(x, mask=mask)
        gradients = torch.autograd.grad(whole.square().sum(), tuple(mixer.parameters()))
        results[backend] = [whole, y, after, *gradients]
    for ours, expected in zip(results["triton"], results["torch"], strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
