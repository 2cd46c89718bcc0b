"""The claims of Titans: a memory that learns in parallel, in linear time, and recalls what a window has lost."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from regard.claims import Measured, claim, out_of_reach
from regard.claims._operators import random_tensors, state_bytes_after, worst_error, worst_error_with_gradients
from regard.claims._titans_networks import (
    CHANCE,
    FORECAST_TEXT,
    LANGUAGE_TEXT,
    NEEDLE_LENGTHS,
    NEEDLE_TEXT,
    RECALL_TEXT,
    Kind,
    forecast_result,
    language_result,
    needle_result,
    recall_result,
)
from regard.claims._training import SEEDS, mean
from regard.contract import SequenceMixer
from regard.measure import one_thread, race
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.mixers.sequence.titans import TitansLMM
from regard.mixers.sequence.titans_mac import TitansMAC
from regard.mixers.sequence.titans_mag import TitansMAG
from regard.mixers.sequence.titans_mal import TitansMAL
from regard.ops.memory_network import Weights, gradients_by_autograd, read_memory, surprise
from regard.ops.neural_memory import Memory, Rates, neural_memory, neural_memory_reference

PAPER = "Titans (arXiv 2501.00663)"
MIXERS: dict[str, type[SequenceMixer]] = {"LMM": TitansLMM, "MAC": TitansMAC, "MAG": TitansMAG, "MAL": TitansMAL}
DIM, NUM_HEADS = 64, 4
ROWS, TOKENS, WIDTH = 2, 23, 6


def operator_inputs(depth: int) -> tuple[tuple[Tensor, Tensor, Tensor], Rates, Memory]:
    """Random float64 queries and keys of norm 1, values, rates, and a memory; the first three ask for gradients."""
    shape = (ROWS, NUM_HEADS, TOKENS, WIDTH)
    widths = [WIDTH, *[2 * WIDTH] * (depth - 1), WIDTH]
    made = random_tensors(*[shape] * 3, *[shape[:3]] * 3, seed=1)
    q, k = (torch.nn.functional.normalize(x.double(), dim=-1) for x in made[:2])
    qkv = (q.requires_grad_(), k.requires_grad_(), made[2].double().requires_grad_())
    step, keep, momentum = (x.double() for x in made[3:])
    rates = Rates(
        torch.sigmoid(step - 3),
        torch.nn.functional.logsigmoid(keep + 3),
        torch.nn.functional.logsigmoid(momentum),
    )
    shapes = [(ROWS, NUM_HEADS, *pair) for pair in pairwise(widths)]
    weights: Weights = tuple(0.3 * x.double() for x in random_tensors(*shapes, seed=2))
    return qkv, rates, Memory(weights, weights, tuple(torch.zeros_like(weight) for weight in weights))


# --------------------------------------------------------------------------------------------------- exact


@claim(
    "titans",
    name="chunks_equal_recurrence",
    grade="exact",
    statement="The inner loop can be computed in parallel, in chunks, by matrix products",
    where=f"{PAPER}, section 3.2",
    criterion="values and gradients within 1e-9 (float64) of a loop over tokens with gradients by autograd: chunk 1, "
    "memories of 1 and 2 matrices; and chunks of 7 of a linear memory, whose loop freezes the weights at their starts",
)
def chunks_equal_recurrence() -> Measured:
    """Momentum and forgetting are on."""
    worst = 0.0
    for depth, chunk_size in ((1, 1), (2, 1), (1, 7)):
        qkv, rates, memory = operator_inputs(depth)

        def chunks(size: int = chunk_size) -> Tensor:
            return neural_memory(*qkv, rates, memory, chunk_size=size, residual_norm=False)  # noqa: B023

        def loop(size: int = chunk_size) -> Tensor:
            return neural_memory_reference(*qkv, rates, memory, chunk_size=size, residual_norm=False)[0]  # noqa: B023

        worst = max(worst, worst_error_with_gradients(chunks, loop, qkv, seed=3))
    return Measured(value=f"{worst:.1e}", held=worst <= 1e-9, detail=f"{TOKENS} tokens, {NUM_HEADS} heads of {WIDTH}")


@claim(
    "titans",
    name="streaming_equals_whole",
    grade="exact",
    statement="Fast inference: the memory is updated token by token",
    where=f"{PAPER}, section 3.2",
    criterion="within 1e-9 (float64): 150 single steps against one call, for LMM, MAC, MAG and MAL",
)
@torch.no_grad()
def streaming_equals_whole() -> Measured:
    """Chunks of 64, so that several are crossed."""
    (x,) = random_tensors((1, 150, DIM), seed=4)
    errors = {}
    for name, cls in MIXERS.items():
        torch.manual_seed(0)
        mixer = cls(DIM, num_heads=NUM_HEADS).double().eval()  # type: ignore[call-arg]
        state, pieces = mixer.init_state(1), []
        for token in x.double().split(1, dim=1):
            y, state = mixer.step(token, state)
            pieces.append(y)
        errors[name] = worst_error(torch.cat(pieces, dim=1), mixer(x.double()))
    return Measured(
        value=f"{max(errors.values()):.1e}",
        held=max(errors.values()) <= 1e-9,
        detail=", ".join(f"{name} {error:.1e}" for name, error in errors.items()),
    )


@claim(
    "titans",
    name="constant_state",
    grade="exact",
    statement="Scales to contexts of more than 2 million tokens",
    figure="context windows larger than 2M",
    where=f"{PAPER}, abstract",
    criterion="bytes of the decoding state after 1, 64 and 4,096 tokens are equal, for LMM, MAC, MAG and MAL",
)
def constant_state() -> Measured:
    """The state of one row."""
    sizes = {
        name: {state_bytes_after(cls(DIM, num_heads=NUM_HEADS).eval(), tokens) for tokens in (1, 64, 4096)}  # type: ignore[call-arg]
        for name, cls in MIXERS.items()
    }
    return Measured(
        value=", ".join(f"{name} {'/'.join(f'{size:,}' for size in sorted(found))}" for name, found in sizes.items()),
        held=all(len(found) == 1 for found in sizes.values()),
        detail=f"bytes; width {DIM}, {NUM_HEADS} heads, float32",
    )


@claim(
    "titans",
    name="gradients_are_autograd",
    grade="exact",
    statement="Momentary surprise is the gradient of the memory's loss",
    where=f"{PAPER}, section 3.1, equations 8 to 12",
    criterion="within 1e-9 (float64): closed forms against vmap over grad, token by token, and their sum against the "
    "gradient of the summed loss; 1 to 3 matrices, with and without a residual norm",
)
def gradients_are_autograd() -> Measured:
    """The residual norm is an option of the memory's network."""
    worst = 0.0
    for depth in (1, 2, 3):
        for residual_norm in (False, True):
            (_, k, v), _, memory = operator_inputs(depth)
            gain = [torch.full((ROWS, NUM_HEADS, 1, WIDTH), 0.2, dtype=torch.float64)] * residual_norm
            weights = tuple(weight.requires_grad_() for weight in (*memory.weights, *gain))
            found = surprise(k, v, weights, residual_norm=residual_norm)
            by_token = gradients_by_autograd(k, v, weights, residual_norm=residual_norm)
            loss = (read_memory(k, weights, residual_norm=residual_norm) - v).square().sum()
            summed = torch.autograd.grad(loss, weights)
            for x, delta, token, total in zip(found.x, found.delta, by_token, summed, strict=True):
                worst = max(worst, worst_error(x[..., :, None] * delta[..., None, :], token))
                worst = max(worst, worst_error(x.mT @ delta, total))
    return Measured(value=f"{worst:.1e}", held=worst <= 1e-9)


