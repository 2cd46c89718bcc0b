"""The claims of the Routing Transformer: n^1.5 operations, faster than dense attention, content beyond local heads."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from regard.claims import Measured, claim, out_of_reach
from regard.claims._operators import random_tensors, timed_inputs, worst_error
from regard.claims._routing_networks import (
    RECALL,
    RECALL_NETWORKS,
    TASK,
    TEXT,
    TEXT_NETWORKS,
    far_recall,
    parameters_of,
    text_losses,
)
from regard.claims._training import SEEDS, mean, text_corpus
from regard.measure import Race, contraction_macs, growth_exponent, one_thread, race
from regard.ops.kmeans_routing import routing_attention
from regard.ops.routing_form import RoutingForm
from regard.ops.softmax_attention import softmax_attention_reference
from regard.ops.visibility import visible_keys

PAPER = "Efficient Content-Based Sparse Attention with Routing Transformers (arXiv 2003.05997)"
COUNTED_LENGTHS = (1024, 4096, 16_384, 65_536)
TIMED_LENGTHS = (2048, 4096, 8192, 16_384)
HEADS, WIDTH = 2, 64


def routed(q: Tensor, k: Tensor, v: Tensor) -> Callable[[], Tensor]:
    """Causal routing attention with C = w = sqrt(n), rounded up, as language models have it: keys are queries."""
    window = math.isqrt(q.shape[2] - 1) + 1
    form = RoutingForm(window_size=window, causal=True, shared_qk=True)
    with torch.device(q.device):
        centroids = torch.randn(q.shape[1], window, q.shape[3], generator=_generator(q))
    return lambda: routing_attention(q, k, v, centroids, form)


def _generator(like: Tensor) -> torch.Generator | None:
    return None if like.is_meta else torch.Generator().manual_seed(0)


# --------------------------------------------------------------------------------------------------- exact


@claim(
    "routing",
    name="operations",
    grade="exact",
    statement="O(n^1.5 d) operations instead of O(n^2 d)",
    figure="n^1.5",
    where=f"{PAPER}, abstract and section 4.1",
    criterion="exponent of the counted MACs from n = 1,024 to 65,536 with C = w = sqrt(n): 1.5 +- 0.02",
)
def operations() -> Measured:
    """Routing and attention of one head; the projections of a layer are linear in n."""
    counts = []
    for tokens in COUNTED_LENGTHS:
        q, k, v = (torch.empty(1, 1, tokens, WIDTH, device="meta") for _ in range(3))
        counts.append(contraction_macs(routed(q, k, v)))
    exponent = growth_exponent(COUNTED_LENGTHS, counts)
    shares = [count / (tokens**1.5 * WIDTH) for tokens, count in zip(COUNTED_LENGTHS, counts, strict=True)]
    return Measured(
        value=f"exponent {exponent:.3f}",
        held=abs(exponent - 1.5) <= 0.02,
        detail=f"{min(shares):.2f} to {max(shares):.2f} times n^1.5 d MACs, one head with d = {WIDTH}",
    )


@claim(
    "routing",
    name="one_cluster_is_dense",
    grade="exact",
    statement="With one cluster that holds every token, routing attention is dense attention",
    where=f"{PAPER}, section 4.1",
    criterion="C = 1 and w = n: every token's output equals softmax attention of layer-normed queries and keys to a "
    "relative error of 1e-4 in float32, causal and bidirectional, keys shared or not, n in {1, 7, 64, 257}",
)
def one_cluster_is_dense() -> Measured:
    """In the paper's mode."""
    worst = 0.0
    for tokens in (1, 7, 64, 257):
        q, k, v, centroids = random_tensors(*[(2, 3, tokens, 16)] * 3, (3, 1, 16), seed=tokens)
        for causal, shared in ((True, True), (False, True), (True, False), (False, False)):
            form = RoutingForm(window_size=tokens, causal=causal, shared_qk=shared)
            keys = q if shared else k
            visible = visible_keys(tokens, tokens, causal=causal, device=q.device)
            dense = softmax_attention_reference(form.items(q), form.items(keys), v, visible=visible)
            worst = max(worst, worst_error(routing_attention(q, keys, v, centroids, form), dense))
    return Measured(value=f"largest relative error {worst:.1e}", held=worst <= 1e-4, detail="3 heads, d = 16")


# --------------------------------------------------------------------------------------------------- ratio


@claim(
    "routing",
    name="faster_than_dense",
    grade="ratio",
    statement="Attention of sub-quadratic cost, so that long sequences are faster than with dense attention",
    where=f"{PAPER}, section 4.1",
    criterion="1 row, 2 heads, d = 64, w = C = sqrt(n), causal, forward, float32, one thread: >= 3x faster than causal "
    "SDPA at n = 8,192, and an exponent of the time < 1.6 from 2,048 to 16,384",
)
def faster_than_dense() -> Measured:
    """Both sides in one run; everything between the projections."""
    against, growth = race_with_sdpa(), race_of_lengths()
    ratio = against.ratio("sdpa", "routing")
    seconds = [growth.median_s[str(tokens)] for tokens in TIMED_LENGTHS]
    exponent = growth_exponent(TIMED_LENGTHS, seconds)
    shown = ", ".join(f"{tokens}: {second * 1e3:.0f} ms" for tokens, second in zip(TIMED_LENGTHS, seconds, strict=True))
    return Measured(
        value=f"{ratio:.1f}x, exponent {exponent:.2f}",
        held=ratio >= 3 and exponent < 1.6,
        detail=f"1 thread; at 8,192 {against.median_s['routing'] * 1e3:.0f} ms against "
        f"{against.median_s['sdpa'] * 1e3:.0f} ms; {shown}",
    )


