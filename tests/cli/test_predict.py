"""`regard predict`: result files beside the inputs, never in their place."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import pytest
import torch
from odd_images import BAD, write_odd
from tiny_images import paint, write_images
from tiny_translation import read_pairs, tiny_network, write_pairs

from regard.models.language.decoder import Decoder, DecoderConfig
from regard.registry import get_class
from regard.tasks import checkpoint
from regard.tasks.classification import Classification, ClassificationSettings
from regard.tasks.language import Language, LanguageSettings
from regard.tasks.networks import configure


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def save(task, name: str, model: torch.nn.Module) -> None:
    Path("run").mkdir()
    path = Path("run/model.safetensors")
    checkpoint.save(path, checkpoint.header_of(task, name, model.config), model.state_dict())


@pytest.fixture
def language(tmp_path) -> None:
    (tmp_path / "text.txt").write_text("the dog sleeps and the fox runs\n" * 30)
    task = Language(LanguageSettings(length=16))
    task.read(tmp_path / "text.txt", cache=tmp_path)
    save(task, "decoder_lm", Decoder(DecoderConfig(dim=8, num_layers=1, num_heads=2, hidden=8, mixer="lightning")))


@pytest.fixture
def translation(tmp_path) -> None:
    task = read_pairs(write_pairs(tmp_path / "pairs"), beams=1, max_length=30)
    save(task, "ed_seq2seq", tiny_network(**task.model_fields()))


@pytest.fixture
def images(tmp_path) -> None:
    task = Classification(ClassificationSettings(image_size=16))
    task.read(write_images(tmp_path / "photos", {"cats": 3, "dogs": 3}))
    config = configure("ninformer", "ninformer_classifier", task.model_fields(), {})
    save(task, "ninformer_classifier", get_class("ninformer_classifier")(config))


def test_text_gets_bits_and_continuations(regard, language):
    Path("in.txt").write_text("the dog\n\nthe fox\n")
    ran = regard("predict", "run", "in.txt", "--out", "new/out", "--device", "cpu")
    assert ran.status == 0, ran.err
    assert ran.out == "new/out/in.txt.predicted.jsonl\n"
    assert os.listdir("new/out") == ["in.txt.predicted.jsonl"]
    rows = [json.loads(line) for line in Path("new/out/in.txt.predicted.jsonl").read_text().splitlines()]
    assert [row["text"] for row in rows] == ["the dog", "the fox"]
    assert all(row["bits_per_byte"] > 0 for row in rows)
    assert Path("in.txt").read_text() == "the dog\n\nthe fox\n"


def test_lines_are_translated(regard, translation):
    Path("in.txt").write_text("the dog\n\na cat\n")
    ran = regard("predict", "run", "in.txt", "--out", ".", "--device", "cpu")
    assert ran.status == 0, ran.err
    assert ran.out == "in.de.txt\n"
    lines = Path("in.de.txt").read_text().split("\n")
    assert lines[1] == ""
    first = Path("in.de.txt").read_bytes()
    # what was predicted before is replaced
    Path("in.de.txt").write_text("old")
    assert regard("predict", "run", "in.txt", "--out", ".", "--device", "cpu").status == 0
    assert Path("in.de.txt").read_bytes() == first


def test_images_become_one_table(regard, images, tmp_path):
    paint(Path("one.png"), size=(20, 20))
    ran = regard("predict", "run", "one.png", str(tmp_path / "photos/dogs"), "--out", "out", "--device", "cpu")
    assert ran.status == 0, ran.err
    assert ran.out == "out/predictions.csv\nout/predictions.html\n"
    assert sorted(os.listdir("out")) == ["predictions.csv", "predictions.html"]
    rows = read_rows()
    assert [Path(row["file"]).name for row in rows] == ["one.png", "0.png", "1.png", "2.png"]
    assert {row["class"] for row in rows} <= {"cats", "dogs"}


def read_rows() -> list[dict[str, str]]:
    with Path("out/predictions.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_page_shows_every_image_and_what_was_skipped(regard, images, tmp_path):
    paint(Path("<b>one</b>.png"), size=(20, 20))
    good = write_odd(Path(), "3x5000")
    bad = [write_odd(Path(), name) for name in BAD]
    ran = regard("predict", "run", "<b>one</b>.png", str(good), *map(str, bad), "--out", "out", "--device", "cpu")
    assert ran.status == 0, ran.err
    assert [line for line in ran.out.splitlines() if line.startswith("skipped: ")] == [
        f"skipped: {path} {row['problem']}" for path, row in zip(bad, read_rows()[2:], strict=True)
    ]
    page = Path("out/predictions.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert "&lt;b&gt;one&lt;/b&gt;.png" in page
    assert "<b>one" not in page
    assert "is not an image" in page
    assert len(page) < 200_000


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_refused_in_one_line_where_that_is_asked_for(refused, images, name):
    paint(Path("one.png"), size=(20, 20))
    bad = write_odd(Path(), name)
    said = refused("predict", "run", "one.png", str(bad), "--out", "out", "--on-bad-image", "refuse", "--device", "cpu")
    assert re.fullmatch(f"regard predict: {bad} {BAD[name]}.*", said), said
    assert not Path("out").exists()


def test_options_for_images_are_refused_elsewhere(refused, translation):
    Path("in.txt").write_text("the dog\n")
    said = refused("predict", "run", "in.txt", "--out", "out", "--on-bad-image", "skip")
    assert said == "regard predict: --on-bad-image is for images, and this network is for translation"
    said = refused("predict", "run", "in.txt", "--out", "out", "--image-size", "9")
    assert said == "regard predict: translation has no images whose size could be chosen"


def test_a_size_that_the_network_does_not_take_is_one_line(refused, images):
    paint(Path("one.png"), size=(20, 20))
    said = refused("predict", "run", "one.png", "--out", "out", "--image-size", "20")
    assert said.startswith("regard predict: this network takes images of 16 pixels per side, not 20: ")


def test_an_input_is_never_replaced(refused, translation):
    Path("in.txt").write_text("the dog\n")
    Path("in.de.txt").write_text("mine\n")
    said = refused("predict", "run", "in.txt", "in.de.txt", "--out", ".", "--device", "cpu")
    assert said == "regard predict: in.de.txt is one of the inputs: name another --out"
    assert Path("in.de.txt").read_text() == "mine\n"
    assert sorted(os.listdir()) == ["in.de.txt", "in.txt", "run"]


def test_a_file_of_a_folder_that_is_read_is_never_replaced(refused, images, tmp_path):
    photos = tmp_path / "photos"
    (photos / "predictions.csv").write_text("mine")
    said = refused("predict", "run", str(photos), "--out", str(photos), "--device", "cpu")
    assert said.endswith("predictions.csv is one of the inputs: name another --out")
    assert (photos / "predictions.csv").read_text() == "mine"


def test_two_inputs_of_one_name_are_refused_and_nothing_is_written(refused, translation):
    for name in ("a", "b"):
        Path(name).mkdir()
        Path(name, "in.txt").write_text(f"{name}\n")
    said = refused("predict", "run", "a/in.txt", "b/in.txt", "--out", "out", "--device", "cpu")
    assert said == "regard predict: two inputs would both become out/in.de.txt: predict them into different folders"
    assert not Path("out").exists()


def test_a_bad_input_among_good_ones_leaves_nothing(refused, translation):
    Path("good.txt").write_text("the dog\n")
    Path("bad.txt").write_bytes(b"caf\xe9\n")
    said = refused("predict", "run", "good.txt", "bad.txt", "--out", "out", "--device", "cpu")
    assert said == "regard predict: bad.txt is not UTF-8 text: byte 3 is wrong"
    assert not Path("out").exists()


WRONG = {
    "no input": (("run", "nothing.txt", "--out", "out"), r"there is no file nothing\.txt"),
    "inputs missing": (("run", "--out", "out"), r"missing INPUTS"),
    "out missing": (("run", "in.txt"), r"missing --out"),
    "no checkpoint": (("nothing", "in.txt", "--out", "out"), r"there is no checkpoint nothing"),
    "a folder as checkpoint": ((".", "in.txt", "--out", "out"), r"there is no checkpoint model\.safetensors"),
    "text as checkpoint": (("in.txt", "in.txt", "--out", "out"), r"in\.txt is no safetensors file, .*"),
    "out is a file": (("run", "in.txt", "--out", "in.txt"), r"cannot write in in\.txt: File exists"),
    "out below a file": (("run", "in.txt", "--out", "in.txt/x"), r"cannot write in in\.txt/x: Not a directory"),
    "out cannot be": (("run", "in.txt", "--out", "/proc/nowhere"), r"cannot write in /proc/nowhere: .*"),
    "out is closed": (("run", "in.txt", "--out", "/proc"), r"cannot write in /proc: .*"),
    "a folder as text": (("run", "run", "--out", "out"), r"cannot read run: .*"),
    "device": (("run", "in.txt", "--out", "out", "--device", "tpu"), r"--device must be auto or cpu or cuda, got tpu"),
}


@pytest.mark.parametrize(("arguments", "line"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line(refused, translation, arguments, line):
    Path("in.txt").write_text("the dog\n")
    said = refused("predict", *arguments)
    assert re.fullmatch(f"regard predict: {line}", said), said
    assert Path("in.txt").read_text() == "the dog\n"
    assert not Path("out").exists()


def test_a_line_that_is_too_long_is_one_line(refused, translation):
    Path("in.txt").write_text("a\n" + "x" * 99 + "\n")
    said = refused("predict", "run", "in.txt", "--out", "out")
    assert said == "regard predict: in.txt, line 2 has 99 tokens: fewer than 30 fit"


def test_help_has_examples(regard):
    ran = regard("predict", "--help")
    assert ran.status == 0
    assert "examples:\n  regard predict " in ran.out