# --------------------------------------------------------------------------------------------------- ratio


def training(mixer: nn.Module, tokens: int) -> Callable[[], object]:
    """Forward and backward of one row."""
    (x,) = random_tensors((1, tokens, DIM), seed=tokens, gradients=True)
    leaves = [x, *mixer.parameters()]
    return lambda: torch.autograd.grad(mixer(x).sum(), leaves)


@claim(
    "titans",
    name="linear_time",
    grade="ratio",
    statement="Training is fast and parallelisable: time is linear in the length",
    where=f"{PAPER}, section 3.2",
    criterion="forward + backward time per token of LMM at n = 8,192 divided by that at n = 1,024 <= 1.3; causal "
    "attention's time per token grows by more",
)
def linear_time() -> Measured:
    """Attention is the fused kernel."""
    growth = {}
    with one_thread():
        for name, mixer, rounds in (
            ("LMM", TitansLMM(DIM, num_heads=NUM_HEADS), 5),
            ("attention", SoftmaxAttention(DIM, num_heads=NUM_HEADS, causal=True), 3),
        ):
            times = race({"long": training(mixer, 8192), "short": training(mixer, 1024)}, rounds=rounds)
            growth[name] = times.ratio("long", "short") / 8
    return Measured(
        value=f"{growth['LMM']:.2f}x; attention {growth['attention']:.2f}x",
        held=growth["LMM"] <= 1.3 and growth["attention"] > growth["LMM"],
        detail=f"width {DIM}, {NUM_HEADS} heads, chunks of 64, float32, 1 thread",
    )


