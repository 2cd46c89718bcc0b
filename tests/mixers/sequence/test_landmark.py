"""Landmark attention as a mixer: softmax in a single block, exact steps while all blocks are retrieved, layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from regard.mixers.sequence.landmark import LandmarkAttention, halves_of_pairs, pairs_of_halves
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.ops.landmark_retrieval import SELECTIONS, Selection

SMALL: dict[str, Any] = {"num_heads": 4, "num_kv_heads": 2, "block_size": 4, "top_k": 2}


def made(**options: Any) -> LandmarkAttention:
    return LandmarkAttention(24, **{**SMALL, **options}).double().eval()


def stepped(mixer: LandmarkAttention, x: Tensor, chunks: list[int], **options: Any) -> Tensor:
    state, pieces = mixer.init_state(x.shape[0], **options), []
    with torch.no_grad():
        for piece in x.split(chunks, dim=1):
            y, state = mixer.step(piece, state)
            pieces.append(y)
    return torch.cat(pieces, dim=1)


def random(tokens: int) -> Tensor:
    return torch.randn(2, tokens, 24, dtype=torch.float64)


@pytest.mark.parametrize("rope_base", [None, 100.0])
def test_within_one_block_it_is_softmax_attention(rope_base: float | None) -> None:
    ours = made(block_size=31, rope_base=rope_base, out_bias=True)
    full = SoftmaxAttention(24, num_heads=4, num_kv_heads=2, causal=True, rope_base=rope_base).double()
    full.load_state_dict(ours.state_dict())
    x = random(31)
    torch.testing.assert_close(ours(x), full(x))
    torch.testing.assert_close(ours.attention_map(x), full.attention_map(x))
    torch.testing.assert_close(stepped(ours, x, [7, 1, 23]), full(x))


@pytest.mark.parametrize("rope_base", [None, 100.0])
@pytest.mark.parametrize("selection", SELECTIONS)
def test_retrieving_all_blocks_is_the_full_pass(selection: Selection, rope_base: float | None) -> None:
    """Positions included, since blocks keep their own while there are no more than are retrieved."""
    mixer, x = made(top_k=8, selection=selection, rope_base=rope_base), random(43)
    whole = mixer(x)
    for chunks in ([1] * 43, [5] * 8 + [3], [17, 1, 2, 23]):
        torch.testing.assert_close(stepped(mixer, x, chunks), whole)
    for max_len in (1, 43):
        torch.testing.assert_close(stepped(mixer, x, [40, 1, 1, 1], max_len=max_len), whole)


def test_fewer_blocks_are_another_computation() -> None:
    mixer, x = made(top_k=1), random(43)
    y, whole = stepped(mixer, x, [1] * 43), mixer(x)
    torch.testing.assert_close(y[:, :10], whole[:, :10])
    assert not torch.allclose(y[:, 10:], whole[:, 10:], rtol=1e-3)


def test_without_retrieval_only_the_unfinished_block_is_seen() -> None:
    mixer, x = made(top_k=0), random(23)
    y = stepped(mixer, x, [1] * 23)
    for start in range(0, 23, 5):
        torch.testing.assert_close(y[:, start : start + 5], mixer(x[:, start : start + 5]))


def test_a_landmark_lets_queries_into_its_block() -> None:
    mixer, x = made(), random(23)
    square = mixer.attention_map(x)
    assert not square[..., 4::5].any()
    for query, own in ((12, 10), (19, 15), (22, 20)):
        assert (square[..., query, own : query + (query % 5 != 4)] > 0).all()
    q, k, _ = mixer._project(x)
    keys = k.repeat_interleave(2, dim=1)
    scores = torch.einsum("bhd,bhjd->bhj", q[:, :, 12], keys) * 6**-0.5
    gates = torch.cat((scores[..., [4, 9]], scores[..., 10:13]), dim=-1).softmax(dim=-1)
    torch.testing.assert_close(square[:, :, 12, 5:9].sum(dim=-1), gates[..., 1])
    torch.testing.assert_close(square[:, :, 12, :4] / gates[..., :1], scores[..., :4].softmax(dim=-1))


def test_the_value_of_a_landmark_is_never_read() -> None:
    mixer, x = made(), random(23)
    with torch.no_grad():
        values = mixer.values(x)
        assert torch.equal(mixer.attention_map(x)[..., 4::5] @ values[..., 4::5, :], torch.zeros_like(values))


def test_landmarks_may_stand_where_the_caller_says() -> None:
    mixer, x = made(rope_base=100.0), random(23)
    regular = torch.arange(23) % 5 == 4
    torch.testing.assert_close(mixer.attend_layout(x, regular.expand(2, -1)), mixer(x))
    shifted = (torch.arange(23) % 5 == 1) & (torch.arange(23) > 1)
    y = mixer.attend_layout(x, torch.stack((regular, shifted)))
    torch.testing.assert_close(y[0], mixer(x)[0])
    assert not torch.allclose(y[1, 6:], mixer(x)[1, 6:])
    # the two leading tokens and the next four are one block of six
    torch.testing.assert_close(y[1, :6], made_like(mixer, block_size=30)(x)[1, :6])
    with pytest.raises(ValueError, match="the one at 0 of row 0 has none"):
        mixer.attend_layout(x, (torch.arange(23) < 2).expand(2, -1))
    with pytest.raises(ValueError, match=r"bool of shape \(batch, tokens\) = \(2, 23\), got torch.bool of \(23,\)"):
        mixer.attend_layout(x, regular)


def made_like(mixer: LandmarkAttention, **options: Any) -> LandmarkAttention:
    other = made(rope_base=mixer.rope_base, **options)
    other.load_state_dict(mixer.state_dict())
    return other


def test_blocks_of_another_length_take_the_same_weights() -> None:
    x, mixer = random(37), made(rope_base=100.0)
    y = stepped(made_like(mixer, block_size=6, top_k=9), x, [9, 1, 27])
    torch.testing.assert_close(y, made_like(mixer, block_size=6)(x))


def test_steps_in_training_need_permission() -> None:
    x = random(7)
    mixer = made().train()
    with pytest.raises(ValueError, match="memory_in_training=True: gradients do not reach the memory"):
        mixer.step(x, mixer.init_state(2))
    allowed = made(memory_in_training=True).train()
    y, state = allowed.step(x, allowed.init_state(2))
    y, _ = allowed.step(x, state)
    assert torch.autograd.grad(y.sum(), allowed.q_proj.weight)[0].isfinite().all()
    with torch.no_grad():
        assert mixer.step(x, mixer.init_state(2))[0].shape == x.shape


@pytest.mark.parametrize("name", ["gate_drop", "attn_drop", "proj_drop"])
def test_dropout_is_for_training(name: str) -> None:
    x = random(43)
    mixer = made(**{name: 0.5})
    torch.testing.assert_close(mixer(x), made_with(mixer)(x))
    mixer.train()
    segments = torch.zeros(2, 43, dtype=torch.int64)
    for options in ({}, {"segments": segments}):
        assert not torch.allclose(mixer(x, **options), mixer(x, **options))


def made_with(mixer: LandmarkAttention) -> LandmarkAttention:
    other = made()
    other.load_state_dict(mixer.state_dict())
    return other


def test_pairs_of_channels_are_reordered_head_by_head() -> None:
    x = torch.arange(12)
    halves = halves_of_pairs(x, 2)
    assert halves.tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert torch.equal(pairs_of_halves(halves, 2), x)


def test_loads_the_authors_layer_strictly() -> None:
    mixer = LandmarkAttention(24, num_heads=4, rope_base=100.0)
    layer = {"c_attn.weight": torch.randn(72, 24), "c_proj.weight": torch.randn(24, 24)}
    mixer.load_reference(layer)
    assert torch.equal(mixer.k_proj.weight[:3], layer["c_attn.weight"][24:30:2])
    assert torch.equal(mixer.v_proj.weight, layer["c_attn.weight"][48:])
    with pytest.raises(KeyError, match=r"unknown keys: reference c_fc\.weight; missing keys: none"):
        mixer.load_reference({**layer, "c_fc.weight": torch.zeros(1)})
    with pytest.raises(KeyError, match=r"missing keys: o_proj\.weight"):
        mixer.load_reference({"c_attn.weight": layer["c_attn.weight"]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_size": 0}, "block_size must be at least 1 ordinary token, got 0"),
        ({"top_k": -1}, "top_k must be at least 0 blocks, got -1"),
        ({"selection": "best"}, "selection must be one of"),
        ({"max_blocks": 1}, "max_blocks must be at least 1 and at least top_k=2, got 1"),
        ({"offload": "tape"}, "offload must be one of none, cpu, disk, got 'tape'"),
        ({"gate_drop": 1.0}, r"gate_drop must be in \[0, 1\), got 1.0"),
        ({"num_kv_heads": 3}, "num_kv_heads must divide num_heads=4, got 3"),
        ({"rope_base": 0.5}, "rope_base must be greater than 1, got 0.5"),
    ],
)
def test_ill_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LandmarkAttention(24, **{**SMALL, **options})
