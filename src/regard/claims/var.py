"""The claims of VAR: attention of sinks is surplus, and costs next to nothing to give to the image's other tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from regard.analysis.visual_sinks import ablate, logit_change, top_visual_tokens
from regard.claims import Measured, claim, out_of_reach
from regard.claims._grid_questions import GridReader, accuracy, trained_reader
from regard.claims._operators import random_tensors, worst_error
from regard.claims._training import SEEDS, mean
from regard.claims._vlm import BEFORE, LAYERS, LayerCall, make_prompt, planted, run_vlm, tiny_vlm, weigh_values
from regard.measure import contraction_macs, one_thread, race
from regard.mixers.sequence.var import VARAttention
from regard.ops.redistributed_attention import redistributed_attention
from regard.ops.softmax_attention import softmax_attention_reference, softmax_weights
from regard.ops.visibility import visible_keys
from regard.ops.visual_sinks import (
    SinkRule,
    active_layers,
    after_image,
    detect_sink_dims,
    middle_layers,
    redistribute,
    sink_tokens,
    tau_for_width,
)

PAPER = "VAR (arXiv 2503.03321)"
WHERE = f"{PAPER}, visual attention redistribution"
RULE = SinkRule()


def marks(tokens: int, *, image: tuple[int, int], sinks: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Masks of one row of a batch: the image from a first token up to the second, and the sinks."""
    places = torch.arange(tokens)[None]
    return (places >= image[0]) & (places < image[1]), torch.isin(places, torch.tensor(sinks))


# --------------------------------------------------------------------------------------------------- exact


@claim(
    "var",
    name="rows_stay_distributions",
    grade="exact",
    statement="Attention is taken from sinks and given to the image's other tokens, in image-centric heads alone",
    where=WHERE,
    criterion="on random float64 attention, some rows of it selected: row sums within 1e-12 of 1; all other rows "
    "bit-identical; p = 1 is the identity to the bit, in the plain form and the fast one; p = 0 leaves sinks nothing",
)
def rows_stay_distributions() -> Measured:
    """8 heads, 61 tokens, of which 32 are the image's and 5 are sinks."""
    q, k, v = (x.double() for x in random_tensors(*[(1, 8, 61, 16)] * 3, seed=0))
    image, sinks = marks(61, image=(5, 37), sinks=(0, 7, 9, 20, 31))
    weights = softmax_weights(2 * q, k, visible=visible_keys(61, 61, causal=True, device=q.device))
    rows, results = after_image(image, queries=61), {}
    for p in (0.0, 0.6, 1.0):
        rule = SinkRule(p=p, rho=0.2, summ=0.5)
        results[p] = redistribute(weights, image, sinks, rule, rows=rows)
    changed, selected = results[0.6]
    sums = float((changed.sum(dim=-1) - 1).abs().max())
    untouched = torch.equal(changed[~selected], weights[~selected])
    identity = torch.equal(results[1.0].attention, weights)
    emptied = not bool(results[0.0].attention[selected][:, sinks[0]].any())
    options = {"image": image, "sinks": sinks, "text_start": 37}
    fast = [redistributed_attention(2 * q, k, v, SinkRule(p=1, rho=0.2, summ=s), **options) for s in (0.5, 1.0)]  # type: ignore[arg-type]
    share = float(selected.double().sum() / (8 * rows.sum()))
    held = sums <= 1e-12 and untouched and identity and emptied and torch.equal(*fast) and 0 < share < 1
    return Measured(
        value=f"row sums within {sums:.1e}",
        held=held,
        detail=f"{100 * share:.0f} % of the text's rows selected; others bit-identical: {untouched}; p = 1 the "
        f"identity: {identity}, in the fast form: {torch.equal(*fast)}; p = 0 empties sinks: {emptied}",
    )


