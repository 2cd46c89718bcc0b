from __future__ import annotations

import pytest

from regard.errors import UserError
from regard.tasks.tokenizers import load_tokenizer, restore_tokenizer

TEXT = "Grüße, 世界! naïve café\n"


def learned():
    return load_tokenizer("bpe:300", [TEXT * 5, "the cat sat on the mat " * 20])


@pytest.mark.parametrize("make", [lambda: load_tokenizer("bytes"), learned], ids=["bytes", "bpe"])
def test_text_comes_back_and_streams_in_whole_characters(make):
    tokenizer = make()
    ids = tokenizer.encode(TEXT)
    assert max(ids) < tokenizer.vocab_size
    assert tokenizer.decode(ids) == TEXT
    pieces = list(tokenizer.stream(ids))
    assert "".join(pieces) == TEXT
    assert not any("\ufffd" in piece for piece in pieces)
    assert restore_tokenizer(tokenizer.stored).encode(TEXT) == ids


def test_bytes_that_are_no_text_are_replaced():
    tokenizer = load_tokenizer("bytes")
    assert tokenizer.decode([0xC3]) == "\ufffd"
    assert "".join(tokenizer.stream([65, 0xC3])) == "A\ufffd"


def test_a_learned_tokenizer_is_shorter_than_bytes():
    assert len(learned().encode("the cat sat on the mat")) < 15


def test_a_tokenizer_json_is_read_from_a_file_or_its_folder(tmp_path):
    (tmp_path / "tokenizer.json").write_text(learned().stored)
    for wanted in (tmp_path, tmp_path / "tokenizer.json"):
        assert load_tokenizer(str(wanted)).decode(load_tokenizer(str(wanted)).encode("the cat")) == "the cat"


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("nowhere.json", "there is no tokenizer"), ("bpe:100", "more than 256"), ("bpe:x", "more than 256")],
)
def test_what_is_no_tokenizer_is_refused(wanted, message):
    with pytest.raises(UserError, match=message):
        load_tokenizer(wanted)


def test_a_foreign_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "tokenizer.json"
    for content in (b"{}", b"\xff\xfe", b'{"model": '):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"is no tokenizer\.json"):
            load_tokenizer(str(path))
