"""The attention gate position by position, in both modes, and what it refuses."""

from __future__ import annotations

import backbones
import pytest
import torch
from torch import Tensor, nn

from regard.mixers.spatial.attention_gate import AttentionGate


def normed(norm: nn.BatchNorm2d, rows: Tensor) -> Tensor:
    """A batch norm of vectors `(rows, channels)`."""
    mean, var = norm.running_mean, norm.running_var
    if norm.training:
        mean, var = rows.mean(dim=0), rows.var(dim=0, correction=0)
    return (rows - mean) / (var + norm.eps).sqrt() * norm.weight + norm.bias


def by_positions(mixer: AttentionGate, x: Tensor, context: Tensor) -> Tensor:
    """The coefficient of every position, as vectors and matrices."""
    g, s = (part.movedim(1, -1).flatten(0, -2) for part in (context, x))
    a = normed(mixer.context_norm, g @ mixer.context_proj.weight.T + mixer.context_proj.bias)
    b = normed(mixer.skip_norm, s @ mixer.skip_proj.weight.T + mixer.skip_proj.bias)
    scores = torch.cat([a, b], dim=1).clamp(min=0) @ mixer.score.weight.T + mixer.score.bias
    psi = 1 / (1 + (-normed(mixer.score_norm, scores)).exp())
    return psi.view(x.shape[0], 1, *x.shape[2:])


def build(channels: int, inter: int | None, training: bool) -> AttentionGate:
    mixer = AttentionGate(channels, inter_channels=inter)
    backbones.randomised(mixer)
    return mixer.double().train(training)


@pytest.mark.parametrize(("channels", "inter"), [(7, None), (1, None), (5, 11)])
@pytest.mark.parametrize("space", [(5, 7), (2, 3, 5), (1, 1, 3)])
@pytest.mark.parametrize("training", [False, True])
def test_is_the_formula(channels: int, inter: int | None, space: tuple[int, ...], training: bool) -> None:
    mixer = build(channels, inter, training)
    x, context = torch.randn(2, 2, channels, *space, dtype=torch.float64)
    psi = by_positions(mixer, x, context)
    torch.testing.assert_close(mixer.gate(x, context), psi)
    torch.testing.assert_close(mixer(x, context=context), x * psi)
    assert mixer.context_proj.out_features == (inter or max(1, channels // 2))


def test_gradients_are_those_of_the_formula() -> None:
    mixer = build(7, None, False)
    x, context = (torch.randn(2, 7, 3, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weights = torch.randn(2, 7, 3, 5, dtype=torch.float64)
    leaves = (x, context, *mixer.parameters())
    ours = torch.autograd.grad((mixer(x, context=context) * weights).sum(), leaves)
    expected = torch.autograd.grad((x * by_positions(mixer, x, context) * weights).sum(), leaves)
    torch.testing.assert_close(ours, expected)


def test_keeps_the_batch_norms_of_the_authors() -> None:
    norm = AttentionGate(4).score_norm
    assert (norm.eps, norm.momentum) == (1e-3, 0.01)


def test_loads_its_own_layout_strictly() -> None:
    mixer = AttentionGate(4)
    state = {name: tensor + 1 for name, tensor in mixer.state_dict().items()}
    mixer.load_reference(state)
    assert torch.equal(mixer.score.bias, state["score.bias"])
    with pytest.raises(KeyError, match=r"missing keys: score\.bias"):
        mixer.load_reference({name: tensor for name, tensor in state.items() if name != "score.bias"})


def test_ill_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="inter_channels must be positive, got 0"):
        AttentionGate(4, inter_channels=0)
    mixer, x = AttentionGate(4), torch.randn(1, 4, 3, 5)
    with pytest.raises(ValueError, match="needs a context"):
        mixer(x)
    with pytest.raises(ValueError, match=r"\(1, 4, 3, 5\) and context \(1, 4, 3, 6\)"):
        mixer(x, context=torch.randn(1, 4, 3, 6))
    with pytest.raises(ValueError, match="context has 5 channels and the mixer has 4"):
        mixer.gate(x, torch.randn(1, 5, 3, 5))
