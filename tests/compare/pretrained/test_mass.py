"""Recovered mass, restated as a sum of full attention's weights over the keys that a mechanism keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import decoder

from regard.compare.pretrained.contestants import Contestant, contestants
from regard.compare.pretrained.mass import STEPS, mean_mass, recovered_mass, step_on_recorded_keys
from regard.integrations.transformers.recording import queries_and_keys

PROMPT = 83


@pytest.fixture
def recorded() -> dict[int, Any]:
    model = decoder("llama")
    return queries_and_keys(model, torch.randint(3, 61, (PROMPT + STEPS,), generator=torch.Generator().manual_seed(1)))


def weights(q: torch.Tensor, k: torch.Tensor, place: int) -> torch.Tensor:
    """Full attention's weights of one token on all up to it: (heads, keys)."""
    keys = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
    scores = torch.einsum("hd,hjd->hj", q[0, :, place].double(), keys[0, :, : place + 1].double())
    return (scores / q.shape[3] ** 0.5).softmax(dim=1)


def test_of_sinks_and_a_window_it_is_the_sum_over_them(recorded):
    contestant = Contestant("streaming_llm 23", "streaming_llm", 23, {"cache_size": 23})
    q, k = recorded[1]
    found = recovered_mass(q, k, step_on_recorded_keys(contestant, decoder("llama").config, 1))
    for step in range(STEPS):
        full = weights(q, k, PROMPT + step)
        # 23 keys are carried from token to token, and the token's own comes beside them
        kept = full[:, :4].sum(dim=1) + full[:, -20:].sum(dim=1)
        torch.testing.assert_close(found[:, step].double(), kept, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("mechanism", ["recycled", "h2o", "streaming_llm", "hip", "landmark"])
def test_a_budget_beyond_the_length_recovers_all_and_a_small_one_less(recorded, mechanism):
    config = decoder("llama").config
    enough, little = contestants((mechanism,), (16, 512), num_layers=2)[::-1]
    assert mean_mass(enough, config, recorded) == pytest.approx(1.0, abs=1e-4)
    assert 0.05 < mean_mass(little, config, recorded) < 0.97


def test_recycled_attention_sees_everything_once_in_a_cycle(recorded):
    contestant = contestants(("recycled",), (16,), num_layers=2)[0]
    q, k = recorded[0]
    found = recovered_mass(q, k, step_on_recorded_keys(contestant, decoder("llama").config, 0))
    assert ((found > 0.9999).all(dim=0)).sum() in (1, 2)


def test_a_prompt_is_needed():
    q = torch.zeros(1, 2, STEPS, 4)
    with pytest.raises(ValueError, match=f"more than {STEPS} tokens, got {STEPS}"):
        recovered_mass(q, q, step_on_recorded_keys(Contestant("h2o 9", "h2o", 9, {"cache_size": 9}), None, 0))
