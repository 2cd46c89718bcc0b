"""The claims of lightning attention: the same operator in blocks, at a constant time per token and constant memory.

Beside the operator, its network TNL, which learns as well as a softmax Transformer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from regard.claims import Measured, claim, out_of_reach
from regard.claims._operators import (
    HEADS,
    WIDTH,
    random_tensors,
    state_bytes_after,
    timed_inputs,
    worst_error,
    worst_error_with_gradients,
)
from regard.claims._training import SEEDS, fit_language, language_loss, mean, text_corpus
from regard.measure import contraction_macs, one_thread, peak_bytes, race
from regard.mixers.sequence.lightning import LightningAttention
from regard.models.language.base import LanguageModel
from regard.models.language.decoder import Decoder, DecoderConfig
from regard.models.language.transnormer import TransNormerConfig, TransNormerLM
from regard.ops.decay import alibi_slopes
from regard.ops.linear_attention import linear_attention, linear_attention_reference, linear_attention_with_state

SECOND_PAPER = "Various Lengths, Constant Speed (arXiv 2405.17381)"
FIRST_PAPER = "Lightning Attention-2 (arXiv 2401.04658)"
LENGTHS = (1, 63, 64, 65, 131, 513)
SLOPES = alibi_slopes(HEADS)
STRIP = 1024


def quadratic_in_strips(q: Tensor, k: Tensor, v: Tensor, slope: float) -> Tensor:
    """The masked quadratic form of one head, `(tokens, width)`, with the decay, one strip of rows after the other.

    All rows and columns are computed, as without strips, whose square of 16,384 tokens would not fit in memory.
    """
    tokens = q.shape[0]
    columns, strips = torch.arange(tokens), []
    for start in range(0, tokens, STRIP):
        rows = torch.arange(start, min(start + STRIP, tokens))
        distance = (rows[:, None] - columns).to(q.dtype)
        decay = torch.exp(-slope * distance.clamp(min=0)) * (distance >= 0)
        strips.append((q[start : start + STRIP] @ k.T * decay) @ v)
    return torch.cat(strips)


def cumsum_linear_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal linear attention without decay as it is often written: every token's k^T v, summed up along the tokens."""
    outer_products = k[..., :, None] * v[..., None, :]
    states = outer_products.cumsum(dim=2)
    return torch.einsum("bhnd,bhnde->bhne", q, states)


# --------------------------------------------------------------------------------------------------- exact


@claim(
    "lightning",
    name="block_equals_quadratic",
    grade="exact",
    statement="Splitting causal linear attention into blocks, within and between which it is computed in different "
    "orders, is exact, forward and backward",
    where=f"{FIRST_PAPER}, algorithms 1 and 2",
    criterion="block form = quadratic form, values and gradients, to a relative error of 2e-4 in float32, for "
    "n in {1, 63, 64, 65, 131, 513}, with and without decay, key width different from value width",
)
def block_equals_quadratic() -> Measured:
    """Values of 13 columns, keys of 16."""
    worst = 0.0
    for tokens in LENGTHS:
        keys, values = (2, 4, tokens, 16), (2, 4, tokens, 13)
        leaves = random_tensors(keys, keys, values, seed=tokens, gradients=True)
        for slopes in (None, alibi_slopes(4)):
            blocks = partial(linear_attention, *leaves, slopes=slopes)
            quadratic = partial(linear_attention_reference, *leaves, slopes=slopes)
            worst = max(worst, worst_error_with_gradients(blocks, quadratic, leaves, seed=tokens + 1))
    return Measured(
        value=f"largest relative error {worst:.1e}",
        held=worst <= 2e-4,
        detail=f"output and the gradients of q, k, v; n in {LENGTHS}, 4 heads, d = 16, e = 13",
    )


