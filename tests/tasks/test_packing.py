from __future__ import annotations

import json

import numpy as np
import pytest

from regard.errors import UserError
from regard.tasks import packing
from regard.tasks.packing import find_sources, pack, pieces
from regard.tasks.tokenizers import load_tokenizer

BYTES = load_tokenizer("bytes")


def test_a_file_larger_than_a_piece_is_packed_whole_and_memory_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "PIECE", 64)
    content = "".join(f"line {number}: Grüße 世界\n" for number in range(200))
    (tmp_path / "a.txt").write_text(content, encoding="utf-8")
    ids = pack(find_sources(tmp_path / "a.txt"), BYTES, tmp_path)
    assert isinstance(ids, np.memmap)
    assert ids.tobytes() == content.encode()


def test_a_file_without_line_breaks_is_cut_between_characters(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "PIECE", 64)
    (tmp_path / "a.txt").write_text("世界ü" * 500, encoding="utf-8")
    assert "".join(pieces(find_sources(tmp_path / "a.txt"))) == "世界ü" * 500 + "\n"


def test_a_folder_is_read_in_the_order_of_names_without_what_is_no_text(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.txt").write_text("second")
    (folder / "a.jsonl").write_text(json.dumps({"text": "first"}) + "\n\n")
    (folder / "sub" / "c.txt").write_text("third\n")
    (folder / "image.bin").write_bytes(b"\0\1")
    (folder / ".hidden").write_text("no")
    sources = find_sources(folder)
    assert "".join(pieces(sources)) == "first\nsecond\nthird\n"
    assert sources.notes == ("passed over: 1 file hidden, 1 file binary or not UTF-8",)


def test_ids_of_a_large_vocabulary_take_two_bytes(tmp_path):
    (tmp_path / "a.txt").write_text("the cat sat on the mat\n" * 50)
    sources = find_sources(tmp_path / "a.txt")
    tokenizer = load_tokenizer("bpe:290", pieces(sources))
    ids = pack(sources, tokenizer, tmp_path)
    assert ids.dtype == np.uint16
    assert tokenizer.decode(ids.tolist()) == "the cat sat on the mat\n" * 50


def test_what_was_packed_is_taken_as_it_is_until_the_file_changes(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("one\n")
    first = pack(find_sources(path), BYTES, tmp_path)
    again = pack(find_sources(path), BYTES, tmp_path)
    assert first.filename == again.filename
    path.write_text("two two\n")
    assert pack(find_sources(path), BYTES, tmp_path).tobytes() == b"two two\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", b"ab\0c", "is not UTF-8 text: byte 2 is zero"),
        ("a.jsonl", b'{"text": "a"}\n{"title": "b"}\n', "line 2: not a JSON object with a"),
        ("a.jsonl", b"[1]\n", "line 1"),
    ],
)
def test_files_that_are_no_text_are_refused_by_name(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        pack(find_sources(path), BYTES, tmp_path)


def test_bytes_that_are_wrong_far_into_a_file_are_found_and_nothing_half_packed_stays(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "PIECE", 64)
    path = tmp_path / "a.txt"
    path.write_bytes(b"good line\n" * 50 + b"\xff\n")
    with pytest.raises(UserError, match="is not UTF-8"):
        pack(find_sources(path), BYTES, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]


def test_missing_files_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file or folder"):
        find_sources(tmp_path / "no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no text in it"):
        find_sources(tmp_path / "empty")
