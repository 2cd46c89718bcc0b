from __future__ import annotations

import pytest

from regard.errors import UserError
from regard.tasks.data_kind import kind_of

FILES = {
    "a.txt": ("x", "language"),
    "a.jsonl": ("{}", "language"),
    "a.csv": ("date,a,b\n", "forecasting"),
    "e.csv": ("sequence,time,mark\n", "events"),
    "c.csv": ("series,time,label,x\n", "series_classification"),
    "a.ts": ("@data", "series_classification"),
    "a.npz": ("", "control"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_known_by_suffix_and_header(tmp_path, name):
    content, kind = FILES[name]
    (tmp_path / name).write_text(content)
    assert kind_of(tmp_path / name) == kind


FOLDERS = {
    "series_classification": ["X_TRAIN.ts", "X_TEST.ts"],
    "translation": ["train.en.gz", "train.de.gz", "val.en", "val.de"],
    "classification": ["cat/1.jpg", "dog/2.PNG"],
    "language": ["a.txt", "b/c.md", "notes.en"],
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_folders_are_known_by_what_is_in_them(tmp_path, kind):
    for name in FOLDERS[kind]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert kind_of(tmp_path) == kind


def test_a_pair_of_idx_files_is_images(tmp_path):
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (tmp_path / name).write_text("x")
    assert kind_of(tmp_path) == "classification"


def test_nothing_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no file or folder"):
        kind_of(tmp_path / "no")
