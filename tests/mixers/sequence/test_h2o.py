"""H2O as a layer: full attention at once, evicting steps, full steps in between."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regard.contract import ContractError
from regard.mixers.sequence.h2o import H2OAttention
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.testing.plan import contract_checks

SMALL: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "cache_size": 6}


def pair(**options: Any) -> tuple[H2OAttention, SoftmaxAttention]:
    ours = H2OAttention(24, rope_base=100.0, **{**SMALL, **options})
    full = SoftmaxAttention(24, num_heads=4, num_kv_heads=2, causal=True, rope_base=100.0)
    full.load_state_dict(ours.state_dict())
    return ours, full


def decoded(mixer: H2OAttention, x: Tensor, chunks: list[int]) -> Tensor:
    state, pieces = mixer.init_state(x.shape[0]), []
    with torch.no_grad():
        for piece in x.split(chunks, dim=1):
            y, state = mixer.step(piece, state)
            pieces.append(y)
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("options", [{}, {"cache_size": 40}, {"refresh_stride": 1}], ids=str)
def test_forward_and_a_prompt_are_softmax_attention(options: dict[str, Any]) -> None:
    ours, full = pair(**options)
    x = torch.randn(2, 31, 24)
    torch.testing.assert_close(ours(x), full(x))
    torch.testing.assert_close(ours.attention_map(x), full.attention_map(x))
    found = decoded(ours, x, [20] + [1] * 11)
    torch.testing.assert_close(found[:, :20], full(x)[:, :20], rtol=1e-4, atol=1e-5)
    everything = bool(options)
    assert torch.allclose(found[:, 20:], full(x)[:, 20:], rtol=1e-4, atol=1e-5) == everything


def test_full_steps_follow_the_schedule() -> None:
    ours, full = pair(refresh_stride=4)
    x = torch.randn(2, 39, 24)
    close = (decoded(ours, x, [30] + [1] * 9) - full(x)).abs().amax(dim=(0, 2)) < 1e-4
    assert close.tolist() == [True] * 30 + [False, False, False, True, False, False, False, True, False]


def test_a_key_that_has_gone_never_returns_without_full_steps() -> None:
    ours, _ = pair()
    x = torch.randn(2, 60, 24)
    with torch.no_grad():
        _, state = ours.step(x[:, :20], ours.init_state(2))
        before = state.carried()
        for token in x[:, 20:].split(1, dim=1):
            _, state = ours.step(token, state)
            after = state.carried()
            new = int(state.position[0]) - 1
            for b in range(2):
                for g in range(2):
                    assert set(after[b, g].tolist()) <= {*before[b, g].tolist(), new}
                    assert {new, new - 1, new - 2} <= set(after[b, g].tolist())
            before = after


@pytest.mark.parametrize("name", ["masked_steps", "state", "padding"])
def test_full_steps_keep_the_contract(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    example = type(H2OAttention.example)(kwargs={**H2OAttention.example.kwargs, "refresh_stride": 3}, tokens=29)
    monkeypatch.setattr(H2OAttention, "example", example)
    (check,) = [check for check in contract_checks(H2OAttention) if check.name == name]
    try:
        check()
    except ContractError as error:
        pytest.fail(str(error))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cache_size": 0}, "cache_size must be at least 1, got 0"),
        ({"refresh_stride": 0}, "refresh_stride must be at least 1, or None for never, got 0"),
        ({"causal": False}, "refuses causal=False: it is the cache of decoding that keys leave"),
    ],
)
def test_ill_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        H2OAttention(24, **{**SMALL, **changed})
