"""Networks by name with weights from files, and from a hub that is not asked here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import regard
from regard.errors import UserError
from regard.registry import UnknownSystemError

SMALL: dict[str, Any] = {"dims": (24, 48, 96, 192), "num_classes": 5}


@pytest.fixture
def published(tmp_path: Path) -> tuple[torch.nn.Module, Path]:
    """timm's network and a file that it wrote."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("davit_tiny", embed_dims=SMALL["dims"], num_classes=5).eval()
    path = tmp_path / "davit.safetensors"
    save_file(theirs.state_dict(), path)
    return theirs, path


def test_fresh_weights_and_options() -> None:
    model = regard.create_model("davit_tiny", **SMALL)
    assert model(torch.randn(2, 3, 32, 40)).shape == (2, 5)
    assert model.config.depths == (1, 1, 3, 1)


def test_a_published_file_gives_the_same_answers(published: tuple[torch.nn.Module, Path]) -> None:
    theirs, path = published
    model = regard.create_model("davit_tiny", pretrained=path, **SMALL).eval()
    images = torch.randn(4, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(model(images), theirs(images), rtol=1e-4, atol=1e-5)
        assert torch.equal(model(images).argmax(dim=1), theirs(images).argmax(dim=1))


def test_a_pickle_of_tensors_and_another_number_of_classes(
    published: tuple[torch.nn.Module, Path], tmp_path: Path
) -> None:
    theirs, _ = published
    torch.save({"state_dict": theirs.state_dict()}, tmp_path / "davit.pth")
    model = regard.create_model("davit_tiny", pretrained=str(tmp_path / "davit.pth"), dims=SMALL["dims"], num_classes=7)
    assert model.head.out_features == 7
    assert torch.equal(model.stages[0].embedding.conv.weight, theirs.stem.conv.weight)


def test_what_does_not_fit_is_told(published: tuple[torch.nn.Module, Path], tmp_path: Path) -> None:
    _, path = published
    with pytest.raises(UserError, match="no layout that davit_tiny knows"):
        regard.create_model("davit_tiny", pretrained=path)
    with pytest.raises(UserError, match="there is no file"):
        regard.create_model("davit_tiny", pretrained=tmp_path / "none.safetensors")
    with pytest.raises(TypeError, match="davit_tiny has no option 'classes'"):
        regard.create_model("davit_tiny", pretrained=path, classes=3)
    with pytest.raises(UnknownSystemError, match="did you mean davit_tiny"):
        regard.create_model("davit_tinny")
    with pytest.raises(ValueError, match="softmax is no network"):
        regard.create_model("softmax")


def test_the_hub_is_asked_for_safetensors_first(
    published: tuple[torch.nn.Module, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    _, path = published
    asked = []

    def download(repository: str, file: str) -> str:
        asked.append((repository, file))
        return str(path)

    monkeypatch.setattr(hub, "hf_hub_download", download)
    regard.create_model("davit_tiny", pretrained="hf-hub:someone/davit", **SMALL)
    assert asked == [("someone/davit", "model.safetensors")]


def test_without_the_hub_or_its_library_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = pytest.importorskip("huggingface_hub")

    def refuse(repository: str, file: str) -> str:
        raise OSError(f"no route to {repository}\nand a second line")

    monkeypatch.setattr(hub, "hf_hub_download", refuse)
    with pytest.raises(UserError, match=r"cannot get someone/davit from the hub: no route to someone/davit$"):
        regard.create_model("davit_tiny", pretrained="hf-hub:someone/davit")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="pip install 'regard"):
        regard.create_model("davit_tiny", pretrained="hf-hub:someone/davit")
