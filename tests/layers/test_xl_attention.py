"""What RCMHA, RMHA and MDHA share: a memory, its map, its gradients, and the limit of positions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regard.layers.xl_attention import XLAttention
from regard.mixers.sequence.mdha import MDHA
from regard.mixers.sequence.rcmha import RCMHA
from regard.mixers.sequence.rmha import RMHA

CLASSES: list[Any] = [RCMHA, RMHA, MDHA]


def made(cls: Any, **options: Any) -> Any:
    mixer = cls(20, num_heads=4, **({} if cls is MDHA else {"max_positions": 23}), **options).double().eval()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return mixer


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("cls", CLASSES)
def test_memory_is_earlier_tokens_but_for_the_queries_convolution(cls: Any, causal: bool) -> None:
    mixer: XLAttention = made(cls, causal=causal)
    x = torch.randn(2, 13, 20, dtype=torch.float64)
    found = mixer.with_memory(x[:, 6:], x[:, :6])
    if causal:
        # two taps of the queries' convolution see zeros in place of the memory
        kept = slice(0 if cls is RMHA else 2, None)
        torch.testing.assert_close(found[:, kept], mixer(x)[:, 6:][:, kept])
        if cls is not RMHA:
            assert not torch.allclose(found[:, :2], mixer(x)[:, 6:8])
    weights = mixer.map_with_memory(x[:, 6:], x[:, :6])
    assert weights.shape == (2, 4, 7, 13)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 4, 7, dtype=torch.float64))
    mixed = weights @ mixer.values(x)
    torch.testing.assert_close(mixer.out(mixed, x[:, 6:]), found)


@pytest.mark.parametrize("cls", CLASSES)
def test_no_memory_is_the_plain_call(cls: Any) -> None:
    mixer, x = made(cls), torch.randn(2, 7, 20, dtype=torch.float64)
    for memory in (None, x[:, :0]):
        torch.testing.assert_close(mixer.with_memory(x, memory), mixer(x))


@pytest.mark.parametrize("cls", [RCMHA, MDHA])
def test_a_call_in_steps_is_a_call_with_memory(cls: Any) -> None:
    mixer, x = made(cls), torch.randn(2, 13, 20, dtype=torch.float64)
    with torch.no_grad():
        _, state = mixer.step(x[:, :6], mixer.init_state(2))
        y, _ = mixer.step(x[:, 6:], state)
        torch.testing.assert_close(y, mixer.with_memory(x[:, 6:], x[:, :6]))
        exact = made(cls, conv_state=True)
        exact.load_state_dict(mixer.state_dict())
        _, state = exact.step(x[:, :6], exact.init_state(2))
        y, _ = exact.step(x[:, 6:], state)
        torch.testing.assert_close(y, mixer(x)[:, 6:])


@pytest.mark.parametrize("cls", CLASSES)
def test_dropout_acts_in_training_alone(cls: Any) -> None:
    mixer, x = made(cls, attn_drop=0.5), torch.randn(2, 7, 20, dtype=torch.float64)
    assert torch.equal(mixer(x), mixer(x))
    mixer.train()
    assert not torch.equal(mixer(x), mixer(x))


@pytest.mark.parametrize("cls", [RCMHA, RMHA])
def test_more_tokens_than_positions_are_refused_everywhere(cls: Any) -> None:
    mixer, x = made(cls), torch.randn(2, 24, 20, dtype=torch.float64)
    for call in (
        lambda: mixer(x),
        lambda: mixer.attention_map(x),
        lambda: mixer.with_memory(x[:, 5:], x[:, :5]),
        lambda: mixer.init_state(2, max_len=24),
        lambda: mixer.step(x, mixer.init_state(2)),
    ):
        with pytest.raises(ValueError, match="24 tokens, memory included, are more than max_positions=23"):
            call()
    assert mixer(x[:, :23]).isfinite().all()


def test_mdha_has_no_limit() -> None:
    assert made(MDHA)(torch.randn(1, 50, 20, dtype=torch.float64)).isfinite().all()


def test_ill_memories_are_named() -> None:
    mixer, x = made(RCMHA), torch.randn(2, 5, 20, dtype=torch.float64)

    def refused(memory: Tensor, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            mixer.with_memory(x, memory)

    refused(torch.zeros(3, 5, 20, dtype=torch.float64), "memory has 3 rows and x has 2")
    refused(torch.zeros(2, 5, 19, dtype=torch.float64), r"memory must have shape \(batch, tokens, 20\)")
