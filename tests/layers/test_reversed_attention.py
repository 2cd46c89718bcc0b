"""The layer against the formula with every head written out, its two streams, its scores and its options."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from regard.layers.reversed_attention import MessageController, Messages, ReversedAttention


def written_out(layer: ReversedAttention, x: torch.Tensor, m: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """y, m, the dependency mask and its row sums: softmax over parents, transposed, then senders scaled."""
    linear = torch.nn.functional.linear
    q, k, v = linear(x, layer.qkv.weight, layer.qkv.bias).chunk(3, dim=-1)
    choice = (layer.head_selector(x) / layer.temperature).exp()
    choice = choice / choice.sum(dim=-1, keepdim=True)
    inner = layer.message_controller.up_proj(x)
    inner = inner * 0.5 * (1 + torch.erf(inner / 2**0.5))
    m = m / (1 + torch.exp(-layer.message_controller.down_proj(inner)[..., 0]))
    width = x.shape[2] // layer.num_heads
    mixed, mask = [], 0
    for head in range(layer.num_heads):
        own = slice(head * width, (head + 1) * width)
        forward = (q[..., own] @ k[..., own].transpose(1, 2) / width**0.5).softmax(dim=2)
        backward = forward.transpose(1, 2) * choice[:, None, :, head] * m[:, None, :]
        mixed.append(backward @ v[..., own])
        mask = mask + backward
    return layer.o_proj(torch.cat(mixed, dim=-1)), m, mask, mask.sum(dim=2)


def biased() -> ReversedAttention:
    return ReversedAttention(
        15, num_heads=3, qkv_bias=True, temperature=0.7, selector_bias=True, controller_width=4, controller_bias=True
    ).double()


@pytest.mark.parametrize("make", [lambda: ReversedAttention(15, num_heads=3).double(), biased])
@pytest.mark.parametrize("tokens", [1, 11])
def test_is_the_formula(make: object, tokens: int) -> None:
    layer = make()
    x, m = torch.randn(2, tokens, 15, dtype=torch.float64), torch.rand(2, tokens, dtype=torch.float64)
    y, m_after, mask, score = written_out(layer, x, m)
    sent = layer(x, m, score="received")
    torch.testing.assert_close(sent, Messages(y, m_after, score))
    torch.testing.assert_close(layer.dependency_mask(x, m), mask)


def test_gradients_are_those_of_the_formula() -> None:
    layer = biased()
    x = torch.randn(2, 7, 15, dtype=torch.float64, requires_grad=True)
    m = torch.rand(2, 7, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    leaves = (x, m, *layer.parameters())
    ours = torch.autograd.grad((layer(x, m, score="received").y * upstream).sum(), leaves)
    theirs = torch.autograd.grad((written_out(layer, x, m)[0] * upstream).sum(), leaves)
    torch.testing.assert_close(ours, theirs)


def test_without_m_everyone_still_sends_everything() -> None:
    layer, x = ReversedAttention(6, num_heads=2), torch.randn(2, 5, 6)
    torch.testing.assert_close(layer(x), layer(x, torch.ones(2, 5)))


def test_a_silent_token_sends_nothing_and_still_receives() -> None:
    layer, x = ReversedAttention(6, num_heads=2), torch.randn(1, 5, 6)
    m = torch.tensor([[1.0, 1.0, 0.0, 1.0, 1.0]])
    mask = layer.dependency_mask(x, m)[0]
    assert not mask[:, 2].any()
    assert (mask[2, [0, 1, 3, 4]] > 0).all()
    assert not layer(x, m).m[0, 2].any()


def test_order_does_not_matter() -> None:
    layer = ReversedAttention(6, num_heads=2).double()
    x, m = torch.randn(2, 7, 6, dtype=torch.float64), torch.rand(2, 7, dtype=torch.float64)
    order = torch.randperm(7)
    straight, shuffled = layer(x, m, score="received"), layer(x[:, order], m[:, order], score="received")
    for first, second in zip(straight, shuffled, strict=True):
        torch.testing.assert_close(first[:, order], second)


def test_columns_sum_to_m_which_never_rises() -> None:
    layer, x, m = ReversedAttention(6, num_heads=3), torch.randn(2, 7, 6), None
    for _ in range(4):
        before, mask = m, layer.dependency_mask(x, m)
        sent = layer(x, m, score="sent")
        m = sent.m
        torch.testing.assert_close(mask.sum(dim=1), m)
        torch.testing.assert_close(sent.score, m)
        assert before is None or (m <= before).all()


def test_random_scores_are_a_control() -> None:
    layer, x = ReversedAttention(6, num_heads=2), torch.randn(2, 50, 6)
    first, second = (layer(x, score="random") for _ in range(2))
    assert torch.equal(first.y, second.y)
    assert not torch.equal(first.score, second.score)


def test_narrow_types_keep_m_in_float32() -> None:
    layer, x = ReversedAttention(12, num_heads=3), torch.randn(2, 23, 12)
    with torch.no_grad():
        expected = layer(x, score="received")
        narrow = layer.bfloat16()(x.bfloat16(), score="received")
    assert narrow.m.dtype == torch.float32
    for ours, theirs in zip(narrow, expected, strict=True):
        assert float((ours.float() - theirs).norm() / theirs.norm()) < 0.02


def test_autocast() -> None:
    layer, x = ReversedAttention(12, num_heads=3), torch.randn(2, 23, 12)
    with torch.no_grad():
        expected = layer(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            mixed = layer(x)
    assert float((mixed.y.float() - expected.y).norm() / expected.y.norm()) < 0.02


def test_contractions_are_those_of_the_formula() -> None:
    layer, tokens = ReversedAttention(24, num_heads=4), 13
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.randn(1, tokens, 24))
    assert counter.get_total_flops() / 2 == tokens * (4 * 24**2 + 24 * 4 + 24 * 12 + 12) + 2 * tokens**2 * 24


def test_compiles_and_exports() -> None:
    layer = ReversedAttention(12, num_heads=3).eval()
    x, m = torch.randn(2, 7, 12), torch.rand(2, 7)
    with torch.no_grad():
        expected = layer(x, m)
        torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x, m), expected)
        torch.testing.assert_close(tuple(torch.export.export(layer, (x, m)).module()(x, m))[:2], tuple(expected)[:2])


def test_loads_the_independent_layout_strictly() -> None:
    layer = ReversedAttention(12, num_heads=3)
    names = {
        "message_controller.up_proj": "message_controller.fc1",
        "message_controller.down_proj": "message_controller.fc2",
    }
    layout = {}
    for name, tensor in layer.state_dict().items():
        part, _, kind = name.rpartition(".")
        layout[f"{names.get(part, part.replace('o_proj', 'proj'))}.{kind}"] = torch.rand_like(tensor)
    layer.load_reference(layout)
    assert torch.equal(layer.message_controller.down_proj.weight, layout["message_controller.fc2.weight"])
    assert torch.equal(layer.o_proj.bias, layout["proj.bias"])
    with pytest.raises(KeyError, match=r"missing keys: qkv\.weight"):
        layer.load_reference({name: tensor for name, tensor in layout.items() if name != "qkv.weight"})


def test_the_controller_is_a_share() -> None:
    shares = MessageController(6, 3)(20 * torch.randn(2, 50, 6))
    assert shares.shape == (2, 50)
    assert ((shares >= 0) & (shares <= 1)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 4}, "dim=15 and num_heads=4"),
        ({"num_heads": 3, "temperature": 0.0}, "temperature and controller_width must be positive, got 0"),
        ({"num_heads": 3, "controller_width": 0}, "got 0.1 and 0"),
    ],
)
def test_ill_options_are_named(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReversedAttention(15, **options)


def test_ill_inputs_are_named() -> None:
    layer, x = ReversedAttention(6, num_heads=2), torch.zeros(2, 5, 6)
    with pytest.raises(ValueError, match=r"m has shape \(2, 4\), it must be \(batch, tokens\) = \(2, 5\)"):
        layer(x, torch.ones(2, 4))
    with pytest.raises(ValueError, match="score must be one of received, sent, random, got 'rows'"):
        layer(x, score="rows")
