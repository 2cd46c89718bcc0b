"""The claims of "Attention as an RNN" (Feng et al., 2024, https://arxiv.org/abs/2405.13956), measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from regard.claims import Measured, claim, out_of_reach
from regard.claims._aaren_settings import SIZES, results, stand_ins
from regard.claims._operators import state_bytes_after
from regard.contract import SequenceMixer
from regard.measure import growth_exponent, one_thread, race
from regard.mixers.sequence.aaren import AarenAttention
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.ops.prefix_softmax import (
    PrefixSums,
    prefix_softmax,
    prefix_softmax_recurrent,
    prefix_softmax_scan,
    prefix_softmax_with_state,
)

DIM, HEADS = 128, 4
LENGTHS = (1024, 2048, 4096, 8192)
PIECE = 256
TOLERANCE = 2e-4
LARGEST_LOGIT = 200.0


def _error(ours: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected magnitude."""
    ours, expected = ours.detach().double(), expected.detach().double()
    return float((ours - expected).abs().max() / expected.abs().max())


# --------------------------------------------------------------------------------------------------- exact


def _layer_and_reference(tokens: int, *, largest_logit: float | None) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Values and gradients of our layer in float32, and of PyTorch's attention on every prefix in float64."""
    generator = torch.Generator().manual_seed(tokens)
    theirs = nn.MultiheadAttention(32, 4, batch_first=True).double()
    ours = AarenAttention(32, num_heads=4)
    x = torch.randn(2, tokens, 32, generator=generator)
    state = {f"attn.{name}": value.float() for name, value in theirs.state_dict().items()}
    query = torch.randn(32, generator=generator)
    ours.load_reference({"query": query, **state})
    if largest_logit is not None:
        with torch.no_grad():
            query = query * (largest_logit / float(ours._scores(x).abs().max()))
        ours.load_reference({"query": query, **state})
    theirs.load_state_dict({name.removeprefix("attn."): value.double() for name, value in state.items()})
    wide, wide_query = x.double().requires_grad_(), query.double().requires_grad_()
    first = wide_query.expand(2, 1, 32)
    outputs = [theirs(first, wide[:, :end], wide[:, :end])[0] for end in range(1, tokens + 1)]
    expected, x = torch.cat(outputs, dim=1), x.requires_grad_()
    y = ours(x)
    weights = torch.randn(y.shape, generator=generator)
    inputs = (ours.q_proj, ours.k_proj, ours.v_proj)
    found = torch.autograd.grad((y * weights).sum(), (x, ours.query, *(p.weight for p in inputs)))
    leaves = (wide, wide_query, theirs.in_proj_weight)
    wanted = torch.autograd.grad((expected * weights.double()).sum(), leaves)
    yield "y", y, expected
    yield "grad x", found[0], wanted[0]
    yield "grad query", found[1], wanted[1]
    yield "grad W_q, W_k, W_v", torch.cat(found[2:]), wanted[2]


@claim(
    "aaren",
    name="prefix_attention",
    grade="exact",
    statement="The many-to-many output is softmax attention of the query over every prefix, by a parallel scan.",
    where="section 3.2",
    criterion="the scan equals PyTorch's attention on every prefix, values and gradients, relative error <= 2e-4, "
    "also with logits up to 200 in size",
)
def prefix_attention() -> Measured:
    """Our layer in float32 against `torch.nn.MultiheadAttention` in float64, prefix by prefix."""
    errors = {}
    for largest in (None, LARGEST_LOGIT):
        for name, ours, expected in _layer_and_reference(97, largest_logit=largest):
            errors[name if largest is None else f"{name} (logits of {largest:g})"] = _error(ours, expected)
    worst = max(errors, key=lambda name: errors[name])
    detail = f"worst: {worst}; 97 tokens, 4 heads of 8, float32 against float64"
    return Measured(value=f"{errors[worst]:.1e}", held=errors[worst] <= TOLERANCE, detail=detail)


def _in_blocks(scores: Tensor, values: Tensor, size: int) -> Tensor:
    """The paper's block form: `size` tokens at a time after the state of those before."""
    state: PrefixSums | None = None
    outputs = []
    for piece in zip(scores.split(size, 2), values.split(size, 2), strict=True):
        y, state = prefix_softmax_with_state(*piece, state)
        outputs.append(y)
    return torch.cat(outputs, dim=2)


