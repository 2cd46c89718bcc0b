from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_images import write_images
from tiny_language import QUIET, SENTENCE

from regard.errors import UserError
from regard.models.vision.davit import DaViT
from regard.models.vision.mlp_mixer import MLPMixer
from regard.tasks import checkpoint
from regard.tasks.classification import Classification, ClassificationSettings
from regard.tasks.logs import read_steps
from regard.tasks.pretrained import read_pretrained
from regard.tasks.runs import Wishes, plan, train

SMALL = {"dims": "[8,16]", "num_heads": "[2,2]", "depths": "[1,1]", "augment": "none"}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_images(tmp_path / "photos", {"cats": 5, "dogs": 5})


def wishes(data: Path | None, system: str = "davit", **changes) -> Wishes:
    recipe = {"steps": 2, "batch": 4, **changes.pop("recipe", {})}
    settings = changes.pop("settings", {**SMALL, "image_size": "16"})
    return Wishes(
        system=system, task=None, data=None if data is None else str(data), settings=settings, recipe=recipe, **changes
    )


@pytest.fixture
def earlier(photos) -> Path:
    """A run on two classes."""
    Path("first").mkdir()
    train(plan(wishes(photos)), Path("first"), QUIET, resume=False)
    return Path("first")


def test_weights_of_ours_are_taken_over_with_config_and_statistics(earlier, tmp_path):
    three = write_images(tmp_path / "three", {"a": 4, "b": 4, "c": 4})
    planned = plan(wishes(three, pretrained=str(earlier), settings={"augment": "none"}))
    assert planned.config.dims == (8, 16)
    assert planned.config.num_classes == 3
    was = checkpoint.load(earlier)
    assert planned.task.normal == was.task.normal
    model = planned.start()
    for name, value in was.model.state_dict().items():
        if name.startswith("head."):
            assert name not in planned.initial
        else:
            assert torch.equal(model.state_dict()[name], value), name
    assert torch.equal(model.head.weight, planned.build().head.weight)


def test_the_classifier_is_kept_where_the_classes_are_as_many(earlier, photos):
    planned = plan(wishes(photos, pretrained=str(earlier / "model.safetensors")))
    was = checkpoint.load(earlier).model.state_dict()
    assert all(torch.equal(value, was[name]) for name, value in planned.start().state_dict().items())


def test_frozen_weights_stay_as_they_were(earlier, photos):
    Path("second").mkdir()
    planned = plan(wishes(photos, pretrained=str(earlier), recipe={"freeze": "body", "learning_rate": 0.1}))
    train(planned, Path("second"), QUIET, resume=False)
    now = checkpoint.load(Path("second/last.safetensors")).model.state_dict()
    start = planned.start().state_dict()
    changed = {name for name, value in now.items() if not torch.equal(value, start[name])}
    assert changed == {"head.weight", "head.bias"}


def test_a_run_that_began_so_goes_on_bit_for_bit(earlier, photos):
    given = wishes(photos, pretrained=str(earlier), recipe={"steps": 4, "evaluate_every": 2, "freeze": "stem"})
    for name in ("whole", "halves"):
        Path(name).mkdir()
    train(plan(given), Path("whole"), QUIET, resume=False)
    interrupted = plan(given)
    draw, drawn = interrupted.task.batch, []

    def stop(random, rows):
        drawn.append(1)
        if len(drawn) == 4:
            raise RuntimeError("the lights went out")
        return draw(random, rows)

    interrupted.task.batch = stop
    with pytest.raises(RuntimeError, match="lights"):
        train(interrupted, Path("halves"), QUIET, resume=False)
    train(plan(given), Path("halves"), QUIET, resume=True)
    assert read_steps(Path("halves")) == read_steps(Path("whole"))


