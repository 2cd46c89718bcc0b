"""`regard export`: a file for other programs, or one line that says why not."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from regard.models.vision.davit import DaViT
from regard.tasks import checkpoint
from regard.tasks import export as exporting
from regard.tasks.classification import Classification, ClassificationSettings


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trained() -> DaViT:
    """A network in the folder `run`, trained on the digits, as it were."""
    task = Classification(ClassificationSettings())
    task.read(None)
    model = DaViT(replace(DaViT.SMALL, dims=(8,), num_heads=(2,), depths=(1,))).eval()
    Path("run").mkdir()
    header = checkpoint.header_of(task, "davit", model.config)
    checkpoint.save(Path("run/model.safetensors"), header, model.state_dict())
    return model


@pytest.mark.parametrize(("kind", "name"), [("onnx", "model.onnx"), ("torch-export", "model.pt2")])
def test_a_checkpoint_is_exported_beside_itself(regard, trained, kind, name):
    ran = regard("export", "run", "--format", kind)
    assert ran.status == 0, ran.err
    assert ran.out.startswith("input images (rows, 1, 8, 8)\noutput scores (rows, 10)\n")
    found = re.search(r"largest error on random inputs (\S+), of scores up to (\S+)\n", ran.out)
    assert found is not None
    assert float(found[1]) < 1e-4 * float(found[2])
    assert re.search(rf"run/{re.escape(name)} \([\d.]+ KiB\)\n$", ran.out)
    assert sorted(os.listdir("run")) == sorted(["model.safetensors", name])
    assert "Traceback" not in ran.err


def test_the_size_of_images_may_be_another(regard, trained):
    ran = regard("export", "run", "--format", "torch-export", "--out", "larger.pt2", "--image-size", "12")
    assert ran.status == 0, ran.err
    images = torch.randn(2, 1, 12, 12)
    torch.testing.assert_close(torch.export.load("larger.pt2").module()(images), trained(images))


WRONG = {
    "no checkpoint": (("nothing",), r"there is no checkpoint nothing"),
    "format": (("run", "--format", "tflite"), r"--format must be onnx or torch-export or transformers, got tflite"),
    "no folder": (("run", "--out", "no/a.onnx"), r"cannot write no/a\.onnx: there is no folder no"),
    "a folder": (("run", "--out", "run"), r"cannot write run: it is a folder"),
    "itself": (
        ("run/model.safetensors", "--out", "run/model.safetensors"),
        r"--out run/model\.safetensors is the checkpoint itself: name another file",
    ),
    "size": (("run", "--image-size", "0"), r"--image-size must be from 1 to 8,192, got 0"),
}


@pytest.mark.parametrize(("arguments", "line"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_one_line(refused, trained, arguments, line):
    said = refused("export", *arguments)
    assert re.fullmatch(f"regard export: {line}", said), said
    assert os.listdir("run") == ["model.safetensors"]


def test_a_missing_extra_is_one_line(refused, trained, monkeypatch):
    monkeypatch.setattr(exporting, "find_spec", lambda _: None)
    assert refused("export", "run") == "regard export: ONNX needs onnx: pip install 'regard[export]'"
    assert os.listdir("run") == ["model.safetensors"]


def test_help_has_examples(regard):
    ran = regard("export", "--help")
    assert ran.status == 0
    assert "examples:\n  regard export runs/photos --format onnx" in ran.out
    assert re.search(r"\n  export +write a checkpoint for other programs", regard("--help").out)
