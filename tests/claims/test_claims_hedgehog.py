"""What Hedgehog's claims build themselves computes what they say."""

from __future__ import annotations

import pytest
import torch

from regard.claims import _hedgehog_networks as networks
from regard.claims._hedgehog_networks import (
    ConversionRecipe,
    PositiveRandomFeatures,
    RecallRecipe,
    TaylorAttention,
    converted_mixers,
    finetuned_perplexity,
    mimicry,
    recall_network,
    recall_of,
    teacher,
)
from regard.mixers.sequence.hedgehog import HedgehogAttention
from regard.mixers.sequence.softmax import SoftmaxAttention

BRIEF = ConversionRecipe(teacher_steps=2, distil_steps=12, finetune_steps=2, batch=2, length=24, evaluated=200)


def test_taylor_in_closed_form_is_hedgehogs_taylor_map() -> None:
    softmax = SoftmaxAttention(12, num_heads=2, causal=True, rope_base=100.0).double()
    mapped = HedgehogAttention.from_softmax(softmax, feature_map="taylor")
    x = torch.randn(2, 11, 12, dtype=torch.float64)
    torch.testing.assert_close(TaylorAttention(softmax)(x), mapped(x))


def test_random_features_are_softmax_on_average() -> None:
    q, k = 0.4 * torch.randn(2, 50, 8)
    features = PositiveRandomFeatures(8, 8 * 4000)
    found = features(q) @ features(k).T
    torch.testing.assert_close(found, (q @ k.T * 8**-0.5).exp(), rtol=0.1, atol=0.0)


@pytest.mark.parametrize("kind", ["softmax", "hedgehog", "taylor", "elu", "performer"])
def test_networks_that_recall_differ_in_their_maps_alone(kind: str) -> None:
    model = recall_network(kind)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    maps = {name for name in trained if "_map" in name}
    assert bool(maps) is (kind == "hedgehog")
    plain = sum(p.numel() for p in recall_network("softmax").parameters())
    counted = sum(p.numel() for name, p in model.named_parameters() if name in trained - maps)
    assert counted == plain
    tokens = torch.randint(40, (2, 9))
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 40
    with torch.no_grad():
        same = (model(tokens) - model(changed)).abs().amax(dim=(0, 2))
    assert float(same[:5].max()) < 1e-5 < float(same[5])


def test_recall_runs() -> None:
    assert 0 <= recall_of("performer", RecallRecipe(steps=1, batch=2, tested=3)) <= 1


def test_distilling_trains_the_maps_alone_and_brings_them_closer() -> None:
    before = [mixer.q_proj.weight.clone() for mixer in teacher(BRIEF).mixers()]
    distilled, untouched = converted_mixers("hedgehog", True, BRIEF), converted_mixers("hedgehog", False, BRIEF)
    for mixer, plain, weight in zip(distilled, untouched, before, strict=True):
        assert torch.equal(mixer.q_proj.weight, weight)
        assert not torch.equal(mixer.q_map.weight, plain.q_map.weight)
    close, far = mimicry("hedgehog", True, BRIEF), mimicry("hedgehog", False, BRIEF)
    assert 0 < close.divergence < far.divergence
    assert close.teacher_entropy == far.teacher_entropy
    assert 0.5 < close.agreement <= 1


def test_elu_has_nothing_to_train(monkeypatch: pytest.MonkeyPatch) -> None:
    for mixer in converted_mixers("elu", True, BRIEF):
        assert torch.equal(mixer.q_map.weight, torch.eye(32).expand(2, 32, 32))
    monkeypatch.setattr(networks, "perplexity", lambda model, recipe: float(model.blocks[0].mixer.q_map.weight.sum()))
    assert finetuned_perplexity("elu", True, BRIEF) == 64


def test_finetuning_leaves_the_teacher_as_it_is() -> None:
    before = {name: value.clone() for name, value in teacher(BRIEF).state_dict().items()}
    found = finetuned_perplexity("t2r", True, BRIEF)
    assert 1 < found < 300
    after = teacher(BRIEF).state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(isinstance(mixer, SoftmaxAttention) for mixer in teacher(BRIEF).mixers())