@claim(
    "aaren",
    name="forms_agree",
    grade="exact",
    statement="Attention is an RNN: token by token, block by block and by parallel scan the output is the same.",
    where="sections 3.1 and 3.2",
    criterion="sequential = block = scan, values and gradients, relative error <= 2e-4, with logits up to 200 in size",
)
def forms_agree() -> Measured:
    """Every form in float32 against the sequential one, on scores between -200 and 200."""
    generator = torch.Generator().manual_seed(1)
    scores = ((2 * torch.rand(1, 3, 517, generator=generator) - 1) * LARGEST_LOGIT).requires_grad_()
    values = torch.randn(1, 3, 517, 8, generator=generator).requires_grad_()
    weights = torch.randn(values.shape, generator=generator)
    forms: dict[str, Callable[[], Tensor]] = {
        "sequential": lambda: prefix_softmax_recurrent(scores, values)[0],
        "blocks of 37": lambda: _in_blocks(scores, values, 37),
        "Hillis-Steele scan": lambda: prefix_softmax_scan(scores, values),
        "scan of blocks": lambda: prefix_softmax(scores, values),
    }
    results = {}
    for name, form in forms.items():
        y = form()
        results[name] = (y, *torch.autograd.grad((y * weights).sum(), (scores, values)))
    expected = results.pop("sequential")
    errors = {name: max(map(_error, found, expected)) for name, found in results.items()}
    detail = ", ".join(f"{name} {error:.1e}" for name, error in errors.items()) + "; 517 tokens, float32"
    worst = max(errors.values())
    return Measured(value=f"{worst:.1e}", held=worst <= TOLERANCE, detail=detail)


@claim(
    "aaren",
    name="parameters",
    grade="exact",
    statement="An Aaren layer has hardly more parameters than a Transformer layer: one query token.",
    figure="3,152,384 and 3,152,896",
    where="section 4",
    criterion="a layer with dim 512, 8 heads and a feed-forward of 2,048 has 3,152,384 parameters with softmax "
    "attention and 3,152,896 with Aaren",
)
def parameters() -> Measured:
    """Counted on PyTorch's own encoder layer, whose attention is exchanged for ours."""
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(512, 8, 2048)
        ours = AarenAttention(512, num_heads=8)
    whole = sum(each.numel() for each in layer.parameters())
    attention = sum(each.numel() for each in layer.self_attn.parameters())
    exchanged = whole - attention + sum(each.numel() for each in ours.parameters())
    return Measured(value=f"{whole:,} and {exchanged:,}", held=(whole, exchanged) == (3_152_384, 3_152_896))


@claim(
    "aaren",
    name="state_bytes",
    grade="exact",
    statement="Aaren is updated with new tokens in constant memory; a Transformer's cache grows with every token.",
    where="section 4",
    criterion="the state of a layer has (H + H + D) * 4 bytes at every position; the cache of softmax attention has "
    "2 * N * D * 4 (both without their count of tokens)",
)
def state_bytes() -> Measured:
    """Bytes of both states after N tokens, float32."""
    lengths = (1, 2, 1024, 8192)
    ours, softmax = AarenAttention(DIM, num_heads=HEADS), SoftmaxAttention(DIM, num_heads=HEADS, causal=True)
    counts = ours.init_state(1).position.nbytes
    sizes, caches = ([state_bytes_after(mixer, n) - counts for n in lengths] for mixer in (ours, softmax))
    held = set(sizes) == {(2 * HEADS + DIM) * 4} and caches == [2 * n * DIM * 4 for n in lengths]
    value = f"{sizes[0]:,} at every length; cache {caches[-1]:,} at {lengths[-1]:,}"
    return Measured(value=value, held=held, detail=f"ratio there {caches[-1] / sizes[-1]:,.0f}")


# --------------------------------------------------------------------------------------------------- ratio


def _streaming_mixers() -> dict[str, SequenceMixer]:
    return {
        "aaren": AarenAttention(DIM, num_heads=HEADS).eval(),
        "softmax": SoftmaxAttention(DIM, num_heads=HEADS, causal=True, qkv_bias=True).eval(),
    }


