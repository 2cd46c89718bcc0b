"""The decoder around any mixer: its formula, decoding, masks, segments, tied head, dropout, recomputation."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regard.errors import UserError
from regard.models.language.decoder import Decoder, DecoderConfig
from regard.registry import UnknownSystemError, get_class
from regard.tasks.networks import build, config_from_plain, config_to_plain

SMALL = DecoderConfig(vocab_size=23, dim=12, num_layers=2, num_heads=2, hidden=17)
MIXERS: dict[str, dict[str, Any]] = {
    "softmax": {},
    "softmax, sinusoidal": {"positions": "sinusoidal", "rotary": False},
    "lightning": {"mixer": "lightning"},
    "hedgehog": {"mixer": "hedgehog"},
    "aaren, sinusoidal": {"mixer": "aaren", "positions": "sinusoidal"},
}
MIXED = pytest.mark.parametrize("changes", MIXERS.values(), ids=MIXERS)


def made(**changes: Any) -> Decoder:
    """A network whose every parameter differs from its start, in float64."""
    model = Decoder(replace(SMALL, **changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ids(*shape: int) -> Tensor:
    return torch.randint(0, SMALL.vocab_size, shape)


def normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    spread = ((x - x.mean(dim=-1, keepdim=True)) ** 2).mean(dim=-1, keepdim=True)
    return (x - x.mean(dim=-1, keepdim=True)) / (spread + 1e-5).sqrt() * weight + bias


def attended(x: Tensor, weights: dict[str, Tensor], prefix: str, heads: int) -> Tensor:
    """Causal softmax attention without positions, one query at a time."""
    q, k, v = (x @ weights[f"{prefix}.{name}.weight"].T for name in ("q_proj", "k_proj", "v_proj"))
    width = x.shape[-1] // heads
    rows = []
    for query in range(x.shape[0]):
        mixed = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = k[: query + 1, part] @ q[query, part] / math.sqrt(width)
            mixed.append(scores.softmax(dim=0) @ v[: query + 1, part])
        rows.append(torch.cat(mixed))
    return torch.stack(rows) @ weights[f"{prefix}.o_proj.weight"].T + weights[f"{prefix}.o_proj.bias"]


def places(count: int, dim: int) -> Tensor:
    half = dim // 2
    rows = [
        [math.sin(place / 10000 ** (channel / half)) for channel in range(half)]
        + [math.cos(place / 10000 ** (channel / half)) for channel in range(half)]
        for place in range(count)
    ]
    return torch.tensor(rows, dtype=torch.float64)


@torch.no_grad()
def test_the_network_is_its_formula():
    model = made(positions="sinusoidal", rotary=False)
    weights = model.state_dict()
    tokens = ids(7)
    x = weights["embedding.weight"][tokens] + places(7, 12)
    for layer in range(2):
        block = f"blocks.{layer}"
        inner = normed(x, weights[f"{block}.mixer_norm.weight"], weights[f"{block}.mixer_norm.bias"])
        x = x + attended(inner, weights, f"{block}.mixer", 2)
        inner = normed(x, weights[f"{block}.mlp_norm.weight"], weights[f"{block}.mlp_norm.bias"])
        inner = inner @ weights[f"{block}.mlp.0.weight"].T + weights[f"{block}.mlp.0.bias"]
        inner = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))
        x = x + inner @ weights[f"{block}.mlp.2.weight"].T + weights[f"{block}.mlp.2.bias"]
    expected = normed(x, weights["norm.weight"], weights["norm.bias"]) @ weights["head.weight"].T
    torch.testing.assert_close(model(tokens[None])[0], expected, rtol=0, atol=2e-6)


def test_the_perceptrons_are_four_times_as_wide_unless_said_otherwise():
    assert Decoder(replace(SMALL, hidden=0)).blocks[0].mlp[0].out_features == 48
    assert Decoder(SMALL).blocks[1].mlp[0].out_features == 17


@MIXED
@pytest.mark.parametrize("cuts", [[11], [1] * 11, [3, 1, 5, 2]])
@pytest.mark.parametrize("max_len", [None, 11])
@torch.no_grad()
def test_steps_equal_forward(changes, cuts, max_len):
    model, tokens = made(**changes), ids(3, 11)
    state = model.init_state(3, max_len=max_len)
    pieces = []
    for piece in tokens.split(cuts, dim=1):
        scores, state = model.step(piece, state)
        pieces.append(scores)
    torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), rtol=0, atol=1e-6)


@MIXED
@torch.no_grad()
def test_the_future_has_no_influence(changes):
    model, tokens = made(**changes), ids(2, 9)
    changed = tokens.clone()
    changed[:, 5:] = (changed[:, 5:] + 1) % 23
    first, second = model(tokens), model(changed)
    torch.testing.assert_close(first[:, :5], second[:, :5], rtol=0, atol=1e-9)
    assert (first[:, 5:] - second[:, 5:]).abs().amax() > 1e-3


@MIXED
@pytest.mark.parametrize(
    "rows",
    [["1111111", "1111100", "1000000"], ["1111111", "0011111", "0000001"], ["0110111", "1010101", "1111111"]],
    ids=["right", "left", "scattered"],
)
@torch.no_grad()
def test_masked_rows_equal_the_rows_alone(changes, rows):
    model, tokens = made(**changes), ids(3, 7)
    mask = torch.tensor([[sign == "1" for sign in row] for row in rows])
    scores = model(tokens, mask=mask)
    for row in range(3):
        alone = model(tokens[row][mask[row]][None])[0]
        torch.testing.assert_close(scores[row][mask[row]], alone, rtol=0, atol=1e-6)


@MIXED
@torch.no_grad()
def test_masked_steps_equal_the_rows_alone(changes):
    model, tokens = made(**changes), ids(2, 9)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 1, 1, 0, 1]]).bool()
    state = model.init_state(2)
    pieces = []
    for piece, real in zip(tokens.split([4, 5], dim=1), mask.split([4, 5], dim=1), strict=True):
        scores, state = model.step(piece, state, mask=real)
        pieces.append(scores)
    scores = torch.cat(pieces, dim=1)
    for row in range(2):
        alone = model(tokens[row][mask[row]][None])[0]
        torch.testing.assert_close(scores[row][mask[row]], alone, rtol=0, atol=1e-6)


@MIXED
@torch.no_grad()
def test_segments_equal_separate_calls(changes):
    model, tokens = made(**changes), ids(1, 10)
    segments = torch.tensor([[4, 4, 4, 7, 7, 4, 4, 4, 4, 0]])
    scores = model(tokens, segments=segments)[0]
    alone = torch.cat([model(run)[0] for run in tokens.split([3, 2, 4, 1], dim=1)])
    torch.testing.assert_close(scores, alone, rtol=0, atol=1e-6)


def test_a_tied_head_is_the_embedding():
    model = made(tied=True)
    assert model.head.weight is model.embedding.weight
    names = [name for name, _ in model.named_parameters()]
    assert "head.weight" not in names
    hidden = {}
    model.norm.register_forward_hook(lambda _, __, output: hidden.update(x=output))
    scores = model(ids(2, 5))
    torch.testing.assert_close(scores, hidden["x"] @ model.embedding.weight.T)
    own = Decoder(SMALL)
    assert own.head.weight is not own.embedding.weight
    # scores of a fresh network are of order one, tied or not
    assert 0.2 < float(Decoder(replace(SMALL, tied=True))(ids(5, 7)).detach().std()) < 5
    assert 0.2 < float(own(ids(5, 7)).detach().std()) < 5


def test_dropout_acts_in_training_alone():
    torch.manual_seed(3)
    model = Decoder(replace(SMALL, dropout=0.4))
    plain = Decoder(SMALL)
    plain.load_state_dict(model.state_dict())
    tokens = ids(2, 7)
    assert (model.train()(tokens) - model(tokens)).abs().amax() > 1e-3
    torch.testing.assert_close(model.eval()(tokens), plain.eval()(tokens), rtol=0, atol=0)


@pytest.mark.parametrize("mixer", ["softmax", "lightning"])
def test_recomputation_leaves_the_gradients_as_they_are(mixer):
    gradients = []
    tokens = ids(2, 7)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 5:] = False
    for recomputed in (False, True):
        torch.manual_seed(5)
        model = Decoder(replace(SMALL, mixer=mixer, dropout=0.3, checkpointing=recomputed)).double().train()
        calls = []
        model.blocks[0].mixer_norm.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        torch.manual_seed(6)
        F.cross_entropy(model(tokens, mask=mask)[mask], tokens[mask]).backward()
        assert len(calls) == 1 + recomputed
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-12)


@MIXED
def test_the_gradient_reaches_every_parameter(changes):
    model = made(**changes)
    model(torch.arange(23).reshape(1, 23)).square().mean().backward()
    inert = {
        f"blocks.{layer}.mixer.{name}"
        for layer, mixer in enumerate(model.mixers())
        for name in mixer.inert_parameters()
    }
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().amax() > 0 or name in inert, name


def test_mixers_know_their_place_and_their_options():
    model = Decoder(replace(SMALL, num_layers=3, mixer="lightning"))
    alone = [get_class("lightning")(12, num_heads=2, layer_idx=layer, num_layers=3) for layer in range(3)]
    assert [list(mixer.slopes) for mixer in model.mixers()] == [list(mixer.slopes) for mixer in alone]
    assert list(alone[0].slopes) != list(alone[2].slopes)
    options = Decoder(replace(SMALL, dim=16, num_heads=4, mixer_options={"num_kv_heads": 2, "rope_base": 50.0}))
    assert [mixer.num_kv_heads for mixer in options.mixers()] == [2, 2]
    assert [mixer.rope_base for mixer in options.mixers()] == [50.0, 50.0]
    assert all(mixer.causal for mixer in options.mixers())


def test_the_config_survives_as_plain_data():
    config = replace(SMALL, mixer="hedgehog", mixer_options={"form": "quadratic"}, positions="sinusoidal")
    again = config_from_plain(DecoderConfig, config_to_plain(config))
    assert again == config
    made_again = build("decoder_lm", again)
    assert made_again.blocks[0].mixer.form == "quadratic"


def test_weights_are_loaded_strictly():
    model, other = made(), made()
    other.load_reference(model.state_dict())
    tokens = ids(1, 5)
    torch.testing.assert_close(other(tokens), model(tokens), rtol=0, atol=0)
    state = dict(model.state_dict())
    del state["norm.bias"]
    with pytest.raises(KeyError, match=r"norm\.bias"):
        other.load_reference(state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be positive, got 0"),
        ({"dim": 0}, "dim must be positive, got 0"),
        ({"num_layers": -1}, "num_layers must be positive, got -1"),
        ({"num_heads": 0}, "num_heads must be positive, got 0"),
        ({"hidden": -1}, "hidden must not be negative, got -1"),
        ({"positions": "learned"}, "positions must be none or sinusoidal, got 'learned'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"dropout": -0.1}, r"dropout must be in \[0, 1\), got -0.1"),
    ],
)
def test_ill_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "5"),
        ({"mixer": "softplus", "dim": 12, "num_heads": 5}, "5"),
        ({"mixer_options": {"nothing": 1}}, "nothing"),
        ({"mixer": "eca"}, "eca"),
        ({"mixer": "lightnin"}, "did you mean lightning"),
    ],
)
def test_what_a_mixer_refuses_is_told(changes, message):
    with pytest.raises((ValueError, TypeError, UnknownSystemError), match=message):
        Decoder(replace(SMALL, **changes))
    with pytest.raises(UserError, match=message):
        build("decoder_lm", replace(SMALL, **changes))


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match="mask"):
        made()(ids(2, 5), mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="segments"):
        made(positions="sinusoidal")(ids(2, 5), segments=torch.ones(2, 4, dtype=torch.int64))