@claim(
    "lightning",
    name="linear_cost",
    grade="exact",
    statement="The first linear attention that realises its theoretical linear cost in the causal case; time "
    "O(n d^2 + n B d)",
    where=f"{FIRST_PAPER}, abstract; {SECOND_PAPER}, the theorem on complexity",
    criterion="contractions of the block form: count(2 n) / count(n) = 2",
)
def linear_cost() -> Measured:
    """Counted with a state handed in and out, so that the first and the last block cost what the others do."""

    def count(tokens: int, *, carried: bool) -> float:
        q, k, v = timed_inputs(tokens)
        if not carried:
            return contraction_macs(lambda: linear_attention(q, k, v, slopes=SLOPES))
        state = torch.zeros(1, HEADS, WIDTH, WIDTH)
        return contraction_macs(lambda: linear_attention_with_state(q, k, v, state, slopes=SLOPES))

    ratios = [count(2 * tokens, carried=True) / count(tokens, carried=True) for tokens in (512, 1024)]
    alone = count(4096, carried=False) / count(2048, carried=False)
    return Measured(
        value=", ".join(f"{ratio:g}" for ratio in ratios),
        held=all(ratio == 2 for ratio in ratios),
        detail=f"n = 512 and 1,024, a state handed in and out; from an empty state, which the first block need not "
        f"read nor the last one write, {alone:.3f} at 2,048",
    )


# --------------------------------------------------------------------------------------------------- ratio


@claim(
    "lightning",
    name="constant_speed",
    grade="ratio",
    statement="Constant training and inference speed for any length",
    figure="forward in 0.59, 4.41 and 17.66 ms at 1K, 8K and 32K on an A100",
    where=f"{FIRST_PAPER}, abstract",
    criterion="time per token (1 row, 8 heads, d = 64, block 128, shortest of several interleaved runs) at n = 16,384 "
    "divided by that at n = 2,048 <= 1.5; the quadratic form's and SDPA's grow >= 4x over the same range",
)
def constant_speed() -> Measured:
    """The quadratic form runs on one of the heads: its growth is the same."""
    short, long = timed_inputs(2048), timed_inputs(16_384)

    def growth(run: Callable[..., Tensor], rounds: int, warmup: int = 0) -> float:
        times = race({"short": lambda: run(*short), "long": lambda: run(*long)}, rounds=rounds, warmup=warmup)
        return times.minimum_ratio("long", "short") / 8

    with one_thread(), torch.no_grad():
        blocks = growth(lambda q, k, v: linear_attention(q, k, v, slopes=SLOPES, block_size=128), 15, warmup=1)
        quadratic = growth(lambda q, k, v: quadratic_in_strips(q[0, 0], k[0, 0], v[0, 0], SLOPES[0]), 3)
        fused = growth(lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True), 2)
    return Measured(
        value=f"{blocks:.2f}x; quadratic form {quadratic:.1f}x, SDPA {fused:.1f}x",
        held=blocks <= 1.5 and quadratic >= 4 and fused >= 4,
        detail="float32, 1 thread, forward",
    )


@claim(
    "lightning",
    name="faster_than_softmax",
    grade="ratio",
    statement="Significantly faster than other attention mechanisms on long sequences",
    figure="17.66 ms against FlashAttention-2's 162.9 ms (9.2x) forward at 32K on an A100; crossover near 4K",
    where=FIRST_PAPER,
    criterion="at n = 16,384 (8 heads, d = 64, float32) forward at least 4x faster than causal SDPA; the crossover "
    "length is reported",
)
def faster_than_softmax() -> Measured:
    """The crossover is the shortest length tried from which on the block form is never slower."""

    def speedup(tokens: int, rounds: int, warmup: int = 1) -> float:
        q, k, v = timed_inputs(tokens)
        times = race(
            {
                "sdpa": lambda: scaled_dot_product_attention(q, k, v, is_causal=True),
                "blocks": lambda: linear_attention(q, k, v, slopes=SLOPES),
            },
            rounds=rounds,
            warmup=warmup,
        )
        return times.ratio("sdpa", "blocks")

    with one_thread(), torch.no_grad():
        ratios = {tokens: speedup(tokens, 15) for tokens in (64, 128, 256, 512, 1024)}
        ratios |= {4096: speedup(4096, 5), 16_384: speedup(16_384, 3, warmup=0)}
    slower = [tokens for tokens, ratio in ratios.items() if ratio < 1]
    crossover = min((tokens for tokens in ratios if tokens > max(slower, default=0)), default=None)
    return Measured(
        value=f"{ratios[16_384]:.1f}x; faster from n = {crossover} on",
        held=ratios[16_384] >= 4,
        detail=", ".join(f"{tokens}: {ratio:.2f}x" for tokens, ratio in ratios.items()),
    )


