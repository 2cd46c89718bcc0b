"""The claims of PALM: RED is the LM, the LM's attention to the source degenerates, partial attention's does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from regard.analysis.source_sensitivity import (
    attention_jacobian_norms,
    degeneration,
    jacobian_norms,
    recorded_attention,
    sensitivity_bound,
    source_attention,
    source_mass,
)
from regard.claims import Measured, claim, out_of_reach
from regard.claims._transduction import (
    COPY_VOCABULARY,
    RECIPE,
    TRANSLATION_STEPS,
    backbone,
    copies_to_judge,
    greedy,
    parallel_corpus,
    parameter_count,
    second_half_accuracy,
    sentences_to_judge,
    trained_on_copies,
    trained_on_translation,
)
from regard.measure import one_thread
from regard.models.language.lm_seq2seq import LMSeq2Seq, LMSeq2SeqConfig
from regard.models.language.red_seq2seq import REGULARISATIONS, REDSeq2Seq, REDSeq2SeqConfig
from regard.models.language.seq2seq import Seq2SeqModel, seq2seq_loss

PAPER = "Decoder-Only or Encoder-Decoder? (arXiv 2304.04052)"
ABLATIONS: dict[str, tuple[tuple[str, bool], ...]] = {
    "no PA": (("partial_attention", False),),
    "no SPE": (("separate_positions", False),),
    "no LE": (("language_embedding", False),),
    "no SAE": (("source_auto_encoding", False),),
    "causal source": (("causal_source", True),),
}

# --------------------------------------------------------------------------------------------------- exact


def _scores_and_gradients(model: Seq2SeqModel) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(11)
    source, target = (torch.randint(0, 37, (3, length), generator=generator) for length in (13, 19))
    mask = torch.arange(13) < torch.tensor([[13], [5], [8]])
    output = model(source, target, source_mask=mask)
    weight = 0.0 if output.source is None else 1.0
    seq2seq_loss(output, source, target, source_mask=mask, source_weight=weight).backward()
    return {"scores": output.target.detach(), **{n: p.grad for n, p in model.named_parameters() if p.grad is not None}}


def _without(config: REDSeq2SeqConfig, regularisation: str) -> REDSeq2SeqConfig:
    change: dict[str, Any] = {regularisation: False}
    return replace(config, **change)


def _with_weights_of(red: REDSeq2Seq, lm: LMSeq2Seq) -> REDSeq2Seq:
    """The LM's weights, in the encoder too where it has its own; what only RED has stays as it is."""
    weights = lm.state_dict()
    named = {name: name.replace("encoder_norm", "norm").replace("encoder.", "decoder.") for name in red.state_dict()}
    red.load_state_dict({name: weights.get(named[name], tensor) for name, tensor in red.state_dict().items()})
    return red


@claim(
    "palm",
    name="red_is_the_lm",
    grade="exact",
    statement="A regularised encoder-decoder replicates every behaviour of the language model",
    where=f"{PAPER}, RED",
    criterion="RED with all five regularisers = LM (same weights), scores and gradients to 1e-5; removing any one "
    "breaks equality",
)
def red_is_the_lm() -> Measured:
    """Padded sources of three lengths, four layers; the loss is the target's and the source's, weighed equally."""
    torch.manual_seed(0)
    sizes = LMSeq2SeqConfig(vocab_size=37, dim=48, num_heads=4, mlp_dim=80, num_layers=4, max_positions=40, dropout=0.0)
    lm = LMSeq2Seq(sizes)
    all_on = REDSeq2SeqConfig(
        vocab_size=37, dim=48, num_heads=4, mlp_dim=80, num_layers=4, max_positions=40, dropout=0.0
    )
    expected = _scores_and_gradients(lm)

    def difference(config: REDSeq2SeqConfig) -> float:
        made = _scores_and_gradients(_with_weights_of(REDSeq2Seq(config), lm))
        return max(float((made[name] - expected[name]).abs().max()) for name in made.keys() & expected.keys())

    same = difference(all_on)
    broken = {name: difference(_without(all_on, name)) for name in REGULARISATIONS}
    shown = ", ".join(f"{name.replace('_', ' ')} {value:.2g}" for name, value in broken.items())
    return Measured(
        value=f"{same:.1e} with all five; at least {min(broken.values()):.2g} without one",
        held=same <= 1e-5 and min(broken.values()) > 1e-3,
        detail=f"largest difference of a score or gradient; without: {shown}",
    )


