"""What cascades compute: what `regard.ops` compute, in float64; and how many words live meanwhile."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regard.hardware.einsum import CascadeError
from regard.hardware.growth import growth, operations
from regard.hardware.interpreter import run, sizes_of
from regard.hardware.library import cascade
from regard.hardware.reader import read_text
from regard.ops.agent_attention import agent_attention
from regard.ops.hip import HiPSizes, hip_attention, hip_visible
from regard.ops.linear_attention import linear_attention_reference
from regard.ops.prefix_softmax import prefix_softmax_reference
from regard.ops.softmax_attention import softmax_attention_reference
from regard.ops.softplus_attention import softplus_weights
from regard.ops.window_attention import window_attention_reference

E, F, TOLERANCE = 5, 7, 1e-10
ATTENTION = (
    "attention_three_pass",
    "attention_deferred_division",
    "attention_two_pass",
    "attention_one_pass",
)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=shape)


def rows(x: np.ndarray) -> torch.Tensor:
    """Ranks of width and position as a batch and a head of rows."""
    return torch.from_numpy(np.ascontiguousarray(x.T))[None, None]


def ranks(x: torch.Tensor) -> np.ndarray:
    return x[0, 0].T.numpy()


def qkv(queries: int, keys: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return random(E, queries), random(E, keys), random(F, keys)


@pytest.mark.parametrize("name", ATTENTION)
@pytest.mark.parametrize("along", [None, "m", "p"])
def test_attention_in_any_number_of_passes_is_softmax_attention(name: str, along: str | None) -> None:
    q, k, v = qkv(11, 39)
    # the scale of the operator is folded into the queries
    expected = ranks(softmax_attention_reference(rows(q) * E**0.5, rows(k), rows(v)))
    inputs = {"Q": q, "K": k, "V": v}
    if name == "attention_one_pass" and along == "p":
        with pytest.raises(CascadeError, match="runs over m1, not over p"):
            run(cascade(name), inputs, rank=along, split={"m": 13})
        return
    ran = run(cascade(name), inputs, rank=along, split={"m": 13})
    assert np.abs(ran.outputs["AV"] - expected).max() <= TOLERANCE


def test_scores_far_apart_do_not_overflow_in_one_pass() -> None:
    q, k, v = qkv(3, 12)
    ran = run(cascade("attention_one_pass"), {"Q": 400 * q, "K": k, "V": v}, split={"m": 4})
    expected = ranks(softmax_attention_reference(rows(400 * q) * E**0.5, rows(k), rows(v)))
    assert np.abs(ran.outputs["AV"] - expected).max() <= TOLERANCE


def test_lightning_is_decayed_linear_attention() -> None:
    q, k, v = random(E, 23), random(E, 23) + 0.5, random(F, 23)
    slope = 0.17
    expected = ranks(linear_attention_reference(rows(q), rows(k), rows(v), slopes=[slope]))
    ran = run(cascade("lightning"), {"Q": q, "K": k, "V": v, "decay": np.exp(-slope)})
    assert np.abs(ran.outputs["O"] - expected).max() <= TOLERANCE


def test_aaren_is_the_softmax_over_every_prefix() -> None:
    query, k, v = random(E), random(E, 29), random(F, 29)
    scores = torch.from_numpy(query @ k)[None, None]
    expected = ranks(prefix_softmax_reference(scores, rows(v)))
    ran = run(cascade("aaren"), {"q": query, "K": k, "V": v})
    assert np.abs(ran.outputs["O"] - expected).max() <= TOLERANCE


def test_softplus_divides_by_its_sum() -> None:
    q, k, v = qkv(9, 31)
    weights = softplus_weights(rows(q) * E**0.5, rows(k), visible=None, scale="inverse_sqrt", qk_norm=False)
    expected = ranks(weights @ rows(v))
    ran = run(cascade("softplus"), {"Q": q, "K": k, "V": v})
    assert np.abs(ran.outputs["AV"] - expected).max() <= TOLERANCE


def test_window_sees_the_latest_keys() -> None:
    q, k, v = qkv(19, 19)
    expected = ranks(window_attention_reference(rows(q) * E**0.5, rows(k), rows(v), window_size=5, causal=True))
    ran = run(cascade("window"), {"Q": q, "K": k, "V": v, "width": 5.0})
    assert np.abs(ran.outputs["AV"] - expected).max() <= TOLERANCE


def test_agents_stand_between_queries_and_keys() -> None:
    q, k, v = qkv(13, 17)
    agents = random(E, 3)
    expected = ranks(agent_attention(rows(q), rows(agents) * E**0.5, rows(k), rows(v), query_scale=E**-0.5))
    ran = run(cascade("agent"), {"Q": q, "A": agents, "K": k, "V": v})
    assert np.abs(ran.outputs["O"] - expected).max() <= TOLERANCE


@pytest.mark.parametrize("block", [1, 4])
def test_hip_attends_to_chosen_blocks(block: int) -> None:
    """With blocks of one key, the choice is the search's, window and sinks included."""
    q, k, v = qkv(24, 24)
    sizes = HiPSizes(mask_k=4, block_q=4, block_k=2, window=4, sinks=2)
    if block == 1:
        visible = hip_visible(rows(q), rows(k), sizes)
        expected = ranks(hip_attention(rows(q) * E**0.5, rows(k), rows(v), sizes))
        # the search does not change with the scale of the queries
        assert torch.equal(visible, hip_visible(rows(q) * E**0.5, rows(k), sizes))
        chosen = visible[0, 0].T.numpy()
    else:
        chosen = np.random.default_rng(3).random((6, 24)) < 0.5
        chosen[0] = True
        visible = torch.from_numpy(np.repeat(chosen, block, axis=0).T)[None, None]
        expected = ranks(softmax_attention_reference(rows(q) * E**0.5, rows(k), rows(v), visible=visible))
    assert not chosen.all()
    ran = run(cascade("hip"), {"Q": q, "K": k, "V": v, "chosen": chosen.astype(float)}, split={"m": block})
    assert np.abs(ran.outputs["AV"] - expected).max() <= TOLERANCE