def _stream(mixer: SequenceMixer, tokens: Sequence[Tensor]) -> list[float]:
    """Seconds for every piece of `PIECE` single tokens, one after the other, with room for all from the start."""
    state, seconds = mixer.init_state(1, max_len=len(tokens)), []
    for start in range(0, len(tokens), PIECE):
        began = time.perf_counter()
        for token in tokens[start : start + PIECE]:
            _, state = mixer.step(token, state)
        seconds.append(time.perf_counter() - began)
    return seconds


@claim(
    "aaren",
    name="streaming_time",
    grade="ratio",
    statement="Token by token, Aaren takes less time than a Transformer with a cache of keys and values.",
    where="section 4, cumulative time",
    criterion="8,192 tokens (D 128, H 4, one layer, preallocated cache): total time <= 0.5 x KV-cached attention",
)
def streaming_time() -> Measured:
    """Whole streams through `step`, batch 1, float32, alternating."""
    with one_thread(), torch.no_grad():
        tokens = torch.randn(1, LENGTHS[-1], DIM).split(1, dim=1)
        runs = {n: lambda mixer=mixer: _stream(mixer, tokens) for n, mixer in _streaming_mixers().items()}
        times = race(runs, rounds=3, warmup=0)
    ratio, smallest = times.ratio("aaren", "softmax"), times.minimum_ratio("aaren", "softmax")
    seconds = times.median_s
    detail = f"{seconds['aaren']:.2f} s / {seconds['softmax']:.2f} s; ratio of minima {smallest:.2f}"
    return Measured(value=f"{ratio:.2f}x", held=ratio <= 0.5, detail=detail)


