from __future__ import annotations

import pytest
import torch

from regard.models.language.decoder import Decoder, DecoderConfig
from regard.tasks.generation import Sampling, decodes, generate, next_token


def model(mixer: str) -> Decoder:
    torch.manual_seed(1)
    return Decoder(DecoderConfig(vocab_size=31, dim=12, num_layers=2, num_heads=2, mixer=mixer, hidden=16)).eval()


@pytest.mark.parametrize("mixer", ["softmax", "lightning", "aaren"])
@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling(top_k=7), Sampling(top_p=0.8, seed=5)])
def test_the_same_tokens_come_with_and_without_state(mixer, sampling):
    network, prompt = model(mixer), torch.tensor([3, 1, 4, 1, 5])
    with_state = list(generate(network, prompt, count=17, sampling=sampling))
    without = list(generate(network, prompt, count=17, sampling=sampling, with_state=False))
    assert with_state == without
    assert len(with_state) == 17


def test_a_linear_mechanism_keeps_a_state_of_constant_size():
    sizes = []
    for length in (5, 50):
        network = model("lightning")
        state = network.init_state(1, max_len=length)
        _, state = network.step(torch.zeros(1, length, dtype=torch.int64), state)
        sizes.append(sum(layer.nbytes for layer in state))
    assert sizes[0] == sizes[1]
    assert decodes(network)


def draws(scores, sampling, count=4000):
    random = torch.Generator().manual_seed(0)
    rows = scores.expand(count, -1)
    return torch.bincount(next_token(rows, sampling, random), minlength=scores.shape[-1]) / count


def test_temperature_top_k_and_top_p_cut_the_distribution_as_defined():
    probabilities = torch.tensor([0.5, 0.25, 0.15, 0.1])
    scores = probabilities.log()[None]
    assert draws(scores, Sampling()) == pytest.approx(probabilities.tolist(), abs=0.03)
    assert draws(scores, Sampling(top_k=2)) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.03)
    # 0.5 + 0.25 do not reach 0.8, so the third token is in as well
    assert draws(scores, Sampling(top_p=0.8)) == pytest.approx([5 / 9, 2.5 / 9, 1.5 / 9, 0], abs=0.03)
    squared = probabilities**2 / (probabilities**2).sum()
    assert draws(scores, Sampling(temperature=0.5)) == pytest.approx(squared.tolist(), abs=0.03)
    assert draws(scores, Sampling(temperature=0)) == pytest.approx([1, 0, 0, 0])


def test_a_seed_decides_the_tokens():
    network, prompt = model("softmax"), torch.tensor([3])
    made = [list(generate(network, prompt, count=20, sampling=Sampling(seed=seed))) for seed in (1, 1, 2)]
    assert made[0] == made[1]
    assert made[0] != made[2]


@pytest.mark.parametrize("prompt", [torch.tensor([], dtype=torch.int64), torch.tensor([31]), torch.tensor([[1]])])
def test_prompts_that_are_no_ids_are_refused(prompt):
    with pytest.raises(ValueError, match="prompt"):
        list(generate(model("softmax"), prompt, count=1))


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.1}])
def test_sampling_outside_its_range_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)
