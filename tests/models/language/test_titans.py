"""Titans as language models: every variant steps as it reads, checkpoints, and refuses ill sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from regard.models.language.titans import VARIANTS, TitansConfig, TitansLM, TitansVariant

TINY = TitansConfig(vocab_size=11, dim=12, num_layers=2, num_heads=3, window=5, chunk_size=5, num_persistent=2)


@pytest.mark.parametrize("variant", VARIANTS)
def test_steps_are_the_forward(variant: TitansVariant) -> None:
    model = TitansLM(replace(TINY, variant=variant)).double().eval()
    tokens = torch.randint(0, 11, (2, 13))
    with torch.no_grad():
        state, pieces = model.init_state(2), []
        for piece in tokens.split([6, 1, 4, 1, 1], dim=1):
            scores, state = model.step(piece, state)
            pieces.append(scores)
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens))


@pytest.mark.parametrize("variant", VARIANTS)
def test_checkpointing_changes_no_gradient(variant: TitansVariant) -> None:
    tokens, gradients = torch.randint(0, 11, (2, 9)), []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = TitansLM(replace(TINY, variant=variant, checkpointing=checkpointing)).double().train()
        gradients.append(torch.autograd.grad(model(tokens).square().sum(), [*model.parameters()]))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("variant", VARIANTS)
def test_learns_to_repeat(variant: TitansVariant) -> None:
    torch.manual_seed(1)
    model = TitansLM(replace(TINY, variant=variant))
    tokens = torch.arange(7).repeat(4)[None].expand(3, -1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_masked_tokens_leave_no_trace() -> None:
    model = TitansLM(TINY).double().eval()
    tokens, mask = (
        torch.randint(0, 11, (2, 9)),
        torch.tensor([[1, 1, 0, 1, 1, 0, 1, 1, 0], [0, 0, 1, 1, 1, 1, 1, 1, 1]]) > 0,
    )
    with torch.no_grad():
        scores = model(tokens, mask=mask)
        for row in range(2):
            torch.testing.assert_close(scores[row][mask[row]], model(tokens[row][mask[row]][None])[0])


def test_segments_are_refused() -> None:
    with pytest.raises(ValueError, match="segments"):
        TitansLM(TINY)(torch.zeros(1, 4, dtype=torch.int64), segments=torch.zeros(1, 4, dtype=torch.int64))


def test_a_tied_head_shares_the_embedding() -> None:
    model = TitansLM(replace(TINY, tied=True))
    assert model.head.weight is model.embedding.weight


def test_named_configurations_can_be_built_and_claim_no_count() -> None:
    with torch.device("meta"):
        for variant in TitansLM.VARIANTS.values():
            assert sum(parameter.numel() for parameter in TitansLM(variant.config).parameters()) > 0
            assert variant.reported.params is None


def test_loads_its_own_layout_strictly() -> None:
    one, other = TitansLM(TINY), TitansLM(TINY)
    other.load_reference(one.state_dict())
    torch.testing.assert_close(other.state_dict(), one.state_dict())
    with pytest.raises(KeyError, match=r"missing keys: head\.weight"):
        other.load_reference({key: value for key, value in one.state_dict().items() if key != "head.weight"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10, "num_heads": 3}, "dim=10 and num_heads=3"),
        ({"variant": "mat"}, "variant must be one of mac, mag, mal, lmm, got 'mat'"),
        ({"window": 0}, "window must be positive, got 0"),
        ({"hidden": -1}, "hidden must not be negative, got -1"),
        ({"dropout": 1.0}, "dropout must be in"),
    ],
)
def test_ill_sizes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TitansConfig(**options)


def test_ill_tokens_are_named() -> None:
    with pytest.raises(ValueError, match=r"int32 or int64, got torch\.float32"):
        TitansLM(TINY)(torch.zeros(1, 4))