@claim(
    "lightning",
    name="no_cumsum",
    grade="ratio",
    statement="Tiling removes the cumulative sum, which keeps other causal linear attention from its theoretical speed",
    where=f"{FIRST_PAPER}, abstract",
    criterion=">= 5x faster and >= 10x less memory than linear attention by a cumulative sum of every token's outer "
    "product, at n = 2,048, d = 64",
)
def no_cumsum() -> Measured:
    """Both without decay, which the sum of outer products does not have."""
    q, k, v = timed_inputs(2048)
    with one_thread(), torch.no_grad():
        error = worst_error(linear_attention(q, k, v), cumsum_linear_attention(q, k, v))
        if error > 1e-3:
            raise ArithmeticError(f"the two forms differ by {error:.1e}: they do not compute the same")
        times = race(
            {"cumsum": lambda: cumsum_linear_attention(q, k, v), "blocks": lambda: linear_attention(q, k, v)}, rounds=5
        )
        theirs = peak_bytes(lambda: cumsum_linear_attention(q, k, v))
        ours = max(1, peak_bytes(lambda: linear_attention(q, k, v)))
    speed, memory = times.ratio("cumsum", "blocks"), theirs / ours
    return Measured(
        value=f"{speed:.1f}x faster, {memory:.0f}x less memory",
        held=speed >= 5 and memory >= 10,
        detail=f"8 heads, float32, 1 thread, forward; {theirs / 2**20:.0f} MiB against {ours / 2**20:.1f} MiB",
    )


@claim(
    "lightning",
    name="constant_memory",
    grade="ratio",
    statement="Constant speed at a fixed memory consumption for sequences of any length",
    figure="4,096 MB forward at 32K, FlashAttention-2 4,112 MB (A100)",
    where=f"{FIRST_PAPER}, abstract; {SECOND_PAPER}, abstract",
    criterion="bytes of the decoding state independent of n; peak extra memory of a forward pass <= 1.1x its linear "
    "extrapolation",
)
def constant_memory() -> Measured:
    """The line goes through 8,192 and 16,384 tokens; a peak is the smallest of several.

    Resident memory is what is measured, and holes that earlier calls left in the heap add up to half as much again:
    the largest of the measurements is shown beside the verdict.
    """
    mixer = LightningAttention(HEADS * WIDTH, num_heads=HEADS).eval()
    with one_thread(), torch.no_grad():
        sizes = [state_bytes_after(mixer, tokens) for tokens in (1, 64, 4096)]
        peaks, largest = [], 0
        for tokens in (8192, 16_384, 32_768):
            run = partial(linear_attention, *timed_inputs(tokens), slopes=SLOPES)
            measured = [peak_bytes(run, warmup=1) for _ in range(7)]
            peaks.append(min(measured))
            largest = max(measured)
    ratio = peaks[2] / (peaks[1] + 2 * (peaks[1] - peaks[0]))
    shown = ", ".join(f"{peak / 2**20:.0f} MiB" for peak in peaks)
    bytes_shown = ", ".join(f"{size:,}" for size in sorted(set(sizes)))
    return Measured(
        value=f"state {bytes_shown} bytes after 1, 64 and 4,096 tokens; peak {ratio:.3f}x the extrapolation",
        held=len(set(sizes)) == 1 and ratio <= 1.1,
        detail=f"8 heads, d = 64, float32; smallest of 7 peaks at 8,192, 16,384 and 32,768 tokens: {shown}; "
        f"largest at 32,768: {largest / 2**20:.0f} MiB",
    )


# --------------------------------------------------------------------------------------------------- scaled

STEPS, ROWS, LEARNED_LENGTH = 400, 8, 128
RECIPE_TEXT = (
    "bytes of tiny Shakespeare (1.1 MB), 3 layers, width 64, 4 heads, equally many parameters, 400 steps of 8 rows of "
    "128 tokens, learning rate 3e-3, mean of seeds 0, 1, 2"
)


