"""What every language model takes: token ids of one shape and type."""

from __future__ import annotations

import pytest
import torch

from regard.models.language.base import LanguageModel
from regard.models.language.decoder import Decoder, DecoderConfig
from regard.registry import get_class, systems
from regard.tasks.networks import TASKS


def model() -> Decoder:
    return Decoder(DecoderConfig(vocab_size=17, dim=12, num_layers=1, num_heads=2))


def test_the_number_of_ids_is_the_configs() -> None:
    assert model().vocab_size == 17


def test_every_language_model_is_trained_by_the_language_task() -> None:
    found = [get_class(name) for name in systems("model")]
    language_models = [cls for cls in found if issubclass(cls, LanguageModel)]
    assert Decoder in language_models
    for cls in language_models:
        assert cls.task == "language"
        assert cls.task in TASKS
        assert cls.SMALL.vocab_size > 1


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (torch.zeros(5, dtype=torch.int64), r"shape \(batch, tokens\) with at least 1 token, got \(5,\)"),
        (torch.zeros(2, 0, dtype=torch.int64), r"got \(2, 0\)"),
        (torch.zeros(2, 3, 4, dtype=torch.int64), r"got \(2, 3, 4\)"),
        (torch.zeros(2, 3), "int32 or int64, got torch.float32"),
        (torch.zeros(2, 3, dtype=torch.uint8), "int32 or int64, got torch.uint8"),
    ],
)
def test_what_is_no_ids_is_refused(tokens, message) -> None:
    network = model()
    with pytest.raises(ValueError, match=message):
        network.check_tokens(tokens)
    with pytest.raises(ValueError, match=message):
        network(tokens)
    with pytest.raises(ValueError, match=message):
        network.step(tokens, network.init_state(2))


@pytest.mark.parametrize("kind", [torch.int32, torch.int64])
def test_both_kinds_of_integers_are_ids(kind) -> None:
    tokens = torch.arange(6, dtype=kind).reshape(2, 3)
    network = model().eval()
    torch.testing.assert_close(network(tokens), network(tokens.long()), rtol=0, atol=0)
