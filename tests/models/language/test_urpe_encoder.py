"""URPE's encoder: counted parameters, the authors' layout, the formula, shared tables, padding, lack of positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm

from regard.models.language.urpe_encoder import URPEEncoder, URPEEncoderConfig

SMALL = URPEEncoderConfig(vocab_size=31, dim=20, num_layers=3, num_heads=4, hidden=23, max_positions=13)


def made(**changes: Any) -> URPEEncoder:
    """A network whose every parameter differs from its start, in float64."""
    model = URPEEncoder(replace(SMALL, **changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ids(*shape: int) -> Tensor:
    return torch.randint(0, SMALL.vocab_size, shape)


@pytest.mark.parametrize("name", URPEEncoder.VARIANTS)
def test_parameters_are_those_counted(name: str) -> None:
    variant = URPEEncoder.VARIANTS[name]
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in URPEEncoder(variant.config).parameters())
    tables = {"urpe_synthetic": 2, "urpe_synthetic_rpe": 1, "urpe_synthetic_nope": 0}[name]
    assert count == 22_041_600 + tables * 1023 * 12
    assert variant.reported.params in (count, None)


def test_network_is_the_formula() -> None:
    model, tokens = made(), ids(2, 9)
    with torch.no_grad():
        x = layer_norm(model.embedding(tokens), (20,), model.embedding_norm.weight, model.embedding_norm.bias)
        for block in model.layers():
            for norm, part in ((block.mixer_norm, block.mixer), (block.mlp_norm, block.mlp)):
                x = layer_norm(x + part(x), (20,), norm.weight, norm.bias)
        torch.testing.assert_close(model.features(tokens), x)
        assert model.head is not None
        inner = model.head.norm(gelu(x @ model.head.dense.weight.T + model.head.dense.bias))
        torch.testing.assert_close(model(tokens), inner @ model.embedding.weight.T + model.head.bias)


@pytest.mark.parametrize(("head", "more"), [("none", 0), ("tied", 31 + 20 * 23), ("untied", 31 + 20 * 23 + 31 * 20)])
def test_heads(head: Any, more: int) -> None:
    model, bare = made(head=head), made(head="none")
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == sum(parameter.numel() for parameter in bare.parameters()) + more
    if head == "none":
        with pytest.raises(ValueError, match="built with head='none'"):
            model(ids(2, 5))
    else:
        assert model(ids(2, 5)).shape == (2, 5, 31)


def authors_layout(config: URPEEncoderConfig) -> dict[str, Tensor]:
    """Names and shapes of a whole checkpoint of theirs, written by a rule of the test's own."""
    dim, hidden, rows = config.dim, config.hidden, 2 * config.max_positions - 1
    encoder: dict[str, tuple[int, ...]] = {
        "embed_tokens.weight": (config.vocab_size, dim),
        "emb_layer_norm.weight": (dim,),
        "emb_layer_norm.bias": (dim,),
        "rp_bias.weight": (rows, config.num_heads),
        "ur_rp_bias.weight": (rows, config.num_heads),
    }
    for layer in range(config.num_layers):
        linears = {f"self_attn.{part}_proj": (dim, dim) for part in ("q", "k", "v", "out")}
        linears |= {"fc1": (hidden, dim), "fc2": (dim, hidden)}
        for name, shape in linears.items():
            encoder[f"layers.{layer}.{name}.weight"], encoder[f"layers.{layer}.{name}.bias"] = shape, shape[:1]
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            encoder[f"layers.{layer}.{name}.weight"] = encoder[f"layers.{layer}.{name}.bias"] = (dim,)
    shapes = {f"encoder.sentence_encoder.{name}": shape for name, shape in encoder.items()}
    shapes |= {"encoder.lm_head.dense.weight": (dim, dim), "encoder.lm_head.bias": (config.vocab_size,)}
    shapes |= {f"encoder.lm_head.{name}": (dim,) for name in ("dense.bias", "layer_norm.weight", "layer_norm.bias")}
    shapes |= {"encoder.lm_head.weight": (config.vocab_size, dim)}
    return {name: torch.rand(shape) for name, shape in shapes.items()}


