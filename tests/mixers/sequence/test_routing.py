"""Routing Transformer attention: local beside routing heads, exact causality by prefixes, decoding, masks, training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regard.metadata import No
from regard.mixers.sequence.routing import RoutingAttention
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.ops.block_local_attention import block_local_attention
from regard.ops.kmeans_routing import routing_attention
from regard.testing import check_mixer

SMALL: dict[str, Any] = {
    "num_heads": 4,
    "local_heads": 1,
    "num_clusters": 3,
    "window_size": 5,
    "block_size": 4,
    "causal": True,
}


def made(**changes: Any) -> RoutingAttention:
    return RoutingAttention(24, **{**SMALL, **changes}).double().eval()


def sample(tokens: int = 23) -> Tensor:
    return torch.randn(2, tokens, 24, dtype=torch.float64)


def decoded(mixer: RoutingAttention, x: Tensor, chunks: list[int], **options: Any) -> Tensor:
    state, pieces = mixer.init_state(x.shape[0], **options), []
    with torch.no_grad():
        for piece in x.split(chunks, dim=1):
            y, state = mixer.step(piece, state)
            pieces.append(y)
    return torch.cat(pieces, dim=1)


# --------------------------------------------------------------------------------------------------- the formula


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("mode", ["paper", "compat"])
def test_is_local_heads_beside_routing_heads(mode: str, causal: bool) -> None:
    mixer, x = made(mode=mode, causal=causal), sample()
    assert mixer.local is not None
    assert mixer.routing is not None
    heads = lambda y: y.unflatten(-1, (-1, 6)).transpose(1, 2)  # noqa: E731
    local = block_local_attention(
        *(heads(part) for part in mixer.local.qkv(x).chunk(3, dim=-1)), block_size=4, look_back=1, causal=causal
    )
    q = heads(mixer.q_proj(x))  # type: ignore[misc]
    k = q if mixer.k_proj is None else heads(mixer.k_proj(x))
    routed = routing_attention(q, k, heads(mixer.v_proj(x)), mixer.routing.centroids.means, mixer.routing.form)  # type: ignore[misc]
    merged = torch.cat((local, routed), dim=1).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixer(x), merged @ mixer.o_proj.weight.T)
    assert (mixer.k_proj is None) == causal
    assert (mixer.local.qkv.bias is not None) == (mode == "compat")


@pytest.mark.parametrize("causal", [True, False])
def test_one_block_is_softmax_attention(causal: bool) -> None:
    mixer, x = made(local_heads=4, block_size=40, rope_base=100.0, causal=causal), sample()
    full = SoftmaxAttention(24, num_heads=4, rope_base=100.0, causal=causal).double()
    assert mixer.local is not None
    weights = dict(zip(("q_proj", "k_proj", "v_proj"), mixer.local.qkv.weight.chunk(3), strict=True))
    state = {f"{name}.weight": weight for name, weight in weights.items()}
    full.load_state_dict({**state, "o_proj.weight": mixer.o_proj.weight, "o_proj.bias": torch.zeros(24)})
    torch.testing.assert_close(mixer(x), full(x))


@pytest.mark.parametrize("prefix", [True, False])
def test_one_cluster_of_all_tokens_is_softmax_attention_of_normed_heads(prefix: bool) -> None:
    mixer, x = made(local_heads=0, num_clusters=1, window_size=23, prefix_topk=prefix), sample()
    q = nn.functional.layer_norm(mixer.q_proj(x).unflatten(-1, (4, 6)), (6,), eps=1e-6).transpose(1, 2)  # type: ignore[misc]
    v = mixer.v_proj(x).unflatten(-1, (4, 6)).transpose(1, 2)  # type: ignore[misc]
    dense = nn.functional.scaled_dot_product_attention(q, q, v, is_causal=True)
    torch.testing.assert_close(mixer.mix(x, context=None, mask=None, segments=None, bias=None), dense)


# --------------------------------------------------------------------------------------------------- causality


def variant(**changes: Any) -> type[RoutingAttention]:
    """The class with the exactly causal choice, of which the contract asks more."""
    form = No("exactly causal selection needs causality")
    traits = replace(RoutingAttention.traits, step_exact=True, causality="strict", bidirectional=form)
    if changes.get("shared_qk") is False and changes.get("mode") == "compat":
        traits = replace(traits, has_map=No("memory slots are no tokens"))
    example = replace(RoutingAttention.example, kwargs={**RoutingAttention.example.kwargs, **changes})
    return type("ExactlyCausal", (RoutingAttention,), {"traits": traits, "example": example})


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"prefix_topk": True}, id="paper"),
        pytest.param({"prefix_topk": True, "shared_qk": False, "mode": "compat"}, marks=pytest.mark.slow, id="memory"),
        pytest.param({"prefix_topk": True, "shared_qk": False, "look_back": 0}, marks=pytest.mark.slow, id="separate"),
        pytest.param({"prefix_topk": True, "mode": "compat", "look_back": 2}, marks=pytest.mark.slow, id="compat"),
    ],
)
def test_choosing_among_prefixes_is_strictly_causal_and_decodes_exactly(changes: dict[str, Any]) -> None:
    report = check_mixer(variant(**changes), skip_slow=True)
    assert any("chunked_steps" in name for name in report.seconds)


def test_by_default_the_future_chooses_but_is_never_seen() -> None:
    mixer, x = made(local_heads=0), sample(40)
    changed = x.clone()
    changed[:, 20:] = torch.randn_like(changed[:, 20:])
    assert not torch.allclose(mixer(changed)[:, :20], mixer(x)[:, :20])
    exact = made(local_heads=0, prefix_topk=True)
    exact.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(exact(changed)[:, :20], exact(x)[:, :20])


@pytest.mark.parametrize("max_len", [None, 23])
@pytest.mark.parametrize("chunks", [[23], [1] * 23, [9, 1, 1, 12]])
@pytest.mark.parametrize("changes", [{}, {"mode": "compat", "shared_qk": False, "rope_base": 100.0}])
def test_all_decode_as_prefixes_choose(changes: dict[str, Any], chunks: list[int], max_len: int | None) -> None:
    mixer, exact, x = made(**changes), made(prefix_topk=True, **changes), sample()
    exact.load_state_dict(mixer.state_dict())
    torch.testing.assert_close(decoded(mixer, x, chunks, max_len=max_len), exact(x))


def test_heads_of_one_kind_decode_too() -> None:
    x = sample()
    for local in (0, 4):
        mixer = made(local_heads=local, prefix_topk=True)
        torch.testing.assert_close(decoded(mixer, x, [11, 1, 1, 10]), mixer(x))


# --------------------------------------------------------------------------------------------------- training


def test_an_optimizer_step_moves_the_centroids_in_the_next_call() -> None:
    mixer, x = made().train(), sample()
    assert mixer.routing is not None
    means = mixer.routing.centroids.means
    before, optimizer = means.clone(), torch.optim.SGD(mixer.parameters(), lr=0.1)
    mixer(x).square().sum().backward()
    mixer(x)
    assert torch.equal(means, before)
    optimizer.step()
    mixer(x)
    assert not torch.equal(means, before)


def test_recomputed_activations_give_the_same_gradients() -> None:
    x = sample()
    found = []
    for recompute in (False, True):
        torch.manual_seed(0)
        mixer = made(decay=0.5).train()
        optimizer = torch.optim.SGD(mixer.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            y = checkpoint(mixer, x, use_reentrant=False) if recompute else mixer(x)
            y.square().mean().backward()
            optimizer.step()
        mixer.eval()
        found.append([mixer.o_proj.weight.grad, mixer.routing.centroids.means])  # type: ignore[union-attr]
    for plain, again in zip(*found, strict=True):
        assert plain is not None
        torch.testing.assert_close(plain, again)


# where its graph breaks, the compiler itself looks at the gradient of a tensor in between
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_a_compiled_mixer_learns_its_centroids_too() -> None:
    mixer, x = made().train(), sample()
    assert mixer.routing is not None
    before = mixer.routing.centroids.means.clone()
    torch.compiler.reset()
    try:
        torch.compile(mixer, backend="eager")(x).square().sum().backward()
    finally:
        torch.compiler.reset()
    mixer.eval()
    assert not torch.equal(mixer.routing.centroids.means, before)


def test_update_centroids_moves_them_now() -> None:
    mixer = made().train()
    assert mixer.routing is not None
    before = mixer.routing.centroids.means.clone()
    mixer(sample())
    mixer.update_centroids()
    assert not torch.equal(mixer.routing.centroids.means, before)
    made(local_heads=4).update_centroids()


@pytest.mark.parametrize("changes", [{}, {"mode": "compat", "rope_base": 100.0}])
def test_commitment_loss_counts_real_tokens_at_their_positions(changes: dict[str, Any]) -> None:
    mixer, x = made(commitment=1.0, **changes), sample()
    mask = torch.rand(1, 23) < 0.6
    loss = mixer.commitment_loss(x[:1], mask=mask)
    torch.testing.assert_close(loss, mixer.commitment_loss(x[:1][mask][None]))
    assert float(loss.detach()) > 0
    gradients = torch.autograd.grad(loss, mixer.q_proj.weight)  # type: ignore[union-attr]
    assert float(gradients[0].abs().max()) > 0
    assert float(made(local_heads=4).commitment_loss(x)) == 0


def test_tokens_learn_to_lie_near_their_centroids() -> None:
    mixer, x = made(commitment=1.0, decay=0.5).train(), sample(64)
    optimizer = torch.optim.Adam(mixer.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        mixer(x)
        loss = mixer.commitment_loss(x)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


# --------------------------------------------------------------------------------------------------- the rest


def test_loads_the_compared_layout_of_a_layer() -> None:
    mixer = RoutingAttention(24, **{**SMALL, "mode": "compat"})
    layout = {
        "local_to_qkv.weight": torch.randn(18, 24),
        "local_to_qkv.bias": torch.randn(18),
        "to_q.weight": torch.randn(18, 24),
        "to_v.weight": torch.randn(18, 24),
        "to_out.weight": torch.randn(24, 24),
        "global_attn.kmeans.means": torch.randn(3, 3, 6),
        "global_attn.kmeans.initted": torch.tensor(True),
        "global_attn.mem_key": torch.empty(3, 3, 0, 6),
        "global_attn.mem_value": torch.empty(3, 3, 0, 6),
        "local_attn.rel_pos.inv_freq": torch.randn(3),
    }
    mixer.load_reference(layout)
    own = mixer.state_dict()
    assert torch.equal(own["q_proj.weight"], layout["to_q.weight"])
    assert torch.equal(own["routing.centroids.means"], layout["global_attn.kmeans.means"])
    with pytest.raises(KeyError, match=r"unknown keys: k_proj\.weight"):
        mixer.load_reference({**layout, "to_k.weight": torch.randn(18, 24)})


def test_bidirectional_mixers_have_no_past() -> None:
    with pytest.raises(ValueError, match="init_state needs causal=True"):
        made(causal=False).init_state(2)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"local_heads": 5}, r"local_heads must be between 0 and num_heads=4, got 5"),
        ({"num_clusters": 0}, r"num_clusters must be positive, got 0"),
        ({"window_size": 0}, r"window_size must be positive, got 0"),
        ({"block_size": 0}, r"block_size must be positive, got 0"),
        ({"look_back": -1}, r"look_back must not be negative, got -1"),
        ({"mode": "official"}, r"mode must be one of paper, compat, got 'official'"),
        ({"head_dim": 5, "rope_base": 100.0}, r"rotary embedding needs an even head_dim, got 5"),
        ({"prefix_topk": True, "causal": False}, r"prefix_topk=True needs causal=True"),
        ({"attn_drop": 1.0}, r"attn_drop must be in \[0, 1\), got 1.0"),
        ({"num_memory": -1}, r"num_memory must not be negative, got -1"),
    ],
)
def test_ill_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(**changed)
