"""Mixers by name: what the network tells them, and what the user says over it."""

from __future__ import annotations

import pytest
import torch

from regard.layers.mixer_by_name import ROPE_BASE, mixer_by_name
from regard.mixers.sequence.lightning import LightningAttention
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.registry import UnknownSystemError, systems


def made(name: str, **changes):
    return mixer_by_name(name, **{"dim": 24, "num_heads": 6, "causal": True, **changes})


def test_sizes_and_form_are_given():
    mixer = made("softmax", causal=False)
    assert isinstance(mixer, SoftmaxAttention)
    assert (mixer.dim, mixer.num_heads, mixer.causal) == (24, 6, False)
    assert made("softmax").causal is True


def test_rotary_positions_where_the_mechanism_has_them():
    assert made("softmax").rope_base == ROPE_BASE
    assert made("softmax", rotary=False).rope_base is None
    assert made("hedgehog").rope_base == ROPE_BASE
    # lightning has no such option, and is built all the same
    assert isinstance(made("lightning"), LightningAttention)


def test_the_place_in_the_network_where_the_mechanism_asks_for_it():
    told = made("lightning", layer_idx=2, num_layers=5)
    own = LightningAttention(24, num_heads=6, layer_idx=2, num_layers=5)
    assert list(told.slopes) == list(own.slopes)
    assert list(told.slopes) != list(made("lightning").slopes)
    assert isinstance(made("softmax", layer_idx=2, num_layers=5), SoftmaxAttention)


def test_options_win_over_what_is_given_by_itself():
    mixer = made("softmax", options={"rope_base": 33.0, "num_kv_heads": 3, "qkv_bias": True})
    assert (mixer.rope_base, mixer.num_kv_heads) == (33.0, 3)
    assert mixer.q_proj.bias is not None
    assert made("softmax", options={"rope_base": None}).rope_base is None
    moved = made("lightning", layer_idx=0, num_layers=5, options={"layer_idx": 3})
    assert list(moved.slopes) == list(made("lightning", layer_idx=3, num_layers=5).slopes)


def test_every_mechanism_with_any_length_can_be_put_into_a_decoder():
    able = [name for name, entry in systems("sequence").items() if entry.traits.causal and entry.traits.any_length]
    assert {"softmax", "lightning", "hedgehog", "aaren"} <= set(able)
    x = torch.randn(2, 7, 24)
    for name in able:
        mixer = made(name, layer_idx=1, num_layers=3).eval()
        assert mixer.causal, name
        assert mixer(x).shape == x.shape, name


@pytest.mark.parametrize(
    ("name", "options", "error", "message"),
    [
        ("softmx", {}, UnknownSystemError, "did you mean softmax"),
        ("softmax", {"num_kv_head": 2}, TypeError, r"softmax has no option 'num_kv_head': did you mean num_kv_heads\?"),
        ("softmax", {"num_kv_heads": 4}, ValueError, "num_kv_heads"),
        ("eca", {}, TypeError, "eca has no option"),
        ("decoder_lm", {}, TypeError, "decoder_lm has no option 'causal'"),
    ],
)
def test_what_does_not_fit_is_refused(name, options, error, message):
    with pytest.raises(error, match=message):
        made(name, options=options)


def test_what_is_no_sequence_mixer_is_refused(monkeypatch):
    class Gate(torch.nn.Module):
        def __init__(self, dim: int, num_heads: int, causal: bool) -> None:
            super().__init__()

    monkeypatch.setattr("regard.layers.mixer_by_name.get_class", lambda name: Gate)
    monkeypatch.setattr("regard.layers.mixer_by_name.create", lambda name, **options: Gate(**options))
    with pytest.raises(ValueError, match="gate is a Gate, and a sequence mixer is needed here"):
        made("gate")
