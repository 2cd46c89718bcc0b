from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from regard.errors import UserError
from regard.tasks import text_files
from regard.tasks.text_files import files_below, gather_text, standard_library, why_not_text


def test_a_file_is_read_whole_and_ends_with_a_line(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntwo")
    gathered = gather_text(tmp_path / "a.txt")
    assert gathered.parts == [b"one\ntwo\n"]
    assert (gathered.size, gathered.files, gathered.cut) == (8, 1, False)
    assert gathered.passed_over() == ""


def test_a_folder_is_read_in_the_order_of_names_without_hidden_and_binary_files(tmp_path):
    for name, content in {
        "b/two.txt": b"two\n",
        "a/one.txt": b"one",
        "a/.hidden": b"hidden",
        ".git/config": b"config",
        "c/binary.bin": b"a\0b",
        "c/latin.txt": b"caf\xe9",
        "c/empty.txt": b"",
        "d.txt": b"last " * 50,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(content)
    os.mkfifo(tmp_path / "pipe")
    gathered = gather_text(tmp_path)
    assert gathered.parts == [b"last " * 50 + b"\n", b"one\n", b"two\n"]
    assert gathered.files == 3
    assert gathered.passed_over() == "1 file hidden, 3 files binary or not UTF-8"


def test_links_in_circles_end(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "round").symlink_to(tmp_path)
    assert gather_text(tmp_path).parts == [b"words\n"]


def test_the_standard_library_comes_without_its_tests():
    gathered = standard_library()
    content = b"".join(gathered.parts)
    assert len(content) == gathered.size > 2**20
    assert b"class TestCase" in content
    assert b"class TestStat(" not in content
    assert why_not_text(content) == ""
    assert gathered == standard_library()


def test_a_python_without_its_sources_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(UserError, match=r"this Python has no sources of its standard library .*: give --data"):
        standard_library()


def test_more_text_than_the_limit_is_cut_where_a_character_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_BYTES", 100)
    path = tmp_path / "euros.txt"
    path.write_text("€" * 90, encoding="utf-8")
    gathered = gather_text(path)
    assert b"".join(gathered.parts).decode("utf-8") == "€" * 33 + "\n"
    assert gathered.cut


@pytest.mark.parametrize(("length", "cut"), [(99, False), (100, False), (101, True)])
def test_a_file_that_just_fits_is_not_cut(tmp_path, monkeypatch, length, cut):
    monkeypatch.setattr(text_files, "MAX_BYTES", 100)
    (tmp_path / "a.txt").write_bytes(b"x" * length)
    gathered = gather_text(tmp_path / "a.txt")
    assert gathered.cut is cut
    assert gathered.size == 100


def test_a_folder_beyond_the_limit_is_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MAX_BYTES", 100)
    for name in "abc":
        (tmp_path / name).write_text(name * 60)
    gathered = gather_text(tmp_path)
    assert b"".join(gathered.parts) == b"a" * 60 + b"\n" + b"b" * 39
    assert gathered.cut


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"PNG\0\x01" * 99, "is not UTF-8 text: byte 3 is zero"),
        (b"caf\xe9 " * 99, "is not UTF-8 text: byte 3 is 0xe9"),
        ("wide".encode("utf-16") * 9, "the mark of UTF-16"),
    ],
)
def test_bad_files(tmp_path, content, message):
    path = tmp_path / "bad"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        gather_text(path)


def test_what_is_not_there_or_not_a_file(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"there is no file or folder .*/nothing"):
        gather_text(tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"cannot read"):
        gather_text(tmp_path / "file" / "below")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match=r"neither a file nor a folder"):
        gather_text(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(tmp_path)
        server.bind("socket")
        with pytest.raises(UserError, match=r"neither a file nor a folder"):
            gather_text(tmp_path / "socket")


def test_a_folder_without_text_says_what_it_passed_over(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "x.bin").write_bytes(b"\0")
    with pytest.raises(UserError, match=r"has no text in it \(passed over: 1 file binary or not UTF-8\)"):
        gather_text(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_data(tmp_path):
    path = tmp_path / "secret"
    path.write_text("x")
    path.chmod(0)
    with pytest.raises(UserError, match=r"cannot read .*Permission denied"):
        gather_text(path)


def test_unreadable_files_are_told_in_one_line(tmp_path, monkeypatch):
    (tmp_path / "secret").write_text("x")
    (tmp_path / "open").write_text("y")
    real = Path.open

    def refuse(self, *arguments, **options):
        if self.name == "secret":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"cannot read .*secret: Permission denied"):
        gather_text(tmp_path / "secret")
    gathered = gather_text(tmp_path)
    assert gathered.parts == [b"y\n"]
    assert gathered.passed_over() == "1 file unreadable"


def test_hostile_names_are_made_harmless(tmp_path):
    path = tmp_path / os.fsdecode(b"evil\xff\x1b[31m\nname<script>")
    path.write_bytes(b"\0")
    with pytest.raises(UserError) as caught:
        gather_text(path)
    assert str(caught.value).isprintable()


def test_files_come_in_the_order_of_their_paths(tmp_path):
    for name in ("b", "a/z", "a/b/c", "c"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("x")
    seen = text_files.GatheredText()
    found = [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path, seen)]
    assert found == ["b", "c", "a/z", "a/b/c"]
