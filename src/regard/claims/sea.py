"""The claims of SEA: an estimate in linear time, few exact keys, learned from a softmax teacher."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, scaled_dot_product_attention

from regard.claims import Measured, claim, out_of_reach
from regard.claims._operators import HEADS, WIDTH, random_tensors, timed_inputs, worst_error_with_gradients
from regard.claims._students import (
    HashedStudent,
    PerformerStudent,
    SmallLanguageModel,
    WindowStudent,
    distil,
    project,
    student_of,
)
from regard.claims._training import fit_language, language_loss, text_corpus, windows
from regard.layers.attention_estimator import EstimatorSizes
from regard.layers.estimated_attention import EstimatedAttention
from regard.measure import growth_exponent, one_thread, peak_bytes, race
from regard.mixers.sequence.sea import SEAAttention
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.ops.column_choice import Choice
from regard.ops.estimated_attention import chunk_spans, gathered_attention, kept_attention_reference, kept_keys
from regard.ops.softmax_attention import softmax_attention_reference, softmax_weights
from regard.ops.visibility import visible_keys

PAPER = "SEA (arXiv 2310.01777)"
KEPT, COLUMNS = 16, 32
LENGTH, BATCH, TEACHER_STEPS, STUDENT_STEPS = 128, 8, 600, 250
RECIPE = (
    f"2 layers, width 64, 4 heads, {LENGTH} bytes, {BATCH} texts a step (the full size: 4 layers, 256 bytes); the "
    f"softmax teacher trains {TEACHER_STEPS} steps, each student {STUDENT_STEPS} from the teacher's weights"
)


def small_layer(*, tokens: int) -> SEAAttention:
    """An untrained causal layer, 4 heads of 16."""
    torch.manual_seed(0)
    return SEAAttention(
        64,
        num_heads=4,
        causal=True,
        keys_per_query=KEPT,
        estimate_width=COLUMNS,
        max_positions=tokens,
        form="gathered",
    ).eval()


# --------------------------------------------------------------------------------------------------- exact


@claim(
    "sea",
    name="average_keys",
    grade="exact",
    statement="The pooled top-k of the estimate keeps k keys per query and head on average",
    where=f"{PAPER}, section 3.2",
    criterion="kept keys per query and head, averaged over heads: for every query that sees more keys than there are "
    "columns, as many columns as the budget round(H k K / L) says, of floor(L / K) to ceil(L / K) keys each; mean over "
    "all queries that see more than k keys within 5 % of k (k = 16, K = 32, n = 1,024)",
)
@torch.no_grad()
def average_keys() -> Measured:
    """An untrained layer on random input."""
    tokens, heads = 1024, 4
    layer = small_layer(tokens=tokens)
    (x,) = random_tensors((1, tokens, layer.dim), seed=1)
    kept = layer.kept_map(x)[0].sum(dim=(0, 2))
    inside = True
    for row in range(COLUMNS, tokens):
        seen = row + 1
        budget = max(1, round(heads * KEPT * COLUMNS / seen))
        inside &= budget * (seen // COLUMNS) <= int(kept[row]) <= budget * -(-seen // COLUMNS)
    mean = float(kept[KEPT:].double().mean()) / heads
    return Measured(
        value=f"{mean:.2f} keys per query and head",
        held=inside and abs(mean - KEPT) <= 0.05 * KEPT,
        detail=f"every query {'inside' if inside else 'NOT inside'} the budget's bounds",
    )


@claim(
    "sea",
    name="causal",
    grade="exact",
    statement="The causal form does not look ahead",
    where=f"{PAPER}, section 3",
    criterion="changing token j leaves all outputs before j unchanged (to 1e-6 in float32), for j in "
    "{1, 2, 63, 64, 65, 200, 511} of 512",
)
@torch.no_grad()
def causal() -> Measured:
    """In the gathered form."""
    layer = small_layer(tokens=512)
    (x, other) = random_tensors((1, 512, layer.dim), (1, 512, layer.dim), seed=2)
    y, worst = layer(x), 0.0
    for place in (1, 2, 63, 64, 65, 200, 511):
        changed = torch.cat((x[:, :place], 10 * other[:, place:]), dim=1)
        worst = max(worst, float((layer(changed) - y)[:, :place].abs().max()))
    return Measured(value=f"largest change {worst:.1e}", held=worst <= 1e-6)


@claim(
    "sea",
    name="linear_nonzeros",
    grade="exact",
    statement="The sparse attention matrix has a number of non-zeros that is linear in the length",
    where=f"{PAPER}, section 3.2",
    criterion="exponent of the number of kept pairs over n = 512, 1,024, 2,048 between 0.95 and 1.05 (k = 16, K = 32)",
)
@torch.no_grad()
def linear_nonzeros() -> Measured:
    """An untrained layer on random input."""
    lengths, counts = (512, 1024, 2048), []
    for tokens in lengths:
        layer = small_layer(tokens=tokens)
        (x,) = random_tensors((1, tokens, layer.dim), seed=tokens)
        counts.append(int(layer.kept_map(x).sum()))
    exponent = growth_exponent(lengths, counts)
    shown = ", ".join(f"{count:,}" for count in counts)
    return Measured(value=f"exponent {exponent:.3f}", held=0.95 <= exponent <= 1.05, detail=f"{shown} pairs")


@claim(
    "sea",
    name="gathered_equals_masked",
    grade="exact",
    statement="The sparse kernels compute the same as masked dense attention",
    where=f"{PAPER}, section 4 (FlatCSR)",
    criterion="gathered form = masked square, values and gradients of q, k, v, to a relative error of 1e-4 in float32, "
    "causal and not, n in {1, 31, 64, 65, 263}",
)
def gathered_equals_masked() -> Measured:
    """On random estimates; 3 heads, d = 16, k = 5, K = 12."""
    choice, worst = Choice(heads=3, columns=12, kept=5), 0.0
    for tokens in (1, 31, 64, 65, 263):
        leaves = random_tensors(*[(2, 3, tokens, 16)] * 3, seed=tokens, gradients=True)
        (scores,) = random_tensors((2, 3, tokens, 12), seed=tokens + 1)
        estimate = scores.softmax(dim=-1)
        for is_causal in (True, False):
            lengths = (torch.arange(1, tokens + 1) if is_causal else torch.full((tokens,), tokens))[None]
            spans = chunk_spans(tokens, 1 if is_causal else tokens, tokens, causal=is_causal)
            kept = kept_keys(estimate, lengths, tokens, choice)
            q, k, v = leaves
            gathered = functools.partial(
                gathered_attention, q, k, v, estimate, lengths, choice, scale=0.25, spans=spans
            )
            masked = functools.partial(kept_attention_reference, q, k, v, kept, scale=0.25)
            worst = max(worst, worst_error_with_gradients(gathered, masked, leaves, seed=tokens))
    return Measured(value=f"largest relative error {worst:.1e}", held=worst <= 1e-4)


# --------------------------------------------------------------------------------------------------- ratio


def timed_attention(tokens: int, *, heads: int) -> tuple[EstimatedAttention, list[Tensor]]:
    """Everything between the projections, k = 64 and K = 128, and its inputs, d = 64."""
    torch.manual_seed(0)
    sizes = EstimatorSizes(
        num_heads=heads,
        head_dim=WIDTH,
        causal=True,
        keys_per_query=64,
        estimate_width=128,
        max_positions=tokens,
        form="gathered",
    )
    q, k, v = timed_inputs(tokens, heads=heads)
    return EstimatedAttention(sizes).eval(), [q * WIDTH**-0.5, k, v]


@claim(
    "sea",
    name="memory",
    grade="ratio",
    statement="Uses a fraction of the memory of quadratic attention on long sequences",
    where=f"{PAPER}, section 5 (cost of long sequences)",
    criterion="peak extra bytes of a forward pass at n = 4,096 (k = 64, K = 128) <= 0.5x dense causal attention's",
)
@torch.no_grad()
def memory() -> Measured:
    """The smallest of three peaks; dense attention builds its map."""
    module, inputs = timed_attention(4096, heads=HEADS)
    q, k, v = timed_inputs(4096)
    visible = visible_keys(4096, 4096, causal=True, device=q.device)
    with one_thread():
        ours = min(peak_bytes(lambda: module(*inputs), warmup=1) for _ in range(3))
        dense = peak_bytes(lambda: softmax_attention_reference(q, k, v, visible=visible))
    return Measured(
        value=f"{ours / dense:.2f}x",
        held=ours <= 0.5 * dense,
        detail=f"{ours / 2**20:.0f} MiB against {dense / 2**20:.0f} MiB; 8 heads, d = 64, float32",
    )


@claim(
    "sea",
    name="linear_time",
    grade="ratio",
    statement="The time is linear in the length",
    where=f"{PAPER}, section 5 (cost of long sequences)",
    criterion="exponent of the time from n = 2,048 to 8,192 (k = 64, K = 128) <= 1.2; the time against causal SDPA at "
    "8,192 is reported",
)
@torch.no_grad()
def linear_time() -> Measured:
    """The shortest of interleaved runs; 4 heads."""
    lengths = (2048, 4096, 8192)
    made = {tokens: timed_attention(tokens, heads=4) for tokens in lengths}
    q, k, v = timed_inputs(8192, heads=4)
    contestants = {str(n): functools.partial(module, *inputs) for n, (module, inputs) in made.items()}
    contestants["sdpa"] = functools.partial(scaled_dot_product_attention, q, k, v, is_causal=True)
    with one_thread():
        times = race(contestants, rounds=3)
    seconds = [times.minimum_s[str(tokens)] for tokens in lengths]
    exponent = growth_exponent(lengths, seconds)
    return Measured(
        value=f"exponent {exponent:.2f}; {times.minimum_ratio('8192', 'sdpa'):.2f}x the time of causal SDPA at 8,192",
        held=exponent <= 1.2,
        detail=", ".join(f"{tokens}: {second:.2f} s" for tokens, second in zip(lengths, seconds, strict=True)),
    )


# --------------------------------------------------------------------------------------------------- scaled


@functools.cache
def taught() -> dict[str, SmallLanguageModel]:
    """The teacher and its students, trained once for all claims."""
    corpus = text_corpus()
    with one_thread():
        torch.manual_seed(0)
        teacher = SmallLanguageModel(dim=64, num_heads=4, num_layers=2, length=LENGTH)
        fit_language(teacher, corpus, steps=TEACHER_STEPS, batch=BATCH, length=LENGTH)
        models = {"teacher": teacher.requires_grad_(False).eval()}
        makers: dict[str, Callable[[SoftmaxAttention], nn.Module]] = {
            "SEA": lambda mixer: SEAAttention.from_softmax(
                mixer, keys_per_query=KEPT, estimate_width=COLUMNS, max_positions=LENGTH
            ),
            "Performer": PerformerStudent,
            "LSH": functools.partial(HashedStudent, keys=KEPT),
            "window": functools.partial(WindowStudent, keys=KEPT),
        }
        for name, maker in makers.items():
            torch.manual_seed(1)
            student = student_of(teacher, maker).requires_grad_(True)
            for parameter_name, parameter in student.named_parameters():
                if parameter_name.endswith("features.directions"):
                    parameter.requires_grad_(False)
            distil(teacher, student, corpus, steps=STUDENT_STEPS, batch=BATCH, length=LENGTH, learning_rate=1e-3)
            models[name] = student.eval()
    return models


@functools.cache
def perplexity(name: str, factor: int = 1) -> float:
    """Per byte, on the validation part; `factor` times the keys that a SEA student learned with."""
    model = taught()[name]
    mixers = [mixer for mixer in model.mixers if isinstance(mixer, SEAAttention)]
    with one_thread():
        for mixer in mixers:
            mixer.attention.keep_per_query(factor * KEPT)
        loss = language_loss(model, text_corpus(), length=LENGTH)
        for mixer in mixers:
            mixer.attention.keep_per_query(KEPT)
    return math.exp(loss)


@claim(
    "sea",
    name="distillation",
    grade="scaled",
    statement="Distilled from a pretrained transformer, SEA reaches a better perplexity than its teacher; other linear "
    "and sparse attention does not",
    where=f"{PAPER}, section 5 (language modelling)",
    criterion=f"perplexity of SEA (k = {KEPT}, K = {COLUMNS}) <= 1.05x the teacher's, and below Performer's, LSH's and "
    f"the local window's of equal budget trained the same; {RECIPE}; at least as good as the teacher is reported",
)
def distillation() -> Measured:
    """Students share the batches."""
    reached = {name: perplexity(name) for name in ("teacher", "SEA", "Performer", "LSH", "window")}
    ratio = reached["SEA"] / reached["teacher"]
    best_other = min(reached[name] for name in ("Performer", "LSH", "window"))
    shown = ", ".join(f"{name} {value:.3f}" for name, value in reached.items())
    return Measured(
        value=f"{ratio:.3f}x the teacher's; {reached['SEA'] / best_other:.3f}x the best other's",
        held=ratio <= 1.05 and reached["SEA"] < best_other,
        detail=f"{shown} per byte; {text_corpus().source}; "
        f"{'' if ratio <= 1 else 'not '}at least as good as the teacher",
    )


@claim(
    "sea",
    name="dynamic_k",
    grade="scaled",
    statement="Keeping more keys at test time than while training improves the perplexity",
    where=f"{PAPER}, section 5 (dynamically adjusting k)",
    criterion=f"after distillation with k = {KEPT}, evaluating with 2 k and 4 k never raises the perplexity by more "
    f"than 0.5 %; {RECIPE}",
)
def dynamic_k() -> Measured:
    """The same student, without further training."""
    base, double, fourfold = (perplexity("SEA", factor) for factor in (1, 2, 4))
    return Measured(
        value=f"{double / base:.4f}x with 2 k, {fourfold / base:.4f}x with 4 k",
        held=max(double, fourfold) <= 1.005 * base,
        detail=f"{base:.3f}, {double:.3f}, {fourfold:.3f} per byte; teacher {perplexity('teacher'):.3f}",
    )


@claim(
    "sea",
    name="interpretable",
    grade="scaled",
    statement="The estimated attention matrix can be looked at and resembles the teacher's, where Performer's does not",
    where=f"{PAPER}, section 5 (visualisation of the estimate)",
    criterion="cosine similarity with the teacher's rows, mean over rows, heads and layers: the estimate's, resized to "
    f"all keys, higher than that of Performer's implied matrix; {RECIPE}",
)
@torch.no_grad()
def interpretable() -> Measured:
    """On 16 texts of the validation part."""
    models = taught()
    tokens, _ = windows(text_corpus().validation, seed=3, step=0, batch=16, length=LENGTH)
    streams = {name: models[name].stream(tokens)[0] for name in ("teacher", "SEA", "Performer")}
    likeness: dict[str, list[float]] = {"SEA": [], "Performer": []}
    visible = visible_keys(LENGTH, LENGTH, causal=True, device=tokens.device)
    for layer, mixer in enumerate(models["teacher"].mixers):
        q, k, _ = project(mixer, streams["teacher"][layer])
        wanted = softmax_weights(q, k, visible=visible)
        sea, performer = models["SEA"].mixers[layer], models["Performer"].mixers[layer]
        assert isinstance(sea, SEAAttention)
        assert isinstance(performer, PerformerStudent)
        found = {
            "SEA": sea.estimated_map(streams["SEA"][layer]),
            "Performer": performer.weights(streams["Performer"][layer]),
        }
        for name, weights in found.items():
            likeness[name].append(float(cosine_similarity(weights, wanted, dim=-1).mean()))
    ours, theirs = (sum(likeness[name]) / len(likeness[name]) for name in ("SEA", "Performer"))
    shown = "; ".join(f"{name} " + ", ".join(f"{each:.3f}" for each in layers) for name, layers in likeness.items())
    return Measured(value=f"{ours:.3f} against {theirs:.3f}", held=ours > theirs, detail=f"layer by layer: {shown}")


# --------------------------------------------------------------------------------------------------- out of reach


out_of_reach(
    "sea",
    name="large_language_models",
    statement="On WikiText-2 SEA has a better perplexity than OPT-1.3B with about half its memory, while other linear "
    "and sparse attention has about twice the perplexity",
    where=f"{PAPER}, abstract and section 5",
    criterion="perplexity and memory of OPT-1.3B with distilled SEA",
    reason="distilling 1.3 billion parameters takes GPUs for days; the small language model's distillation and the "
    "memory at 4,096 tokens stand in",
)