@claim(
    "var",
    name="no_further_passes",
    grade="exact",
    statement="No training, no further model and no further inference steps",
    where=WHERE,
    criterion="a decoding step's contraction MACs beyond plain attention's are 6 per head and key (K = 512, 1,024, "
    "2,048); over a prompt of 40 tokens and 8 decoded ones, 3 layers with and without redistribution call their "
    "projections equally often and have equally many parameters",
)
@torch.no_grad()
def no_further_passes() -> Measured:
    """Redistribution is active in all 3 layers."""
    per_key = []
    for keys in (512, 1024, 2048):
        q, k, v = random_tensors((1, 8, 1, 64), *[(1, 8, keys, 64)] * 2, seed=keys)
        image, sinks = marks(keys, image=(4, 260), sinks=(0, 9))
        ours = contraction_macs(functools.partial(_decode, q, k, v, image, sinks))
        plain = contraction_macs(functools.partial(softmax_attention_reference, q, k, v))
        per_key.append((ours - plain) / (8 * keys))
    (calls, parameters), (plain_calls, plain_parameters) = (_calls(is_active) for is_active in (True, False))
    held = all(number == 6 for number in per_key) and calls == plain_calls and parameters == plain_parameters
    return Measured(
        value=f"{calls} calls against {plain_calls}",
        held=held,
        detail=f"{', '.join(f'{number:g}' for number in per_key)} MACs more per head and key; {parameters:,} and "
        f"{plain_parameters:,} parameters",
    )


def _decode(q: Tensor, k: Tensor, v: Tensor, image: Tensor, sinks: Tensor) -> Tensor:
    return redistributed_attention(q, k, v, RULE, image=image, sinks=sinks, text_start=0)


def _calls(is_active: bool) -> tuple[int, int]:
    """Calls of projections and number of parameters of 3 mixers, one after the other."""
    torch.manual_seed(0)
    layers = [
        VARAttention(64, num_heads=4, image_span=(3, 20), sink_dims=(1, 2), tau=1.5, active=is_active).eval()
        for _ in range(3)
    ]
    seen = []
    for layer in layers:
        for part in layer.modules():
            if isinstance(part, nn.Linear):
                part.register_forward_hook(lambda *_: seen.append(1))
    (x,) = random_tensors((1, 48, 64), seed=1)
    states = [layer.init_state(1, max_len=48) for layer in layers]
    for piece in (x[:, :40], *x[:, 40:].split(1, dim=1)):
        for number, layer in enumerate(layers):
            piece, states[number] = layer.step(piece, states[number])
    return len(seen), sum(weight.numel() for layer in layers for weight in layer.parameters())


# --------------------------------------------------------------------------------------------------- ratio


@claim(
    "var",
    name="decode_step",
    grade="ratio",
    statement="Redistribution needs no further inference steps: decoding is as fast as without",
    where=WHERE,
    criterion="a decoding step <= 1.15x SDPA's, float32, the attention of a 7B Llama (32 heads of 128) with 4,096 keys "
    "of which a prompt of 704 with 576 image tokens; bfloat16 is reported",
)
@torch.no_grad()
def decode_step() -> Measured:
    """Medians of interleaved runs."""
    ratios, details = {}, []
    image, sinks = marks(704, image=(35, 611), sinks=(0, 40, 101, 300))
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        q, k, v = (x.to(dtype) for x in random_tensors((1, 32, 1, 128), *[(1, 32, 4096, 128)] * 2, seed=3))
        contestants: dict[str, Callable[[], Tensor]] = {
            "ours": functools.partial(_decode, q, k, v, image, sinks),
            "sdpa": functools.partial(scaled_dot_product_attention, q, k, v),
        }
        with one_thread():
            times = race(contestants, rounds=15, warmup=3)
        ratios[name] = times.ratio("ours", "sdpa")
        details.append(f"{name} {times.median_s['ours'] * 1e3:.1f} ms against {times.median_s['sdpa'] * 1e3:.1f} ms")
    return Measured(
        value=f"{ratios['float32']:.2f}x; {ratios['bfloat16']:.2f}x in bfloat16",
        held=ratios["float32"] <= 1.15,
        detail="; ".join(details),
    )


# --------------------------------------------------------------------------------------------------- scaled

