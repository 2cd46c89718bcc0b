"""The memory of blocks without landmarks against a plain list of all tokens, read token by token with loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.layers import block_memory as module
from regard.layers.block_memory import BlockMemory, empty_block_memory
from regard.layers.offload import OFFLOADS, Offload
from regard.ops.block_retrieval import BlockRetrieval
from regard.ops.rotary import rotate
from regard.ops.softmax_attention import softmax_attention_reference
from regard.ops.visibility import visible_keys

HEADS, KV_HEADS, WIDTH, VALUE_DIM, BLOCK = 4, 2, 6, 5, 3
SIZES = BlockRetrieval(block_size=BLOCK, top_k=2, recent=1, sinks=1, rope_base=50.0)
OTHERS = [
    SIZES,
    BlockRetrieval(block_size=BLOCK, top_k=2, recent=0, sinks=0, rope_base=50.0),
    BlockRetrieval(block_size=BLOCK, top_k=1, recent=2, sinks=2, rope_base=None),
    BlockRetrieval(block_size=BLOCK, top_k=0, recent=1, sinks=1, rope_base=50.0),
    BlockRetrieval(block_size=1, top_k=3, recent=1, sinks=0, rope_base=50.0),
]


def empty(batch: int = 2, sizes: BlockRetrieval = SIZES, **options: Any) -> BlockMemory:
    given: dict[str, Any] = {"max_len": None, "offload": "none", **options}
    like = given.pop("like", torch.zeros(1, dtype=torch.float64))
    return empty_block_memory(
        batch, sizes, num_kv_heads=KV_HEADS, head_dim=WIDTH, value_dim=VALUE_DIM, like=like, **given
    )


def tokens(count: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(batch, HEADS, count, WIDTH, dtype=torch.float64)
    k = torch.randn(batch, KV_HEADS, count, WIDTH, dtype=torch.float64)
    return q, k, torch.randn(batch, KV_HEADS, count, VALUE_DIM, dtype=torch.float64)


def read(memory: BlockMemory, qkv: tuple[Tensor, ...], chunks: list[int], sizes: BlockRetrieval = SIZES) -> Tensor:
    pieces = []
    for q, k, v in zip(*(x.split(chunks, dim=2) for x in qkv), strict=True):
        y, memory = memory.attend(q, k, v, sizes)
        pieces.append(y)
    return torch.cat(pieces, dim=2)


# --------------------------------------------------------------------------------------------------- with loops


def turn(x: Tensor, position: int, base: float | None) -> Tensor:
    if base is None:
        return x
    half, numbers = len(x) // 2, x.tolist()
    turned = list(numbers)
    for pair in range(half):
        angle = position * base ** (-pair / half)
        a, b = numbers[pair], numbers[pair + half]
        turned[pair] = a * math.cos(angle) - b * math.sin(angle)
        turned[pair + half] = b * math.cos(angle) + a * math.sin(angle)
    return x.new_tensor(turned)


def one_row(q: Tensor, k: Tensor, v: Tensor, t: int, sizes: BlockRetrieval) -> Tensor:
    """What token t of one head reads: blocks as lists of positions, the best moved together by hand."""
    size, block = sizes.block_size, t // sizes.block_size
    between = list(range(sizes.sinks, block - sizes.recent))
    most = sizes.sinks + sizes.top_k + sizes.recent
    own_place = min(block, most) * size + t % size

    def score(key: int, place: int) -> float:
        return float(turn(q[t], own_place, sizes.rope_base) @ turn(k[key], place, sizes.rope_base)) * WIDTH**-0.5

    def worth(number: int) -> float:
        return sum(score(number * size + j, sizes.sinks * size + j) for j in range(size))

    chosen = sorted(sorted(between, key=worth, reverse=True)[: sizes.top_k])
    late = list(range(max(block - sizes.recent, 0), block + 1))
    seen = sorted({*range(min(sizes.sinks, block)), *chosen, *late})
    # without a gap: the query's own block is the last, wherever it stood
    keys = [number * size + j for number in seen for j in range(size) if number * size + j <= t]
    first = min(block, most) - (len(seen) - 1)
    places = [(first + i) * size + j for i, number in enumerate(seen) for j in range(size) if number * size + j <= t]
    scores = q.new_tensor([score(key, place) for key, place in zip(keys, places, strict=True)])
    return scores.softmax(dim=0) @ v[keys]


def restated(qkv: tuple[Tensor, ...], sizes: BlockRetrieval) -> Tensor:
    q, k, v = qkv
    rows = [
        [[one_row(q[b, h], k[b, h // 2], v[b, h // 2], t, sizes) for t in range(q.shape[2])] for h in range(HEADS)]
        for b in range(len(q))
    ]
    return torch.stack([torch.stack([torch.stack(head) for head in row]) for row in rows])


@pytest.mark.parametrize("sizes", OTHERS, ids=range(len(OTHERS)))
def test_it_reads_what_loops_read(sizes: BlockRetrieval) -> None:
    qkv = tokens(31, batch=1)
    found = read(empty(1, sizes), qkv, [17, 14], sizes)
    torch.testing.assert_close(found, restated(qkv, sizes))


@pytest.mark.parametrize("chunks", [[1] * 37, [5, 1, 2, 29], [36, 1], [13, 13, 11]])
@pytest.mark.parametrize("max_len", [None, 37, 5])
def test_cuts_change_nothing(chunks: list[int], max_len: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    qkv = tokens(37)
    whole = read(empty(), qkv, [37])
    torch.testing.assert_close(read(empty(max_len=max_len), qkv, chunks), whole)
    # a few queries at a time
    monkeypatch.setattr(module, "QUERIES", 5)
    monkeypatch.setattr(module, "SLICE_BYTES", 1 << 12)
    torch.testing.assert_close(read(empty(max_len=max_len), qkv, chunks), whole)


@pytest.mark.parametrize("rope_base", [None, 50.0])
def test_few_blocks_are_full_attention(rope_base: float | None) -> None:
    sizes = BlockRetrieval(block_size=BLOCK, top_k=2, recent=1, sinks=1, rope_base=rope_base)
    count = BLOCK * (sizes.seen_blocks + 1)
    q, k, v = tokens(count + 1)
    found = read(empty(sizes=sizes), (q, k, v), [7, count - 6], sizes)
    places = torch.arange(count + 1)[None]
    turned = (q, k) if rope_base is None else tuple(rotate(x, places, base=rope_base) for x in (q, k))
    visible = visible_keys(count + 1, count + 1, causal=True, device=q.device)
    full = softmax_attention_reference(*turned, v, visible=visible)
    torch.testing.assert_close(found[:, :, :count], full[:, :, :count])
    assert float((found - full)[:, :, count].abs().max()) > 1e-3


def test_rows_of_other_lengths_equal_the_same_rows_alone() -> None:
    qkv, lengths = tokens(29, batch=3), torch.tensor([[11, 5], [3, 13], [0, 2]])
    memory, together, begin = empty(3), [], 0
    for turn_number, most in enumerate((11, 13)):
        mask = torch.arange(most) < lengths[:, turn_number, None]
        y, memory = memory.attend(*(x[:, :, begin : begin + most] for x in qkv), SIZES, mask=mask)
        together.append(y)
        begin += most
    last, memory = memory.attend(*(x[:, :, 24:25] for x in qkv), SIZES)
    assert memory.position.tolist() == [17, 17, 3]
    for row in range(3):
        first, second = lengths[row].tolist()
        alone = tuple(
            torch.cat([x[row, :, :first], x[row, :, 11 : 11 + second], x[row, :, 24:25]], dim=1)[None] for x in qkv
        )
        expected = read(empty(1), alone, [first + second + 1])[0]
        found = torch.cat([together[0][row, :, :first], together[1][row, :, :second], last[row]], dim=1)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("offload", OFFLOADS)
def test_blocks_may_lie_elsewhere(offload: Offload) -> None:
    qkv = tokens(61)
    torch.testing.assert_close(read(empty(offload=offload), qkv, [40, 1, 20]), read(empty(), qkv, [61]))


def test_rows_are_reordered() -> None:
    qkv = tokens(40)
    _, memory = empty().attend(*(x[:, :, :33] for x in qkv), SIZES)
    y, _ = memory.reorder(torch.tensor([1, 1, 0])).attend(*(x[:, :, 33:][[1, 1, 0]] for x in qkv), SIZES)
    whole = read(empty(), qkv, [40])[:, :, 33:]
    torch.testing.assert_close(y, whole[[1, 1, 0]])


def test_narrow_types_are_computed_wide() -> None:
    qkv = tokens(61)
    narrow = tuple(x.bfloat16() for x in qkv)
    found = read(empty(like=torch.zeros(1, dtype=torch.bfloat16)), narrow, [61])
    assert found.dtype == torch.bfloat16
    expected = read(empty(), tuple(x.double() for x in narrow), [61])
    # where rounding changes a choice, a whole block differs
    near = (found.double() - expected).abs().amax(dim=-1) < 0.05
    assert float(near.double().mean()) > 0.9


def test_ill_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="block_size must be at least 1 token, got 0"):
        BlockRetrieval(block_size=0)
    with pytest.raises(ValueError, match="recent must be at least 0 blocks, got -1"):
        BlockRetrieval(recent=-1)
    with pytest.raises(ValueError, match="got batch=0 and max_len=None"):
        empty(0)
    with pytest.raises(ValueError, match="offload must be one of none, cpu, disk, got 'tape'"):
        empty(offload="tape")
    with pytest.raises(ValueError, match="block_size is 4, and the memory's blocks have 3 tokens"):
        empty().attend(*tokens(2), BlockRetrieval(block_size=4))
    with pytest.raises(ValueError, match="no gradients"):
        empty().attend(*(x.requires_grad_() for x in tokens(2)), SIZES)
