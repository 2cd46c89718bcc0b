"""RCMHA against its formula, its counted parameters, the authors' layout, and exact steps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.mixers.sequence.mdha import MDHA
from regard.mixers.sequence.rcmha import RCMHA
from regard.testing.decoding_checks import chunked_steps, masked_steps
from regard.testing.subjects import SequenceSubject


def convolved(x: Tensor, convolution: Any) -> Tensor:
    """Tap by tap, for `(batch, tokens, heads, head_dim)`."""
    y = torch.zeros_like(x)
    for t in range(x.shape[1]):
        y[:, t] = convolution.bias
        for tap in range(3):
            if t - 2 + tap >= 0:
                y[:, t] += convolution.weight[:, 0, tap] * x[:, t - 2 + tap]
    return y


def layer_by_loops(mixer: RCMHA, x: Tensor) -> Tensor:
    """The whole layer once more, token by token and head by head."""
    batch, tokens, dim = x.shape
    heads, width, zero = mixer.num_heads, mixer.head_dim, mixer.max_positions
    with torch.no_grad():
        q, k, v = (
            convolved(linear(x).view(batch, tokens, heads, width), convolution)
            for linear, convolution in (
                (mixer.q_proj, mixer.q_conv),
                (mixer.k_proj, mixer.k_conv),
                (mixer.v_proj, mixer.v_conv),
            )
        )
        mixed = torch.zeros(batch, tokens, heads, width, dtype=x.dtype)
        for b in range(batch):
            for h in range(heads):
                for i in range(tokens):
                    seen = range(i + 1) if mixer.causal else range(tokens)
                    scores = []
                    for j in seen:
                        content = (q[b, i, h] + mixer.content_bias[h]) @ k[b, j, h]
                        position = q[b, i, h] @ mixer.embeddings[zero + j - i, h] + mixer.offset_bias[zero + j - i, h]
                        scores.append(math.exp(float(content + position) / math.sqrt(width)))
                    for j, score in zip(seen, scores, strict=True):
                        mixed[b, i, h] += score / sum(scores) * v[b, j, h]
        return mixed.reshape(batch, tokens, dim) @ mixer.o_proj.weight.T + mixer.o_proj.bias


@pytest.mark.parametrize("causal", [True, False])
def test_layer_is_the_formula(causal: bool) -> None:
    mixer = RCMHA(15, num_heads=3, causal=causal, max_positions=11).double()
    with torch.no_grad():
        for parameter in mixer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    x = torch.randn(2, 11, 15, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), layer_by_loops(mixer, x))


def test_parameters_are_those_counted() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in RCMHA(128, num_heads=8).parameters()) == 1_180_224


def test_positions_start_at_zero() -> None:
    mixer = RCMHA(12, num_heads=3, max_positions=5)
    for name in ("embeddings", "offset_bias", "content_bias"):
        assert (mixer.get_parameter(name) == 0).all()
    assert mixer.embeddings.shape == (10, 3, 4)


@pytest.mark.parametrize("cls", [RCMHA, MDHA])
def test_with_a_state_of_the_convolution_steps_are_exact(monkeypatch: pytest.MonkeyPatch, cls: Any) -> None:
    example = replace(cls.example, kwargs={**cls.example.kwargs, "conv_state": True})
    monkeypatch.setattr(cls, "example", example)
    subject = SequenceSubject(cls, "causal")
    chunked_steps(subject)
    masked_steps(subject)
    assert subject.build().conv_state


def test_without_it_queries_begin_anew_at_every_call() -> None:
    mixer, x = RCMHA(12, num_heads=3, max_positions=9).eval(), torch.randn(1, 9, 12)
    with torch.no_grad():
        _, state = mixer.step(x[:, :5], mixer.init_state(1))
        y, _ = mixer.step(x[:, 5:], state)
        whole = mixer(x)[:, 5:]
    assert not torch.allclose(y[:, :2], whole[:, :2], atol=1e-4)
    torch.testing.assert_close(y[:, 2:], whole[:, 2:], rtol=1e-4, atol=1e-5)


def authors_layout(dim: int, heads: int, positions: int) -> dict[str, Tensor]:
    width = dim // heads
    shapes: dict[str, tuple[int, ...]] = {
        "query.0.linear.weight": (dim, dim),
        "key.0.linear.weight": (dim, dim),
        "value.0.linear.weight": (dim, dim),
        "value.0.linear.bias": (dim,),
        "output.weight": (dim, dim),
        "output.bias": (dim,),
        "key_pos_embeddings": (2 * positions, heads, width),
        "key_pos_bias": (2 * positions, heads),
        "query_pos_bias": (heads, width),
    }
    for part in ("query", "key", "value"):
        shapes |= {f"{part}.1.conv.weight": (width, 1, 3), f"{part}.1.conv.bias": (width,)}
    return {name: torch.rand(shape) for name, shape in shapes.items()}


def test_loads_the_authors_layout_strictly() -> None:
    mixer, layout = RCMHA(12, num_heads=3, max_positions=7), authors_layout(12, 3, 7)
    mixer.load_reference(layout)
    assert torch.equal(mixer.embeddings, layout["key_pos_embeddings"])
    assert torch.equal(mixer.get_parameter("k_conv.weight"), layout["key.1.conv.weight"])
    with pytest.raises(ValueError, match=r"embeddings has shape \(8192, 3, 4\), it must be \(14, 3, 4\)"):
        mixer.load_reference(authors_layout(12, 3, 4096))
    del layout["query.1.conv.bias"]
    with pytest.raises(KeyError, match=r"missing keys: q_conv\.bias"):
        mixer.load_reference(layout)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10, "num_heads": 3}, "dim=10 and num_heads=3"),
        ({"dim": 12, "num_heads": 3, "max_positions": 0}, "max_positions must be positive, got 0"),
    ],
)
def test_ill_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RCMHA(**options)
