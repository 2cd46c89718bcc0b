"""What softplus attention's claims build themselves computes what they say."""

from __future__ import annotations

import pytest
import torch

from regard.claims._softplus_networks import (
    AblatedAttention,
    Parts,
    PasskeyRecipe,
    Recipe,
    losses_by_length,
    mean_by_length,
    network,
    passkey_accuracy,
)
from regard.mixers.sequence.softplus import LSSAAttention, LSSARAttention
from regard.models.language.decoder import DecoderConfig
from regard.ops.softplus_attention import softplus_weights

SIZES = DecoderConfig(dim=12, num_layers=2, num_heads=2)
BRIEF = Recipe(steps=2, batch=2, length=8, multiples=(1, 2, 4), evaluated=64)


@pytest.mark.parametrize("power", [None, 3])
def test_with_all_parts_it_is_the_mixer(power: int | None) -> None:
    inner = LSSAAttention(12, num_heads=2, causal=True).double()
    whole = inner
    if power is not None:
        whole = LSSARAttention(12, num_heads=2, causal=True, power=power).double()
        whole.load_state_dict(inner.state_dict())
    x = torch.randn(2, 13, 12, dtype=torch.float64)
    torch.testing.assert_close(AblatedAttention(inner, Parts(power=power))(x), whole(x))


def test_parts_that_are_taken_away_are_gone() -> None:
    inner = LSSAAttention(12, num_heads=2, causal=True, rope_base=None).double()
    x = torch.randn(1, 7, 12, dtype=torch.float64)
    q, k, v = (part(x).view(1, 7, 2, 6).transpose(1, 2) for part in (inner.q_proj, inner.k_proj, inner.v_proj))
    visible = torch.ones(7, 7, dtype=torch.bool).tril()
    for parts in (Parts(l1=False), Parts(phi="exp"), Parts(phi="relu", power=15)):
        weights = softplus_weights(q, k, visible=visible, power=parts.power, phi=parts.phi, l1=parts.l1)
        torch.testing.assert_close(AblatedAttention(inner, parts)(x), inner.out(weights @ v, x))


@pytest.mark.parametrize("kind", ["lssa", "lssar15", "lssar3", "lssar15 without l1", "lssar15 relu", "lssa exp"])
def test_all_networks_have_softmaxs_parameters(kind: str) -> None:
    torch.manual_seed(0)
    ours = network(kind, SIZES)
    torch.manual_seed(0)
    softmax = network("softmax", SIZES)
    mine, theirs = list(ours.parameters()), list(softmax.parameters())
    assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    tokens = torch.randint(256, (1, 9))
    assert not torch.allclose(ours(tokens), softmax(tokens))


def test_losses_are_read_at_every_length() -> None:
    losses = losses_by_length("lssar15 relu", 0, BRIEF)
    assert len(losses) == 3
    assert all(3 < loss < 7 for loss in losses)
    other = losses_by_length("lssar15 relu", 1, BRIEF)
    wanted = [(a + b) / 2 for a, b in zip(losses, other, strict=True)]
    assert mean_by_length("lssar15 relu", (0, 1), BRIEF) == pytest.approx(wanted)


def test_passkeys_are_looked_for_at_every_length() -> None:
    found = passkey_accuracy("softmax", 0, PasskeyRecipe(steps=1, batch=2, length=8, tested=4))
    assert len(found) == 3
    assert all(0 <= share <= 1 for share in found)
