from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from regard.errors import UserError
from regard.tasks.data_kind import kind_of
from regard.tasks.parallel_text import in_english, read_lines, read_parallel, sample_text


def write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        data = content.encode("utf-8")
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return folder


FOLDER = {
    "train.en": "one\ntwo\n\nfour\n",
    "train.de": "eins\nzwei\ndrei\nvier\n",
    "val.en": " a dog \n",
    "val.de": "ein Hund\n",
    "test_2016.en.gz": "a cat\r\nmice\r\n",
    "test_2016.de": "eine Katze\nMäuse",
    "README.md": "what this is",
    ".hidden.en": "no",
}


def test_parts_are_pairs_of_lines_with_empty_ones_left_out(tmp_path):
    text = read_parallel(write(tmp_path / "a", FOLDER), source="", target="")
    assert text.languages == ("en", "de")
    assert text.parts == {
        "train": [("one", "eins"), ("two", "zwei"), ("four", "vier")],
        "validation": [("a dog", "ein Hund")],
        "test": [("a cat", "eine Katze"), ("mice", "Mäuse")],
    }
    assert text.notes == ("train: 1 pair with an empty side left out",)
    assert kind_of(tmp_path / "a") == "translation"


def test_a_language_may_be_named(tmp_path):
    folder = write(tmp_path / "a", FOLDER)
    turned = read_parallel(folder, source="de", target="")
    assert turned.languages == ("de", "en")
    assert turned.parts["validation"] == [("ein Hund", "a dog")]
    assert read_parallel(folder, source="", target="en").languages == ("de", "en")
    more = write(tmp_path / "a", {"train.fr": "un\ndeux\ntrois\nquatre\n", "dev.fr": "un chien\n", "dev.en": "a dog\n"})
    with pytest.raises(UserError, match=r"has de, en, fr: name two with --set source=\.\.,target=\.\."):
        read_parallel(more, source="en", target="")
    french = read_parallel(more, source="en", target="fr")
    assert french.parts["validation"] == [("a dog", "un chien")]
    assert "test" not in french.parts


def test_without_validation_the_end_of_train_validates(tmp_path):
    lines = [f"line {number}" for number in range(60)]
    text = "\n".join(lines)
    found = read_parallel(write(tmp_path / "a", {"train.en": text, "train.de": text}), source="", target="")
    assert [source for source, _ in found.parts["train"]] == lines[:57]
    assert [source for source, _ in found.parts["validation"]] == lines[57:]
    assert found.notes == ("there is no validation pair: the last 3 pairs of train validate",)


def test_of_several_files_of_a_part_one_is_used_and_told(tmp_path):
    folder = write(tmp_path / "a", {**FOLDER, "test_2017.en": "x\n", "test_2017.de": "y\n"})
    found = read_parallel(folder, source="", target="")
    assert len(found.parts["test"]) == 2
    assert "test: test_2016 is used, and not test_2017" in found.notes


@pytest.mark.parametrize(
    ("files", "languages", "message"),
    [
        ({"train.en": "a\nb\n"}, ("", ""), "no pair of files such as train.en and train.de"),
        ({"notes.txt": "a\n"}, ("", ""), "no pair of files"),
        ({"notes.txt": "a\n"}, ("en", ""), r"no train\.en for the source: it has no file that begins with train"),
        ({"train.en": "a\n", "train.de": "b\n"}, ("", "fr"), r"no train\.fr for the target: it has de, en"),
        ({"train.en": "a\nb\n", "train.de": "c\n"}, ("", ""), r"train\.en has 2 lines and .*train\.de 1"),
        ({"train.en": "a\n", "train.de": "c\n"}, ("", ""), "too few pairs: at least 2 are needed"),
        ({"train.en": "\n\n", "train.de": "c\n\n"}, ("", ""), r"has no train\.en with a train\.de"),
        ({"train.1.en": "a\n", "train.2.de": "c\n"}, ("", ""), r"has no train\.en with a train\.de"),
    ],
)
def test_what_is_no_parallel_text_is_refused(tmp_path, files, languages, message):
    folder = write(tmp_path / "a", files)
    with pytest.raises(UserError, match=message):
        read_parallel(folder, source=languages[0], target=languages[1])


def test_what_is_no_folder_is_refused(tmp_path):
    for name in ("nothing", "file.en"):
        (tmp_path / "file.en").write_text("x")
        with pytest.raises(UserError, match=f"{name} is not a folder with files such as"):
            read_parallel(tmp_path / name, source="", target="")


def test_lines_are_those_of_the_file(tmp_path):
    path = tmp_path / "a.txt"
    for content, lines in {
        b"": [],
        b"\n": [""],
        b"one\n\n two ": ["one", "", "two"],
        "a\u2028b\x0bc\n".encode(): ["a\u2028b\x0bc"],
        gzip.compress(b"one\ntwo\n"): ["one", "two"],
    }.items():
        path.write_bytes(content)
        assert read_lines(path) == lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"good\nbad \xff\n", "is not UTF-8 text: byte 9 is wrong"),
        (gzip.compress(b"text " * 99)[:-9], "cannot read"),
        (gzip.compress(b"text " * 99)[:12] + b"\xff" * 30, "cannot read"),
        (b"\x1f\x8bnonsense", "cannot read"),
        (gzip.compress(b"\xff\xfe"), "is not UTF-8 text: byte 0 is wrong"),
    ],
    # gzip writes the time into its header: names made of the bytes would differ between workers
    ids=["wrong byte", "gzip cut short", "gzip overwritten", "no gzip", "wrong byte in gzip"],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "train.en.gz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        read_lines(path)
    assert str(refused.value).isprintable()
    assert "train.en.gz" in str(refused.value)


def test_a_folder_or_nothing_has_no_lines(tmp_path):
    for path in (tmp_path, tmp_path / "nothing", tmp_path / os.fsdecode(b"caf\xe9\n")):
        with pytest.raises(UserError, match="cannot read") as refused:
            read_lines(path)
        assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (0, "zero"),
        (7, "seven"),
        (13, "thirteen"),
        (20, "twenty"),
        (21, "twenty-one"),
        (99, "ninety-nine"),
        (100, "one hundred"),
        (101, "one hundred and one"),
        (340, "three hundred and forty"),
        (999, "nine hundred and ninety-nine"),
    ],
)
def test_numbers_have_their_english_names(number, name):
    assert in_english(number) == name


def test_the_sample_is_the_same_every_time_and_its_parts_are_apart():
    text = sample_text()
    assert text == sample_text()
    assert {part: len(pairs) for part, pairs in text.parts.items()} == {"train": 8000, "validation": 400, "test": 400}
    sources = [source for pairs in text.parts.values() for source, _ in pairs]
    assert len(set(sources)) == len(sources)
    for source, target in text.parts["test"]:
        assert target == ", ".join(in_english(int(number)) for number in source.split())