@claim(
    "aaren",
    name="streaming_growth",
    grade="ratio",
    statement="The cumulative time of Aaren is linear in the number of tokens, that of a Transformer quadratic.",
    where="section 4, cumulative time",
    criterion="exponent of the total time in N from 1,024 to 8,192 tokens: Aaren <= 1.1, KV-cached attention >= 1.3",
)
def streaming_growth() -> Measured:
    """Streams of 8,192 tokens; of each piece the fastest of three, since a disturbance only ever adds time."""
    tokens = torch.randn(1, LENGTHS[-1], DIM).split(1, dim=1)
    mixers = _streaming_mixers()
    rounds: dict[str, list[list[float]]] = {name: [] for name in mixers}
    with one_thread(), torch.no_grad():
        for _ in range(3):
            for name, mixer in mixers.items():
                rounds[name].append(_stream(mixer, tokens))
    exponents, shown = {}, []
    for name, streams in rounds.items():
        fastest = [min(piece) for piece in zip(*streams, strict=True)]
        totals = [sum(fastest[: length // PIECE]) for length in LENGTHS]
        exponents[name] = growth_exponent(LENGTHS, totals)
        shown.append(f"{name} {', '.join(f'{total:.2f}' for total in totals)} s")
    ours, theirs = exponents["aaren"], exponents["softmax"]
    held = ours <= 1.1 and theirs >= 1.3
    return Measured(value=f"{ours:.2f} and {theirs:.2f}", held=held, detail="; ".join(shown))


@claim(
    "aaren",
    name="training_time",
    grade="ratio",
    statement="Aaren trains in parallel, as Transformers do.",
    where="section 3.3",
    criterion="forward and backward at N = 4,096 not slower than a layer of causal SDPA",
)
def training_time() -> Measured:
    """Layer against layer, with projections, dim 512, 8 heads, float32."""
    x = torch.randn(1, 4096, 512, requires_grad=True)
    mixers = {
        "aaren": AarenAttention(512, num_heads=8),
        "softmax": SoftmaxAttention(512, num_heads=8, causal=True, qkv_bias=True),
    }

    def train(mixer: SequenceMixer) -> None:
        mixer.zero_grad()
        mixer(x).sum().backward()

    runs = {name: lambda mixer=mixer: train(mixer) for name, mixer in mixers.items()}
    with one_thread():
        times = race(runs, rounds=3)
    ratio, seconds = times.ratio("aaren", "softmax"), times.median_s
    detail = f"{seconds['aaren']:.3f} s / {seconds['softmax']:.3f} s, dim 512, 8 heads"
    return Measured(value=f"{ratio:.2f}x", held=ratio <= 1.0, detail=detail)


# --------------------------------------------------------------------------------------------------- scaled


def _both(name: str, metric: str) -> tuple[float, float]:
    """Means over seeds, of Aaren and of the Transformer."""
    found = results(name)
    return found["aaren"][metric], found["softmax"][metric]


@claim(
    "aaren",
    name="control",
    grade="scaled",
    statement="Comparable to Transformers in reinforcement learning: Decision Transformers with Aaren in place of "
    "attention",
    where="section 4.1",
    criterion="return of the Aaren network >= 95 % of the Decision Transformer's, on the scale on which random forces "
    "earn 0 and the scripted expert 100: a point mass to be brought to rest, 200 scripted trajectories of mixed "
    f"quality, context 20 steps, 1 head, 300 updates of 32 windows at 1e-3; {SIZES}",
)
def control() -> Measured:
    """32 episodes of 60 steps per seed, asked for the best return of the training part."""
    ours, theirs = _both("control", "normalised_return")
    errors = _both("control", "action_mse")
    return Measured(
        value=f"{ours:.1f} against {theirs:.1f}",
        held=ours >= 0.95 * theirs,
        detail=f"mean squared error of the actions {errors[0]:.4f} and {errors[1]:.4f}",
    )


@claim(
    "aaren",
    name="events",
    grade="scaled",
    statement="Comparable to Transformers in event forecasting",
    where="section 4.2",
    criterion="on generated Hawkes and renewal processes with marks, negative log-likelihood within 0.05 nat and "
    "accuracy within 2 points of the Transformer's; 4 heads, mixture of 8, 200 updates of 16 sequences at 2e-3; "
    f"{SIZES}",
)
def events() -> Measured:
    """Better counts as within."""
    nats, right = _both("events", "nll"), _both("events", "mark_accuracy")
    errors = _both("events", "rmse")
    return Measured(
        value=f"NLL {nats[0]:.3f} and {nats[1]:.3f} nats, accuracy {100 * right[0]:.1f} and {100 * right[1]:.1f} %",
        held=nats[0] <= nats[1] + 0.05 and right[0] >= right[1] - 0.02,
        detail=f"RMSE of the time {errors[0]:.3f} and {errors[1]:.3f}",
    )


@claim(
    "aaren",
    name="forecasting",
    grade="scaled",
    statement="Comparable to Transformers in time series forecasting",
    where="section 4.3",
    criterion="ETTh1 and ETTh2, 96 -> 96: MSE within 5 % of the Transformer's with an equal recipe, on both; 4 heads, "
    f"150 updates of 32 windows at 1e-3, 512 windows of the test part; {SIZES}",
)
def forecasting() -> Measured:
    """Better counts as within."""
    names = ("ETTh1", "ETTh2")
    squared = {name: _both(name, "mse") for name in names}
    absolute = {name: _both(name, "mae") for name in names}
    return Measured(
        value="; ".join(f"{name} MSE {ours:.3f} and {theirs:.3f}" for name, (ours, theirs) in squared.items()),
        held=all(ours <= 1.05 * theirs for ours, theirs in squared.values()),
        detail="; ".join(f"{name} MAE {ours:.3f} and {theirs:.3f}" for name, (ours, theirs) in absolute.items())
        + stand_ins(names),
    )


@claim(
    "aaren",
    name="classification",
    grade="scaled",
    statement="Comparable to Transformers in time series classification",
    where="section 4.4",
    criterion="JapaneseVowels, one of the paper's ten sets: accuracy within 3 points of the Transformer's; 4 heads, "
    f"200 updates of 32 series at 1e-3; {SIZES}",
)
def classification() -> Measured:
    """Better counts as within."""
    ours, theirs = _both("JapaneseVowels", "accuracy")
    return Measured(
        value=f"{100 * ours:.1f} % and {100 * theirs:.1f} %",
        held=ours >= theirs - 0.03,
        detail="Aaren, then the Transformer" + stand_ins(("JapaneseVowels",)),
    )


# --------------------------------------------------------------------------------------------------- out of reach

out_of_reach(
    "aaren",
    name="reinforcement_learning",
    statement="In place of a Decision Transformer's attention, Aaren reaches comparable scores on D4RL.",
    where="section 4.1",
    criterion="D4RL normalised scores of 12 data sets (HalfCheetah, Ant, Hopper, Walker x Medium, Medium-Replay, "
    "Medium-Expert) within the Transformer's spread over 5 seeds",
    reason="needs MuJoCo and D4RL's data sets; the claim `control`, on a small control problem, stands in",
)
