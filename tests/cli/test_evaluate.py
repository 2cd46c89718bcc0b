"""`regard evaluate`: metrics of a checkpoint, as lines, as JSON and as a page."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_images import write_images

from regard.models.language.decoder import Decoder, DecoderConfig
from regard.models.vision.davit import DaViT
from regard.tasks import checkpoint
from regard.tasks.classification import Classification, ClassificationSettings
from regard.tasks.evaluation import evaluate
from regard.tasks.language import Language, LanguageSettings
from regard.tasks.runs import Wishes, write_wishes


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the dog sleeps and the fox runs\n" * 30)
    return path


@pytest.fixture
def trained(text, tmp_path) -> tuple[Language, Decoder]:
    """A network in the folder `run`, trained on that text, as it were."""
    config = DecoderConfig(dim=8, num_layers=1, num_heads=2, hidden=8, mixer="lightning")
    task = Language(LanguageSettings(length=16, evaluation_tokens=64))
    task.read(text, cache=tmp_path)
    model = Decoder(config).eval()
    Path("run").mkdir()
    checkpoint.save(Path("run/model.safetensors"), checkpoint.header_of(task, "decoder_lm", config), model.state_dict())
    write_wishes(Path("run"), Wishes(system="lightning", task=None, data=str(text), settings={}, recipe={}))
    return task, model


@pytest.mark.parametrize("where", ["run", "run/model.safetensors"])
def test_the_data_of_the_run_are_measured(regard, trained, text, where):
    ran = regard("evaluate", where, "--device", "cpu")
    assert ran.status == 0, ran.err
    metrics = evaluate(*trained, "validation", 16)
    assert f"data: {text}" in ran.out
    expected = f"validation: bits_per_byte {metrics['bits_per_byte']:.4g}, perplexity {metrics['perplexity']:.4g}\n"
    assert expected in ran.out
    assert "all:" not in ran.out
    assert "Perplexity by length of the window" in ran.out
    assert sorted(os.listdir("run")) == ["model.safetensors", "run.json"]


def test_json_has_the_exact_figures(regard, trained):
    ran = regard("evaluate", "run", "--json", "metrics.json", "--part", "all", "--batch", "3", "--device", "cpu")
    assert ran.status == 0, ran.err
    found = json.loads(Path("metrics.json").read_text())
    assert list(found) == ["all"]
    assert found["all"] == pytest.approx(evaluate(*trained, "all", 3))


def test_other_data_are_measured_where_they_are_named(regard, trained, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("0123456789\n" * 20)
    ran = regard("evaluate", "run", "--data", str(other), "--json", "metrics.json", "--device", "cpu")
    assert ran.status == 0, ran.err
    assert f"data: {other}" in ran.out
    task, model = trained
    task.read(other, cache=tmp_path)
    assert json.loads(Path("metrics.json").read_text())["validation"] == pytest.approx(
        evaluate(task, model, "validation", 16)
    )


def test_out_is_a_page(regard, trained):
    ran = regard("evaluate", "run", "--out", "a/b", "--device", "cpu")
    assert ran.status == 0, ran.err
    assert ran.out.endswith("a/b/report.html\n")
    page = Path("a/b/report.html").read_text()
    assert "decoder_lm on language" in page
    assert "Continued from the start of the validation text" in page


def damage_run() -> None:
    Path("run/run.json").write_text("{broken")


def truncate() -> None:
    path = Path("run/model.safetensors")
    path.write_bytes(path.read_bytes()[:500])


def foreign() -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(1)}, "run/model.safetensors")


WRONG = {
    "no checkpoint": (("nothing.safetensors",), r"there is no checkpoint nothing\.safetensors", None),
    "a folder without one": ((".",), r"there is no checkpoint model\.safetensors", None),
    "not a checkpoint": (("run/run.json",), r"run/run\.json is no safetensors file, or a damaged one: .*", None),
    "truncated": (("run",), r"run/model\.safetensors is no safetensors file, or a damaged one: .*", truncate),
    "foreign": (("run",), r"run/model\.safetensors is a safetensors file that .* did not write.*", foreign),
    "a damaged run": (("run",), r"cannot resume from run/run\.json: .*", damage_run),
    "missing": ((), r"missing CHECKPOINT", None),
    "no data": (("run", "--data", "nothing"), r"there is no file or folder nothing", None),
    "part": (("run", "--part", "test"), r"--part must be one of validation, all, got test", None),
    "batch": (("run", "--batch", "0"), r"--batch must be at least 1, got 0", None),
    "batch in words": (("run", "--batch", "some"), r"--batch must be a whole number, got some", None),
    "device": (("run", "--device", "tpu"), r"--device must be auto or cpu or cuda, got tpu", None),
    "json is a folder": (("run", "--json", "run"), r"cannot write run: it is a folder", None),
    "json in no folder": (("run", "--json", "no/m.json"), r"cannot write no/m\.json: there is no folder no", None),
    "argument": (("run", "--dat", "x"), r"unknown argument --dat; did you mean --data\?", None),
}


@pytest.mark.parametrize(("arguments", "line", "harm"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line(refused, trained, arguments, line, harm):
    if harm is not None:
        harm()
    said = refused("evaluate", *arguments)
    assert re.fullmatch(f"regard evaluate: {line}", said), said
    assert os.listdir() == ["run"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(refused, trained):
    assert refused("evaluate", "run", "--device", "cuda") == "regard evaluate: --device cuda: torch sees no GPU here"


def test_text_that_is_too_short_is_one_line(refused, trained, tmp_path):
    (tmp_path / "short.txt").write_text("too short")
    said = refused("evaluate", "run", "--data", str(tmp_path / "short.txt"))
    assert "has 10 tokens, and one window of 16 for training and one for validation need 34" in said


def test_an_out_that_is_a_file(regard, trained):
    Path("file").write_text("mine")
    ran = regard("evaluate", "run", "--out", "file", "--device", "cpu")
    assert (ran.status, ran.err) == (2, "regard evaluate: cannot write in file: File exists\n")
    assert Path("file").read_text() == "mine"


def test_help_has_examples(regard):
    ran = regard("evaluate", "--help")
    assert ran.status == 0
    assert "examples:\n  regard evaluate runs/first/model.safetensors\n" in ran.out


@pytest.fixture
def classifier(tmp_path) -> tuple[Classification, torch.nn.Module]:
    """A network for images in the folder `pictures`."""
    task = Classification(ClassificationSettings(image_size=8))
    task.read(write_images(tmp_path / "photos", {"cats": 5, "dogs": 6}))
    model = DaViT(replace(DaViT.SMALL, in_channels=3, num_classes=2, dims=(8, 16), num_heads=(2, 2))).eval()
    Path("pictures").mkdir()
    header = checkpoint.header_of(task, "davit", model.config)
    checkpoint.save(Path("pictures/model.safetensors"), header, model.state_dict())
    write_wishes(
        Path("pictures"), Wishes(system="davit", task=None, data=str(tmp_path / "photos"), settings={}, recipe={})
    )
    return task, model


def test_images_have_accuracy_calibration_and_a_confusion_table(regard, classifier):
    ran = regard("evaluate", "pictures", "--device", "cpu", "--json", "m.json", "--out", "page")
    assert ran.status == 0, ran.err
    found = json.loads(Path("m.json").read_text())
    assert list(found) == ["validation", "train"]
    assert list(found["validation"]) == ["accuracy", "loss", "calibration_error"]
    for title in ("Confusion on validation", "Accuracy by class on validation", "Calibration on validation"):
        assert title in ran.out
    page = Path("page/report.html").read_text()
    assert "Reliability on validation" in page
    assert os.listdir("page") == ["report.html"]


def test_images_of_another_size_and_bad_ones(regard, refused, classifier, tmp_path):
    (tmp_path / "photos" / "cats" / "bad.jpg").write_text("no image")
    arguments = ("evaluate", "pictures", "--device", "cpu", "--part", "all", "--image-size", "12", "--out", "page")
    ran = regard(*arguments, "--json", "m.json")
    assert ran.status == 0, ran.err
    assert "12 by 12 pixels" in ran.out
    assert "note: 1 file skipped: cats/bad.jpg (is not an image)" in ran.out
    assert Path("page/bad_files.csv").read_text() == "file,problem\ncats/bad.jpg,is not an image\n"
    task, model = classifier
    task.resize(model, 12)
    task.read(tmp_path / "photos")
    assert json.loads(Path("m.json").read_text())["all"] == pytest.approx(evaluate(task, model, "all", 16))
    said = refused(*arguments, "--on-bad-image", "refuse")
    assert said.endswith("photos has 1 file that cannot be used: cats/bad.jpg (is not an image)")


def test_long_tables_are_cut_off_on_the_terminal(regard, tmp_path):
    names = {f"c{number:02}": 2 for number in range(45)}
    task = Classification(ClassificationSettings(image_size=8))
    task.read(write_images(tmp_path / "many", names, size=100))
    model = DaViT(replace(DaViT.SMALL, in_channels=3, num_classes=45, dims=(8, 16), num_heads=(2, 2))).eval()
    Path("many").mkdir()
    header = checkpoint.header_of(task, "davit", model.config)
    checkpoint.save(Path("many/model.safetensors"), header, model.state_dict())
    ran = regard("evaluate", "many", "--data", str(tmp_path / "many"), "--device", "cpu", "--out", "page")
    assert ran.status == 0, ran.err
    assert "and 5 more rows: --out writes a page with all of them" in ran.out
    assert "top5_accuracy" in ran.out
    page = Path("page/report.html").read_text()
    assert "heat-map-0" in page
    assert "c44" in page
