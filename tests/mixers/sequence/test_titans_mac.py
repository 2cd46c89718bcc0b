"""Memory as a context: segment by segment against its equations, with the future kept out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from regard.mixers.sequence.titans_mac import TitansMAC
from regard.ops.heads import merge_heads, split_heads
from regard.ops.memory_network import read_memory
from regard.ops.neural_memory import Rates, neural_memory_reference

SEGMENT, PERSISTENT, HEADS, WIDTH = 4, 2, 3, 5


def convolved(stream: Tensor, kernel: Tensor) -> Tensor:
    padded = torch.cat((stream.new_zeros(stream.shape[0], 3, stream.shape[2]), stream), dim=1)
    return sum(padded[:, place : place + stream.shape[1]] * kernel[place] for place in range(4))  # type: ignore[return-value]


def by_equations(mixer: TitansMAC, x: Tensor) -> Tensor:
    """Loops over segments and queries; the memory by its plain recurrence over all that attention gave so far."""
    part, memory = mixer.context_memory, mixer.context_memory.memory
    dim = x.shape[2]
    assert memory.filter is not None
    assert part.persistent is not None
    recall = silu(convolved(x @ memory.qkv.weight[:dim].T, memory.filter[:, :dim]))
    recall = torch.nn.functional.normalize(split_heads(recall, HEADS), dim=-1)
    first = memory.first_memory(len(x))
    start, ys, outputs = first.weights, x[:, :0], []
    for begin in range(0, x.shape[1], SEGMENT):
        segment = x[:, begin : begin + SEGMENT]
        h = read_memory(recall[:, :, begin : begin + SEGMENT], start, residual_norm=False)
        h = merge_heads(h / (h.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * part.read_norm.weight)
        y = torch.zeros_like(segment)
        for i in range(segment.shape[1]):
            seen = torch.cat((part.persistent.expand(len(x), -1, -1), h[:, : i + 1], segment[:, : i + 1]), dim=1)
            k, v = split_heads(part.k_proj(seen), HEADS), split_heads(part.v_proj(seen), HEADS)
            q = split_heads(part.q_proj(segment[:, i : i + 1]), HEADS)
            weights = (q @ k.mT / math.sqrt(WIDTH)).softmax(dim=-1)
            y[:, i] = part.y_proj(merge_heads(weights @ v))[:, 0]
        ys = torch.cat((ys, y), dim=1)
        q, k, v, rates = memory.inputs(ys, memory.project(ys), None)
        reads, after = neural_memory_reference(
            q, k, v, Rates(*rates[:3]), first, chunk_size=SEGMENT, residual_norm=False
        )
        start = after.weights
        outputs.append((split_heads(y, HEADS), reads[:, :, begin:]))
    attended, reads = (torch.cat(parts, dim=2) for parts in zip(*outputs, strict=True))
    gate = mixer.gate

    def normed(value: Tensor, weight: Tensor) -> Tensor:
        return value / (value.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt() * weight

    joined = normed(attended, gate.attention_norm.weight) * silu(normed(reads, gate.memory_norm.weight))
    return gate.o_proj(merge_heads(joined))


@pytest.mark.parametrize("tokens", [1, 3, 4, 11])
def test_is_the_equations(tokens: int) -> None:
    torch.manual_seed(5)
    mixer = TitansMAC(
        HEADS * WIDTH, num_heads=HEADS, segment_len=SEGMENT, num_persistent=PERSISTENT, max_surprise=None
    ).double()
    x = torch.randn(2, tokens, HEADS * WIDTH, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), by_equations(mixer, x))


def test_nothing_but_the_memory_crosses_a_border() -> None:
    torch.manual_seed(6)
    mixer = TitansMAC(12, num_heads=3, segment_len=4, convolution=False).double()
    with torch.no_grad():
        # a memory that takes no step and has nothing forgotten is the same in every segment
        mixer.context_memory.memory.rates.weight.zero_()
        mixer.context_memory.memory.rates.bias[:3] = -1e3
        mixer.context_memory.memory.rates.bias[3:6] = 1e3
    x = torch.randn(1, 12, 12, dtype=torch.float64)
    torch.testing.assert_close(mixer(x)[:, 4:8], mixer(x[:, 4:8]))


@pytest.mark.parametrize("segment_len", [1, 2, 5])
def test_streams_whatever_the_options(segment_len: int) -> None:
    for options in ({"convolution": False}, {"num_persistent": 0}, {"momentum": False, "residual_norm": True}):
        mixer = TitansMAC(12, num_heads=3, segment_len=segment_len, rope_base=100.0, **options).double()
        x = torch.randn(2, 13, 12, dtype=torch.float64)
        with torch.no_grad():
            state, pieces = mixer.init_state(2), []
            for piece in x.split([2, 1, 7, 1, 1, 1], dim=1):
                y, state = mixer.step(piece, state)
                pieces.append(y)
            torch.testing.assert_close(torch.cat(pieces, dim=1), mixer(x))


def test_ill_sizes_are_named() -> None:
    with pytest.raises(ValueError, match="segment_len must be positive, got 0"):
        TitansMAC(12, num_heads=3, segment_len=0)
    with pytest.raises(ValueError, match="num_persistent must not be negative, got -1"):
        TitansMAC(12, num_heads=3, num_persistent=-1)
    with pytest.raises(ValueError, match="even head_dim, got 5"):
        TitansMAC(15, num_heads=3, rope_base=100.0)