def _bound_over_measured(model: Seq2SeqModel) -> list[float]:
    """For every attention to the source and every step, the measured norm over its bound."""
    judged = copies_to_judge()
    source, target = judged.source[:1], judged.target[:1]
    length, steps = source.shape[1], target.shape[1]
    with torch.no_grad(), recorded_attention(model, source_len=length, target_len=steps) as calls:
        model(source, target)
    others = torch.arange(1, steps + 1)
    shares = []
    for call in calls:
        module: Any = model.get_submodule(call.name.removesuffix(".core"))
        q, k, v = call.q[0], call.k[0], call.v[0]
        weights = {"key_weight": module.k_proj.weight.detach(), "value_weight": module.v_proj.weight.detach()}
        beside = torch.zeros(steps, dtype=torch.int64) if call.of_source else others
        bound = sensitivity_bound(q, k, v, source_len=length, others=beside, **weights)
        visible = None if call.of_source else (torch.arange(k.shape[1]) <= length + torch.arange(steps)[:, None])
        measured = attention_jacobian_norms(q, k, v, source_len=length, visible=visible, **weights)
        shares += (measured / bound).tolist()
    return shares


@claim(
    "palm",
    name="sensitivity_bound",
    grade="exact",
    statement="The attention output's sensitivity to the source is bounded; in the language model the bound falls with "
    "the step, in the encoder-decoder it does not",
    where=f"{PAPER}, sensitivity analysis",
    criterion="the bound holds for every measured step (random and trained weights)",
)
def sensitivity_bound_holds() -> Measured:
    """Every layer's attention to the source in LM, ED and PALM, every step of one sequence."""
    with one_thread():
        shares = {}
        for name in ("lm", "ed", "palm"):
            torch.manual_seed(1)
            shares[f"{name} random"] = _bound_over_measured(backbone(name, COPY_VOCABULARY).eval())
            shares[f"{name} trained"] = _bound_over_measured(trained_on_copies(name))
    worst = max(max(values) for values in shares.values())
    count = sum(map(len, shares.values()))
    shown = ", ".join(f"{name} {max(values):.2f}" for name, values in shares.items())
    return Measured(
        value=f"measured at most {worst:.2f} of the bound",
        held=worst <= 1 and count > 0,
        detail=f"{count} norms by autograd, attention output with respect to source states; largest share: {shown}",
    )


# --------------------------------------------------------------------------------------------------- degeneration


@claim(
    "palm",
    name="source_mass_of_lm_falls",
    grade="scaled",
    statement="The more tokens are generated, the less attention the language model pays to the source",
    where=f"{PAPER}, attention degeneration",
    criterion="source attention mass of the trained LM decreases with the step: Spearman <= -0.8, last quarter over "
    f"first quarter <= 0.6 (mean over layers, heads and 64 sequences); {RECIPE}",
)
def source_mass_of_lm_falls() -> Measured:
    """The mass of one softmax over both streams."""
    judged = copies_to_judge()
    with one_thread():
        per_layer = source_mass(source_attention(trained_on_copies("lm"), judged.source, judged.target), "attention")
    fall = degeneration(per_layer.mean(dim=0))
    layers = ", ".join(f"{each.last_over_first:.2f}" for each in map(degeneration, per_layer))
    return Measured(
        value=f"Spearman {fall.spearman:.2f}, last/first quarter {fall.last_over_first:.2f}",
        held=fall.spearman <= -0.8 and fall.last_over_first <= 0.6,
        detail=f"last/first quarter by layer: {layers}",
    )


