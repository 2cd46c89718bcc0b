"""What the claims about agent attention measure with: smooth fields, layers that keep the variance, equal networks."""

from __future__ import annotations

import torch

from regard.claims._agent_networks import (
    HEAD_DIM,
    HEADS,
    SIDE,
    classifiers,
    diffusion_attention,
    few_keys,
    published_macs,
    rectangle_means,
    relative_error,
    smooth_tokens,
)


def test_fields_have_no_high_frequencies() -> None:
    x = smooth_tokens(2, seed=0)
    assert x.shape == (1, SIDE**2, HEADS * HEAD_DIM)
    torch.testing.assert_close(x.square().mean(dim=-1), torch.ones(1, SIDE**2), atol=0.01, rtol=0)
    field = x[0].T.unflatten(1, (SIDE, SIDE))
    steps = (field[:, 1:] - field[:, :-1]).square().mean()
    assert steps < (2 * 3.1416 * 2 / SIDE) ** 2
    assert not torch.equal(x, smooth_tokens(2, seed=1))
    assert torch.equal(x, smooth_tokens(2, seed=0))


def test_projections_keep_the_variance() -> None:
    layer = diffusion_attention(0)
    x = torch.randn(1, 500, HEADS * HEAD_DIM)
    for projection in (layer.q_proj, layer.k_proj, layer.v_proj):
        assert 0.95 < projection(x).var().item() < 1.05
    assert torch.equal(layer.o_proj(x), x)


def test_few_keys_of_equal_tokens_change_nothing() -> None:
    layer = diffusion_attention(0)
    x = torch.randn(1, 1, HEADS * HEAD_DIM).expand(1, SIDE**2, -1)
    with torch.no_grad():
        assert relative_error(few_keys(layer, x), layer.v_proj(x)) < 1e-5


def test_means_of_rectangles() -> None:
    q = torch.arange(12.0).view(1, 3, 4)
    assert rectangle_means(q, 2).tolist() == [[(0 + 1 + 4 + 5) / 4, 4.5, 6.5, 8.5]]


def test_networks_differ_in_their_attention_alone() -> None:
    networks = classifiers()
    counts = {}
    for name, build in networks.items():
        model = build().eval()
        assert model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
        counts[name] = sum(parameter.numel() for parameter in model.parameters())
    assert counts["agent"] == counts["linear"] == counts["softmax"]


def test_published_macs_count_norms_pooling_and_interpolation() -> None:
    def call() -> None:
        x = torch.empty(2, 3, 4, 6, device="meta")
        torch.nn.functional.layer_norm(x, (6,))
        torch.nn.functional.adaptive_avg_pool2d(x, 2)
        torch.nn.functional.interpolate(x, size=(8, 5), mode="bilinear")
        x.flatten(1) @ x.flatten(1).T

    assert published_macs(call) == 5 * 144 + 144 + 4 * 240 + 2 * 2 * 72