SINK_DIMS = (70, 201)
PLANTED = (0, BEFORE + 2, BEFORE + 7, BEFORE + 13)
"""The first token, as in language models, and three of the image."""
ACTIVE = active_layers(LAYERS)


@claim(
    "var",
    name="sinks_in_a_vision_language_model",
    grade="scaled",
    statement="Visual sinks are the tokens with massive activations in fixed dimensions, those of language sinks; "
    "removing them does not hurt as removing other image tokens does",
    where=f"{PAPER}, visual attention sink; visual attention redistribution",
    criterion="a tiny untrained model of the Llava type with planted sinks, 3 seeds: the detector finds the planted "
    "dimensions from the first token, and phi > tau exactly the planted tokens in every layer from 2; selected rows "
    "equal those of loops; other image tokens gain Omega to 1e-5; the fast form gives the same heads to 1e-4; removing "
    "sinks changes the logits less than removing as many of the other image tokens that are looked at most",
)
def sinks_in_a_vision_language_model() -> Measured:
    """Weights are removed without normalising again, in the layers in which attention is redistributed."""
    found = [_judge_vlm(seed) for seed in SEEDS]
    names = ("dimensions", "tokens", "rows", "omega", "fast form", "ablation")
    right = {name: sum(bool(each[0][name]) for each in found) for name in names}
    ratios = [each[1] for each in found]
    return Measured(
        value=", ".join(f"{name} {count} of {len(SEEDS)}" for name, count in right.items()),
        held=all(count == len(SEEDS) for count in right.values()),
        detail="change of logits without sinks / without others: " + ", ".join(f"{ratio:.3f}" for ratio in ratios),
    )


def _judge_vlm(seed: int) -> tuple[dict[str, bool], float]:
    """What holds for one model, and the ratio of the two changes."""
    model, prompt = tiny_vlm(seed=seed), make_prompt(seed=seed)
    with planted(model, tokens=PLANTED, dims=SINK_DIMS):
        logits, calls = run_vlm(model, prompt)
        firsts = torch.stack([calls[layer].x[0, 0] for layer in middle_layers(LAYERS)])
        dims = detect_sink_dims(firsts)
        tau = tau_for_width(firsts.shape[1])
        sinks = [sink_tokens(call.x, dims, tau=tau) for call in calls]
        wanted = torch.isin(torch.arange(prompt.tokens.shape[1]), torch.tensor(PLANTED))[None]
        judged = [_judge_layer(calls[layer], prompt.image, sinks[layer]) for layer in ACTIVE]
        changes = []
        for choose in (lambda call: wanted & prompt.image, lambda call: _most_seen(call, prompt.image, wanted)):
            without, _ = run_vlm(model, prompt, functools.partial(_without, choose, prompt.image))
            changes.append(logit_change(logits, without).mean_abs)
    right = {
        "dimensions": dims == SINK_DIMS,
        "tokens": all(torch.equal(sinks[layer], wanted) for layer in range(2, LAYERS)),
        "rows": all(each[0] for each in judged),
        "omega": all(each[1] for each in judged),
        "fast form": all(each[2] for each in judged),
        "ablation": changes[0] < changes[1],
    }
    return right, changes[0] / changes[1]


def _most_seen(call: LayerCall, image: Tensor, sinks: Tensor) -> Tensor:
    return top_visual_tokens(call.attention, image, sinks)


def _without(choose: Callable[[LayerCall], Tensor], image: Tensor, layer: int, call: LayerCall) -> Tensor | None:
    """The heads' output when text after the image does not attend to the chosen keys, in active layers."""
    if layer not in ACTIVE:
        return None
    rows = after_image(image, queries=call.attention.shape[2])[:, None, :, None]
    return weigh_values(call, torch.where(rows, ablate(call.attention, choose(call)), call.attention))


