from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from tiny_language import TINY

from regard.errors import UserError
from regard.models.language.decoder import Decoder
from regard.tasks import checkpoint


def save(language, path, config=TINY, **more):
    torch.manual_seed(0)
    model = Decoder(config)
    header = checkpoint.header_of(language, "decoder_lm", config, **more)
    checkpoint.save(path, header, model.state_dict())
    return model


def edit(path, change):
    """Write the checkpoint again with another header."""
    with safe_open(path, framework="pt") as stored:
        described = json.loads(stored.metadata()["regard"])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    change(described)
    save_file(tensors, path, metadata={"regard": json.dumps(described)})


def test_network_task_and_config_come_back(language, tmp_path):
    path = tmp_path / "model.safetensors"
    model = save(language, path, step=7, metrics={"bits_per_byte": 2.5})
    loaded = checkpoint.load(path)
    assert loaded.model.config == TINY
    assert loaded.header.step == 7
    assert loaded.header.metrics == {"bits_per_byte": 2.5}
    assert loaded.task.settings == language.settings
    tokens = torch.randint(256, (2, 11))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(tokens), model.eval()(tokens), rtol=0, atol=0)
    assert checkpoint.load(tmp_path).header == loaded.header


def test_tied_weights_are_stored_once_and_stay_tied(language, tmp_path):
    path = tmp_path / "model.safetensors"
    save(language, path, replace(TINY, tied=True))
    loaded = checkpoint.load(path)
    assert loaded.header.aliases == {"head.weight": "embedding.weight"}
    assert loaded.model.head.weight is loaded.model.embedding.weight


def test_the_file_holds_no_pickle(language, tmp_path):
    save(language, tmp_path / "model.safetensors")
    content = (tmp_path / "model.safetensors").read_bytes()
    assert content[8:9] == b"{"
    assert not list(tmp_path.glob(".*.tmp"))


@pytest.mark.parametrize("cut", [0, 3, 8, 100, 5000])
def test_a_truncated_file_is_refused_in_one_line(language, tmp_path, cut):
    path = tmp_path / "model.safetensors"
    save(language, path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"no safetensors file, or a damaged one"):
        checkpoint.load(path)


def test_foreign_files_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "theirs.safetensors")
    with pytest.raises(UserError, match="did not write"):
        checkpoint.load(tmp_path / "theirs.safetensors")
    with pytest.raises(UserError, match="there is no checkpoint"):
        checkpoint.load(tmp_path / "nothing.safetensors")
    torch.save({"a": torch.zeros(1)}, tmp_path / "pickle.pt")
    with pytest.raises(UserError, match="no safetensors file"):
        checkpoint.load(tmp_path / "pickle.pt")


HOSTILE = {
    "another format": lambda header: header.update(format="other"),
    "a field too many": lambda header: header.update(surprise=1),
    "a task that is none": lambda header: header.update(task="os.system"),
    "a network that is none": lambda header: header.update(model="os.system"),
    "a mechanism as network": lambda header: header.update(model="softmax"),
    "invented sizes": lambda header: header["config"].update(dim=10**6),
    "endless layers": lambda header: header["config"].update(num_layers=10**8),
    "an overflowing size": lambda header: header["config"].update(vocab_size=10**30),
    "a text for a number": lambda header: header["config"].update(dim="twelve"),
    "a mixer that is none": lambda header: header["config"].update(mixer="nothing"),
    "an option of the mixer that is none": lambda header: header["config"].update(mixer_options={"evil": 1}),
    "facts that are none": lambda header: header.update(facts={}),
    "an alias to nowhere": lambda header: header.update(aliases={"head.weight": "nowhere"}),
    "config that is a list": lambda header: header.update(config=[]),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_headers_are_refused_in_one_line(language, tmp_path, change):
    path = tmp_path / "model.safetensors"
    save(language, path)
    edit(path, change)
    with pytest.raises(UserError) as refused:
        checkpoint.load(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


def test_missing_weights_are_named(language, tmp_path):
    path = tmp_path / "model.safetensors"
    model = save(language, path)
    state = dict(model.state_dict())
    del state["norm.weight"]
    checkpoint.save(path, checkpoint.header_of(language, "decoder_lm", TINY), state)
    with pytest.raises(UserError, match=r"norm\.weight"):
        checkpoint.load(path)


def test_a_write_that_fails_leaves_the_earlier_file(language, tmp_path, monkeypatch):
    path = tmp_path / "model.safetensors"
    save(language, path, step=1)

    def fail(*_):
        raise OSError("no space left")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        save(language, path, step=2)
    monkeypatch.undo()
    assert checkpoint.load(path).header.step == 1
    assert not list(tmp_path.glob(".*.tmp"))