@torch.no_grad()
def race_with_sdpa(tokens: int = 8192, rounds: int = 5) -> Race:
    """Routing and causal SDPA on the same inputs."""
    q, k, v = timed_inputs(tokens, heads=HEADS, width=WIDTH)
    with one_thread():
        dense = functools.partial(scaled_dot_product_attention, q, k, v, is_causal=True)
        return race({"sdpa": dense, "routing": routed(q, k, v)}, rounds=rounds)


@torch.no_grad()
def race_of_lengths(rounds: int = 5) -> Race:
    """Routing at all lengths, in turns."""
    contestants = {str(n): routed(*timed_inputs(n, heads=HEADS, width=WIDTH)) for n in TIMED_LENGTHS}
    with one_thread():
        return race(contestants, rounds=rounds)


# --------------------------------------------------------------------------------------------------- scaled


@claim(
    "routing",
    name="content_at_a_distance",
    grade="scaled",
    statement="Routing by content reaches tokens that local attention does not",
    where=f"{PAPER}, sections 1 and 4",
    criterion=f"recall of values over n = {TASK.length} tokens, 2 layers, 64 wide, 4 heads: half routing heads >= 0.9 "
    f"right, local heads alone (32 tokens) at chance (1/{TASK.values} = {1 / TASK.values:.4f}, within 0.05); "
    f"{RECALL.steps} steps of {RECALL.batch} rows, seed 0",
)
def content_at_a_distance() -> Measured:
    """Full softmax attention beside them."""
    found = {network: far_recall(network) for network in RECALL_NETWORKS}
    return Measured(
        value=f"routing {found['routing']:.3f}, local {found['local']:.3f}",
        held=found["routing"] >= 0.9 and abs(found["local"] - 1 / TASK.values) <= 0.05,
        detail=f"full attention {found['full']:.3f}; {TASK.keys} keys, {TASK.noise} tokens of noise between a key's "
        "value and its question at least",
    )


@claim(
    "routing",
    name="better_language_model",
    grade="scaled",
    statement="Routing beside local heads models text better than local heads alone",
    figure="Wikitext-103: perplexity 15.8 against 18.3 of the best before",
    where=f"{PAPER}, abstract",
    criterion="mean perplexity of bytes with half routing heads < with local heads alone, at no more parameters; "
    f"tiny Shakespeare, 2 layers, 64 wide, 4 heads, n = {TEXT.length}, {TEXT.steps} steps of {TEXT.batch}, 3 seeds",
)
def better_language_model() -> Measured:
    """What the routing heads' shared keys save goes to the perceptrons."""
    losses = {network: text_losses(network) for network in TEXT_NETWORKS}
    ours, theirs = (math.exp(mean(losses[network])) for network in ("routing", "local"))
    sizes = {network: parameters_of(config) for network, config in TEXT_NETWORKS.items()}
    wins = sum(a < b for a, b in zip(losses["routing"], losses["local"], strict=True))
    return Measured(
        value=f"{ours:.3f} against {theirs:.3f} per byte; lower in {wins} of {len(SEEDS)} seeds",
        held=ours < theirs and sizes["routing"] <= sizes["local"],
        detail=f"{text_corpus().source}; {sizes['routing']:,} against {sizes['local']:,} parameters",
    )


# --------------------------------------------------------------------------------------------------- out of reach


STAND_IN = "the counted operations, the race with dense attention and the small networks stand in"

out_of_reach(
    "routing",
    name="wikitext103",
    statement="A better language model on Wikitext-103 with fewer layers of self-attention",
    figure="test perplexity 15.8, against 18.3",
    where=f"{PAPER}, abstract",
    criterion="test perplexity of a trained network",
    reason=f"training takes TPUs and a batch of thousands of tokens per core for days; {STAND_IN}",
)
out_of_reach(
    "routing",
    name="imagenet64",
    statement="A better model of 64 x 64 images",
    figure="3.43 bits per dimension, against 3.44",
    where=f"{PAPER}, abstract",
    criterion="bits per dimension of a trained network",
    reason=f"training takes TPUs and ImageNet; {STAND_IN}",
)
out_of_reach(
    "routing",
    name="pg19",
    statement="The best language model on PG-19, with sequences of 8,192 tokens",
    figure="test perplexity 33.2, 22 layers",
    where=f"{PAPER}, abstract",
    criterion="test perplexity of a trained network",
    reason=f"training takes TPUs and 11 GB of books; {STAND_IN}",
)
