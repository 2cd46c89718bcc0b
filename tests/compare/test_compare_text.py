from __future__ import annotations

import os

import numpy as np
import pytest

from regard.compare.text import (
    byte_labels,
    entropy_bits,
    factors_for,
    load_corpus,
    sample_of,
    training_windows,
    validation_windows,
)
from regard.errors import UserError
from regard.tasks import text_files
from regard.tasks.text_files import why_not_text


def test_the_last_tenth_validates(tmp_path):
    path = tmp_path / "a.txt"
    content = bytes(97 + number % 26 for number in range(9999)) + b"\n"
    path.write_bytes(content)
    corpus = load_corpus(str(path), train_length=7)
    assert corpus.train + corpus.validation == content
    assert len(corpus.validation) == 1000
    assert corpus.notes == ()


def test_of_a_short_text_up_to_half_validates_so_that_long_windows_fit(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"x" * 999 + b"\n")
    assert len(load_corpus(str(path), train_length=31).validation) == 8 * 31 + 1
    shorter = load_corpus(str(path), train_length=100)
    assert len(shorter.validation) == 500
    assert "extrapolation ends at 4 times" in shorter.notes[0]
    assert factors_for(500, 100) == (1, 2, 4)


def test_the_default_is_the_standard_library_without_its_tests():
    corpus = load_corpus(None, train_length=128)
    assert len(corpus.train) > 2**20
    assert b"class TestCase" in corpus.train + corpus.validation
    assert corpus == load_corpus(None, train_length=128)
    assert why_not_text(corpus.train[:1000]) == ""


def test_what_was_passed_over_or_cut_is_noted(tmp_path, monkeypatch):
    for name, content in {"a": b"a" * 60, "b": b"b" * 60, ".c": b"c", "a.bin": b"\0"}.items():
        (tmp_path / name).write_bytes(content)
    assert load_corpus(str(tmp_path), train_length=5).notes == (
        "passed over: 1 file hidden, 1 file binary or not UTF-8",
    )
    monkeypatch.setattr(text_files, "MAX_BYTES", 100)
    corpus = load_corpus(str(tmp_path), train_length=5)
    assert len(corpus.train + corpus.validation) == 100
    assert corpus.notes[-1] == "only the first 100 B of the text are used"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PNG\0\x01" * 99, "is not UTF-8 text: byte 3 is zero"),
        (b"short", r"has 6 bytes, and one training and one validation window of 64 bytes need 130"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_corpus(str(path), train_length=64)


def test_hostile_names_are_made_harmless(tmp_path):
    path = tmp_path / os.fsdecode(b"evil\xff\x1b[31m\nname<script>")
    path.write_text("words " * 99)
    corpus = load_corpus(str(path), train_length=5)
    assert corpus.description.startswith("evil\ufffd [31m name<script>, 1 file")
    path.write_bytes(b"\0")
    with pytest.raises(UserError) as caught:
        load_corpus(str(path), train_length=5)
    assert str(caught.value).isprintable()


# --------------------------------------------------------------------------------------------------- sampling

CONTENT = np.random.default_rng(3).integers(0, 256, 1009).astype(np.uint8)


def test_windows_are_decided_by_seed_and_step_alone():
    first = training_windows(CONTENT, seed=1, step=5, batch=7, length=11)
    assert first.shape == (7, 12)
    assert (first == training_windows(CONTENT, seed=1, step=5, batch=7, length=11)).all()
    for seed, step in ((1, 6), (2, 5)):
        assert (first != training_windows(CONTENT, seed=seed, step=step, batch=7, length=11)).any()


def test_windows_are_stretches_of_the_text_up_to_its_end():
    short = np.arange(9, dtype=np.uint8)
    rows = training_windows(short, seed=0, step=0, batch=200, length=7)
    assert {tuple(row) for row in rows} == {tuple(range(0, 8)), tuple(range(1, 9))}


@pytest.mark.parametrize("length", [13, 26, 52, 104])
def test_every_length_predicts_the_same_bytes(length):
    content = np.arange(1009)
    windows = validation_windows(content, length=length, longest=104, budget=500)
    assert windows.shape == (4 * 104 // length, length + 1)
    assert (np.diff(windows, axis=1) == 1).all()
    predicted = np.sort(windows[:, 1:].reshape(-1))
    everything = validation_windows(content, length=104, longest=104, budget=500)[:, 1:].reshape(-1)
    assert (predicted == np.sort(everything)).all()
    assert len(np.unique(predicted)) == len(predicted)


def test_one_stretch_is_used_even_beyond_the_budget():
    assert validation_windows(CONTENT, length=104, longest=104, budget=10).shape == (1, 105)


def test_the_sample_starts_at_a_line():
    content = b"".join(b"line %d of the text\n" % number for number in range(40))
    sample = sample_of(content)
    assert len(sample) == 48
    assert sample.startswith(b"line ")
    assert sample_of(b"no line break at all") == b"no line break at all"


def test_labels_are_characters_or_numbers():
    assert byte_labels("aé\n".encode()) == ["a", "c3", "a9", "\n"]


def test_entropy_is_that_of_the_frequencies():
    even = np.repeat(np.arange(256, dtype=np.uint8), 1000)
    assert entropy_bits(even, even) == pytest.approx(8.0)
    halves = np.tile(np.array([65, 66], dtype=np.uint8), 50_000)
    assert entropy_bits(halves, halves) == pytest.approx(1.0, abs=0.01)