@claim(
    "palm",
    name="source_mass_is_constant",
    grade="scaled",
    statement="Cross-attention and partial attention pay the same attention to the source at every step",
    where=f"{PAPER}, PALM",
    criterion=f"ED's cross-attention and PALM's partial attention have mass 1 at every step; {RECIPE}",
)
def source_mass_is_constant() -> Measured:
    """By construction: a softmax over the source alone; PALM's other softmax is shown beside it."""
    judged = copies_to_judge()
    with one_thread():
        maps = {
            name: source_attention(trained_on_copies(name), judged.source, judged.target) for name in ("ed", "palm")
        }
    worst = max(float((source_mass(made, "reader") - 1).abs().max()) for made in maps.values())
    own = degeneration(source_mass(maps["palm"], "attention").mean(dim=0))
    return Measured(
        value=f"1 within {worst:.0e}",
        held=worst <= 1e-5,
        detail=f"PALM's self-attention beside it: Spearman {own.spearman:.2f}, last/first {own.last_over_first:.2f}",
    )


@claim(
    "palm",
    name="sensitivity_is_kept",
    grade="scaled",
    statement="Partial attention solves the attention degeneration",
    where=f"{PAPER}, PALM",
    criterion="norm of the Jacobian of the last hidden state with respect to the source embeddings, last quarter over "
    f"first quarter of the steps: PALM >= 2x LM's (4 sequences, 16 random signs); {RECIPE}",
)
def sensitivity_is_kept() -> Measured:
    """By autograd on the trained networks."""
    judged = copies_to_judge()
    ratios = {}
    with one_thread():
        for name in ("lm", "ed", "palm"):
            model = trained_on_copies(name)
            norms = [
                jacobian_norms(model, judged.source[i : i + 1], judged.target[i : i + 1], probes=16) for i in range(4)
            ]
            ratios[name] = degeneration(torch.stack(norms).mean(dim=0)).last_over_first
    return Measured(
        value=f"PALM {ratios['palm'] / ratios['lm']:.2f}x LM's",
        held=ratios["palm"] >= 2 * ratios["lm"],
        detail="last/first quarter: " + ", ".join(f"{name.upper()} {value:.2f}" for name, value in ratios.items()),
    )


# --------------------------------------------------------------------------------------------------- tasks


def _judge_tasks(accuracy: dict[str, float], models: dict[str, Seq2SeqModel], detail: str) -> Measured:
    counts = {name: parameter_count(model) for name, model in models.items()}
    palm, lm, ed = (accuracy[name] for name in ("palm", "lm", "ed"))
    return Measured(
        value=f"PALM {palm:.1f} %, LM {lm:.1f} %, ED {ed:.1f} %",
        held=palm >= lm + 2 and palm >= ed - 1 and counts["palm"] < counts["ed"],
        detail=detail + ", ".join(f"{name.upper()} {count:,} parameters" for name, count in counts.items()),
    )


@claim(
    "palm",
    name="copying",
    grade="scaled",
    statement="PALM beats the language model and equals or exceeds the encoder-decoder with fewer parameters",
    where=f"{PAPER}, main results",
    criterion="token accuracy on the second half of long targets: PALM >= LM + 2 points and >= ED - 1, with fewer "
    f"parameters than ED; {RECIPE}",
)
def copying() -> Measured:
    """A long copy with substitution; the true tokens before each are given."""
    judged = copies_to_judge()
    with one_thread():
        models = {name: trained_on_copies(name) for name in ("palm", "lm", "ed")}
        accuracy = {name: second_half_accuracy(model, judged) for name, model in models.items()}
    return _judge_tasks(accuracy, models, "")


