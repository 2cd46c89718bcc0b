"""Writing is all or nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from regard import files
from regard.files import folder_for, write_atomically


def test_text_and_bytes_are_written(tmp_path) -> None:
    write_atomically(tmp_path / "a.txt", "größer\n")
    assert (tmp_path / "a.txt").read_bytes() == "größer\n".encode()
    write_atomically(str(tmp_path / "a.txt"), b"\x00\x01")
    assert (tmp_path / "a.txt").read_bytes() == b"\x00\x01"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_the_file_has_ordinary_permissions(tmp_path) -> None:
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "a", "x")
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch) -> None:
    target = tmp_path / "a"
    target.write_text("old")

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_an_interruption_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch) -> None:
    target = tmp_path / "a"
    target.write_text("old")

    def interrupted(*_) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "chmod", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(target, "new")
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_missing_folder_is_an_error(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "nowhere" / "a", "x")
    assert not (tmp_path / "nowhere").exists()


def test_a_folder_is_not_replaced(tmp_path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match=r"."):
        write_atomically(tmp_path / "folder", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
    assert not list(Path(tmp_path / "folder").iterdir())


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_folder_for_what_fails_goes_again_unless_it_holds_something(tmp_path, error) -> None:
    def write(folder, name=None) -> None:
        with folder_for(folder):
            if name is not None:
                (folder / name).write_text("half")
            raise error

    with pytest.raises(error):
        write(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    with pytest.raises(error):
        write(tmp_path)
    with pytest.raises(error):
        write(tmp_path / "a" / "b", "c")
    assert (tmp_path / "a" / "b" / "c").read_text() == "half"
    with pytest.raises(FileExistsError), folder_for(tmp_path / "a" / "b" / "c"):
        pass