def small_network(kind: str) -> LanguageModel:
    """TNL, or a pre-norm decoder: softmax with rotary positions, 1 + elu with sinusoidal ones, which it needs."""
    if kind == "tnl":
        # 5 d^2 parameters in the attention and 7 d^2 here, as the decoders have 4 d^2 and 8 d^2
        return TransNormerLM(TransNormerConfig(dim=64, num_layers=3, num_heads=4, hidden=7 * 64 // 3 + 2))
    if kind == "softmax":
        return Decoder(DecoderConfig(dim=64, num_layers=3, num_heads=4))
    return Decoder(DecoderConfig(dim=64, num_layers=3, num_heads=4, mixer="linear", positions="sinusoidal"))


@cache
def validation_losses(kind: str, steps: int = STEPS, evaluated: int = 32_768) -> tuple[float, ...]:
    """Nats per byte of held-out text after training, for every seed."""
    losses = []
    with one_thread():
        for seed in SEEDS:
            torch.manual_seed(seed)
            model = small_network(kind)
            fit_language(model, text_corpus(), steps=steps, batch=ROWS, length=LEARNED_LENGTH, seed=seed)
            losses.append(language_loss(model, text_corpus(), length=LEARNED_LENGTH, total=evaluated))
    return tuple(losses)


def _shown(kinds: tuple[str, ...]) -> str:
    return "; ".join(f"{kind}: " + ", ".join(f"{loss:.4f}" for loss in validation_losses(kind)) for kind in kinds)


@claim(
    "lightning",
    name="tnl_as_good_as_softmax",
    grade="scaled",
    statement="TNL is on par with softmax language models",
    figure="WikiText-103, test perplexity: TNL 24.03, Transformer 24.78 (45M parameters)",
    where=SECOND_PAPER,
    criterion=f"mean validation loss of TNL <= that of a softmax Transformer of the same size + 2 %; {RECIPE_TEXT}",
)
def tnl_as_good_as_softmax() -> Measured:
    """The Transformer is pre-norm, with LayerNorm and a GELU perceptron."""
    ours, theirs = (mean(validation_losses(kind)) for kind in ("tnl", "softmax"))
    return Measured(
        value=f"{ours:.4f} against {theirs:.4f} nats per byte: {ours / theirs - 1:+.1%}",
        held=ours <= 1.02 * theirs,
        detail=f"{text_corpus().source}; by seed: {_shown(('tnl', 'softmax'))}",
    )


@claim(
    "lightning",
    name="tnl_better_than_elu",
    grade="scaled",
    statement="TNL is better than earlier linear attention",
    figure="WikiText-103, test perplexity: TNL 24.03, 1 + elu 28.05 (45M parameters)",
    where=SECOND_PAPER,
    criterion=f"mean validation loss of TNL < that of 1 + elu linear attention of the same size; {RECIPE_TEXT}",
)
def tnl_better_than_elu() -> Measured:
    """Linear attention in the place of the Transformer's softmax."""
    ours, theirs = (mean(validation_losses(kind)) for kind in ("tnl", "elu"))
    return Measured(
        value=f"{ours:.4f} against {theirs:.4f} nats per byte: {ours / theirs - 1:+.1%}",
        held=ours < theirs,
        detail=f"{text_corpus().source}; by seed: {_shown(('tnl', 'elu'))}",
    )


# --------------------------------------------------------------------------------------------------- out of reach


out_of_reach(
    "lightning",
    name="large_language_models",
    statement="TNL is on par with softmax language models, and more efficient, at up to 15 billion parameters",
    figure="15B, 2T tokens: BoolQ 76.64, HellaSwag 82.18, MMLU 60.06; SCROLLS average: 385M 9.48 against OPT's 7.55",
    where=SECOND_PAPER,
    criterion="benchmark scores of trained models with 1 to 15 billion parameters",
    reason="training them takes clusters of GPUs for weeks; small networks of the same kind stand in "
    "(`tnl_as_good_as_softmax`, `tnl_better_than_elu`)",
)
out_of_reach(
    "lightning",
    name="gpu_milliseconds",
    statement="The Triton kernel's forward and backward passes on an A100 grow linearly and overtake FlashAttention-2",
    figure="forward at 1K/8K/32K: 0.59/4.41/17.66 ms against 0.23/10.39/162.9 ms; backward 2.33/18.62/74.59 ms "
    "against 0.96/31.99/470.7 ms (batch 4, 32 heads, 128 wide, bfloat16)",
    where=FIRST_PAPER,
    criterion="where a GPU is present, a Triton kernel >= 3x faster than SDPA's flash kernel at 32K",
    reason="an A100's milliseconds need an A100; the ratios to causal SDPA on a CPU stand in. The Triton kernels are "
    "`regard.ops.triton.lightning`, checked under Triton's interpreter; `benchmarks/lightning_attention_gpu.py` races "
    "them against SDPA's flash kernel where a GPU is present",
)