# --------------------------------------------------------------------------------------------------- live words


def test_one_pass_keeps_a_tile_and_three_passes_keep_a_fiber() -> None:
    one = [point.live_words for point in growth(cascade("attention_one_pass"), "m", (64, 256, 1024))]
    three = [point.live_words for point in growth(cascade("attention_three_pass"), "m", (64, 256, 1024))]
    assert one[0] == one[1] == one[2]
    # of every score, one word for each of the 16 queries, and what does not grow
    assert three[1] - three[0] == 16 * (256 - 64)
    assert three[2] - three[1] == 16 * (1024 - 256)


def test_live_words_of_a_small_cascade_by_hand() -> None:
    text = """
    rank m, p
    input K[m], Q[p]
    output Y
    S[m, p] = K[m] * Q[p]
    G[p] = max(m) S[m, p]
    Y[p] = sum(m) exp(S[m, p] - G[p])
    """
    found = read_text(text.replace("    ", ""))
    k, q = random(7), random(3)
    ran = run(found, {"K": k, "Q": q}, rank="m")
    scores = k[:, None] * q
    assert np.abs(ran.outputs["Y"] - np.exp(scores - scores.max(axis=0)).sum(axis=0)).max() < 1e-14
    # Q, one fetched K, seven rows of S, G
    assert ran.peak_words == 3 + 1 + 7 * 3 + 3
    assert ran.fetched_words == 7


def test_operations_count_maps_and_reductions() -> None:
    found = cascade("attention_three_pass")
    sizes = sizes_of(found, {"Q": random(E, 2), "K": random(E, 3), "V": random(F, 3)})
    counts = {einsum.name: operations(einsum, sizes) for einsum in found.einsums}
    assert counts == {"QK": 2 * E * 6, "GM": 6, "SN": 2 * 6, "SD": 6, "A": 6, "AV": 2 * F * 6}


# --------------------------------------------------------------------------------------------------- refusals


def test_operators_of_a_users_own_and_conditions() -> None:
    text = "rank m\noperator twice(x) = x + x\noperator four(x) = twice(twice(x))\ninput A[m]\noutput B\n"
    found = read_text(text + "B[m] = where(m < 2, four(A[m]), -A[m])")
    a = random(5)
    assert np.array_equal(run(found, {"A": a}).outputs["B"], np.where(np.arange(5) < 2, 4 * a, -a))


@pytest.mark.parametrize(
    ("inputs", "split", "why"),
    [
        ({"Q": (E, 3), "K": (E, 8)}, 4, "the input V of attention_one_pass is missing"),
        ({"Q": (E, 3), "K": (E, 8), "V": (F, 8), "X": (2,)}, 4, "has no input X: it has Q, K, V"),
        ({"Q": (E, 3), "K": (E, 8), "V": (F, 9)}, 4, "the rank m has two sizes: 8, and 9 in V"),
        ({"Q": (E, 3), "K": (E + 1, 8), "V": (F, 8)}, 4, f"the rank e has two sizes: {E}, and {E + 1} in K"),
        ({"Q": (E, 3), "K": (E, 8), "V": (F, 8)}, 3, "the rank m of 8 cannot be split into parts of 3"),
        ({"Q": (E, 3, 1), "K": (E, 8), "V": (F, 8)}, 4, r"the input Q has the ranks e, p, got shape \(5, 3, 1\)"),
    ],
    ids=["missing", "unknown", "two sizes", "two depths", "split", "axes"],
)
def test_inputs_that_do_not_fit_are_refused(inputs: dict[str, tuple[int, ...]], split: int, why: str) -> None:
    with pytest.raises(CascadeError, match=why):
        run(cascade("attention_one_pass"), {name: random(*s) for name, s in inputs.items()}, split={"m": split})
