"""The memory of landmark attention against a plain list of all tokens, read with loops as the paper describes."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.layers import landmark_memory as module
from regard.layers.landmark_memory import LandmarkMemory, empty_landmark_memory
from regard.layers.offload import OFFLOADS, Offload
from regard.ops.landmark_retrieval import SELECTIONS, Retrieval, Selection

HEADS, KV_HEADS, WIDTH, VALUE_DIM, BLOCK = 4, 2, 6, 5, 3
SPAN = BLOCK + 1
SIZES = Retrieval(block_size=BLOCK, top_k=2, rope_base=50.0)


def empty(batch: int = 2, **options: Any) -> LandmarkMemory:
    given: dict[str, Any] = {"max_blocks": None, "max_len": None, "offload": "none", **options}
    like = given.pop("like", torch.zeros(1, dtype=torch.float64))
    return empty_landmark_memory(
        batch, num_kv_heads=KV_HEADS, head_dim=WIDTH, value_dim=VALUE_DIM, block_size=BLOCK, like=like, **given
    )


def tokens(count: int, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    q = torch.randn(batch, HEADS, count, WIDTH, dtype=torch.float64)
    k = torch.randn(batch, KV_HEADS, count, WIDTH, dtype=torch.float64)
    return q, k, torch.randn(batch, KV_HEADS, count, VALUE_DIM, dtype=torch.float64)


def read(memory: LandmarkMemory, qkv: tuple[Tensor, ...], chunks: list[int], sizes: Retrieval = SIZES) -> Tensor:
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


def grouped(scores: Tensor, landmarks: list[bool]) -> Tensor:
    """The weights of the last of these tokens."""
    last = len(landmarks) - 1
    ends = [place for place in range(last) if landmarks[place]]
    own = [place for place in range(ends[-1] + 1 if ends else 0, last + 1) if not landmarks[place]]
    shares, weights, begin = scores[own + ends].softmax(dim=0), torch.zeros_like(scores), 0
    weights[own] = shares[: len(own)]
    for end, share in zip(ends, shares[len(own) :], strict=True):
        weights[begin:end] = share * scores[begin:end].softmax(dim=0)
        begin = end + 1
    return weights


class Restated:
    """One row of a batch, as lists of tokens; blocks are chosen and moved one by one."""

    def __init__(self, sizes: Retrieval, max_blocks: int | None) -> None:
        self.sizes, self.max_blocks = sizes, max_blocks
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """A chunk, `(heads, tokens, width)`."""
        blocks, before = divmod(len(self.keys), SPAN)
        held = range(0 if self.max_blocks is None else max(0, blocks - self.max_blocks), blocks)
        self.keys += list(k.unbind(1))
        self.values += list(v.unbind(1))
        query_block = min(blocks, self.sizes.top_k + 1)
        shares = self._shares(q, held, blocks, before, query_block)
        mixed = torch.zeros(HEADS, q.shape[1], VALUE_DIM, dtype=q.dtype)
        for head in range(HEADS):
            for t in range(q.shape[1]):
                asked = shares[head, t]
                if self.sizes.selection == "max_over_heads":
                    asked = shares[:, t].amax(dim=0)
                elif self.sizes.selection == "max_over_tokens":
                    asked = shares[head].amax(dim=0)
                best = sorted(zip(asked.tolist(), held, strict=True), reverse=True)[: self.sizes.top_k]
                chosen = sorted(number for _, number in best)
                sources = [number * SPAN + slot for number in chosen for slot in range(SPAN)]
                positions = [
                    self._place(i, number, blocks) * SPAN + slot
                    for i, number in enumerate(chosen)
                    for slot in range(SPAN)
                ]
                sources += [blocks * SPAN + place for place in range(before + t + 1)]
                positions += [query_block * SPAN + place for place in range(before + t + 1)]
                own = turn(q[head, t], positions[-1], self.sizes.rope_base)
                keys = torch.stack([self._key(head, s, p) for s, p in zip(sources, positions, strict=True)])
                weights = grouped(keys @ own * WIDTH**-0.5, [source % SPAN == BLOCK for source in sources])
                mixed[head, t] = weights @ torch.stack([self.values[source][head // 2] for source in sources])
        return mixed

    def _key(self, head: int, source: int, position: int) -> Tensor:
        return turn(self.keys[source][head // 2], position, self.sizes.rope_base)

    def _place(self, i: int, number: int, blocks: int) -> int:
        if blocks <= self.sizes.top_k and not self.sizes.as_compared:
            return number
        return i + (blocks - 1 - number < self.sizes.top_k)

    def _shares(self, q: Tensor, held: range, blocks: int, before: int, query_block: int) -> Tensor:
        newest = self.sizes.top_k if self.sizes.as_compared else query_block - 1
        shares = torch.zeros(HEADS, q.shape[1], len(held), dtype=q.dtype)
        for head in range(HEADS):
            for t in range(q.shape[1]):
                own = turn(q[head, t], query_block * SPAN + before + t, self.sizes.rope_base)
                for column, number in enumerate(held):
                    place = max(0, newest - (blocks - 1 - number))
                    key = self._key(head, number * SPAN + BLOCK, place * SPAN + BLOCK)
                    shares[head, t, column] = own @ key * WIDTH**-0.5
        return shares.softmax(dim=-1)


def restated(qkv: tuple[Tensor, ...], chunks: list[int], sizes: Retrieval, max_blocks: int | None) -> Tensor:
    rows = []
    for row in zip(*qkv, strict=True):
        one, pieces = Restated(sizes, max_blocks), []
        for q, k, v in zip(*(x.split(chunks, dim=1) for x in row), strict=True):
            pieces.append(one.attend(q, k, v))
        rows.append(torch.cat(pieces, dim=1))
    return torch.stack(rows)


CHUNKS = {
    "single tokens": [1] * 29,
    "chunks": [5, 1, 7, 4, 9, 2, 1],
    "long": [22, 3, 11],
}


@pytest.mark.parametrize("chunks", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("max_blocks", [None, 3])
@pytest.mark.parametrize("rope_base", [None, 50.0])
def test_reading_is_the_loops(chunks: list[int], max_blocks: int | None, rope_base: float | None) -> None:
    sizes = replace(SIZES, rope_base=rope_base)
    qkv = tokens(sum(chunks), batch=1)
    expected = restated(qkv, chunks, sizes, max_blocks)
    torch.testing.assert_close(read(empty(1, max_blocks=max_blocks), qkv, chunks, sizes), expected)
    with torch.no_grad():
        torch.testing.assert_close(read(empty(1, max_blocks=max_blocks, max_len=8), qkv, chunks, sizes), expected)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("top_k", [0, 1, 3, 30])
def test_choices_are_the_loops(selection: Selection, top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = replace(SIZES, selection=selection, top_k=top_k)
    chunks = [6, 1, 8, 5]
    qkv = tokens(20, batch=1)
    expected = restated(qkv, chunks, sizes, None)
    torch.testing.assert_close(read(empty(1), qkv, chunks, sizes), expected)
    monkeypatch.setattr(module, "SLICE_BYTES", 1)
    torch.testing.assert_close(read(empty(1), qkv, chunks, sizes), expected)


def test_positions_as_compared_are_the_loops() -> None:
    sizes = replace(SIZES, as_compared=True)
    chunks = [8, 3, 6, 7]
    qkv = tokens(24)
    y = read(empty(), qkv, chunks, sizes)
    torch.testing.assert_close(y, restated(qkv, chunks, sizes, None))
    # two blocks and top_k = 2: only then do both ways differ
    plain = read(empty(), qkv, chunks)
    assert not torch.allclose(y[:, :, 8:11], plain[:, :, 8:11])
    torch.testing.assert_close(y[:, :, 17:], plain[:, :, 17:])


# --------------------------------------------------------------------------------------------------- rows


def test_rows_of_other_lengths_are_read_as_if_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    for selection in SELECTIONS:
        sizes = replace(SIZES, selection=selection)
        together = empty(3, max_blocks=4)
        alone = [empty(1, max_blocks=4) for _ in range(3)]
        with torch.no_grad():
            for chunk in (7, 1, 1, 12, 3, 1, 9, 1):
                q, k, v = tokens(chunk, batch=3)
                counts = torch.randint(0, chunk + 1, (3, 1), generator=generator)
                y, together = together.attend(q, k, v, sizes, mask=torch.arange(chunk) < counts)
                for row, count in enumerate(counts[:, 0].tolist()):
                    if count:
                        piece = (x[row : row + 1, :, :count] for x in (q, k, v))
                        expected, alone[row] = alone[row].attend(*piece, sizes)
                        torch.testing.assert_close(y[row : row + 1, :, :count], expected)
        assert together.position.tolist() == [int(one.position) for one in alone]


def test_the_ring_holds_the_newest_blocks() -> None:
    _, k, v = tokens(41)
    for max_blocks in (None, 1, 3):
        memory, start = empty(max_blocks=max_blocks), 0
        for chunk in (1, 1, 1, 1, 1, 9, 14, 2, 11):
            piece = slice(start, start + chunk)
            memory = memory.extend(k[:, :, piece], v[:, :, piece])
            start += chunk
            blocks = start // SPAN
            newest = list(range(blocks if max_blocks is None else min(blocks, max_blocks)))
            numbers = torch.tensor([blocks - 1 - age for age in newest])
            if blocks:
                held, values = memory.read(numbers.expand(2, KV_HEADS, 1, -1))
                wanted = [k[:, :, n * SPAN : (n + 1) * SPAN] for n in numbers]
                assert torch.equal(held[:, :, 0], torch.stack(wanted, dim=2))
                wanted = [v[:, :, n * SPAN : (n + 1) * SPAN] for n in numbers]
                assert torch.equal(values[:, :, 0], torch.stack(wanted, dim=2))
            if max_blocks is not None:
                assert memory.keys.shape[2] <= max_blocks
        assert memory.position.tolist() == [41, 41]


def test_reorder_and_clone_are_separate() -> None:
    q, k, v = tokens(30)
    index = torch.tensor([1, 0, 1])
    for offload in OFFLOADS:
        with torch.no_grad():
            memory = empty(offload=offload).extend(k[:, :, :21], v[:, :, :21])
            swapped, branch = memory.reorder(index), memory.clone()
            branch.attend(q[:, :, :9], -k[:, :, 21:], v[:, :, 21:], SIZES)
            expected, _ = memory.attend(q[:, :, 21:], k[:, :, 21:], v[:, :, 21:], SIZES)
            found, _ = swapped.attend(q[index, :, 21:], k[index, :, 21:], v[index, :, 21:], SIZES)
        torch.testing.assert_close(found, expected[index])


# --------------------------------------------------------------------------------------------------- places


@pytest.mark.parametrize("offload", OFFLOADS)
def test_where_blocks_lie_changes_nothing(offload: Offload) -> None:
    qkv = tokens(60)
    with torch.no_grad():
        expected = read(empty(), qkv, [33, 1, 26])
        torch.testing.assert_close(read(empty(offload=offload), qkv, [33, 1, 26]), expected, rtol=0, atol=0)
        chunks = [1] * 60
        torch.testing.assert_close(read(empty(offload=offload), qkv, chunks), read(empty(), qkv, chunks))


def test_gradients_reach_the_tokens_of_one_call_alone() -> None:
    q, k, v = (x.requires_grad_() for x in tokens(17))
    _, memory = empty().attend(q[:, :, :9], k[:, :, :9], v[:, :, :9], SIZES)
    assert not any(x.requires_grad for x in (memory.keys, memory.values, memory.landmarks, memory.open_keys))
    y, _ = memory.attend(q[:, :, 9:], k[:, :, 9:], v[:, :, 9:], SIZES)
    for gradient in torch.autograd.grad(y.square().sum(), (q, k, v)):
        assert not gradient[:, :, :9].any()
        assert gradient[:, :, 9:].abs().amax() > 0


def test_a_single_token_with_gradients_is_not_written_in_place() -> None:
    q, k, v = (x.requires_grad_() for x in tokens(6))
    memory, ys = empty(), []
    for t in range(6):
        y, memory = memory.attend(q[:, :, t : t + 1], k[:, :, t : t + 1], v[:, :, t : t + 1], SIZES)
        ys.append(y)
    gradients = torch.autograd.grad(torch.cat(ys, dim=2).square().sum(), (q, v))
    assert all(gradient.isfinite().all() for gradient in gradients)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(ys, dim=2), read(empty(), (q, k, v), [1] * 6))


def test_tokens_are_stored_in_the_memorys_dtype() -> None:
    q, k, v = tokens(21)
    with torch.no_grad():
        memory = empty(like=torch.zeros(1, dtype=torch.bfloat16))
        y, memory = memory.attend(q.float(), k.float(), v.float(), SIZES)
        y, memory = memory.attend(q.float()[:, :, :1], k.float()[:, :, :1], v.float()[:, :, :1], SIZES)
    assert y.dtype == torch.float32
    assert memory.keys.dtype == memory.landmarks.dtype == memory.open_values.dtype == torch.bfloat16


def test_room_is_made_ahead_and_grows() -> None:
    memory = empty(max_len=41)
    assert memory.keys.shape[2] == 10
    size = memory.nbytes
    _, k, v = tokens(43)
    assert memory.extend(k, v).nbytes == size
    assert memory.extend(k, v).extend(k, v).keys.shape[2] == 21
    assert empty(max_len=400, max_blocks=7).keys.shape[2] == 7


def test_ill_sizes_are_named() -> None:
    for options in ({"batch": 0}, {"max_len": 0}, {"max_blocks": 0}):
        with pytest.raises(ValueError, match="batch, max_len and max_blocks must be positive"):
            empty(**options)
    with pytest.raises(ValueError, match="offload must be one of none, cpu, disk, got 'tape'"):
        empty(offload="tape")
