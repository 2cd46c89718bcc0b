"""The block against its parts, and what pruning does to tokens, m and positions."""

from __future__ import annotations

import pytest
import torch

from regard.layers.dependency_block import DependencyBlock, Pruning
from regard.layers.reversed_attention import ReversedAttention


def block(**options: object) -> DependencyBlock:
    made = DependencyBlock(ReversedAttention(12, num_heads=3), dim=12, hidden=20, **options)
    return made.double().eval()


def test_branches_are_added_with_their_factors() -> None:
    layer = block(layer_scale=0.3)
    x, m = torch.randn(2, 7, 12, dtype=torch.float64), torch.rand(2, 7, dtype=torch.float64)
    sent = layer.mixer(layer.mixer_norm(x), m)
    middle = x + 0.3 * sent.y
    y, after, kept = layer(x, m, None)
    torch.testing.assert_close(y, middle + 0.3 * layer.mlp(layer.mlp_norm(middle)))
    torch.testing.assert_close(after, sent.m)
    assert kept is None
    assert "mixer_scale" not in block().state_dict()


def test_the_best_are_kept_with_their_m_and_their_places() -> None:
    layer, plain = block(pruning=Pruning(number=1, ratio=0.4)), block()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(2, 10, 12, dtype=torch.float64)
    score = layer.mixer(layer.mixer_norm(x), score="received").score
    y, m, kept = layer(x, None, None)
    assert y.shape == (2, 6, 12)
    whole, whole_m, _ = plain(x, None, None)
    for row in range(2):
        expected = sorted(score[row].argsort(descending=True)[:6].tolist())
        assert kept[row].tolist() == expected
        torch.testing.assert_close(y[row], whole[row, expected])
        torch.testing.assert_close(m[row], whole_m[row, expected])


def test_places_are_those_before_all_prunings() -> None:
    first, second = (block(pruning=Pruning(number=number, ratio=0.3, score="sent")) for number in (1, 2))
    x = torch.randn(1, 10, 12, dtype=torch.float64)
    y, m, kept = first(x, None, None)
    again, m_again, kept_again = second(y, m, kept)
    assert (kept.shape, kept_again.shape, again.shape[1], m_again.shape[1]) == ((1, 7), (1, 4), 4, 4)
    sent = second.mixer(second.mixer_norm(y), m).m
    assert sorted(kept[0, sent[0].argsort(descending=True)[:4]].tolist()) == kept_again[0].tolist()


def test_the_mask_is_that_of_the_normed_tokens() -> None:
    layer, x = block(), torch.randn(2, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(layer.dependency_mask(x, None), layer.mixer.dependency_mask(layer.mixer_norm(x)))


def test_branches_are_dropped_in_training_alone() -> None:
    layer, x = block(drop_path=0.9), torch.randn(64, 3, 12, dtype=torch.float64)
    assert not torch.equal(layer(x, None, None)[0], x)
    torch.manual_seed(0)
    dropped = (layer.train()(x, None, None)[0] == x).flatten(1).all(dim=1)
    assert 0.5 < float(dropped.float().mean()) < 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"number": 0, "ratio": 0.1}, r"number times ratio must be in \[0, 1\), got number=0 and ratio=0.1"),
        ({"number": 4, "ratio": 0.25}, "got number=4 and ratio=0.25"),
        ({"number": 1, "ratio": -0.1}, "ratio=-0.1"),
        ({"number": 1, "ratio": 0.1, "score": "rows"}, "score must be one of received, sent, random, got 'rows'"),
    ],
)
def test_ill_prunings_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pruning(**options)
