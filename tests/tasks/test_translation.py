from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest
import torch
from tiny_translation import read_pairs, tiny_network, write_pairs

from regard.errors import UserError
from regard.models.language.palm_seq2seq import PALMSeq2Seq, PALMSeq2SeqConfig
from regard.tasks.evaluation import evaluate
from regard.tasks.task import rng
from regard.tasks.translation import PairBatch, Translation, TranslationSettings

PAD, START, END = 256, 257, 258


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_pairs(tmp_path / "pairs")


@pytest.fixture
def task(folder) -> Translation:
    return read_pairs(folder)


@pytest.fixture
def model(task):
    return tiny_network(**task.model_fields()).double()


def palm(task: Translation) -> PALMSeq2Seq:
    config = PALMSeq2SeqConfig(dim=12, num_layers=1, num_heads=2, mlp_dim=16, dropout=0.0, **task.model_fields())
    return PALMSeq2Seq(config).double().eval()


def ids(text: str) -> list[int]:
    return list(text.encode())


# --------------------------------------------------------------------------------------------------- batches


def test_the_data_decide_three_more_ids_and_the_longest_row(task):
    assert task.model_fields() == {"vocab_size": 259, "pad_id": 256, "max_positions": 124}
    assert task.parts() == ("validation", "test")
    assert "en-de, pairs: 41 train, 7 validation, 5 test" in task.described


def test_rows_are_padded_at_the_right_between_start_and_end(task, folder):
    (batch,) = task.evaluation_batches("test", 100)
    sources = (folder / "test.en").read_text().splitlines()
    targets = (folder / "test.de").read_text().splitlines()
    for row, (source, target) in enumerate(zip(sources, targets, strict=True)):
        real = batch.source_mask[row]
        assert batch.source[row][real].tolist() == [*ids(source), END]
        assert (batch.source[row][~real] == PAD).all()
        real = batch.target_mask[row]
        assert batch.target[row][real].tolist() == [START, *ids(target), END]
        assert (batch.target[row][~real] == PAD).all()
    for mask in (batch.source_mask, batch.target_mask):
        assert (mask.int().diff(dim=1) <= 0).all()
        assert mask.all(dim=0).any()
        assert mask[:, -1].any()


def wider(batch: PairBatch, by: int) -> PairBatch:
    """The same rows with more padding, filled with ids that mean something."""
    fields = []
    for rows, mask in ((batch.source, batch.source_mask), (batch.target, batch.target_mask)):
        more = torch.randint(0, 256, (len(rows), by))
        grown = torch.cat([rows.masked_fill(~mask, 7), more], dim=1)
        fields += [grown, torch.cat([mask, torch.zeros(len(rows), by, dtype=torch.bool)], dim=1)]
    return PairBatch(*fields)


@pytest.mark.parametrize("kind", ["encoder and decoder", "palm"])
@torch.no_grad()
def test_padding_has_no_influence(task, model, kind):
    network = model if kind == "encoder and decoder" else palm(task)
    batch = task.batch(rng(0, 3), 5)
    torch.testing.assert_close(task.loss(network, wider(batch, 9)), task.loss(network, batch))
    plain, padded = task.score(network, batch), task.score(network, wider(batch, 9))
    for name in ("nats", "right", "tokens"):
        torch.testing.assert_close(padded[name], plain[name])


@torch.no_grad()
def test_the_loss_is_smoothed_cross_entropy_of_the_next_token(task, model):
    batch = task.batch(rng(0, 1), 4)
    total, count = 0.0, 0
    for row in range(4):
        source = batch.source[row][batch.source_mask[row]][None]
        target = batch.target[row][batch.target_mask[row]][None]
        chances = model(source, target).target[0].log_softmax(dim=-1)
        for place in range(target.shape[1] - 1):
            wanted = chances[place, target[0, place + 1]]
            total += -(0.9 * float(wanted) + 0.1 * float(chances[place].mean()))
            count += 1
    assert float(task.loss(model, batch)) == pytest.approx(total / count, rel=1e-9)


