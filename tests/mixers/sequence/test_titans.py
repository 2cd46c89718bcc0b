"""Titans' memory alone against its equations token by token, its ablations, its state, and far inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, normalize, silu

from regard.mixers.sequence.titans import TitansLMM


def memory_by_loops(mixer: TitansLMM, x: Tensor) -> Tensor:
    """One row's reads `(tokens, dim)` by the paper's recurrence: gradients by autograd, one token at a time."""
    memory, heads, width = mixer.memory, mixer.num_heads, mixer.memory.head_dim
    projected = memory.qkv(x)
    if memory.filter is not None:
        padded = torch.cat((projected.new_zeros(3, projected.shape[1]), projected))
        projected = torch.stack([(padded[t : t + 4] * memory.filter).sum(dim=0) for t in range(len(x))])
    activated = silu(projected).view(len(x), 3, heads, width)
    rates = torch.sigmoid(memory.rates(x)).view(len(x), -1, heads)
    reads = []
    for head in range(heads):
        weights = [weight[head] for weight in memory.weights]
        momentum = [torch.zeros_like(weight) for weight in weights]

        def run(inputs: Tensor, weights: list[Tensor]) -> Tensor:
            for number, weight in enumerate(weights):
                inputs = (gelu(inputs) if number else inputs) @ weight
            return inputs

        of_head = []
        for t in range(len(x)):
            q, k, v = (activated[t, part, head] for part in range(3))
            q, k = normalize(q, dim=0), normalize(k, dim=0)
            loss = (run(k, weights) - v).square().sum()
            gradients = torch.autograd.grad(loss, weights, create_graph=True)
            theta = rates[t, 0, head]
            keep = rates[t, 1, head] if memory.forgetting else 1.0
            eta = rates[t, -1, head] if memory.momentum else 0.0
            momentum = [eta * held - theta * new for held, new in zip(momentum, gradients, strict=True)]
            weights = [keep * weight + held for weight, held in zip(weights, momentum, strict=True)]
            of_head.append(run(q, weights))
        reads.append(torch.stack(of_head))
    return torch.cat(reads, dim=1)


@pytest.mark.parametrize(
    "options",
    [{}, {"memory_depth": 1}, {"momentum": False}, {"forgetting": False}, {"convolution": False}, {"memory_depth": 3}],
)
def test_chunks_of_one_token_are_the_recurrence(options: dict[str, Any]) -> None:
    mixer = TitansLMM(15, num_heads=3, chunk_size=1, num_persistent=0, max_surprise=None, **options).double()
    x = torch.randn(1, 7, 15, dtype=torch.float64)
    reads = memory_by_loops(mixer, x[0])
    gate = silu(mixer.gate_proj(x[0])).view(7, 3, 5)
    heads = reads.view(7, 3, 5)
    normed = heads / (heads.square().mean(dim=2, keepdim=True) + 1e-6).sqrt() * mixer.norm.weight
    torch.testing.assert_close(mixer(x)[0], mixer.o_proj((normed * gate).flatten(1)))


def test_persistent_tokens_are_memorised_first_as_a_chunk_of_their_own() -> None:
    mixer = TitansLMM(12, num_heads=3, chunk_size=4, num_persistent=4).double()
    assert mixer.persistent is not None
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    whole = torch.cat((mixer.persistent.expand(2, -1, -1), x), dim=1)
    _, bare = mixer.memory.begin()
    torch.testing.assert_close(
        mixer.mix(x, context=None, mask=None, segments=None, bias=None), mixer.memory(whole, bare)[:, :, 4:]
    )


def test_recomputing_changes_no_gradient() -> None:
    x = torch.randn(2, 11, 12, dtype=torch.float64)
    gradients = []
    for recompute in (False, True):
        torch.manual_seed(0)
        mixer = TitansLMM(12, num_heads=3, chunk_size=4, recompute=recompute).double()
        gradients.append(torch.autograd.grad(mixer(x).square().sum(), [*mixer.parameters()]))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_state_has_one_size() -> None:
    mixer = TitansLMM(12, num_heads=3, chunk_size=4).eval()
    sizes = set()
    with torch.no_grad():
        for tokens in (1, 3, 4, 57):
            _, state = mixer.step(torch.randn(2, tokens, 12), mixer.init_state(2, max_len=100))
            sizes.add(state.nbytes)
    assert len(sizes) == 1


def test_far_inputs_stay_finite() -> None:
    mixer = TitansLMM(16, num_heads=2)
    x = (torch.randn(1, 700, 16) * 100).requires_grad_()
    y = mixer(x)
    assert bool(torch.isfinite(y).all())
    assert bool(torch.isfinite(torch.autograd.grad(y.sum(), x)[0]).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10, "num_heads": 3}, "dim=10 and num_heads=3"),
        ({"dim": 12, "num_heads": 3, "chunk_size": 0}, "chunk_size must be positive, got 0"),
        ({"dim": 12, "num_heads": 3, "memory_depth": 0}, "depth=0"),
        ({"dim": 12, "num_heads": 3, "num_persistent": -1}, "num_persistent must not be negative, got -1"),
        ({"dim": 12, "num_heads": 3, "max_surprise": 0.0}, "max_surprise must be positive, got 0"),
        ({"dim": 12, "num_heads": 3, "causal": False}, "refuses causal=False"),
    ],
)
def test_ill_sizes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TitansLMM(**options)
