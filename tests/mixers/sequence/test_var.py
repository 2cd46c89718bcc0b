"""VAR against its formula token by token, plain attention, and decoding with the prompt's sinks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import regard
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.mixers.sequence.var import VARAttention

SMALL: dict[str, Any] = {
    "num_heads": 4,
    "num_kv_heads": 2,
    "image_span": (3, 8),
    "sink_dims": (2, 9),
    "tau": 2.0,
    "rho": 0.6,
    "summ": 0.2,
}


def with_sinks(tokens: int, *places: int, batch: int = 2) -> Tensor:
    """Input without large numbers but those of the sinks."""
    x = torch.randn(batch, tokens, 24, dtype=torch.float64).clamp(-1.5, 1.5)
    x[:, list(places), 9] = 12.0
    return x


def by_loops(mixer: VARAttention, x: Tensor, sinks: list[int]) -> tuple[Tensor, int]:
    """The output, and the number of selected rows."""
    rule, selected = mixer.rule, 0
    q = mixer.q_proj(x).view(*x.shape[:2], 4, 6)
    k, v = (projection(x).view(*x.shape[:2], 2, 6) for projection in (mixer.k_proj, mixer.v_proj))
    mixed = torch.zeros_like(q)
    for b in range(x.shape[0]):
        for h in range(4):
            for i in range(x.shape[1]):
                scores = [math.exp(float(q[b, i, h] @ k[b, j, h // 2]) / math.sqrt(6)) for j in range(i + 1)]
                a = [score / sum(scores) for score in scores]
                image = [j for j in range(3, 11) if j <= i]
                visual, on_sinks = sum(a[j] for j in image), sum(a[j] for j in image if j in sinks)
                if i >= 11 and visual >= rule.summ and 0 < on_sinks <= rule.rho * (visual + 8e-6):
                    selected += 1
                    omega = (1 - rule.p) * sum(a[j] for j in sinks if j <= i)
                    gain = omega / (visual - on_sinks)
                    a = [
                        rule.p * a[j] if j in sinks else a[j] * (1 + gain) if j in image else a[j] for j in range(i + 1)
                    ]
                mixed[b, i, h] = sum(a[j] * v[b, j, h // 2] for j in range(i + 1))
    return mixer.o_proj(mixed.flatten(2)), selected


@torch.no_grad()
def test_the_layer_is_the_formula() -> None:
    mixer = VARAttention(24, **{**SMALL, "rho": 0.25, "summ": 0.45}).double()
    x = with_sinks(19, 0, 5, 9, 14)
    assert mixer.find_sinks(x)[0].nonzero()[:, 0].tolist() == [0, 5, 9, 14]
    expected, selected = by_loops(mixer, x, [0, 5, 9, 14])
    assert 0 < selected < 2 * 4 * 8
    torch.testing.assert_close(mixer(x), expected)


@pytest.mark.parametrize("plain", ["no image", "not active", "p is 1", "no sinks", "shorter than the image"])
def test_plain_causal_attention(plain: str) -> None:
    changes: dict[str, dict[str, Any]] = {
        "no image": {"image_span": None},
        "not active": {"active": False},
        "p is 1": {"p": 1.0},
    }
    ours = VARAttention(24, rope_base=100.0, **{**SMALL, **changes.get(plain, {})}).double()
    full = SoftmaxAttention(24, causal=True, num_heads=4, num_kv_heads=2, rope_base=100.0).double()
    full.load_state_dict(ours.state_dict())
    x = with_sinks(19) if plain == "no sinks" else with_sinks(19, 0, 5, 9)
    x = x[:, :11] if plain == "shorter than the image" else x
    torch.testing.assert_close(ours(x), full(x))
    torch.testing.assert_close(ours.attention_map(x), full.attention_map(x))
    torch.testing.assert_close(decoded(ours, x, [4, 1, 1, x.shape[1] - 6]), full(x))


def decoded(mixer: VARAttention, x: Tensor, chunks: list[int], **options: Any) -> Tensor:
    state, pieces = mixer.init_state(x.shape[0], **options), []
    with torch.no_grad():
        for piece in x.split(chunks, dim=1):
            y, state = mixer.step(piece, state)
            pieces.append(y)
    return torch.cat(pieces, dim=1)


@pytest.mark.parametrize("max_len", [None, 83])
@pytest.mark.parametrize("chunks", [[83], [13] + [1] * 70, [1] * 83, [4, 6, 1, 20, 1, 51]])
def test_steps_equal_forward_where_no_decoded_token_is_like_a_sink(chunks: list[int], max_len: int | None) -> None:
    mixer = VARAttention(24, rope_base=100.0, **SMALL).double()
    x = with_sinks(83, 0, 5, 9)
    torch.testing.assert_close(decoded(mixer, x, chunks, max_len=max_len), mixer(x))


def test_a_token_decoded_alone_is_no_sink_and_one_of_a_prompt_is() -> None:
    mixer = VARAttention(24, **SMALL).double()
    x, calm = with_sinks(19, 0, 5, 13), with_sinks(19, 0, 5)
    calm[:, 16:] = x[:, 16:]
    _, state = mixer.step(x[:, :12], mixer.init_state(2))
    _, state = mixer.step(x[:, 12:13], state)
    _, alone = mixer.step(x[:, 13:14], state.clone())
    _, prompt = mixer.step(x[:, 13:15], state.clone())
    assert alone.sinks[0].nonzero()[:, 0].tolist() == [0, 5]
    assert prompt.sinks[0].nonzero()[:, 0].tolist() == [0, 5, 13]
    assert (alone.searched, prompt.searched) == (12, 15)
    whole = mixer(x)
    torch.testing.assert_close(decoded(mixer, x, [12, 1, 6]), whole)
    assert not torch.allclose(decoded(mixer, x, [13] + [1] * 6)[:, 14:], whole[:, 14:])


def test_padding_has_no_influence_on_decoding() -> None:
    mixer = VARAttention(24, rope_base=100.0, **SMALL).double()
    x, mask = with_sinks(40, 2, 4, 9, 11, batch=1), torch.ones(1, 40, dtype=torch.bool)
    mask[:, [0, 1, 3, 8, 25, 31]] = False
    alone = x[mask][None]
    expected = decoded(mixer, alone, [16] + [1] * (alone.shape[1] - 16))
    state, pieces = mixer.init_state(1), []
    with torch.no_grad():
        for piece, real in zip(x.split([20] + [1] * 20, dim=1), mask.split([20] + [1] * 20, dim=1), strict=True):
            y, state = mixer.step(piece, state, mask=real)
            pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, dim=1)[mask][None], expected)


def test_rows_with_different_padding_keep_sinks_of_their_own() -> None:
    mixer = VARAttention(24, **SMALL).double()
    x = with_sinks(20, 0, 5)
    x[1, 5] = x[1, 6]
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, 14:] = False
    _, state = mixer.step(x, mixer.init_state(2), mask=mask)
    assert state.sinks[0].nonzero()[:, 0].tolist() == [0, 5]
    assert state.sinks[1].nonzero()[:, 0].tolist() == [0]
    swapped = state.reorder(torch.tensor([1, 0]))
    assert torch.equal(swapped.sinks, state.sinks.flip(0))


def test_defaults_are_those_of_the_compared_code() -> None:
    mixer = regard.create("var", dim=4096, num_heads=2, sink_dims=(1415, 2533), image_span=(35, 576))
    assert (mixer.tau, mixer.rule.p, mixer.rule.rho, mixer.rule.summ) == (20.0, 0.6, 0.5, 0.2)
    assert mixer.causal
    assert mixer.active


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image_span": (3, 0)}, r"image_span must begin at 0 or later and hold at least 1 token, got 3 and 0"),
        ({"image_span": (-1, 4)}, r"got -1 and 4"),
        ({"sink_dims": ()}, r"sink_dims must name at least one dimension"),
        ({"sink_dims": (2, 24)}, r"dim - 1 = 23, got 24"),
        ({"tau": 5.0}, r"below sqrt\(dim=24\) = 4.899, which no phi exceeds, got 5.0"),
        ({"p": 1.5}, r"p must be in \[0, 1\], got 1.5"),
        ({"causal": False}, r"refuses causal=False: attention is redistributed in the text after an image"),
        ({"num_heads": 5}, r"dim=24 and num_heads=5"),
    ],
)
def test_ill_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VARAttention(24, **{**SMALL, **changed})
