"""Routing Transformer language models: the network, its losses, the compared layout, decoding, masks, recomputation."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from regard.mixers.sequence.routing import RoutingAttention
from regard.models.language.routing import RoutingTransformerConfig, RoutingTransformerLM, own_names
from regard.ops.absolute_positions import sinusoids

SMALL = RoutingTransformerConfig(
    vocab_size=23, dim=12, num_layers=2, num_heads=2, num_clusters=3, window_size=5, block_size=4, hidden=17
)
CHANGES: dict[str, dict[str, Any]] = {
    "paper": {},
    "compat": {"mode": "compat", "feed_forward": "gelu"},
    "sinusoidal, narrow embedding": {"positions": "sinusoidal", "embedding_dim": 7, "local_layers": 1},
    "separate keys": {"shared_qk": False, "mode": "compat", "tied": True, "head_dim": 4},
}
CHANGED = pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)


def made(**changes: Any) -> RoutingTransformerLM:
    """A network whose every parameter differs from its start, in float64."""
    model = RoutingTransformerLM(replace(SMALL, **changes)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ids(*shape: int) -> Tensor:
    return torch.randint(0, SMALL.vocab_size, shape)


@CHANGED
def test_network_is_the_formula(changes: dict[str, Any]) -> None:
    model, tokens = made(**changes), ids(2, 13)
    weights = dict(model.named_parameters())
    x = model.embedding(tokens)
    if "embedding_dim" in changes:
        x = F.linear(x, weights["embedding_proj.weight"], weights["embedding_proj.bias"])
    if changes.get("positions") == "sinusoidal":
        x = x + sinusoids(torch.arange(13)[None], 12)
    loss = torch.zeros((), dtype=torch.float64)
    for layer, mixer in enumerate(model.mixers()):
        assert isinstance(mixer, RoutingAttention)
        first, second = (
            (weights[f"blocks.{layer}.{name}.weight"], weights[f"blocks.{layer}.{name}.bias"])
            for name in ("mixer_norm", "mlp_norm")
        )
        z = F.layer_norm(x, (12,), *first)
        loss = loss + mixer.commitment_loss(z)
        x = x + mixer(z)
        z = F.layer_norm(x, (12,), *second)
        up = F.linear(z, weights[f"blocks.{layer}.mlp.up_proj.weight"], weights.get(f"blocks.{layer}.mlp.up_proj.bias"))
        if changes.get("feed_forward") == "gelu":
            inner = F.gelu(up)
        else:
            gate = (weights[f"blocks.{layer}.mlp.gate_proj.weight"], weights.get(f"blocks.{layer}.mlp.gate_proj.bias"))
            inner = F.gelu(F.linear(z, *gate), approximate="tanh") * up
        down = (weights[f"blocks.{layer}.mlp.down_proj.weight"], weights.get(f"blocks.{layer}.mlp.down_proj.bias"))
        x = x + F.linear(inner, *down)
    expected = model.head(model.norm(x))
    torch.testing.assert_close(model(tokens), expected)
    logits, found = model.forward_with_loss(tokens)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(found, loss)


@CHANGED
def test_decodes_exactly_where_prefixes_choose(changes: dict[str, Any]) -> None:
    model, tokens = made(prefix_topk=True, **changes), ids(2, 19)
    state, pieces = model.init_state(2, max_len=19), []
    with torch.no_grad():
        for piece in tokens.split([11, *[1] * 8], dim=1):
            logits, state = model.step(piece, state)
            pieces.append(logits)
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens))


@CHANGED
def test_padding_has_no_influence(changes: dict[str, Any]) -> None:
    model, tokens = made(**changes), ids(1, 17)
    mask = torch.rand(1, 17) < 0.6
    with torch.no_grad():
        alone = model(tokens[mask][None])
        torch.testing.assert_close(model(tokens, mask=mask)[mask][None], alone)
        logits, loss = model.forward_with_loss(tokens, mask=mask)
        torch.testing.assert_close(logits[mask][None], alone)
        torch.testing.assert_close(loss, model.forward_with_loss(tokens[mask][None])[1])


def test_first_layers_may_be_local_alone() -> None:
    mixers: list[Any] = made(num_layers=3, local_layers=2).mixers()
    assert [mixer.split.routed for mixer in mixers] == [0, 0, 1]


@pytest.mark.parametrize("with_loss", [True, False])
def test_recomputation_changes_no_gradient_and_no_centroid(with_loss: bool) -> None:
    tokens, found = ids(2, 19), []
    plain = made(decay=0.5)
    for recompute in (False, True):
        model = RoutingTransformerLM(replace(SMALL, decay=0.5, checkpointing=recompute)).double()
        model.load_state_dict(plain.state_dict())
        model.train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            logits, loss = model.forward_with_loss(tokens) if with_loss else (model(tokens), 0.0)
            (logits.square().mean() + loss).backward()
            optimizer.step()
        model.eval()
        found.append([*(p.grad for p in model.parameters()), *model.buffers()])
    for one, other in zip(*found, strict=True):
        assert one is not None
        torch.testing.assert_close(one, other)


def test_update_centroids_moves_those_of_all_layers() -> None:
    model = made().train()
    before = [buffer.clone() for name, buffer in model.named_buffers() if name.endswith("means")]
    model(ids(2, 13))
    model.update_centroids()
    after = [buffer for name, buffer in model.named_buffers() if name.endswith("means")]
    assert len(after) == 2
    assert not any(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_dropout_is_off_in_evaluation() -> None:
    model, tokens = made(dropout=0.3, attn_drop=0.2), ids(1, 13)
    plain = RoutingTransformerLM(SMALL).double().eval()
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(tokens), plain(tokens))
    assert not torch.allclose(model.train()(tokens), plain(tokens))


# --------------------------------------------------------------------------------------------------- layouts


def compared_layout(config: RoutingTransformerConfig) -> dict[str, Tensor]:
    """Names and shapes of the compared network, written by a rule of the test's own."""
    dim, hidden, width = config.dim, config.hidden, config.dim // config.num_heads
    shapes: dict[str, tuple[int, ...]] = {
        "token_emb.weight": (config.vocab_size, dim),
        "sinu_pos_emb.emb": (32, width),
        "norm.weight": (dim,),
        "norm.bias": (dim,),
        "out.weight": (config.vocab_size, dim),
        "out.bias": (config.vocab_size,),
    }
    for layer in range(config.num_layers):
        prefix = f"routing_transformer.layers.layers.{layer}"
        shapes |= {
            f"{prefix}.0.norm.weight": (dim,),
            f"{prefix}.0.norm.bias": (dim,),
            f"{prefix}.0.fn.local_to_qkv.weight": (3 * width, dim),
            f"{prefix}.0.fn.local_to_qkv.bias": (3 * width,),
            f"{prefix}.0.fn.local_attn.rel_pos.inv_freq": (width // 2,),
            f"{prefix}.0.fn.to_q.weight": (width, dim),
            f"{prefix}.0.fn.to_v.weight": (width, dim),
            f"{prefix}.0.fn.to_out.weight": (dim, dim),
            f"{prefix}.0.fn.global_attn.kmeans.means": (1, config.num_clusters, width),
            f"{prefix}.0.fn.global_attn.mem_key": (1, config.num_clusters, 0, width),
            f"{prefix}.0.fn.global_attn.mem_value": (1, config.num_clusters, 0, width),
            f"{prefix}.1.norm.weight": (dim,),
            f"{prefix}.1.norm.bias": (dim,),
            f"{prefix}.1.fn.fn.w1.weight": (hidden, dim),
            f"{prefix}.1.fn.fn.w1.bias": (hidden,),
            f"{prefix}.1.fn.fn.w2.weight": (dim, hidden),
            f"{prefix}.1.fn.fn.w2.bias": (dim,),
        }
    layout = {name: torch.rand(shape) for name, shape in shapes.items()}
    for layer in range(config.num_layers):
        name = f"routing_transformer.layers.layers.{layer}.0.fn.global_attn.kmeans.initted"
        layout[name] = torch.tensor(True)
    return layout


def test_loads_the_compared_layout_strictly() -> None:
    config = replace(SMALL, mode="compat", feed_forward="gelu")
    model, layout = RoutingTransformerLM(config), compared_layout(config)
    model.load_reference(layout)
    own = model.state_dict()
    prefix = "routing_transformer.layers.layers.1"
    assert torch.equal(own["blocks.1.mlp.down_proj.bias"], layout[f"{prefix}.1.fn.fn.w2.bias"])
    assert torch.equal(own["blocks.1.mixer.o_proj.weight"], layout[f"{prefix}.0.fn.to_out.weight"])
    assert torch.equal(own["head.bias"], layout["out.bias"])
    lacking = {name: tensor for name, tensor in layout.items() if name != f"{prefix}.1.norm.bias"}
    with pytest.raises(KeyError, match=r"missing keys: blocks\.1\.mlp_norm\.bias"):
        model.load_reference(lacking)
    with pytest.raises(KeyError, match=r"unknown keys: blocks\.1\.mixer\.k_proj\.weight"):
        model.load_reference({**layout, f"{prefix}.0.fn.to_k.weight": torch.zeros(6, 12)})
    assert own_names({"sinu_pos_emb.emb": torch.zeros(1)}) == {}


@pytest.mark.parametrize("changes", [{}, {"mode": "compat"}, {"mode": "compat", "feed_forward": "gelu", "tied": True}])
def test_other_networks_are_not_in_the_compared_layout(changes: dict[str, Any]) -> None:
    config = replace(SMALL, **changes)
    with pytest.raises(ValueError, match="the compared layout is that of mode='compat'"):
        RoutingTransformerLM(config).load_reference(compared_layout(config))


def test_variants_have_the_published_sizes() -> None:
    found = {}
    with torch.device("meta"):
        for name, variant in RoutingTransformerLM.VARIANTS.items():
            config = variant.config
            mixers: list[Any] = RoutingTransformerLM(config).mixers()
            last = mixers[-1]
            sizes = (config.num_layers, last.split.local, last.split.routed, config.num_clusters, config.window_size)
            found[name] = (config.dim, *sizes, last.local.block_size, config.hidden)
            assert variant.reported.params is None
            assert config.num_clusters * config.window_size in (1024, 4096, 8192, 12288)
    assert found == {
        "routing_wikitext103_4k": (1024, 14, 8, 8, 8, 512, 256, 3072),
        "routing_wikitext103_1k": (1024, 20, 8, 8, 2, 512, 256, 3072),
        "routing_enwik8_8k": (1024, 12, 4, 4, 16, 512, 256, 3072),
        "routing_enwik8_12k": (1024, 12, 4, 4, 48, 256, 128, 3072),
        "routing_pg19_8k": (1032, 22, 6, 2, 16, 512, 256, 4096),
    }


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vocab_size": 0}, r"vocab_size must be positive, got 0"),
        ({"hidden": -1}, r"hidden must not be negative, got -1"),
        ({"local_layers": 3}, r"local_layers must be between 0 and num_layers=2, got 3"),
        ({"feed_forward": "relu"}, r"feed_forward must be geglu or gelu, got 'relu'"),
        ({"positions": "learned"}, r"positions must be one of rotary, sinusoidal, none, got 'learned'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"num_heads": 5}, r"dim must be a positive multiple of num_heads"),
    ],
)
def test_ill_configs_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoutingTransformerLM(replace(SMALL, **changed))
