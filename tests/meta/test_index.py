"""The generated index is what the package registers now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import regard
from regard import build_index, registry


@pytest.mark.slow
def test_the_index_is_up_to_date() -> None:
    code = "import sys; from regard.build_index import render; sys.stdout.write(render())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    index = Path(regard.__file__).with_name("_index.py").read_text(encoding="utf-8")
    assert ran.stdout == index, "the index is stale: run `python -m regard.build_index`"


def test_an_empty_index_is_an_error(monkeypatch) -> None:
    monkeypatch.setattr(registry, "collect_for_index", dict)
    with pytest.raises(RuntimeError, match="an empty index would hide every system"):
        build_index.render()


def test_a_stale_index_is_told_and_not_touched_by_check(monkeypatch, tmp_path, capsys) -> None:
    stale = tmp_path / "_index.py"
    stale.write_text("old")
    monkeypatch.setattr(build_index, "INDEX_FILE", stale)
    monkeypatch.setattr(build_index, "render", lambda: "new")
    monkeypatch.setattr(sys, "argv", ["build_index", "--check"])
    assert build_index.main() == 1
    assert "stale" in capsys.readouterr().out
    assert stale.read_text() == "old"
    monkeypatch.setattr(sys, "argv", ["build_index"])
    assert build_index.main() == 0
    assert stale.read_text() == "new"
    assert list(tmp_path.iterdir()) == [stale]


def test_an_unknown_argument_writes_nothing(monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(build_index, "INDEX_FILE", tmp_path / "_index.py")
    monkeypatch.setattr(sys, "argv", ["build_index", "--help"])
    assert build_index.main() == 2
    assert "unknown argument '--help'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
