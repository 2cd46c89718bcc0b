"""Hedgehog against its formula, its forms against each other, and its conversion from softmax attention."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import regard
from regard.mixers.sequence.hedgehog import HedgehogAttention, added_parameters
from regard.mixers.sequence.softmax import SoftmaxAttention


def softmax_of(values: list[float]) -> list[float]:
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def layer_by_loops(mixer: HedgehogAttention, x: Tensor, context: Tensor | None = None) -> Tensor:
    """The whole layer once more: for each token the two softmaxes of x W_h, then weights one by one."""
    heads, kv_heads, width = mixer.num_heads, mixer.num_kv_heads, mixer.head_dim
    source = x if context is None else context
    with torch.no_grad():
        q = mixer.q_proj(x).view(*x.shape[:2], heads, width)
        k, v = (project(source).view(*source.shape[:2], kv_heads, width) for project in (mixer.k_proj, mixer.v_proj))
        q_weight = mixer.q_map.weight
        k_weight = q_weight if mixer.k_map is None else mixer.k_map.weight

        def features(token: Tensor, matrix: Tensor) -> list[float]:
            z = [float((token * matrix[:, column]).sum()) for column in range(matrix.shape[1])]
            return softmax_of(z) + softmax_of([-value for value in z])

        mixed = torch.zeros(*x.shape[:2], heads, width, dtype=x.dtype)
        for b in range(x.shape[0]):
            for h in range(heads):
                group = h // (heads // kv_heads)
                keys = [features(k[b, j, group], k_weight[h]) for j in range(source.shape[1])]
                for i in range(x.shape[1]):
                    query = features(q[b, i, h], q_weight[h])
                    seen = range(i + 1) if mixer.causal else range(source.shape[1])
                    weights = [sum(a * c for a, c in zip(query, keys[j], strict=True)) for j in seen]
                    for weight, j in zip(weights, seen, strict=True):
                        mixed[b, i, h] += weight / (sum(weights) + 1e-12) * v[b, j, group]
        return mixer.o_proj(mixed.flatten(2))


def scattered(**options: Any) -> HedgehogAttention:
    """A layer whose maps are no longer the identity."""
    mixer = HedgehogAttention(30, num_heads=6, **options).double()
    with torch.no_grad():
        for parameter in mixer.map_parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return mixer


@pytest.mark.parametrize(
    "options", [{}, {"num_kv_heads": 2, "tied": True}, {"feature_dim": 3, "qkv_bias": True}], ids=str
)
@pytest.mark.parametrize("form", ["causal", "bidirectional", "cross"])
def test_layer_is_the_formula(form: str, options: dict[str, Any]) -> None:
    mixer = scattered(causal=form == "causal", block_size=3, **options)
    x = torch.randn(1, 11, 30, dtype=torch.float64)
    context = torch.randn(1, 7, 30, dtype=torch.float64) if form == "cross" else None
    expected = layer_by_loops(mixer, x, context)
    torch.testing.assert_close(mixer(x, context=context), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("feature_map", ["softmax_dim", "exp_dim", "relu", "pos_elu", "taylor"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [1, 131])
def test_both_forms_have_the_same_values_and_gradients(tokens: int, causal: bool, feature_map: str) -> None:
    linear = scattered(causal=causal, feature_map=feature_map, rope_base=None)
    quadratic = scattered(causal=causal, feature_map=feature_map, form="quadratic")
    quadratic.load_state_dict(linear.state_dict())
    x = torch.randn(2, tokens, 30, dtype=torch.float64)
    weight = torch.randn(2, tokens, 30, dtype=torch.float64)
    results = []
    for mixer in (linear, quadratic):
        leaf = x.clone().requires_grad_()
        y = mixer(leaf)
        results.append([y, *torch.autograd.grad((y * weight).sum(), [leaf, *mixer.parameters()])])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("rope_base", [None, 100.0])
@pytest.mark.parametrize("chunks", [[1] * 71, [37, 1, 1, 32]])
def test_decoding_equals_forward_in_constant_memory(chunks: list[int], rope_base: float | None) -> None:
    mixer = HedgehogAttention(24, num_heads=4, num_kv_heads=2, causal=True, rope_base=rope_base).double()
    x = torch.randn(2, 71, 24, dtype=torch.float64)
    with torch.no_grad():
        state, pieces = mixer.init_state(2), []
        for piece in x.split(chunks, dim=1):
            y, state = mixer.step(piece, state)
            pieces.append(y)
        torch.testing.assert_close(torch.cat(pieces, dim=1), mixer(x), rtol=1e-9, atol=1e-11)
    assert state.nbytes == 2 * (4 * 12 * 7 + 1) * 8


def test_positions_start_anew_in_every_packed_sequence() -> None:
    mixer = HedgehogAttention(24, num_heads=4, causal=True, rope_base=100.0)
    x = torch.randn(1, 23, 24)
    y = mixer(x, segments=torch.tensor([[0] * 9 + [1] * 14]))
    torch.testing.assert_close(y[:, 9:], mixer(x[:, 9:]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("feature_map", ["softmax_dim", "exp_dim"])
@pytest.mark.parametrize("causal", [False, True])
def test_long_and_large_inputs_stay_finite(causal: bool, feature_map: str) -> None:
    mixer = HedgehogAttention(16, num_heads=4, causal=causal, feature_map=feature_map)
    y = mixer(1e3 * torch.randn(1, 4096, 16))
    y.square().mean().backward()
    assert y.isfinite().all()
    assert all(parameter.grad.isfinite().all() for parameter in mixer.parameters())


@pytest.mark.parametrize("causal", [False, True])
def test_bfloat16_stays_within_two_percent(causal: bool) -> None:
    mixer = HedgehogAttention(64, num_heads=4, causal=causal).bfloat16()
    x = torch.randn(2, 499, 64).bfloat16()
    with torch.no_grad():
        y = mixer(x)
        expected = mixer.float()(x.float())
    assert y.dtype == torch.bfloat16
    assert (y - expected).norm() / expected.norm() < 0.02


# --------------------------------------------------------------------------------------------------- conversion


def loss_by_loops(mixer: HedgehogAttention, teacher: SoftmaxAttention, x: Tensor) -> float:
    """Cross-entropy of each row of the teacher's map against the student's, averaged."""
    wanted, found = teacher.attention_map(x), mixer.attention_map(x)
    rows = []
    for b in range(x.shape[0]):
        for h in range(mixer.num_heads):
            for i in range(x.shape[1]):
                pairs = zip(wanted[b, h, i].tolist(), found[b, h, i].tolist(), strict=True)
                rows.append(-sum(a * math.log(max(c, 1e-12)) for a, c in pairs if a > 0))
    return sum(rows) / len(rows)


def spiky_teacher(causal: bool) -> SoftmaxAttention:
    teacher = SoftmaxAttention(24, num_heads=3, causal=causal, qkv_bias=True)
    with torch.no_grad():
        teacher.q_proj.weight.mul_(3)
        teacher.k_proj.weight.mul_(3)
    return teacher


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("num_kv_heads", [1, 3])
def test_conversion_keeps_the_projections(causal: bool, num_kv_heads: int) -> None:
    teacher = SoftmaxAttention(
        24, num_heads=3, num_kv_heads=num_kv_heads, causal=causal, qkv_bias=True, rope_base=50.0
    ).double()
    converted = HedgehogAttention.from_softmax(teacher, feature_dim=5)
    assert (converted.causal, converted.rope_base, converted.num_kv_heads) == (causal, 50.0, num_kv_heads)
    own = converted.state_dict()
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(own.pop(name), tensor)
        assert converted.get_parameter(name).data_ptr() != tensor.data_ptr()
    assert sorted(own) == ["k_map.weight", "q_map.weight"]
    assert all(tensor.dtype == torch.float64 for tensor in own.values())


@pytest.mark.parametrize("causal", [False, True])
def test_transfer_loss_is_the_cross_entropy_of_the_maps(causal: bool) -> None:
    teacher = spiky_teacher(causal).double()
    mixer = HedgehogAttention.from_softmax(teacher)
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    with torch.no_grad():
        loss, both = float(mixer.transfer_loss(x)), float(mixer.transfer_loss(x, output_weight=1000.0))
        assert loss == pytest.approx(loss_by_loops(mixer, teacher, x), rel=1e-9)
        difference = teacher.attention_map(x) @ teacher.values(x) - mixer.attention_map(x) @ mixer.values(x)
    assert both == pytest.approx(loss + 1000 * float(difference.square().mean()), rel=1e-9)


@pytest.mark.parametrize("causal", [False, True])
def test_transfer_loss_counts_real_tokens_alone(causal: bool) -> None:
    mixer = HedgehogAttention.from_softmax(spiky_teacher(causal).double())
    x = torch.randn(2, 11, 24, dtype=torch.float64)
    mask = torch.rand(2, 11) < 0.6
    mask[:, 3] = True
    filled = torch.where(mask[..., None], x, torch.nan)
    alone = [mixer.transfer_loss(row[kept][None]) for row, kept in zip(x, mask, strict=True)]
    counts = mask.sum(dim=1)
    expected = (alone[0] * counts[0] + alone[1] * counts[1]) / counts.sum()
    torch.testing.assert_close(mixer.transfer_loss(filled, mask=mask), expected)


@pytest.mark.parametrize("output_weight", [0.0, 10.0])
def test_distilling_trains_the_maps_alone(output_weight: float) -> None:
    mixer = HedgehogAttention.from_softmax(spiky_teacher(causal=True))
    mixer.transfer_loss(torch.randn(2, 13, 24), output_weight=output_weight).backward()
    maps = {id(parameter) for parameter in mixer.map_parameters()}
    for parameter in mixer.parameters():
        trained = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert trained == (id(parameter) in maps)


@pytest.mark.parametrize("feature_map", ["softmax_dim", "exp_dim"])
@pytest.mark.parametrize("causal", [False, True])
def test_distilling_brings_the_maps_closer(causal: bool, feature_map: str) -> None:
    teacher = spiky_teacher(causal)
    mixer = HedgehogAttention.from_softmax(teacher, feature_map=feature_map)
    x, unseen = torch.randn(2, 8, 31, 24)
    wanted = teacher.attention_map(unseen).detach()

    def distance() -> float:
        return float((mixer.attention_map(unseen).detach() - wanted).abs().sum(dim=-1).mean())

    optimizer = torch.optim.AdamW(mixer.map_parameters(), lr=1e-2, weight_decay=0.0)
    before, losses = distance(), []
    for _ in range(60):
        loss = mixer.transfer_loss(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    # the teacher's own entropy is the least that the loss can be
    entropy = -float(torch.special.xlogy(wanted, wanted).sum(dim=-1).mean())
    assert losses[-1] - entropy < 0.9 * (losses[0] - entropy)
    assert distance() < before


def test_transfer_loss_refuses_ill_arguments() -> None:
    mixer = HedgehogAttention(24, num_heads=3)
    with pytest.raises(ValueError, match="output_weight must not be negative, got -1"):
        mixer.transfer_loss(torch.randn(1, 5, 24), output_weight=-1)
    with pytest.raises(ValueError, match="last axis must equal dim=24"):
        mixer.transfer_loss(torch.randn(1, 5, 23))
    with pytest.raises(ValueError, match=r"mask has shape \(1, 6\)"):
        mixer.transfer_loss(torch.randn(1, 5, 24), mask=torch.ones(1, 6, dtype=torch.bool))


# --------------------------------------------------------------------------------------------------- the rest


def test_added_parameters_are_counted() -> None:
    for dim, heads, inner, tied in ((24, 3, None, False), (30, 6, 7, False), (30, 6, 7, True)):
        teacher = SoftmaxAttention(dim, num_heads=heads)
        converted = HedgehogAttention.from_softmax(teacher, feature_dim=inner, tied=tied)
        more = sum(p.numel() for p in converted.parameters()) - sum(p.numel() for p in teacher.parameters())
        claimed = added_parameters(num_heads=heads, head_dim=dim // heads, feature_dim=inner)
        assert more == (claimed // 2 if tied else claimed)
    assert added_parameters(num_heads=12, head_dim=64, num_layers=12) == 1_179_648


def test_reference_layout_is_loaded_strictly() -> None:
    mixer = HedgehogAttention(12, num_heads=3, out_bias=False, map_bias=True)
    theirs = {f"{name}.weight": torch.randn(12, 12) for name in ("q_proj", "k_proj", "v_proj", "o_proj")}
    for side in ("q", "k"):
        theirs[f"feature_map_{side}.mlp.layer"] = torch.randn(3, 4, 4)
        theirs[f"feature_map_{side}.mlp.bias"] = torch.randn(1, 3, 1, 1)
    mixer.load_reference(theirs)
    assert torch.equal(mixer.k_map.weight, theirs["feature_map_k.mlp.layer"])
    assert torch.equal(mixer.q_map.bias, theirs["feature_map_q.mlp.bias"])
    missing = {name: tensor for name, tensor in theirs.items() if name != "feature_map_q.mlp.layer"}
    with pytest.raises(KeyError, match=r"unknown keys: feature_map_q\.mlp\.other; missing keys: q_map\.weight"):
        mixer.load_reference({**missing, "feature_map_q.mlp.other": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"k_map\.weight has shape \(3, 4, 5\), it must be \(3, 4, 4\)"):
        mixer.load_reference({**theirs, "feature_map_k.mlp.layer": torch.zeros(3, 4, 5)})


@pytest.mark.parametrize("tied", [False, True])
def test_a_scalar_that_cancels_is_named_inert(tied: bool) -> None:
    cancels = HedgehogAttention(12, num_heads=3, map_bias=True, tied=tied)
    assert cancels.inert_parameters() == ({"q_map.bias"} if tied else {"q_map.bias", "k_map.bias"})
    acts = HedgehogAttention(12, num_heads=3, map_bias=True, tied=tied, feature_map="relu")
    assert acts.inert_parameters() == set()
    assert HedgehogAttention(12, num_heads=3, tied=tied).inert_parameters() == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10, "num_heads": 3}, "dim=10 and num_heads=3"),
        ({"dim": 12, "num_heads": 4, "num_kv_heads": 3}, "num_heads=4, got 3"),
        ({"dim": 12, "num_heads": 3, "feature_map": "cosine"}, "got 'cosine'"),
        ({"dim": 12, "num_heads": 3, "skip": True, "feature_dim": 5}, "feature_dim=5 and head_dim=4"),
        ({"dim": 12, "num_heads": 3, "start": "ones"}, "identity or kaiming, got 'ones'"),
        ({"dim": 12, "num_heads": 3, "form": "cubic"}, "linear or quadratic, got 'cubic'"),
        ({"dim": 12, "num_heads": 3, "block_size": 0}, "block_size must be positive, got 0"),
        ({"dim": 9, "num_heads": 3, "rope_base": 10.0}, "even head_dim, got 3"),
    ],
)
def test_ill_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        regard.create("hedgehog", **options)
