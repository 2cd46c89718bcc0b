"""The reference implementation's memory: loops over chunks, any continuation, heads of their own, its layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from regard.layers.chunk_memory import ChunkMemory


def by_loops(memory: ChunkMemory, x: Tensor, *, batch_size: int | None) -> Tensor:
    """One row and one head, chunk by chunk, gradients by autograd."""
    size, width = memory.chunk_size, x.shape[1]
    stored, asked = memory.store_norm(x), memory.retrieve_norm(x) @ memory.q_proj.weight.T
    own = [*memory.weights, memory.gain]
    committed = [weight[0] for weight in own if weight is not None]

    def run(inputs: Tensor, weights: list[Tensor]) -> Tensor:
        z = inputs
        for number, weight in enumerate(weights[:-1]):
            z = (gelu(z) if number else z) @ weight
        return layer_norm(z, (width,)) * (1 + weights[-1]) + inputs

    newest, momentum = committed, [torch.zeros_like(weight) for weight in committed]
    after = [newest]
    for begin in range(0, len(x) // size * size, size):
        chunk = stored[begin : begin + size]
        error = run(chunk @ memory.k_proj.weight.T, committed) - chunk @ memory.v_proj.weight.T
        step = torch.sigmoid(memory.step_proj(chunk))[:, 0]
        loss = (step * error.square().mean(dim=1)).sum()
        gradients = torch.autograd.grad(loss, committed, create_graph=True)
        pooled = chunk.mean(dim=0)
        eta, alpha = torch.sigmoid(memory.momentum_proj(pooled)), torch.sigmoid(memory.decay_proj(pooled))
        momentum = [eta * held - new for held, new in zip(momentum, gradients, strict=True)]
        newest = [(1 - alpha) * weight + held for weight, held in zip(newest, momentum, strict=True)]
        after.append(newest)
        if batch_size is not None and (begin + size) % batch_size == 0:
            committed = newest
    return torch.cat([run(asked[t : t + 1], after[(t + 1) // size]) for t in range(len(x))])


@pytest.mark.parametrize("batch_size", [None, 6])
@pytest.mark.parametrize("chunk_size", [1, 3])
def test_is_the_loop(chunk_size: int, batch_size: int | None) -> None:
    memory = ChunkMemory(7, chunk_size=chunk_size, batch_size=batch_size, expansion=2).double()
    x = torch.randn(1, 14, 7, dtype=torch.float64)
    torch.testing.assert_close(memory(x)[0][0], by_loops(memory, x[0], batch_size=batch_size))


@pytest.mark.parametrize("pieces", [(14,), (1,) * 14, (5, 9), (2, 1, 6, 5), (3, 3, 8)])
@pytest.mark.parametrize("chunk_size", [1, 3])
def test_any_continuation_is_the_whole(chunk_size: int, pieces: tuple[int, ...]) -> None:
    memory = ChunkMemory(8, num_heads=2, head_dim=4, chunk_size=chunk_size, batch_size=6, qk_norm=True).double()
    x = torch.randn(2, 14, 8, dtype=torch.float64)
    expected, last, stored = memory(x)
    state, reads, losses = None, [], []
    for piece in x.split(list(pieces), dim=1):
        y, state, part = memory(piece, state)
        reads.append(y)
        losses.append(part.losses)
    torch.testing.assert_close(torch.cat(reads, dim=1), expected)
    torch.testing.assert_close(torch.cat(losses, dim=2), stored.losses)
    assert state is not None
    torch.testing.assert_close(state.last, last.last)
    torch.testing.assert_close(state.momentum, last.momentum)


def test_many_chunks_are_computed_in_blocks() -> None:
    memory = ChunkMemory(5, chunk_size=1, expansion=2).double()
    x = torch.randn(1, 150, 5, dtype=torch.float64) * 0.1
    first, state, _ = memory(x[:, :1])
    torch.testing.assert_close(first, memory(x)[0][:, :1])
    assert memory(x)[2].updates[0].shape[2] == 151
    del state


def test_heads_are_trained_apart() -> None:
    memory = ChunkMemory(8, num_heads=2, head_dim=4, chunk_size=2)
    loss = memory(torch.randn(1, 6, 8))[0].square().sum()
    (gradient,) = torch.autograd.grad(loss, memory.weights[0])
    assert not torch.allclose(gradient[0], gradient[1])


def test_unknown_and_missing_keys_are_named() -> None:
    memory = ChunkMemory(6, chunk_size=2)
    with pytest.raises(KeyError, match="unknown keys: to_nothing; missing keys"):
        memory.load_reference({"to_nothing": torch.zeros(1)})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 8, "head_dim": 4}, "head_dim must equal dim=8, got 4"),
        ({"dim": 8, "chunk_size": 4, "batch_size": 6}, "multiple of chunk_size=4, got 6"),
        ({"dim": 8, "chunk_size": 0}, "chunk_size=0"),
        ({"dim": 8, "depth": 0}, "depth=0"),
    ],
)
def test_ill_sizes_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ChunkMemory(**options)


def test_another_number_of_rows_is_named() -> None:
    memory = ChunkMemory(6, chunk_size=2)
    _, state, _ = memory(torch.randn(2, 3, 6))
    with pytest.raises(ValueError, match="state has 2 rows and x has 3"):
        memory(torch.randn(3, 3, 6), state)