@pytest.mark.parametrize("classes", [10, 1000])
@pytest.mark.parametrize("kind", ["safetensors", "plain", "wrapped", "parallel"])
def test_a_published_file_is_read_in_its_own_layout(classes, kind):
    import timm

    theirs = timm.models.mlp_mixer.MlpMixer(
        img_size=8, in_chans=1, num_classes=classes, patch_size=2, embed_dim=64, num_blocks=3, mlp_ratio=(2.0, 2.0)
    )
    state = {name: value.contiguous() for name, value in theirs.state_dict().items()}
    path = Path("theirs.safetensors" if kind == "safetensors" else "theirs.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        content = {"plain": state, "wrapped": {"epoch": 3, "model": state}}.get(kind)
        torch.save(content or {"state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    config = replace(MLPMixer.SMALL, num_classes=10)
    found = read_pretrained(path).weights_for("mlp_mixer", config)
    assert len(found) == len(state) - (0 if classes == 10 else 2)
    assert torch.equal(found["patches.proj.weight"], state["stem.proj.weight"])
    assert ("head.weight" in found) == (classes == 10)


class Evil:
    def __reduce__(self):
        return os.system, ("touch broken_in",)


def test_a_pickle_that_would_run_something_is_refused():
    Path("evil.pth").write_bytes(pickle.dumps({"head.weight": Evil()}))
    torch.save({"head.weight": Evil()}, "evil.pt")
    for name in ("evil.pth", "evil.pt"):
        with pytest.raises(UserError, match=f"{name} is no file of weights that can be read safely") as refused:
            read_pretrained(Path(name))
        assert "\n" not in str(refused.value)
    assert not Path("broken_in").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"", "a.pth is no file of weights"),
        ("a.pth", b"\x80\x04nonsense", "a.pth is no file of weights"),
        ("a.pth", b"PK\x03\x04 not a zip", "a.pth is no file of weights"),
        ("a.safetensors", b"short", "a.safetensors is no safetensors file, or a damaged one"),
        ("a.safetensors", b"\xff" * 40, "a.safetensors is no safetensors file, or a damaged one"),
    ],
)
def test_damaged_files_are_one_line(name, content, message):
    Path(name).write_bytes(content)
    with pytest.raises(UserError, match=message) as refused:
        read_pretrained(Path(name))
    assert "\n" not in str(refused.value)


def test_files_without_weights_are_refused():
    torch.save({"epoch": 3}, "a.pth")
    with pytest.raises(UserError, match="holds something other than the weights of a network"):
        read_pretrained(Path("a.pth"))
    torch.save({}, "b.pth")
    with pytest.raises(UserError, match="holds no weights"):
        read_pretrained(Path("b.pth"))
    with pytest.raises(UserError, match=r"there is no file nothing\.pth"):
        read_pretrained(Path("nothing.pth"))


def test_weights_that_do_not_fit_are_named(earlier, photos, tmp_path):
    with pytest.raises(UserError, match="holds weights of davit, not of mlp_mixer"):
        plan(wishes(photos, "mlp_mixer", pretrained=str(earlier), settings={}))
    with pytest.raises(UserError, match=r"does not fit davit: .*, not "):
        plan(wishes(photos, pretrained=str(earlier), settings={"dims": "[8,32]"}))
    grey = write_images(tmp_path / "grey", {"a": 3, "b": 3}, grey=True)
    # the weights decide the channels, where the settings do not
    assert plan(wishes(grey, pretrained=str(earlier), settings={})).config.in_channels == 3
    with pytest.raises(UserError, match="--set channels=3 makes the images fit"):
        plan(wishes(grey, pretrained=str(earlier), settings={"channels": "1"}))
    save_file({"conv.weight": torch.zeros(2, 2)}, "other.safetensors")
    with pytest.raises(
        UserError, match=r"other\.safetensors has no layout that davit knows: unknown keys: conv\.weight"
    ):
        plan(wishes(photos, pretrained="other.safetensors"))


def test_weights_of_another_task_are_refused(photos, tmp_path):
    (tmp_path / "text.txt").write_text(SENTENCE * 40)
    Path("text").mkdir()
    settings = {"dim": "8", "num_layers": "1", "num_heads": "2", "length": "16", "evaluation_tokens": "64"}
    given = wishes(tmp_path / "text.txt", "lightning", settings=settings)
    train(plan(given, cache=Path("text")), Path("text"), QUIET, resume=False)
    with pytest.raises(UserError, match="language does not start from pretrained weights"):
        plan(replace(given, pretrained="text"), cache=Path("text"))
    with pytest.raises(UserError, match="text was trained on language, not on classification"):
        plan(wishes(photos, pretrained="text"))


def test_a_hostile_header_is_one_line(earlier, photos):
    loaded = checkpoint.load(earlier)
    for facts in ({}, {"shape": [3, 10**9, 10**9], "mean": [0.0] * 3, "spread": [1.0] * 3}):
        header = replace(loaded.header, facts=facts)
        checkpoint.save(Path("bad.safetensors"), header, loaded.model.state_dict())
        with pytest.raises(UserError, match=r"bad\.safetensors has facts that are not ours"):
            plan(wishes(photos, pretrained="bad.safetensors"))


def test_names_of_variants_keep_their_own_sizes():
    task = Classification(ClassificationSettings())
    task.read(None)
    model = DaViT(replace(DaViT.SMALL, dims=(8, 16), num_heads=(2, 2)))
    header = checkpoint.header_of(task, "davit", model.config)
    checkpoint.save(Path("small.safetensors"), header, model.state_dict())
    assert read_pretrained(Path("small.safetensors")).config_for("davit") == model.config
    assert read_pretrained(Path("small.safetensors")).config_for("davit_tiny") is None
