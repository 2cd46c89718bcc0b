"""The problems of the sequence-to-sequence claims are what they say, and judging is by the book."""

from __future__ import annotations

import pytest
import torch

from regard.claims import _transduction as shared
from regard.models.language.seq2seq import Seq2SeqOutput


def test_copies_are_the_source_under_each_table() -> None:
    batch = shared.copies(5, seed=3)
    length = shared.COPY_SOURCE
    assert batch.source.shape == (5, length)
    assert batch.target.shape == (5, 2 + shared.PASSES * length)
    assert (batch.target[:, 0] == shared.START).all()
    assert (batch.target[:, -1] == shared.END).all()
    other = shared.copies(200, seed=4)
    for number in range(shared.PASSES):
        start = 1 + number * length
        table = {}
        for pairs in (other, batch):
            symbols, substituted = pairs.source.flatten(), pairs.target[:, start : start + length].flatten()
            for symbol, made in zip(symbols.tolist(), substituted.tolist(), strict=True):
                assert table.setdefault(symbol, made) == made
        assert len(set(table.values())) == len(table) == shared.COPY_VOCABULARY - shared.SPECIAL
    assert torch.equal(shared.copies(5, seed=3).target, batch.target)
    assert not torch.equal(shared.copies(5, seed=4).source, batch.source)


@pytest.mark.parametrize(
    ("number", "english", "german"),
    [
        (0, "zero", "null"),
        (17, "seventeen", "siebzehn"),
        (42, "forty two", "zwei und vierzig"),
        (90, "ninety", "neunzig"),
        (105, "one hundred five", "eins hundert fünf"),
        (23_100, "twenty three thousand one hundred", "drei und zwanzig tausend eins hundert"),
    ],
)
def test_numbers_in_words(number: int, english: str, german: str) -> None:
    assert " ".join(shared.in_english(number)) == english
    assert " ".join(shared.in_german(number)) == german


def test_stand_in_corpus_has_pairs_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared, "data_folder", lambda name: None)
    corpus = shared.parallel_corpus.__wrapped__()
    assert "in place of Multi30k" in corpus.source
    assert len(corpus.train) > 8000
    assert len(corpus.test) > 900
    for source, target in corpus.train[:50]:
        assert target[0] == shared.START
        assert target[-1] == shared.END
        assert min(source) >= shared.SPECIAL
        assert max(*source, *target) < corpus.vocab_size


def test_backbones_have_the_sizes_that_the_claims_compare() -> None:
    counts = {name: shared.parameter_count(shared.backbone(name, 40)) for name in ("lm", "ed", "palm")}
    assert counts["palm"] < 0.75 * counts["ed"]
    assert counts["lm"] == pytest.approx(counts["ed"], rel=0.01)


class Oracle(torch.nn.Module):
    """Right about every token but those of odd value."""

    def forward(self, source: torch.Tensor, target: torch.Tensor, **_: object) -> Seq2SeqOutput:
        following = target.roll(-1, dims=1)
        return Seq2SeqOutput(torch.nn.functional.one_hot(following - following % 2, 10).float())


def test_accuracy_is_of_the_second_half_of_real_tokens() -> None:
    target = torch.tensor([[1, 3, 3, 3, 4, 6, 5, 2], [1, 3, 4, 4, 0, 0, 0, 0]])
    batch = shared.Batch(target, target, None, torch.arange(8) < torch.tensor([[8], [4]]))
    # first row: 4, 6, 5, 2 are judged and 5 is missed; second row: 4, 4
    assert shared.second_half_accuracy(Oracle(), batch) == pytest.approx(100 * 5 / 6)  # type: ignore[arg-type]


@torch.no_grad()
@pytest.mark.parametrize("name", ["lm", "ed", "palm"])
def test_greedy_is_the_likeliest_token_after_its_own(name: str) -> None:
    model = shared.backbone(name, shared.COPY_VOCABULARY).eval()
    source = shared.copies(3, seed=1).source
    generated = shared.greedy(model, source, steps=6)
    target = torch.cat((torch.full((3, 1), shared.START), generated), dim=1)
    assert torch.equal(model(source, target).target[:, :-1].argmax(dim=-1), generated)
