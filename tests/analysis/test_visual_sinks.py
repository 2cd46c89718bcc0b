"""Maps, shares, ablations and changes of logits are what they say, restated in loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from regard.analysis.visual_sinks import (
    ablate,
    ablation_changes,
    logit_change,
    phi_maps,
    random_visual_tokens,
    sink_shares,
    top_visual_tokens,
)


def scene() -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.ones(17, 17, dtype=torch.bool).triu(1)
    attention = torch.randn(2, 3, 17, 17).double().masked_fill(hidden, -torch.inf).softmax(dim=-1)
    image, sinks = torch.zeros(2, 17, dtype=torch.bool), torch.zeros(2, 17, dtype=torch.bool)
    image[0, 2:11], image[1, 3:9] = True, True
    sinks[0, [0, 4, 9]], sinks[1, 5] = True, True
    return attention, image, sinks


def test_phi_layer_by_layer() -> None:
    inputs = [torch.randn(2, 5, 13) for _ in range(3)]
    maps = phi_maps(inputs, (1, 7))
    assert maps.shape == (3, 2, 5)
    row = inputs[2][1, 4]
    assert float(maps[2, 1, 4]) == pytest.approx(float(row[[1, 7]].abs().max() / row.square().mean().sqrt()), rel=1e-4)


def test_shares_are_means_over_the_text_after_the_image() -> None:
    attention, image, sinks = scene()
    shares = sink_shares([attention, attention.flip(1)], image, [sinks, sinks])
    assert shares.shape == (2, 2, 3)
    for b, end in ((0, 11), (1, 9)):
        of_image = image[b].nonzero()[:, 0].tolist()
        for h in range(3):
            found = []
            for i in range(end, 17):
                row = attention[b, h, i].tolist()
                both = sum(row[j] for j in of_image if sinks[b, j])
                found.append(both / sum(row[j] + 1e-6 for j in of_image))
            assert float(shares[0, b, h]) == pytest.approx(sum(found) / len(found))
    assert torch.equal(shares[1], shares[0].flip(1))
    assert bool(sink_shares([attention], torch.zeros_like(image), [sinks]).isnan().all())
    with pytest.raises(ValueError, match=r"there are 2 layers of attention and 1 of sinks"):
        sink_shares([attention, attention], image, [sinks])


def test_ablation_takes_weights_away() -> None:
    attention, image, sinks = scene()
    kept, again = ablate(attention, sinks), ablate(attention, sinks, renormalise=True)
    for b in range(2):
        assert not kept[b, :, :, sinks[b]].any()
        assert torch.equal(kept[b, :, :, ~sinks[b]], attention[b, :, :, ~sinks[b]])
    scores = attention.log().masked_fill(sinks[:, None, None], -torch.inf)
    # in row 0 the first token sees itself alone, and it is a sink
    torch.testing.assert_close(again[:, :, 1:], scores.softmax(dim=-1)[:, :, 1:])
    assert not again[0, :, 0].any()
    assert torch.equal(ablate(attention, torch.zeros_like(image)), attention)


def test_as_many_others_as_sinks() -> None:
    attention, image, sinks = scene()
    random = [random_visual_tokens(image, sinks, seed=seed) for seed in range(20)]
    for chosen in (*random, top_visual_tokens(attention, image, sinks)):
        assert chosen.sum(dim=1).tolist() == [2, 1]
        assert not (chosen & (sinks | ~image)).any()
    assert torch.equal(random[3], random_visual_tokens(image, sinks, seed=3))
    assert len({tuple(chosen.flatten().tolist()) for chosen in random}) > 5
    total = attention[0, :, 11:].sum(dim=(0, 1))
    others = sorted(({*range(2, 11)} - {4, 9}), key=lambda j: -float(total[j]))
    assert set(top_visual_tokens(attention, image, sinks)[0].nonzero()[:, 0].tolist()) == set(others[:2])
    with pytest.raises(ValueError, match=r"row 1 has 6 visual sinks and 0 other image tokens"):
        random_visual_tokens(image, torch.stack((sinks[0], image[1])), seed=0)


def test_changes_of_logits() -> None:
    before, after = torch.tensor([[0.0, 1.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
    change = logit_change(before, after)
    assert change.mean_abs == pytest.approx(0.75)
    assert change.flipped == 0.5
    old, new = (math.exp(2) / (1 + math.exp(2)), 1 / (1 + math.exp(2))), (1 / (1 + math.e), math.e / (1 + math.e))
    wanted = sum(p * math.log(p / q) for p, q in zip(old, new, strict=True)) / 2
    assert change.divergence == pytest.approx(wanted)
    with pytest.raises(ValueError, match=r"shapes \(2, 2\) and \(2,\)"):
        logit_change(before, after[0])


def test_every_choice_is_compared_with_the_whole() -> None:
    attention, image, sinks = scene()
    values = torch.randn(17, 5).double()

    def logits(tokens: Tensor | None) -> Tensor:
        return (attention if tokens is None else ablate(attention, tokens)) @ values

    changes = ablation_changes(logits, {"sinks": sinks, "nothing": torch.zeros_like(sinks), "image": image})
    assert changes["nothing"].mean_abs == 0
    assert 0 < changes["sinks"].mean_abs < changes["image"].mean_abs
