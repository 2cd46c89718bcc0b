"""Recorded queries and keys are those that the model's own attention compares."""

from __future__ import annotations

import pytest
import torch
from tiny_models import DECODERS, decoder

from regard.integrations.transformers.recording import queries_and_keys


@pytest.mark.parametrize("name", DECODERS)
def test_weights_from_what_is_recorded_are_the_models_own(name: str) -> None:
    model = decoder(name)
    ids = torch.randint(3, 61, (29,), generator=torch.Generator().manual_seed(2))
    recorded = queries_and_keys(model, ids)
    assert sorted(recorded) == [0, 1]
    assert model.config._attn_implementation == "sdpa"
    eager = decoder(name, "eager")
    with torch.no_grad():
        attentions = eager(input_ids=ids[None], output_attentions=True).attentions
    for layer, (q, k) in recorded.items():
        keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        scores = (q @ keys.mT * q.shape[3] ** -0.5).masked_fill(~torch.ones(29, 29).tril().bool(), -torch.inf)
        torch.testing.assert_close(scores.softmax(dim=-1), attentions[layer], atol=1e-5, rtol=1e-4)
