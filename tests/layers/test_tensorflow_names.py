"""TensorFlow's variables as ours, and back."""

from __future__ import annotations

import pytest
import torch

from regard.layers.tensorflow_names import Place, arranged

PLACES = {
    "conv/kernel": Place(name="conv.weight", axes=(3, 2, 0, 1)),
    "q/weight": Place(name="qk.weight", axes=(1, 2, 0), part=0, parts=2),
    "k/weight": Place(name="qk.weight", axes=(1, 2, 0), part=1, parts=2),
    "se/kernel": Place(name="gate.weight", axes=(3, 2, 0, 1)),
}
OWN = {
    "conv.weight": torch.zeros(5, 2, 3, 3),
    "qk.weight": torch.zeros(12, 7),
    "gate.weight": torch.zeros(1, 4),
    "norm.num_batches_tracked": torch.tensor(3),
}


def variables() -> dict[str, torch.Tensor]:
    shapes = {"conv/kernel": (3, 3, 2, 5), "q/weight": (7, 3, 2), "k/weight": (7, 3, 2), "se/kernel": (1, 1, 4, 1)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def test_axes_are_turned_and_parts_follow_one_another() -> None:
    theirs = variables()
    ours = arranged(theirs, PLACES.get, OWN)
    assert {name: tensor.shape for name, tensor in ours.items()} == {name: each.shape for name, each in OWN.items()}
    assert ours["conv.weight"][4, 1, 0, 2] == theirs["conv/kernel"][0, 2, 1, 4]
    # head 2, feature 1 of the keys
    assert ours["qk.weight"][6 + 2 * 2 + 1, 5] == theirs["k/weight"][5, 2, 1]
    assert ours["gate.weight"][0, 3] == theirs["se/kernel"][0, 0, 3, 0]
    assert ours["norm.num_batches_tracked"] == 3


@pytest.mark.parametrize("name", PLACES)
def test_the_way_back_is_the_inverse(name: str) -> None:
    theirs = variables()
    ours = arranged(theirs, PLACES.get, OWN)
    place = PLACES[name]
    assert torch.equal(place.theirs(ours[place.name], theirs[name].shape), theirs[name])


def test_a_place_below_a_module() -> None:
    assert PLACES["k/weight"].below("mixer.") == Place(name="mixer.qk.weight", axes=(1, 2, 0), part=1, parts=2)


def test_what_is_unknown_missing_or_misshapen_is_named() -> None:
    theirs = variables()
    without_keys = {name: tensor for name, tensor in theirs.items() if name != "k/weight"}
    with pytest.raises(KeyError, match=r"unknown keys: none; missing keys: qk\.weight"):
        arranged(without_keys, PLACES.get, OWN)
    with pytest.raises(KeyError, match="unknown keys: other/kernel; missing keys: none"):
        arranged({**theirs, "other/kernel": torch.zeros(1)}, PLACES.get, OWN)
    twice = {**PLACES, "again/kernel": PLACES["conv/kernel"]}
    with pytest.raises(KeyError, match="unknown keys: again/kernel"):
        arranged({**theirs, "again/kernel": theirs["conv/kernel"]}, twice.get, OWN)
    with pytest.raises(ValueError, match=r"q/weight has shape \(7, 2, 4\), it must be a part of 2 of qk\.weight"):
        arranged({**theirs, "q/weight": torch.zeros(7, 2, 4)}, PLACES.get, OWN)
    with pytest.raises(
        ValueError, match=r"conv/kernel has shape \(3, 3, 10\), it must be conv\.weight, \(5, 2, 3, 3\)"
    ):
        arranged({**theirs, "conv/kernel": torch.zeros(3, 3, 10)}, PLACES.get, OWN)
    # as many elements, but not the same axes
    with pytest.raises(ValueError, match="conv/kernel has shape"):
        arranged({**theirs, "conv/kernel": torch.zeros(3, 3, 5, 2)}, PLACES.get, OWN)