@pytest.mark.parametrize("head", ["tied", "untied"])
def test_loads_the_authors_layout_strictly(head: Any) -> None:
    model, layout = URPEEncoder(replace(SMALL, head=head)), authors_layout(SMALL)
    model.load_reference(layout)
    own = model.state_dict()
    prefix = "encoder.sentence_encoder"
    assert torch.equal(own["blocks.0.mixer.own_positions.factors.weight"], layout[f"{prefix}.ur_rp_bias.weight"])
    assert torch.equal(own["blocks.2.mlp.up_proj.bias"], layout[f"{prefix}.layers.2.fc1.bias"])
    assert torch.equal(own["blocks.1.mixer.o_proj.weight"], layout[f"{prefix}.layers.1.self_attn.out_proj.weight"])
    assert ("head.weight" in own) == (head == "untied")
    with pytest.raises(KeyError, match=r"unknown keys: bucket; missing keys: none"):
        model.load_reference({**layout, "bucket": torch.zeros(1)})
    del layout[f"{prefix}.rp_bias.weight"]
    with pytest.raises(KeyError, match=r"missing keys: blocks\.0\.mixer\.own_positions\.biases\.weight"):
        model.load_reference(layout)


def test_layers_share_one_pair_of_tables() -> None:
    model = made()
    first, *others = model.layers()
    assert all(block.mixer.positions is first.mixer.positions for block in others)
    assert sum("own_positions" in name for name in model.state_dict()) == 2


def test_padding_changes_nothing() -> None:
    model, tokens = made(), ids(3, 11)
    mask = torch.rand(3, 11) < 0.6
    mask[:, 3] = True
    with torch.no_grad():
        found = model(tokens, mask=mask)
        for row in range(3):
            torch.testing.assert_close(found[row, mask[row]], model(tokens[row : row + 1, mask[row]])[0])


def test_a_constant_token_has_no_position_without_factors() -> None:
    tokens = torch.full((1, 13), 7)
    for changes, spread_out in (
        ({}, True),
        ({"factors": "none"}, False),
        ({"biases": "none", "factors": "none"}, False),
    ):
        x = made(**changes).features(tokens)[0]
        assert bool((x - x[0]).abs().max() > 1e-3) == spread_out, changes


def test_without_positions_order_means_nothing() -> None:
    model, tokens = made(biases="none", factors="none"), ids(2, 9)
    order = torch.randperm(9)
    torch.testing.assert_close(model(tokens[:, order]), model(tokens)[:, order])


@pytest.mark.parametrize("changes", [{}, {"biases": "transformer_xl", "factors": "log"}, {"biases": "alibi"}])
def test_checkpointing_changes_nothing_but_memory(changes: dict[str, Any]) -> None:
    plain, thrifty = made(**changes).train(), made(checkpointing=True, **changes).train()
    thrifty.load_state_dict(plain.state_dict())
    tokens = ids(2, 7)
    for model in (plain, thrifty):
        model(tokens).square().sum().backward()
    for (name, ours), theirs in zip(thrifty.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("std", [0.02, 0.1])
def test_start_is_as_published(std: float) -> None:
    assert SMALL.init_std == 0.02
    model = URPEEncoder(replace(SMALL, vocab_size=499, dim=96, max_positions=200, head="untied", init_std=std))
    for name, parameter in model.named_parameters():
        value = parameter.detach()
        if name.endswith("factors.weight") or name.endswith("norm.weight"):
            assert (value == 1).all(), name
        elif name.endswith(".bias"):
            assert (value == 0).all(), name
        else:
            assert float(value.std()) == pytest.approx(std, rel=0.08), name


def test_dropout_is_off_in_eval_mode() -> None:
    model, tokens = made(dropout=0.5, attn_drop=0.5), ids(2, 7)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), model(tokens), rtol=0, atol=0)
        model.train()
        assert not torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be positive, got 0"),
        ({"num_layers": 0}, "num_layers must be positive, got 0"),
        ({"hidden": 0}, "hidden must be positive, got 0"),
        ({"max_positions": 0}, "max_positions must be positive, got 0"),
        ({"dim": 30}, "dim=30 and num_heads=4"),
        ({"biases": "rope"}, "biases must be one of .*, got 'rope'"),
        ({"factors": "rope"}, "factors must be one of .*, got 'rope'"),
        ({"head": "shared"}, "head must be one of none, tied, untied, got 'shared'"),
        ({"init_std": -0.1}, r"init_std must not be negative, got -0\.1"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1\.0"),
        ({"attn_drop": -0.1}, r"attn_drop must be in \[0, 1\), got -0\.1"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_ill_tokens_are_named() -> None:
    model = made()
    with pytest.raises(ValueError, match=r"\(batch, tokens\) with at least 1 token, got \(3,\)"):
        model(ids(3))
    with pytest.raises(ValueError, match="14 tokens are more than max_positions=13"):
        model(ids(2, 14))
