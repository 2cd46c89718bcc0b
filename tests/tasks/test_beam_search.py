"""Beam search against a search through all targets, and what it promises of batches and lengths."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tiny_translation import tiny_network
from torch import Tensor

from regard.tasks.beam_search import beam_search

VOCAB, PAD, START, END = 6, 3, 4, 5


@pytest.fixture(params=[0, 1, 2])
def model(request):
    torch.manual_seed(request.param)
    network = tiny_network(vocab_size=VOCAB, pad_id=PAD, max_positions=20)
    with torch.no_grad():
        for parameter in network.parameters():
            # a fresh network hardly prefers anything
            parameter.mul_(3)
    return network


def sources() -> tuple[Tensor, Tensor]:
    source = torch.tensor([[0, 1, 2, 5], [2, 2, 5, 3], [1, 5, 3, 3]])
    return source, source != PAD


def search(model, source, mask, **changes) -> list[list[int]]:
    return beam_search(model, source, mask, **{"start_id": START, "end_id": END, "max_len": 3, "beams": 4, **changes})


@torch.no_grad()
def log_probabilities(model, source: Tensor, targets: list[list[int]]) -> list[float]:
    """Of each target's tokens after the start token."""
    found: dict[tuple[int, ...], float] = {}
    for length, group in itertools.groupby(sorted(targets, key=len), key=len):
        rows = torch.tensor(list(group))
        inputs = torch.cat([torch.full((len(rows), 1), START), rows], dim=1)
        # padding is a token like any other where a search writes it
        real = torch.ones_like(inputs, dtype=torch.bool)
        scores = model(source.expand(len(rows), -1), inputs, target_mask=real).target.log_softmax(dim=-1)
        sums = scores[:, :length].gather(2, rows[..., None]).sum(dim=(1, 2))
        found |= dict(zip(map(tuple, rows.tolist()), sums.tolist(), strict=True))
    return [found[tuple(target)] for target in targets]


def all_targets(max_len: int) -> list[list[int]]:
    others = [token for token in range(VOCAB) if token != END]
    ended = [[*tokens, END] for length in range(max_len) for tokens in itertools.product(others, repeat=length)]
    return ended + [list(tokens) for tokens in itertools.product(others, repeat=max_len)]


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0])
def test_with_enough_beams_it_is_the_best_of_all_targets(model, penalty):
    source, mask = sources()
    found = search(model, source, mask, beams=VOCAB**3, length_penalty=penalty)
    for row in range(3):
        alone = source[row][mask[row]]
        targets = all_targets(3)
        scored = {
            tuple(target): score / len(target) ** penalty
            for target, score in zip(targets, log_probabilities(model, alone, targets), strict=True)
        }
        best = max(scored, key=scored.get)
        wanted = [token for token in best if token != END]
        if found[row] != wanted:
            # a tie within rounding
            candidates = [scored.get((*found[row], END), -math.inf), scored.get(tuple(found[row]), -math.inf)]
            assert max(candidates) == pytest.approx(scored[best], abs=1e-5)


@torch.no_grad()
def test_one_beam_takes_the_likeliest_token_each_time(model):
    source, mask = sources()
    found = search(model, source, mask, beams=1, max_len=9)
    for row in range(3):
        tokens = [START]
        while len(tokens) < 10:
            real = torch.ones(1, len(tokens), dtype=torch.bool)
            scores = model(source[row][mask[row]][None], torch.tensor([tokens]), target_mask=real).target[0, -1]
            tokens.append(int(scores.argmax()))
            if tokens[-1] == END:
                break
        assert found[row] == [token for token in tokens[1:] if token != END]


@pytest.mark.parametrize("beams", [1, 2, 5])
def test_a_batch_is_found_as_its_rows_one_by_one(model, beams):
    source, mask = sources()
    together = search(model, source, mask, beams=beams, max_len=7)
    for row in range(3):
        alone = source[row][mask[row]][None]
        assert search(model, alone, torch.ones_like(alone, dtype=torch.bool), beams=beams, max_len=7) == [together[row]]
        assert search(model, alone, None, beams=beams, max_len=7) == [together[row]]


class Scripted:
    """A model whose probabilities depend on the number of tokens alone."""

    def __init__(self, *steps: dict[int, float]) -> None:
        rows = torch.full((len(steps), VOCAB), 1e-9)
        for place, step in enumerate(steps):
            for token, probability in step.items():
                rows[place, token] = probability
        self.scores = rows.log()
        self.calls = 0

    def encode(self, source, mask, *, max_len):
        self.rows, self.room = len(source), max_len
        return self

    def reorder(self, index):
        self.rows = len(index)
        return self

    def step(self, tokens, state):
        assert tokens.shape == (self.rows, 1)
        self.calls += 1
        assert self.calls <= self.room
        scores = self.scores[min(self.calls, len(self.scores)) - 1]
        return scores.expand(self.rows, 1, VOCAB), state


ONE_SOURCE = torch.zeros(1, 2, dtype=torch.int64)


def test_the_penalty_decides_between_short_and_long():
    # ending at once has log 0.4; going on surely to token 0, then ending, log 0.3 over two tokens
    steps = ({END: 0.4, 0: 0.3, 1: 0.3}, {END: 1.0})
    assert search(Scripted(*steps), ONE_SOURCE, None, length_penalty=0.0) == [[]]
    assert search(Scripted(*steps), ONE_SOURCE, None, length_penalty=1.0) == [[0]]


def test_one_beam_ends_where_the_end_is_the_likeliest_and_nowhere_else():
    # a longer target would have the better mean, and so would a shorter one
    assert search(Scripted({END: 0.4, 0: 0.35, 1: 0.25}, {END: 1.0}), ONE_SOURCE, None, beams=1) == [[]]
    steps = ({0: 0.5, END: 0.45}, {1: 0.3, 2: 0.25, END: 0.2}, {END: 1.0})
    assert search(Scripted(*steps), ONE_SOURCE, None, beams=1, length_penalty=0.0) == [[0, 1]]


def test_the_end_token_ends_and_is_left_out():
    scripted = Scripted({0: 1.0}, {1: 1.0}, {END: 1.0}, {2: 1.0})
    assert search(scripted, ONE_SOURCE, None, max_len=12) == [[0, 1]]
    # nothing can beat a certain target: the search is over
    assert scripted.calls == 3


def test_a_target_without_an_end_is_cut_off_at_the_longest_length():
    assert search(Scripted({0: 0.6, 1: 0.4}), ONE_SOURCE, None, max_len=5) == [[0] * 5]


def test_a_row_ends_when_as_many_targets_are_finished_as_there_are_beams():
    scripted = Scripted({END: 0.6, 0: 0.4}, {END: 0.6, 0: 0.4})
    assert search(scripted, ONE_SOURCE, None, beams=2, max_len=50, length_penalty=1.0) == [[]]
    assert scripted.calls <= 4


def test_fewer_tokens_than_beams_are_no_obstacle(model):
    source, mask = sources()
    assert all(len(target) <= 1 for target in search(model, source, mask, beams=50, max_len=1))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"beams": 0}, "beams and max_len must be at least 1, got 0 and 3"),
        ({"max_len": 0}, "got 4 and 0"),
        ({"length_penalty": -0.5}, "length_penalty must not be negative, got -0.5"),
    ],
)
def test_numbers_outside_their_range_are_refused(model, wrong, message):
    with pytest.raises(ValueError, match=message):
        search(model, *sources(), **wrong)
