"""What landmark attention's claims race and train: equal sizes on both sides, the digit out of the window's sight."""

from __future__ import annotations

import pytest
import torch

from regard.claims import _landmark_networks as networks
from regard.claims._recall import IGNORED
from regard.claims.landmark import cache_decoder, landmark_decoder


def test_networks_that_are_compared_are_of_one_size() -> None:
    sizes = [
        sum(p.numel() for p in networks.network(kind, 256, seed=0, window=64).parameters())
        for kind in ("landmark", "softmax")
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)
    assert networks.BUDGET == networks.LENGTH


def test_the_digit_is_beyond_the_window() -> None:
    tokens, targets = networks.far_examples(batch=50, length=512, seed=3, step=1)
    assert tokens.shape == targets.shape == (50, 512)
    special = tokens >= networks.PASSKEY.noise
    assert special.sum(dim=1).tolist() == [3] * 50
    assert not special[:, 512 - networks.LENGTH - 1 : -1].any()
    digits = (tokens >= networks.PASSKEY.noise) & (tokens < networks.PASSKEY.noise + networks.PASSKEY.digits)
    assert torch.equal(tokens[digits], targets[:, -1])
    assert (targets[:, :-1] == IGNORED).all()


@torch.no_grad()
def test_both_decoders_go_on_token_by_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regard.claims.landmark.DECODED", 300)
    for make in (landmark_decoder, cache_decoder):
        step = make(torch.float32)
        first, second = step(), step()
        assert first.shape == (1, 8, 1, 64)
        assert first.isfinite().all()
        assert not torch.equal(first, second)
