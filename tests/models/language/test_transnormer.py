"""TransNormerLLM: counted parameters, the authors' layout, the formula of the network, decoding, masks and segments."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.metadata import Variant
from regard.models.language.transnormer import TransNormerConfig, TransNormerLM

SMALL = TransNormerConfig(vocab_size=31, dim=20, num_layers=3, num_heads=4, hidden=23)
ABLATIONS: dict[str, dict[str, Any]] = {
    "mix": {},
    "decay": {"positions": "decay", "decay": "constant", "gate": False},
    "lrpe": {"positions": "lrpe", "norm": "rmsnorm", "activation": "elu", "glu_activation": "silu"},
    "lrpe_decay": {"positions": "lrpe_decay", "decay": "paper", "bias": True, "activation": "none"},
    "sinusoidal": {"positions": "sinusoidal", "norm": "layernorm", "scale_embedding": False, "tied": True},
}
ABLATED = pytest.mark.parametrize("changes", ABLATIONS.values(), ids=ABLATIONS)


def made(**changes: Any) -> TransNormerLM:
    """A network whose every parameter differs from its start, in float64."""
    model = TransNormerLM(replace(SMALL, **changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ids(*shape: int) -> Tensor:
    return torch.randint(0, SMALL.vocab_size, shape)


# --------------------------------------------------------------------------------------------------- published sizes


@cache
def parameters(config: TransNormerConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in TransNormerLM(config).parameters())


@pytest.mark.parametrize(("name", "variant"), TransNormerLM.VARIANTS.items())
def test_parameters_are_those_reported(name: str, variant: Variant) -> None:
    count = parameters(variant.config)
    reported = variant.reported
    assert reported.params is not None
    assert abs(count / reported.params - 1) <= reported.params_tolerance, name
    config = variant.config
    layer = 5 * config.dim**2 + 3 * config.dim * config.hidden
    embeddings = config.vocab_size * config.dim * (1 if config.tied else 2)
    assert count == config.num_layers * layer + config.dim + embeddings


def test_names_of_the_papers_count_one_embedding() -> None:
    def body(name: str) -> int:
        config = TransNormerLM.VARIANTS[name].config
        return parameters(config) - 2 * config.vocab_size * config.dim

    assert body("transnormer_385m") == 333_448_192
    assert body("transnormer_385m") + 50_272 * 1024 == pytest.approx(384.9e6, rel=1e-3)
    assert body("transnormer_1b") + 64_000 * 2048 == pytest.approx(1.02e9, rel=1e-2)
    assert body("transnormer_7b") + 64_000 * 4096 == pytest.approx(6.84e9, rel=1e-2)


def authors_layout(
    *, dim: int, layers: int, heads: int, hidden: int, vocab: int, device: str = "cpu"
) -> dict[str, Tensor]:
    """Names and shapes of the authors' files, written by a rule of the test's own."""
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (vocab, dim),
        "lm_head.weight": (vocab, dim),
        "model.layers.0.token_mixer.lrpe.theta": (heads, 1, dim // heads),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        shapes |= {
            f"{prefix}.token_mixer.qkvu_proj.weight": (4 * dim, dim),
            f"{prefix}.token_mixer.out_proj.weight": (dim, dim),
            f"{prefix}.channel_mixer.l1.weight": (hidden, dim),
            f"{prefix}.channel_mixer.l2.weight": (hidden, dim),
            f"{prefix}.channel_mixer.l3.weight": (dim, hidden),
        }
    return {name: torch.rand(shape, device=device) for name, shape in shapes.items()}


def test_loads_names_and_shapes_of_the_released_385m() -> None:
    with torch.device("meta"):
        model = TransNormerLM(TransNormerLM.VARIANTS["transnormer_385m"].config)
    layout = authors_layout(dim=1024, layers=24, heads=8, hidden=2816, vocab=64_000, device="meta")
    assert sum(tensor.numel() for tensor in layout.values()) == 464_520_192
    model.load_reference(layout)
    wrong = {**layout, "model.layers.7.channel_mixer.l2.weight": torch.empty(1024, 2816, device="meta")}
    with pytest.raises(ValueError, match=r"blocks\.7\.mlp\.up_proj\.weight has shape \(1024, 2816\)"):
        model.load_reference(wrong)


def test_loads_the_authors_layout_strictly() -> None:
    layout = authors_layout(dim=20, layers=3, heads=4, hidden=23, vocab=31)
    model = TransNormerLM(SMALL)
    model.load_reference(layout)
    own = model.state_dict()
    assert torch.equal(own["blocks.2.mixer.qkv.weight"], layout["model.layers.2.token_mixer.qkvu_proj.weight"][:60])
    assert torch.equal(own["blocks.2.mixer.u_proj.weight"], layout["model.layers.2.token_mixer.qkvu_proj.weight"][60:])
    assert torch.equal(own["blocks.1.mlp.gate_proj.weight"], layout["model.layers.1.channel_mixer.l1.weight"])
    assert torch.equal(own["head.weight"], layout["lm_head.weight"])
    lacking = {name: tensor for name, tensor in layout.items() if name != "model.layers.1.token_mixer.out_proj.weight"}
    with pytest.raises(KeyError, match=r"unknown keys: none; missing keys: blocks\.1\.mixer\.o_proj\.weight"):
        model.load_reference(lacking)
    for unknown in ("slopes", "model.layers.0.extra.weight", "model.layers.1.token_mixer.rope.inv_freq"):
        with pytest.raises(KeyError, match=r"unknown keys: .*reference"):
            model.load_reference({**layout, unknown: torch.zeros(1)})
    with pytest.raises(ValueError, match="build the network with tied=False"):
        TransNormerLM(replace(SMALL, tied=True)).load_reference(layout)


# --------------------------------------------------------------------------------------------------- the network


def srms(x: Tensor) -> Tensor:
    return x / (x.square().mean(dim=-1, keepdim=True) + 1e-6).sqrt()


def test_network_is_the_formula() -> None:
    model, tokens = made(), ids(2, 9)
    with torch.no_grad():
        x = model.embedding.weight[tokens] * math.sqrt(20)
        for block in model.blocks:
            x = x + block.mixer(srms(x))  # type: ignore[operator, union-attr]
            gate, up, down = (block.get_submodule(f"mlp.{name}_proj") for name in ("gate", "up", "down"))
            z = srms(x)
            x = x + down(gate(z) * up(z))
        torch.testing.assert_close(model.features(tokens), srms(x))
        torch.testing.assert_close(model(tokens), srms(x) @ model.head.weight.T)


@ABLATED
def test_options_reach_every_layer(changes: dict[str, Any]) -> None:
    model = made(**changes)
    mixers: list[Any] = model.mixers()
    positions = changes.get("positions", "mix")
    lrpe = {"mix": [True, False, False], "lrpe": [True] * 3, "lrpe_decay": [True] * 3}.get(positions, [False] * 3)
    assert [mixer.theta is not None for mixer in mixers] == lrpe
    first = {"mix": [0.25, 0.25 / 2, 0.0], "decay": [0.25] * 3, "lrpe_decay": [2.0, 4 / 3, 2 / 3]}.get(positions)
    if first is None:
        assert [mixer.slopes for mixer in mixers] == [None] * 3
    else:
        assert [mixer.slopes[0] for mixer in mixers] == pytest.approx(first, abs=1e-5)
    assert all((mixer.u_proj is None) == (changes.get("gate") is False) for mixer in mixers)
    assert (model.head.weight is model.embedding.weight) == changes.get("tied", False)
    model(ids(2, 5)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@ABLATED
@pytest.mark.parametrize("chunks", [[1] * 11, [7, 1, 3]])
def test_decoding_equals_forward(changes: dict[str, Any], chunks: list[int]) -> None:
    model, tokens = made(**changes), ids(2, 11)
    with torch.no_grad():
        state, pieces = model.init_state(2), []
        sizes = [each.nbytes for each in state]
        for piece in tokens.split(chunks, dim=1):
            logits, state = model.step(piece, state)
            pieces.append(logits)
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), rtol=1e-8, atol=1e-9)
    assert [each.nbytes for each in state] == sizes


@ABLATED
def test_padding_and_packing_change_nothing(changes: dict[str, Any]) -> None:
    model = made(**changes)
    tokens, real = ids(2, 9), torch.rand(2, 9) < 0.7
    real[:, 4] = True
    segments = torch.tensor([[0, 0, 0, 1, 1, 2, 2, 2, 2]] * 2)
    with torch.no_grad():
        masked, packed = model(tokens, mask=real), model(tokens, segments=segments)
        both = model(tokens, mask=real, segments=segments)
        for row in range(2):
            kept = real[row]
            torch.testing.assert_close(masked[row, kept], model(tokens[row : row + 1, kept])[0])
            for run in range(3):
                inside = segments[row] == run
                torch.testing.assert_close(packed[row, inside], model(tokens[row : row + 1, inside])[0])
                if bool((inside & kept).any()):
                    alone = model(tokens[row : row + 1, inside & kept])[0]
                    torch.testing.assert_close(both[row, inside & kept], alone)
        changed = tokens.clone()
        changed[:, -1] = (changed[:, -1] + 1) % SMALL.vocab_size
        torch.testing.assert_close(model(changed)[:, :-1], model(tokens)[:, :-1])


def test_checkpointing_changes_nothing_but_memory() -> None:
    plain, thrifty = made().train(), made(checkpointing=True).train()
    thrifty.load_state_dict(plain.state_dict())
    tokens = ids(2, 7)
    for model in (plain, thrifty):
        model(tokens).square().sum().backward()
    for (name, ours), theirs in zip(thrifty.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda text, name=name: f"{name}: {text}")


def test_dropout_is_off_in_eval_mode() -> None:
    model, tokens = made(dropout=0.5), ids(2, 7)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), model(tokens), rtol=0, atol=0)
        model.train()
        assert not torch.equal(model(tokens), model(tokens))


def test_start_is_as_published() -> None:
    model = TransNormerLM(TransNormerConfig(vocab_size=499, dim=96, num_layers=2, num_heads=4, bias=True))
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            assert parameter.abs().max() == 0, name
        elif not name.endswith("theta"):
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.06), name
    assert sum(name.endswith("theta") for name, _ in model.named_parameters()) == 1
    assert model.blocks[1].get_parameter("mlp.up_proj.weight").shape == (264, 96)


def test_bfloat16_exports_and_compiles() -> None:
    model, tokens = made(num_layers=2).float(), ids(2, 7)
    with torch.no_grad():
        low = made(num_layers=2).bfloat16()
        low.load_state_dict(model.state_dict())
        model.load_state_dict(low.state_dict())
        expected = model(tokens)
        assert (low(tokens).float() - expected).norm() / expected.norm() < 0.03
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(tokens), expected)
        torch.testing.assert_close(torch.export.export(model, (tokens,)).module()(tokens), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be positive, got 0"),
        ({"num_layers": 0}, "num_layers must be positive, got 0"),
        ({"dim": 30}, "dim=30 and num_heads=4"),
        ({"hidden": -1}, "hidden must not be negative, got -1"),
        ({"positions": "rope"}, "mix, decay, lrpe, lrpe_decay, sinusoidal, got 'rope'"),
        ({"decay": "none"}, "decay='none' is no option of the network"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1\.0"),
        ({"init_std": -0.1}, r"init_std must not be negative, got -0\.1"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_ill_options_and_tokens_are_named() -> None:
    for option, message in (
        ("norm", "srmsnorm, rmsnorm, layernorm, got 'x'"),
        ("activation", "silu, none, elu, got 'x'"),
        ("glu_activation", "none, silu, got 'x'"),
        ("decay", "tnl, constant, paper, none, got 'x'"),
    ):
        with pytest.raises(ValueError, match=message):
            TransNormerLM(replace(SMALL, **{option: "x"}))
    model = TransNormerLM(SMALL)
    with pytest.raises(ValueError, match=r"\(batch, tokens\) with at least 1 token, got \(3,\)"):
        model(ids(3))
    with pytest.raises(ValueError, match="state has 3 rows and x has 2"):
        model.step(ids(2, 1), model.init_state(3))