@torch.no_grad()
def test_the_source_is_part_of_the_loss_where_the_network_models_it(folder):
    task, without = read_pairs(folder, source_weight=0.5), read_pairs(folder, source_weight=0.0)
    network, batch = palm(task), task.batch(rng(0, 1), 4)
    output = network(batch.source, batch.target, source_mask=batch.source_mask, target_mask=batch.target_mask)
    losses = []
    for row in range(4):
        length = int(batch.source_mask[row].sum())
        chances, shift = output.source[row].log_softmax(dim=-1), output.source_shift
        losses += [-float(chances[place, batch.source[row, place + shift]]) for place in range(length - shift)]
    extra = task.loss(network, batch) - without.loss(network, batch)
    assert float(extra) == pytest.approx(0.5 * sum(losses) / len(losses), rel=1e-6)


def test_batches_depend_on_seed_and_step_alone(task):
    first, again, other = task.batch(rng(1, 5), 6), task.batch(rng(1, 5), 6), task.batch(rng(1, 6), 6)
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert first.source.shape != other.source.shape or not torch.equal(first.source, other.source)


def test_batches_have_pairs_of_similar_length_and_none_twice(task):
    lengths = sorted(len(source) + len(target) for source, target in task._ids["train"])
    seen = set()
    for step in range(60):
        batch = task.batch(rng(0, step), 3)
        rows = [int(length) for length in batch.source_mask.sum(dim=1) + batch.target_mask.sum(dim=1) - 3]
        places = [lengths.index(row) for row in rows]
        # of 41 pairs, all come from a window of 12 in the order of lengths; equal lengths widen it
        assert max(places) - min(places) <= 12 + max(lengths.count(row) for row in rows)
        pairs = [tuple(map(int, torch.cat([batch.source[row], batch.target[row]]))) for row in range(3)]
        assert len(set(pairs)) == 3
        seen |= {tuple(batch.source[row][batch.source_mask[row]].tolist()) for row in range(3)}
    assert len(seen) > 30
    assert len(task.batch(rng(0, 0), 999).source) == 41


