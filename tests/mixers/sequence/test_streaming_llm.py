"""StreamingLLM as a layer: token by token from the definition, full steps in between, constant memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regard.contract import ContractError
from regard.measure import contraction_macs
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.mixers.sequence.streaming_llm import StreamingLLMAttention
from regard.ops.heads import merge_heads, repeat_heads, split_heads
from regard.ops.rotary import rotate
from regard.testing.plan import contract_checks

SMALL: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "cache_size": 7, "num_sinks": 2}


def layer_by_tokens(mixer: StreamingLLMAttention, x: Tensor) -> Tensor:
    """Each token against the list of what it sees, rotated by their order in it, or by their places in a full step."""
    q, k, v = (
        split_heads(projection(x), heads)
        for projection, heads in ((mixer.q_proj, 4), (mixer.k_proj, 2), (mixer.v_proj, 2))
    )
    rows = []
    for i in range(x.shape[1]):
        seen = list(range(i + 1))
        if i > 7 and not (mixer.refresh_stride and i % mixer.refresh_stride == 0):
            seen = [0, 1, *range(i - 5, i + 1)]
        own, keys = q[:, :, i : i + 1], k[:, :, seen]
        if mixer.rope_base is not None:
            ranks = torch.arange(len(seen))[None]
            own, keys = rotate(own, ranks[:, -1:], base=mixer.rope_base), rotate(keys, ranks, base=mixer.rope_base)
        weights = (own @ repeat_heads(keys, 4).transpose(2, 3) * own.shape[-1] ** -0.5).softmax(dim=-1)
        rows.append(weights @ repeat_heads(v[:, :, seen], 4))
    return mixer.o_proj(merge_heads(torch.cat(rows, dim=2)))


@pytest.mark.parametrize("refresh_stride", [None, 3])
@pytest.mark.parametrize("rope_base", [None, 100.0])
def test_layer_is_the_definition(rope_base: float | None, refresh_stride: int | None) -> None:
    mixer = StreamingLLMAttention(24, rope_base=rope_base, refresh_stride=refresh_stride, **SMALL).double()
    x = torch.randn(2, 29, 24, dtype=torch.float64)
    expected = layer_by_tokens(mixer, x)
    torch.testing.assert_close(mixer(x), expected)
    torch.testing.assert_close(mixer.out(mixer.attention_map(x) @ mixer.values(x), x), expected)
    state, found = mixer.init_state(2), []
    with torch.no_grad():
        for piece in x.split([12, 1, 1, 7, 1, 7], dim=1):
            y, state = mixer.step(piece, state)
            found.append(y)
    torch.testing.assert_close(torch.cat(found, dim=1), expected)


@pytest.mark.parametrize("options", [{"cache_size": 40}, {"refresh_stride": 1}], ids=str)
def test_room_for_everything_is_softmax_attention(options: dict[str, Any]) -> None:
    ours = StreamingLLMAttention(24, rope_base=100.0, **{**SMALL, **options})
    full = SoftmaxAttention(24, num_heads=4, num_kv_heads=2, causal=True, rope_base=100.0)
    full.load_state_dict(ours.state_dict())
    x = torch.randn(2, 31, 24)
    torch.testing.assert_close(ours(x), full(x))


def test_memory_is_constant_and_positions_never_leave_the_cache() -> None:
    mixer = StreamingLLMAttention(24, rope_base=100.0, **SMALL)
    period = torch.randn(1, 1, 24)
    with torch.no_grad():
        state = mixer.init_state(1)
        size, outputs = state.nbytes, []
        for _ in range(400):
            y, state = mixer.step(period, state)
            outputs.append(y)
            assert state.nbytes == size
    # the same tokens in the cache at the same ranks, however far the text has come
    torch.testing.assert_close(outputs[-1], outputs[20], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["cost", "padding", "masked_steps", "chunked_steps", "attention_map", "state"])
def test_full_steps_keep_the_contract(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    kwargs = {**StreamingLLMAttention.example.kwargs, "refresh_stride": 4}
    example = type(StreamingLLMAttention.example)(kwargs=kwargs, batch=2, tokens=29)
    monkeypatch.setattr(StreamingLLMAttention, "example", example)
    (check,) = [check for check in contract_checks(StreamingLLMAttention) if check.name == name]
    try:
        check()
    except ContractError as error:
        pytest.fail(str(error))


def test_cost_grows_linearly() -> None:
    counts = [StreamingLLMAttention.macs(tokens=62 * n, dim=24, **SMALL) for n in (64, 128)]
    assert counts[1] / counts[0] == pytest.approx(2, rel=0.02)
    mixer = StreamingLLMAttention(24, refresh_stride=5, **SMALL)
    x = torch.randn(1, 67, 24)
    assert contraction_macs(lambda: mixer(x)) == mixer.macs(tokens=67, dim=24, refresh_stride=5, **SMALL)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cache_size": 1}, "got cache_size=1 and sinks=2"),
        ({"num_sinks": -1}, "got cache_size=7 and sinks=-1"),
        ({"refresh_stride": 0}, "refresh_stride must be at least 1, or None for never, got 0"),
        ({"causal": False}, "refuses causal=False: the latest tokens are those before the query"),
    ],
)
def test_ill_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        StreamingLLMAttention(24, **{**SMALL, **changed})