def _judge_layer(call: LayerCall, image: Tensor, sinks: Tensor) -> tuple[bool, bool, bool]:
    """Whether the selected rows, what other image tokens gain, and the fast form are right."""
    rows = after_image(image, queries=call.attention.shape[2])
    changed, selected = redistribute(call.attention, image, sinks, RULE, rows=rows)
    of_image, of_sinks = image[0].nonzero()[:, 0].tolist(), sinks[0].nonzero()[:, 0].tolist()
    same_rows = gains = True
    for head in range(call.attention.shape[1]):
        for query in range(call.attention.shape[2]):
            a, b = call.attention[0, head, query].tolist(), changed[0, head, query].tolist()
            visual = sum(a[j] for j in of_image)
            share = sum(a[j] for j in of_image if j in of_sinks) / sum(a[j] + 1e-6 for j in of_image)
            chosen = query > of_image[-1] and visual >= RULE.summ and share <= RULE.rho
            same_rows &= chosen == bool(selected[0, head, query])
            gained = sum(b[j] - a[j] for j in of_image if j not in of_sinks)
            omega = (1 - RULE.p) * sum(a[j] for j in of_sinks) if chosen else 0.0
            gains &= abs(gained - omega) <= 1e-5
    fast = redistributed_attention(call.q, call.k, call.v, RULE, image=image, sinks=sinks)
    return same_rows and bool(selected.any()), gains, worst_error(fast, weigh_values(call, changed)) <= 1e-4


STEPS, QUESTIONS = 800, 4096


@functools.cache
def readers() -> tuple[GridReader, ...]:
    """One trained network per seed, for all measurements."""
    with one_thread():
        return tuple(trained_reader(seed=seed, steps=STEPS) for seed in SEEDS)


def mean_accuracy(sink_bias: float, *, is_on: bool) -> float:
    """Percent, the mean over seeds."""
    with one_thread():
        return mean(
            [accuracy(model, sink_bias=sink_bias, redistribute=is_on, questions=QUESTIONS) for model in readers()]
        )


@claim(
    "var",
    name="questions_about_patches",
    grade="scaled",
    statement="Redistribution improves answers to questions about images, without training",
    where=f"{PAPER}, experiments",
    criterion="a 2-layer multimodal transformer, trained with plain attention, answers questions about one of 16 "
    "patches; mean over 3 seeds: switching redistribution on (p = 0.6) costs at most 0.5 points; where sinks' scores "
    "are raised by the smallest whole number up to 10 that costs plain attention at least 10 points, it gains at least "
    "3 points",
)
def questions_about_patches() -> Measured:
    """The start token and a register are sinks; both layers redistribute."""
    plain, ours = (mean_accuracy(0, is_on=is_on) for is_on in (False, True))
    spoiled = {bias: mean_accuracy(bias, is_on=False) for bias in range(1, 11)}
    bias = next((bias for bias, reached in spoiled.items() if reached <= plain - 10), 10)
    corrected = mean_accuracy(bias, is_on=True)
    gain = corrected - spoiled[bias]
    curve = ", ".join(f"+{number}: {reached:.1f}" for number, reached in spoiled.items())
    return Measured(
        value=f"{ours - plain:+.1f} points as trained, {gain:+.1f} points with sinks raised by {bias}",
        held=ours >= plain - 0.5 and gain >= 3 and spoiled[bias] <= plain - 10,
        detail=f"{plain:.1f} % and {ours:.1f} %; raised by {bias}: {spoiled[bias]:.1f} % and {corrected:.1f} %; plain "
        f"attention: {curve}; {STEPS} steps of 64 questions",
    )


# --------------------------------------------------------------------------------------------------- out of reach


out_of_reach(
    "var",
    name="large_multimodal_models",
    statement="Redistribution improves large multimodal models on general vision-language, hallucination and "
    "vision-centric benchmarks, without training",
    where=f"{PAPER}, abstract and experiments",
    criterion="accuracy of LLaVA-1.5-7B and others on POPE, CHAIR, VQA and vision-centric benchmarks with and without",
    reason="models of 7 billion parameters and their benchmarks need GPUs and weights of many gigabytes; planted sinks "
    "in a tiny model of the Llava type and the trained reader of patches stand in",
)