# --------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("rows", [1, 3, 100])
@torch.no_grad()
def test_metrics_do_not_depend_on_the_batch(task, model, rows):
    nats, right, tokens = 0.0, 0, 0
    for batch in task.evaluation_batches("validation", 1):
        scores = model(batch.source, batch.target).target[0, :-1]
        wanted = batch.target[0, 1:]
        nats += float(torch.nn.functional.cross_entropy(scores, wanted, reduction="sum"))
        right += int((scores.argmax(dim=-1) == wanted).sum())
        tokens += len(wanted)
    metrics = evaluate(task, model, "validation", rows)
    assert metrics["loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert metrics["perplexity"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert metrics["token_accuracy"] == pytest.approx(right / tokens)


def test_a_loss_that_is_no_number_has_no_perplexity(task):
    assert math.isnan(task.summary({"nats": math.nan, "right": 0.0, "tokens": 3.0})["perplexity"])
    assert task.summary({"nats": 1e9, "right": 0.0, "tokens": 1.0})["perplexity"] < math.inf


def test_bleu_is_that_of_the_translations(folder, monkeypatch):
    from sacrebleu.metrics.bleu import BLEU

    task = read_pairs(folder, bleu_lines=3, beams=2)
    references = (folder / "test.de").read_text().splitlines()[:3]
    made = [references[0], references[1].lower() + " X", ""]
    asked = []

    def translate(model, lines):
        asked.extend(lines)
        return made

    monkeypatch.setattr(task, "translate", translate)
    extras = task.extras(None, "test")
    assert asked == (folder / "test.en").read_text().splitlines()[:3]
    ((title, header, (row,)),) = extras.tables
    assert title == "BLEU on test"
    assert header == ("sentences", "BLEU", "beams", "signature")
    assert row[0] == "3"
    assert float(row[1]) == pytest.approx(BLEU().corpus_score(made, [references]).score, abs=0.01)
    assert row[2] == "2"
    assert "tok:13a" in row[3]
    assert extras.samples[0] == (asked[0], f"{references[0]}\n(reference: {references[0]})")
    assert len(extras.samples) == 3


def test_bleu_of_all_lines(folder, monkeypatch):
    task = read_pairs(folder, bleu_lines=0)
    monkeypatch.setattr(task, "translate", lambda model, lines: ["X"] * len(lines))
    ((_, _, (row,)),) = task.extras(None, "validation").tables
    assert row[0] == "7"
    assert len(task.extras(None, "validation").samples) == 5


# --------------------------------------------------------------------------------------------------- results


def test_translations_come_in_the_order_of_the_lines(task, model):
    lines = ["the dog runs quickly today", "a", "then the cat", "", "a cat"]
    made = task.translate(model, lines)
    assert made[3] == ""
    for line, translation in zip(lines, made, strict=True):
        assert task.translate(model, [line]) == [translation]
    assert task.translate(model, []) == []


def test_predictions_keep_lines_where_they_are(task, model, tmp_path):
    (tmp_path / "in.txt").write_text("the dog\n\n  \na cat\n")
    (tmp_path / "zipped.en.gz").write_bytes(gzip.compress(b"a cat"))
    (tmp_path / "empty.txt").write_text("")
    out = tmp_path / "out"
    out.mkdir()
    written = task.predict(model, [tmp_path / "in.txt", tmp_path / "zipped.en.gz", tmp_path / "empty.txt"], out)
    assert [path.name for path in written] == ["in.de.txt", "zipped.en.de.txt", "empty.de.txt"]
    first, second = task.translate(model, ["the dog", "a cat"])
    assert written[0].read_text() == f"{first}\n\n\n{second}\n"
    assert written[1].read_text() == f"{second}\n"
    assert written[2].read_text() == ""


def test_a_line_that_is_too_long_is_named_with_its_file(task, model, tmp_path):
    (tmp_path / "in.txt").write_text("a\n\n" + "x" * 60 + "\n")
    with pytest.raises(UserError, match=r"in\.txt, line 3 has 60 tokens: fewer than 60 fit"):
        task.predict(model, [tmp_path / "in.txt"], tmp_path)
    with pytest.raises(UserError, match="line 1 has 61 tokens"):
        task.translate(model, ["x" * 61])
    assert len(task.translate(model, ["x" * 59])) == 1


# --------------------------------------------------------------------------------------------------- reading


def test_pairs_that_are_too_long_are_left_out_and_counted(folder):
    lines = (folder / "train.en").read_text().splitlines()
    left = sum(len(line) >= 20 for line in lines)
    assert 0 < left < 41
    task = read_pairs(folder, max_length=20)
    assert f"train: {left} pairs of 20 tokens or more left out" in task.notes
    assert max(len(source) for source, _ in task._ids["train"]) < 20
    assert len(task._text["train"]) == len(task._ids["train"]) == 41 - left
    with pytest.raises(UserError, match="no pair of train is shorter than 1 tokens: raise max_length"):
        read_pairs(folder, max_length=1)


def test_a_tokenizer_is_learned_from_both_sides_of_the_training_part(folder):
    task = read_pairs(folder, tokenizer="bpe:300")
    assert task.tokenizer.vocab_size <= 300
    for word in ("quickly", "QUICKLY"):
        assert len(task.tokenizer.encode(word)) < len(word)
    assert task.model_fields()["pad_id"] == task.tokenizer.vocab_size


def test_facts_come_back(folder):
    task = read_pairs(folder, tokenizer="bpe:290")
    other = Translation(task.settings)
    other.restore(task.facts())
    assert other.facts() == task.facts()
    assert other.model_fields() == task.model_fields()
    other.read(folder)
    assert other._ids == task._ids
    turned = read_pairs(folder, source="de")
    assert turned.languages == ("de", "en")
    other.restore(turned.facts())
    other.read(folder)
    assert other._text["test"] == turned._text["test"]


def test_the_sample_is_read_and_fits_a_network():
    task = Translation(TranslationSettings(tokenizer="bytes"))
    task.read(None)
    assert task.languages == ("digits", "en")
    assert "8,000 train, 400 validation, 400 test" in task.described
    batch = task.batch(rng(0, 0), 4)
    assert math.isfinite(float(task.loss(tiny_network(**task.model_fields()), batch).detach()))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"beams": 0}, "beams must be at least 1, got 0"),
        ({"label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\)"),
        ({"source_weight": -1.0}, "source_weight and bleu_lines not negative"),
        ({"bleu_lines": -1}, "not negative, got 0.1, 0.1 and -1"),
    ],
)
def test_settings_outside_their_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        TranslationSettings(**wrong)


def test_real_parallel_text(shared_data):
    folder = shared_data / "multi30k"
    if not folder.is_dir():
        pytest.skip("no Multi30k files")
    task = Translation(TranslationSettings(source="en", target="de", tokenizer="bytes"))
    task.read(folder)
    assert task.languages == ("en", "de")
    assert "validation" in task.parts()