@claim(
    "titans",
    name="flat_decoding",
    grade="ratio",
    statement="Fast inference: a token's time does not grow with the context",
    where=f"{PAPER}, abstract",
    criterion="decoding 16 tokens one by one at position 8,192 takes <= 1.2x the time at position 128, for LMM, MAC, "
    "MAG and MAL; attention with a key-value cache grows by more",
)
@torch.no_grad()
def flat_decoding() -> Measured:
    """Ratios of medians of 25 rounds."""

    def growth(mixer: SequenceMixer) -> float:
        def at(position: int) -> Callable[[], object]:
            (x,) = random_tensors((1, 16, DIM), seed=5)
            (before,) = random_tensors((1, position, DIM), seed=position)
            _, state = mixer.step(before, mixer.init_state(1, max_len=position + 16))

            def decode() -> Tensor:
                current = state.clone()
                for token in x.split(1, dim=1):
                    y, current = mixer.step(token, current)
                return y

            return decode

        return race({"late": at(8192), "early": at(128)}, rounds=25).ratio("late", "early")

    with one_thread():
        found = {name: growth(cls(DIM, num_heads=NUM_HEADS).eval()) for name, cls in MIXERS.items()}  # type: ignore[call-arg]
        attention = growth(SoftmaxAttention(DIM, num_heads=NUM_HEADS, causal=True).eval())
    worst = max(found.values())
    return Measured(
        value=", ".join(f"{name} {ratio:.2f}x" for name, ratio in found.items()) + f"; attention {attention:.2f}x",
        held=worst <= 1.2 and attention > worst,
        detail=f"width {DIM}, {NUM_HEADS} heads, float32, 1 thread",
    )


@claim(
    "titans",
    name="chunks_are_fast",
    grade="ratio",
    statement="Chunks make training on GPUs and TPUs fast where the recurrence is slow",
    where=f"{PAPER}, section 3.2",
    criterion="training in chunks of 64 is >= 5x faster than token by token at n = 1,024",
)
def chunks_are_fast() -> Measured:
    """Token by token is the same code with a chunk of one, gradients in closed form too."""
    chunks, single = (TitansLMM(DIM, num_heads=NUM_HEADS, chunk_size=size) for size in (64, 1))
    with one_thread():
        times = race({"chunks": training(chunks, 1024), "single": training(single, 1024)}, rounds=3)
    ratio = times.ratio("single", "chunks")
    return Measured(
        value=f"{ratio:.1f}x",
        held=ratio >= 5,
        detail=f"width {DIM}, {NUM_HEADS} heads, 1 thread: {times.median_s['single']:.2f} s against "
        f"{times.median_s['chunks']:.3f} s",
    )


# --------------------------------------------------------------------------------------------------- scaled


