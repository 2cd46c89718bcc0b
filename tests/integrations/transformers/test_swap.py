"""Mixers in the place of attention modules: padding, decoding with the caches of `generate`, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import DECODERS, continued, decoder, prompt

from regard.integrations.transformers import register, swap
from regard.mixers.sequence.softmax import SoftmaxAttention

RECURRENT: dict[str, dict[str, Any]] = {"lightning": {}, "aaren": {}, "softmax": {"rope_base": 10000.0}}


@pytest.mark.parametrize("attention", ["sdpa", "eager", "regard_softmax"])
@pytest.mark.parametrize("name", RECURRENT)
@pytest.mark.parametrize("kind", DECODERS)
def test_padded_rows_equal_the_same_rows_alone(kind: str, name: str, attention: str) -> None:
    register()
    model = decoder(kind, attention)
    assert swap(model, name, **RECURRENT[name]) == [0, 1]
    inputs = prompt([17, 5, 11], side="left")
    with torch.no_grad():
        together = model(**inputs).logits
        for row, real in enumerate(inputs["attention_mask"].bool()):
            alone = model(input_ids=inputs["input_ids"][row][real][None]).logits[0]
            torch.testing.assert_close(together[row][real], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layers", [None, [1], [0]])
@pytest.mark.parametrize("kind", DECODERS)
def test_generate_with_and_without_cache_gives_the_same_tokens(kind: str, layers: list[int] | None) -> None:
    model, inputs = decoder(kind), prompt([13, 6, 1], side="left")
    swap(model, "lightning", layers)
    plain = continued(model, inputs, use_cache=False)
    assert torch.equal(continued(model, inputs), plain)
    beams = continued(model, inputs, num_beams=3, use_cache=False)
    assert torch.equal(continued(model, inputs, num_beams=3), beams)


def test_a_softmax_mixer_keeps_the_projections_that_fit() -> None:
    model = decoder("llama")
    old = model.model.layers[1].self_attn
    swap(model, "softmax", [1], num_kv_heads=2, rope_base=10000.0)
    mixer = model.model.layers[1].self_attn.mixer
    assert isinstance(mixer, SoftmaxAttention)
    assert torch.equal(mixer.k_proj.weight, old.k_proj.weight)
    inputs = prompt([9], side="left")
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs).logits, decoder("llama")(**inputs).logits, rtol=1e-4, atol=1e-4)


def test_swapped_models_train() -> None:
    model, inputs = decoder("llama").train(), prompt([9, 7], side="right")
    swap(model, "lightning")
    model(**inputs, labels=inputs["input_ids"]).loss.backward()
    for parameter in model.model.layers[0].self_attn.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.norm()) > 0


def test_what_does_not_fit_is_named() -> None:
    model = decoder("llama")
    with pytest.raises(ValueError, match=r"layers must be among 0 to 1, got \[2\]"):
        swap(model, "lightning", [2])
    with pytest.raises(ValueError, match=r"agent cannot stand in a decoder"):
        swap(model, "agent")
    with pytest.raises(ValueError, match=r"Linear has no decoder layers"):
        swap(torch.nn.Linear(2, 2), "lightning")
    assert not any("mixer" in name for name, _ in model.named_modules())