@claim(
    "palm",
    name="translation",
    grade="scaled",
    statement="PALM beats the language model on translation and equals or exceeds the encoder-decoder with fewer "
    "parameters",
    where=f"{PAPER}, machine translation",
    criterion="token accuracy on the second half of the targets: PALM >= LM + 2 points and >= ED - 1, with fewer "
    "parameters than ED; Multi30k English-German, 1,200 words, sentences up to 18 words, "
    f"{TRANSLATION_STEPS} steps of 16 pairs, else the sizes and recipe of the copy",
)
def translation() -> Measured:
    """500 test pairs; the true words before each are given."""
    with one_thread():
        models = {name: trained_on_translation(name) for name in ("palm", "lm", "ed")}
        judged = sentences_to_judge()
        accuracy = {name: second_half_accuracy(model, judged) for name, model in models.items()}
    return _judge_tasks(accuracy, models, f"{parallel_corpus().source}; ")


@claim(
    "palm",
    name="ablations",
    grade="scaled",
    statement="Partial attention, separate positions, language embedding, source auto-encoding and the bidirectional "
    "source each help",
    where=f"{PAPER}, ablation",
    criterion="token accuracy on the second half: each ablation is not better than the full model by more than noise "
    "(the larger of 1 point and the difference of two seeds of the full model), and leaving PA out has the largest "
    f"effect; {RECIPE}",
)
def ablations() -> Measured:
    """Each part left out alone, on the copy."""
    judged = copies_to_judge()
    with one_thread():
        full = [second_half_accuracy(trained_on_copies("palm", seed=seed), judged) for seed in (0, 1)]
        lost = {
            name: full[0] - second_half_accuracy(trained_on_copies("palm", change), judged)
            for name, change in ABLATIONS.items()
        }
    noise = max(1.0, abs(full[0] - full[1]))
    shown = ", ".join(f"{name} {points:+.1f}" for name, points in lost.items())
    return Measured(
        value=f"points lost: {shown}",
        held=min(lost.values()) >= -noise and max(lost, key=lambda name: lost[name]) == "no PA",
        detail=f"full {full[0]:.1f} % and {full[1]:.1f} % with seeds 0 and 1: noise {noise:.1f} points",
    )


@claim(
    "palm",
    name="hallucination",
    grade="scaled",
    statement="The language model drifts away from the source as it generates, PALM less so",
    where=f"{PAPER}, attention degeneration",
    criterion="alignment of a generated step with the source (share of greedily generated symbols that the source "
    f"warrants) falls from the first to the last quarter for LM more than for PALM; {RECIPE}",
)
def hallucination() -> Measured:
    """64 sequences, each model's own tokens before each."""
    judged = copies_to_judge()
    warranted = judged.target[:, 1:-1]
    quarter, falls, shown = warranted.shape[1] // 4, {}, []
    with one_thread():
        for name in ("lm", "palm"):
            generated = greedy(trained_on_copies(name), judged.source, steps=warranted.shape[1])
            aligned = 100 * (generated == warranted).double().mean(dim=0)
            first, last = float(aligned[:quarter].mean()), float(aligned[-quarter:].mean())
            falls[name] = first - last
            shown.append(f"{name.upper()} {first:.1f} % to {last:.1f} %")
    return Measured(
        value=f"LM falls by {falls['lm']:.1f} points, PALM by {falls['palm']:.1f}",
        held=falls["lm"] > falls["palm"],
        detail=", ".join(shown),
    )


# --------------------------------------------------------------------------------------------------- out of reach


out_of_reach(
    "palm",
    name="paper_scores",
    statement="PALM beats the language model on translation, summarisation and data-to-text",
    where=f"{PAPER}, main results",
    criterion="BLEU, ROUGE and METEOR of models of the paper's size on IWSLT'14, XSum and the like",
    reason="training at that size takes GPUs for days; the copy and Multi30k at small size stand in",
)
out_of_reach(
    "palm",
    name="data_to_text",
    statement="PALM beats the language model on data-to-text",
    where=f"{PAPER}, data-to-text",
    criterion="token accuracy on the second half of the targets: PALM >= LM + 2 points and >= ED - 1, on E2E NLG",
    reason="the E2E NLG files are not at hand; the copy and Multi30k stand in",
)