@claim(
    "titans",
    name="recall_beyond_the_window",
    grade="scaled",
    statement="Titans recall from contexts that attention's window has lost",
    figure="S-NIAH at 16K (passkey, number, word): MAC 98.4/97.4/95.2, MAG 97.4/98.6/88.2",
    where=f"{PAPER}, table 2",
    criterion=f"{RECALL_TEXT}: MAC and MAG answer >= 90 %, sliding-window attention alone at most twice the chance of "
    "1 in 8",
)
def recall_beyond_the_window() -> Measured:
    """The window's network has at least as many parameters."""
    kinds: tuple[Kind, ...] = ("mac", "mag", "window")
    accuracy = {kind: recall_result(kind, 0)[0] for kind in kinds}
    return Measured(
        value=f"MAC {accuracy['mac']:.0%}, MAG {accuracy['mag']:.0%}, window {accuracy['window']:.0%}",
        held=min(accuracy["mac"], accuracy["mag"]) >= 0.9 and accuracy["window"] <= 2 * CHANCE,
    )


def order_of_losses(without: Kind, name: str) -> Measured:
    """Mean losses over the seeds, the memory's own and that of one without a part."""
    full = [recall_result("lmm", seed) for seed in SEEDS]
    less = [recall_result(without, seed) for seed in SEEDS]
    accuracies = [mean([accuracy for accuracy, _ in results]) for results in (full, less)]
    losses = [mean([loss for _, loss in results]) for results in (full, less)]
    return Measured(
        value=f"loss {losses[0]:.3f}, {name} {losses[1]:.3f}; accuracy {accuracies[0]:.1%}, {accuracies[1]:.1%}",
        held=accuracies[1] < accuracies[0] or losses[1] > losses[0],
        detail=f"{RECALL_TEXT}; means of seeds 0, 1, 2",
    )


@claim(
    "titans",
    name="deep_memory_helps",
    grade="scaled",
    statement="Deep memories are more effective than linear ones",
    figure="language perplexity 27.01 against 28.49; long-context accuracy 92.68 against 85.34",
    where=f"{PAPER}, table 5",
    criterion=f"{RECALL_TEXT}: mean accuracy of 3 seeds of a memory of 2 matrices >= that of a linear one",
)
def deep_memory_helps() -> Measured:
    """Both are LMM."""
    deep = mean([recall_result("lmm", seed)[0] for seed in SEEDS])
    linear = mean([recall_result("linear memory", seed)[0] for seed in SEEDS])
    return Measured(value=f"{deep:.1%}; linear {linear:.1%}", held=deep >= linear, detail="means of seeds 0, 1, 2")


@claim(
    "titans",
    name="momentum_helps",
    grade="scaled",
    statement="Momentum contributes to the memory's performance",
    figure="language perplexity 27.01, without 28.98; long-context accuracy 92.68, without 87.12",
    where=f"{PAPER}, table 5",
    criterion=f"{RECALL_TEXT}: without momentum the mean accuracy of 3 seeds of LMM is lower or the mean loss higher",
)
def momentum_helps() -> Measured:
    """The rate eta is 0."""
    return order_of_losses("no momentum", "without momentum")


@claim(
    "titans",
    name="forgetting_helps",
    grade="scaled",
    statement="Weight decay (forgetting) contributes to the memory's performance",
    figure="language perplexity 27.01, without 29.04; long-context accuracy 92.68, without 85.60",
    where=f"{PAPER}, table 5",
    criterion=f"{RECALL_TEXT}: without forgetting the mean accuracy of 3 seeds of LMM is lower or the mean loss higher",
)
def forgetting_helps() -> Measured:
    """The rate alpha is 0."""
    return order_of_losses("no forgetting", "without forgetting")


