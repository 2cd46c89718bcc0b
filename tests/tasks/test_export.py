from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from regard.errors import UserError
from regard.models.language.decoder import Decoder
from regard.models.vision.davit import DaViT
from regard.models.vision.mlp_mixer import MLPMixer
from regard.models.vision.vit import ViT
from regard.tasks import checkpoint
from regard.tasks import export as exporting
from regard.tasks.checkpoint import Checkpoint
from regard.tasks.classification import Classification, ClassificationSettings
from regard.tasks.export import export
from regard.tasks.translation import Translation

NETWORKS = {
    "davit": DaViT(replace(DaViT.SMALL, dims=(8,), num_heads=(2,), depths=(1,))),
    "vit": ViT(replace(ViT.SMALL, dim=16, num_heads=2, hidden=16, num_layers=1)),
    "mlp_mixer": MLPMixer(replace(MLPMixer.SMALL, dim=16, hidden=16, token_hidden=8, num_layers=1)),
}


def loaded(name: str, model: nn.Module | None = None) -> Checkpoint:
    task = Classification(ClassificationSettings())
    task.read(None)
    model = NETWORKS[name] if model is None else model
    return Checkpoint(checkpoint.header_of(task, name, model.config), task, model.eval())


def described(text: str) -> None:
    found = json.loads(text)
    assert found["facts"]["classes"] == [str(number) for number in range(10)]
    assert found["facts"]["shape"] == [1, 8, 8]
    assert len(found["facts"]["mean"]) == 1
    assert found["task"] == "classification"


@pytest.mark.parametrize("name", NETWORKS)
def test_onnx_gives_the_same_scores_for_any_number_of_rows(tmp_path, name):
    import onnx
    import onnxruntime

    given = loaded(name)
    made = export(given, tmp_path / "model.onnx", "onnx")
    assert made.files == (tmp_path / "model.onnx",)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    assert made.error <= 1e-4 * made.largest
    assert made.inputs == {"images": (0, 1, 8, 8)}
    session = onnxruntime.InferenceSession(str(made.files[0]), providers=["CPUExecutionProvider"])
    for rows in (1, 7):
        images = torch.randn(rows, 1, 8, 8)
        (scores,) = session.run(None, {"images": images.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(scores, given.model(images).numpy(), atol=1e-4)
    described({item.key: item.value for item in onnx.load(made.files[0]).metadata_props}["regard"])


@pytest.mark.parametrize("name", NETWORKS)
def test_an_exported_program_gives_the_same_scores_for_any_number_of_rows(tmp_path, name):
    given = loaded(name)
    made = export(given, tmp_path / "model.pt2", "torch-export")
    assert made.error <= 1e-5 * made.largest
    extra = {"regard.json": ""}
    program = torch.export.load(made.files[0], extra_files=extra).module()
    for rows in (1, 7):
        images = torch.randn(rows, 1, 8, 8)
        torch.testing.assert_close(program(images), given.model(images))
    described(extra["regard.json"])


@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
def test_language_models_are_exported_too(tmp_path, language, kind):
    model = Decoder(replace(Decoder.SMALL, dim=8, num_layers=1, num_heads=2, hidden=8, mixer="softmax")).eval()
    given = Checkpoint(checkpoint.header_of(language, "decoder_lm", model.config), language, model)
    made = export(given, tmp_path / f"model{exporting.SUFFIX[kind]}", kind)
    assert made.inputs == {"tokens": (0, 13)}
    assert made.error <= 1e-4 * made.largest


def test_what_cannot_be_exported_is_one_line_and_leaves_nothing(tmp_path):
    class Branches(MLPMixer):
        def forward(self, images):
            return super().forward(images) * (1 if images.sum() > 0 else 2)

    model = Branches(MLPMixer.SMALL)
    with pytest.raises(UserError, match="mlp_mixer cannot be exported to torch-export: ") as refused:
        export(loaded("mlp_mixer", model), tmp_path / "model.pt2", "torch-export")
    assert "\n" not in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_other_scores_are_refused(tmp_path, monkeypatch):
    def load(path: Path):
        run = exporting._load_program(path)
        return lambda inputs: run(inputs) + 1

    monkeypatch.setitem(exporting._WAYS, "torch-export", (exporting._write_program, load))
    with pytest.raises(UserError, match="vit gives other scores after its export to torch-export: they differ by 1"):
        export(loaded("vit"), tmp_path / "model.pt2", "torch-export")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_library_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "find_spec", lambda name: None if name == "onnxscript" else name)
    with pytest.raises(UserError, match=r"ONNX needs onnxscript: pip install 'regard\[export\]'"):
        export(loaded("vit"), tmp_path / "model.onnx", "onnx")


def test_tasks_without_an_example_say_so():
    task = Translation(Translation.Settings())
    with pytest.raises(UserError, match="networks for translation are not exported"):
        task.example(2)


def test_scores_that_are_no_numbers_are_refused(tmp_path):
    model = ViT(NETWORKS["vit"].config)
    with torch.no_grad():
        model.head.weight.fill_(torch.nan)
    with pytest.raises(UserError, match="vit gives other scores after its export to torch-export: they differ by nan"):
        export(loaded("vit", model), tmp_path / "model.pt2", "torch-export")
    assert list(tmp_path.iterdir()) == []
