"""Perceptrons along features and along tokens against PyTorch's own modules; dropout; ill sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from regard.layers.feed_forward import FeedForward, TokenFeedForward


def plain(module: FeedForward) -> nn.Sequential:
    made = nn.Sequential(
        nn.Linear(module.up_proj.in_features, module.up_proj.out_features),
        nn.GELU(),
        nn.Linear(module.down_proj.in_features, module.down_proj.out_features),
    )
    made.load_state_dict(dict(zip(made.state_dict(), module.state_dict().values(), strict=True)))
    return made


def test_features_and_tokens() -> None:
    x = torch.randn(2, 13, 7)
    features, tokens = FeedForward(7, 11), TokenFeedForward(13, 5)
    torch.testing.assert_close(features(x), plain(features)(x))
    torch.testing.assert_close(tokens(x), plain(tokens)(x.transpose(1, 2)).transpose(1, 2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("module", [FeedForward(7, 11, dropout=0.5), TokenFeedForward(13, 11, dropout=0.5)])
def test_dropout_acts_twice_in_training_alone(module: FeedForward) -> None:
    x = torch.randn(2, 13, 7)
    with torch.no_grad():
        first = module.train()(x)
        assert float((first == 0).float().mean()) == pytest.approx(0.5, abs=0.15)
        module.down_proj.bias.zero_()
        kept = module(x)
        assert torch.equal(module.eval()(x), module(x))
        assert not torch.allclose(kept[kept != 0], 2 * module(x)[kept != 0]), "the inner dropout does nothing"


@pytest.mark.parametrize(("dim", "hidden", "dropout", "message"), [(0, 3, 0, "got 0 and 3"), (3, 3, 1.0, "got 1.0")])
def test_ill_sizes_are_named(dim: int, hidden: int, dropout: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeedForward(dim, hidden, dropout=dropout)
    with pytest.raises(ValueError, match=r"12 tokens .* seq_len=13"):
        TokenFeedForward(13, 3)(torch.zeros(1, 12, 2))


def test_the_approximate_gelu_is_the_one_with_tanh() -> None:
    layer = FeedForward(5, 7, approximate="tanh").double()
    x = torch.randn(3, 5, dtype=torch.float64)
    u = layer.up_proj(x)
    gelu = 0.5 * u * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (u + 0.044715 * u**3)))
    torch.testing.assert_close(layer(x), layer.down_proj(gelu), rtol=1e-9, atol=1e-12)