@claim(
    "titans",
    name="better_language_models",
    grade="scaled",
    statement="Titans are better language models than Transformers and linear recurrent models",
    figure="340M parameters, 15B tokens, Wikitext perplexity: MAC 25.43, MAG 25.07, MAL 24.69; Transformer++ 31.52",
    where=f"{PAPER}, table 1",
    criterion=f"{LANGUAGE_TEXT}: MAC, MAG and MAL each below sliding-window attention with at least as many "
    "parameters, on held-out text",
)
def better_language_models() -> Measured:
    """The window's perceptrons are wider, which makes up for the memories' parameters."""
    kinds: tuple[Kind, ...] = ("mac", "mag", "mal", "window")
    results = {kind: language_result(kind) for kind in kinds}
    losses = {kind: loss for kind, (loss, _) in results.items()}
    return Measured(
        value=", ".join(f"{kind} {loss:.3f}" for kind, loss in losses.items()) + " nats per byte",
        held=all(losses[kind] < losses["window"] for kind in kinds[:3]),
        detail="parameters: " + ", ".join(f"{kind} {size:,}" for kind, (_, size) in results.items()),
    )


@claim(
    "titans",
    name="needle_beyond_training",
    grade="scaled",
    statement="Titans find needles in contexts far longer than those of training",
    figure="BABILong: above GPT-4 after fine-tuning",
    where=f"{PAPER}, needle and BABILong experiments",
    criterion=f"{NEEDLE_TEXT}: at 16 times the length MAC keeps >= 80 % of its accuracy, and full attention with "
    "learned positions does not; both answer at least half at the length of training",
)
def needle_beyond_training() -> Measured:
    """Positions beyond the length of training stay as they were initialised."""
    results = {"MAC": needle_result("mac"), "full attention": needle_result("full attention")}
    first, last = NEEDLE_LENGTHS[0], NEEDLE_LENGTHS[-1]
    kept = {name: found[last] / max(found[first], 1e-9) for name, found in results.items()}
    learned = all(found[first] >= 0.5 for found in results.values())
    return Measured(
        value=", ".join(f"{name} keeps {share:.0%}" for name, share in kept.items()),
        held=learned and kept["MAC"] >= 0.8 and kept["full attention"] < 0.8,
        detail="; ".join(
            f"{name}: " + ", ".join(f"{length}: {accuracy:.0%}" for length, accuracy in found.items())
            for name, found in results.items()
        ),
    )


@claim(
    "titans",
    name="time_series",
    grade="scaled",
    statement="The neural memory forecasts time series better than Transformers and linear models",
    figure="ETTm1 MSE 0.358, iTransformer 0.407",
    where=f"{PAPER}, table 3",
    criterion=f"{FORECAST_TEXT}: LMM's test MSE at 96 -> 96 (mean of 3 seeds) is not above that of a perceptron with "
    "64 hidden units",
)
def time_series() -> Measured:
    """Both forecast relative to the last value."""
    memory = mean([forecast_result("memory", seed) for seed in SEEDS])
    perceptron = mean([forecast_result("perceptron", seed) for seed in SEEDS])
    return Measured(
        value=f"MSE {memory:.3f}; perceptron {perceptron:.3f}",
        held=memory <= perceptron,
        detail="means of seeds 0, 1, 2",
    )


# --------------------------------------------------------------------------------------------------- out of reach


out_of_reach(
    "titans",
    name="large_language_models",
    statement="Better than Transformers and linear recurrent models at 340M to 760M parameters",
    figure="760M, 30B tokens, Wikitext perplexity: MAC 19.93, MAG 18.61, MAL 19.07; Transformer++ 25.21",
    where=f"{PAPER}, table 1",
    criterion="perplexity and accuracy of models trained on 15 to 30 billion tokens",
    reason="training them takes clusters of accelerators for days; `better_language_models` is the same race at small "
    "scale",
)
out_of_reach(
    "titans",
    name="two_million_tokens",
    statement="Scales to contexts of more than 2 million tokens with higher accuracy than baselines",
    figure="more than 2M",
    where=f"{PAPER}, abstract",
    criterion="needle-in-a-haystack accuracy at 2 million tokens",
    reason="takes a trained large model; `constant_state`, `flat_decoding` and `needle_beyond_training` stand in",
)
out_of_reach(
    "titans",
    name="genomics",
    statement="Competitive with the state of the art on DNA modelling",
    where=f"{PAPER}, table 4",
    criterion="accuracy on GenomicsBenchmarks after pre-training on the human genome",
    reason="needs the genome and days of pre-training; nothing here stands in for it",
)
