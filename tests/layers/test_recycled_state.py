"""Decoding with recycled keys, restated with lists: schedules, rows of other lengths, room, and what is read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from regard.layers.recycled_state import RecycledState, empty_recycled_state
from regard.ops.recycled import Recycling, in_order, recycled_attention
from regard.ops.softmax_attention import softmax_attention_reference
from regard.ops.visibility import visible_keys

DOUBLE = torch.float64
Row = tuple[Tensor, Tensor, Tensor]


def streams(tokens: int, batch: int = 2) -> Row:
    q, k, v = (torch.randn(batch, heads, tokens, width, dtype=DOUBLE) for heads, width in ((4, 8), (2, 8), (2, 5)))
    return q, k, v


def empty(recycling: Recycling, batch: int = 2, max_len: int | None = None) -> RecycledState:
    like = torch.zeros(1, dtype=DOUBLE)
    sizes = {"num_heads": 4, "num_kv_heads": 2, "head_dim": 8, "value_dim": 5}
    return empty_recycled_state(batch, recycling, **sizes, max_len=max_len, like=like)


class ByLists:
    """One row of a batch, token by token; what is chosen is a list per key head, the best key last."""

    def __init__(self, recycling: Recycling) -> None:
        self.recycling = recycling
        self.q, self.k, self.v = (
            torch.zeros(heads, 0, width, dtype=DOUBLE) for heads, width in ((4, 8), (2, 8), (2, 5))
        )
        self.steps = self.read = 0
        self.full = False

    def attend(self, row: int, seen: list[list[int]]) -> Tensor:
        found = []
        for h in range(4):
            keys = sorted(seen[h // 2])
            weights = (self.q[h, row] @ self.k[h // 2, keys].T * 8**-0.5).softmax(dim=-1)
            found.append(weights @ self.v[h // 2, keys])
        return torch.stack(found)

    def choose(self, *, always: bool) -> None:
        last, top_k = self.q.shape[1] - 1, self.recycling.top_k
        self.chosen = []
        for g in range(2):
            rows = (self.q[2 * g : 2 * g + 2, last] @ self.k[g].T * 8**-0.5).softmax(dim=-1)
            scores = (rows.amax(dim=0) if self.recycling.reduce == "max" else rows.mean(dim=0)).tolist()
            ranked = sorted(range(last if always else last + 1), key=lambda j: scores[j])
            self.chosen.append([*ranked, last][-top_k:] if always else ranked[-top_k:])
        self.asked, self.stored = last, self.q[:, last]

    def due(self) -> bool:
        recycling = self.recycling
        if recycling.threshold is None:
            return recycling.stride is not None and self.steps % recycling.stride == 0
        alike = float(cosine_similarity(self.q[:, -1], self.stored, dim=-1).detach().mean())
        return self.steps % recycling.check_stride == 0 and alike < recycling.threshold

    def advance(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        before, count = self.q.shape[1], q.shape[1]
        self.q, self.k, self.v = (torch.cat(pair, dim=1) for pair in ((self.q, q), (self.k, k), (self.v, v)))
        whole = [[list(range(i + 1))] * 2 for i in range(before, before + count)]
        if count > 1 or before == 0:
            self.steps, self.full = 0, True
            self.choose(always=False)
            return torch.stack([self.attend(before + i, seen) for i, seen in enumerate(whole)], dim=1)
        self.steps += 1
        self.full = self.due()
        if self.full:
            self.read = before + 1
            self.choose(always=True)
            return self.attend(before, whole[0])[:, None]
        seen = []
        for chosen in self.chosen:
            recent = list(range(self.asked + 1, before + 1))
            drop = len(chosen) + len(recent) - self.recycling.top_k if self.recycling.fixed_size else 0
            seen.append(chosen[max(0, drop) :] + recent)
        self.read = len(seen[0])
        return self.attend(before, seen)[:, None]


SCHEDULES: list[dict[str, Any]] = [
    {"stride": 4},
    {"stride": 3, "reduce": "mean"},
    {"stride": 1},
    {"stride": None},
    {"stride": 5, "fixed_size": True},
    {"stride": None, "fixed_size": True},
    {"threshold": 0.3},
    {"threshold": 0.3, "check_stride": 3},
    {"threshold": -1.0},
    {"threshold": 0.3, "fixed_size": True},
]


@pytest.mark.parametrize(("max_len", "schedule"), [*((44, each) for each in SCHEDULES), (None, SCHEDULES[0])], ids=str)
def test_decoding_is_the_definition(schedule: dict[str, Any], max_len: int | None) -> None:
    """A prompt, single tokens, a second prompt, single tokens again."""
    recycling = Recycling(top_k=6, **schedule)
    q, k, v = streams(44)
    state, rows = empty(recycling, max_len=max_len), [ByLists(recycling) for _ in range(2)]
    with torch.no_grad():
        for chunk in torch.arange(44).split([17, *[1] * 12, 5, *[1] * 10]):
            pieces = [x[:, :, chunk] for x in (q, k, v)]
            mixed, state = state.advance(*pieces, recycling)
            expected = torch.stack([row.advance(*(x[b] for x in pieces)) for b, row in enumerate(rows)])
            torch.testing.assert_close(mixed, expected)
            assert in_order(state.chosen).tolist() == [[sorted(heads) for heads in row.chosen] for row in rows]
            assert state.was_full.tolist() == [row.full for row in rows]
            if len(chunk) == 1:
                assert state.keys_read(recycling).tolist() == [row.read for row in rows]
    assert state.position.tolist() == [44, 44]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_rows_of_other_lengths_are_decoded_as_if_alone(schedule: dict[str, Any]) -> None:
    """Chunks of which each row has some tokens; one row begins without a prompt, another pauses."""
    recycling = Recycling(top_k=6, **schedule)
    lengths = [13, 1, 1, 4, 1, 1, 1, 3, *[1] * 9]
    counts = torch.tensor([lengths, [0, 1, 1, 1, 0, 1, 1, 3, *[1] * 9], [2, 0, 1, 2, 1, 1, 0, 1, *[1] * 9]]).T
    q, k, v = streams(sum(lengths), batch=3)
    state, rows, start = empty(recycling, batch=3), [ByLists(recycling) for _ in range(3)], 0
    with torch.no_grad():
        for length, real in zip(lengths, counts.tolist(), strict=True):
            pieces = [x[:, :, start : start + length] for x in (q, k, v)]
            mask = torch.arange(length) < torch.tensor(real)[:, None]
            mixed, state = state.advance(*pieces, recycling, mask=mask)
            for b, count in enumerate(real):
                if count:
                    expected = rows[b].advance(*(x[b, :, :count] for x in pieces))
                    torch.testing.assert_close(mixed[b, :, :count], expected)
                    assert bool(state.was_full[b]) == rows[b].full
            start += length
    assert state.position.tolist() == counts.sum(dim=0).tolist()


@pytest.mark.parametrize("fixed_size", [False, True])
@pytest.mark.parametrize("stride", [1, 3, 4, None])
def test_single_tokens_from_the_start_on_are_the_simulation(stride: int | None, fixed_size: bool) -> None:
    recycling = Recycling(top_k=5, stride=stride, fixed_size=fixed_size)
    q, k, v = streams(29)
    state, found = empty(recycling), []
    with torch.no_grad():
        for pieces in zip(*(x.split(1, dim=2) for x in (q, k, v)), strict=True):
            mixed, state = state.advance(*pieces, recycling)
            found.append(mixed)
    torch.testing.assert_close(torch.cat(found, dim=2), recycled_attention(q, k, v, recycling))


def test_memory_is_taken_once_and_one_gather_fills_it() -> None:
    recycling = Recycling(top_k=6, stride=4)
    q, k, v = streams(60)
    with torch.no_grad():
        state = empty(recycling, max_len=60)
        _, state = state.advance(*(x[:, :, :20] for x in (q, k, v)), recycling)
        size, place = state.nbytes, state.keys.data_ptr()
        assert state.keys.shape[2] == 6 + 4
        for i in range(20, 60):
            before = state.keys[:, :, :6].clone()
            _, state = state.advance(*(x[:, :, i : i + 1] for x in (q, k, v)), recycling)
            assert state.nbytes == size
            assert state.keys.data_ptr() == place
            assert torch.equal(state.keys[:, :, :6], before) != bool(state.was_full.all())
    for b in range(2):
        for g in range(2):
            assert torch.equal(state.keys[b, g, :6], k[b, g, state.chosen[b, g]])
            assert torch.equal(state.values[b, g, :6], v[b, g, state.chosen[b, g]])


def test_without_full_steps_the_room_doubles() -> None:
    recycling = Recycling(top_k=3, stride=None)
    q, k, v = streams(140)
    with torch.no_grad():
        _, state = empty(recycling).advance(*(x[:, :, :9] for x in (q, k, v)), recycling)
        rooms = []
        for i in range(9, 140):
            _, state = state.advance(*(x[:, :, i : i + 1] for x in (q, k, v)), recycling)
            rooms.append(state.keys.shape[2] - 3)
    assert sorted(set(rooms)) == [64, 128, 256]


def test_with_room_for_everything_decoding_is_full_attention() -> None:
    recycling = Recycling(top_k=40, stride=4)
    q, k, v = streams(40)
    state, found = empty(recycling, max_len=40), []
    with torch.no_grad():
        for pieces in zip(*(x.split([11] + [1] * 29, dim=2) for x in (q, k, v)), strict=True):
            mixed, state = state.advance(*pieces, recycling)
            found.append(mixed)
    causal = visible_keys(40, 40, causal=True, device=q.device)
    torch.testing.assert_close(torch.cat(found, dim=2), softmax_attention_reference(q, k, v, visible=causal))


@pytest.mark.parametrize("schedule", [{"stride": 3}, {"threshold": 0.3}], ids=str)
def test_gradients_reach_all_that_was_seen(schedule: dict[str, Any]) -> None:
    recycling = Recycling(top_k=4, **schedule)
    leaves = [x.requires_grad_() for x in streams(19)]
    results = []
    for way in ("by rows", "together"):
        chunks = [x.split([9] + [1] * 10, dim=2) for x in leaves]
        found = []
        if way == "together":
            state = empty(recycling)
            for pieces in zip(*chunks, strict=True):
                mixed, state = state.advance(*pieces, recycling)
                found.append(mixed)
        else:
            rows = [ByLists(recycling) for _ in range(2)]
            parts = zip(*chunks, strict=True)
            found = [torch.stack([row.advance(*(x[b] for x in p)) for b, row in enumerate(rows)]) for p in parts]
        results.append(torch.autograd.grad(torch.cat(found, dim=2).square().sum(), leaves))
    for expected, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


def test_rows_can_be_reordered_and_branched() -> None:
    recycling = Recycling(top_k=4, threshold=0.3)
    q, k, v = streams(15)
    with torch.no_grad():
        _, state = empty(recycling).advance(*(x[:, :, :9] for x in (q, k, v)), recycling)
        swapped, branch = state.reorder(torch.tensor([1, 1, 0])), state.clone()
        for i in range(9, 15):
            pieces = [x[:, :, i : i + 1] for x in (q, k, v)]
            mixed, state = state.advance(*pieces, recycling)
            other, swapped = swapped.advance(*(x[[1, 1, 0]] for x in pieces), recycling)
            again, branch = branch.advance(*pieces, recycling)
            torch.testing.assert_close(other, mixed[[1, 1, 0]])
            torch.testing.assert_close(again, mixed)


def test_ill_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="batch=0 and max_len=None"):
        empty(Recycling(), batch=0)
    with pytest.raises(ValueError, match="batch=2 and max_len=0"):
        empty(Recycling(), max_len=0)
    state = empty(Recycling(top_k=3, stride=2), max_len=5)
    with torch.no_grad(), pytest.raises(ValueError, match="max_len=5 tokens, 6 are needed"):
        state.advance(*streams(6), Recycling(top_k=3, stride=2))
