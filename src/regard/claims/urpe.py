"""The claims of URPE: relative biases alone are blind to positions, and factors see them for one small table."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from regard.claims import Measured, claim, out_of_reach
from regard.claims._synthetic import NETWORK, SyntheticRecipe, SyntheticTask, accuracy_after_training
from regard.claims._training import SEEDS, fit_language, language_loss, mean, text_corpus
from regard.layers.urpe_positions import Biases
from regard.measure import one_thread
from regard.models.language.decoder import Decoder, DecoderConfig
from regard.models.language.urpe_encoder import URPEEncoder, URPEEncoderConfig

PAPER = "Your Transformer May Not be as Powerful as You Expect (arXiv 2205.13401)"
RELATIVE: tuple[Biases, ...] = ("unique", "log", "transformer_xl", "alibi")
PARAMETERS = {"urpe_synthetic_rpe": 22_053_876, "urpe_synthetic": 22_066_152}
SMALL = URPEEncoderConfig(vocab_size=50, dim=32, num_layers=3, num_heads=4, hidden=64, max_positions=20, head="none")


def random_encoder(biases: Biases, *, universal: bool, seed: int) -> URPEEncoder:
    """All parameters far from their start; C is 1 without `universal`."""
    torch.manual_seed(seed)
    model = URPEEncoder(replace(SMALL, biases=biases, factors="unique" if universal else "none")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model


# --------------------------------------------------------------------------------------------------- exact


@claim(
    "urpe",
    name="constant_input",
    grade="exact",
    statement="Transformers with relative positions in the softmax alone are no universal approximators: on a sequence "
    "of one repeated token their output is the same at every position, whatever their depth and width",
    where=f"{PAPER}, the negative result",
    criterion="3 layers, 32 wide, 20 equal tokens, random parameters, 5 seeds: outputs differ between positions by at "
    "most 1e-5 with biases of any kind (a number per distance, shared numbers, Transformer-XL's, ALiBi's), and by more "
    "than 0.1 with factors that are not constant",
)
@torch.no_grad()
def constant_input() -> Measured:
    """The largest difference between two positions' outputs; float32."""
    tokens = torch.full((1, 20), 7)

    def spread(model: URPEEncoder) -> float:
        x = model.features(tokens)[0]
        return float((x.amax(dim=0) - x.amin(dim=0)).max())

    blind = {
        biases: max(spread(random_encoder(biases, universal=False, seed=seed)) for seed in range(5))
        for biases in RELATIVE
    }
    seeing = [spread(random_encoder(biases, universal=True, seed=seed)) for biases in RELATIVE for seed in range(5)]
    return Measured(
        value=f"at most {max(blind.values()):.1e} with biases, at least {min(seeing):.2f} with factors",
        held=max(blind.values()) <= 1e-5 and min(seeing) > 0.1,
        detail=", ".join(f"{biases} {value:.1e}" for biases, value in blind.items()),
    )


@claim(
    "urpe",
    name="parameter_efficient",
    grade="exact",
    statement="The factors are parameter-efficient, and attention with relative positions is the special case C = 1",
    where=f"{PAPER}, universal RPE-based attention",
    criterion="with C = 1, where training starts, outputs equal those without C to 1e-6; parameters of the synthetic "
    "tasks' encoder as counted on the authors' code, 22,053,876 and with factors 22,066,152: (2 T - 1) h more",
)
@torch.no_grad()
def parameter_efficient() -> Measured:
    """T = 512 positions and h = 12 heads."""
    with torch.device("meta"):
        made = {name: URPEEncoder(URPEEncoder.VARIANTS[name].config) for name in PARAMETERS}
    counts = {name: sum(parameter.numel() for parameter in model.parameters()) for name, model in made.items()}
    overhead = counts["urpe_synthetic"] - counts["urpe_synthetic_rpe"]
    worst = 0.0
    for biases in RELATIVE:
        plain = random_encoder(biases, universal=False, seed=0)
        universal = URPEEncoder(replace(SMALL, biases=biases)).eval()
        universal.load_state_dict(plain.state_dict(), strict=False)
        tokens = torch.randint(0, SMALL.vocab_size, (2, 17))
        worst = max(worst, float((universal.features(tokens) - plain.features(tokens)).abs().max()))
    return Measured(
        value=f"{overhead:,} more; C = 1 differs by {worst:.1e}",
        held=counts == PARAMETERS and overhead == (2 * 512 - 1) * 12 and worst <= 1e-6,
        detail=", ".join(f"{count:,}" for count in counts.values()),
    )


# --------------------------------------------------------------------------------------------------- scaled

RECIPE = SyntheticRecipe()
POSITIONS = SyntheticTask(name="positions")


@functools.cache
def accuracies(
    task: SyntheticTask,
    form: str,
    seeds: Sequence[int] = SEEDS,
    recipe: SyntheticRecipe = RECIPE,
    network: URPEEncoderConfig = NETWORK,
) -> tuple[float, ...]:
    """Of networks of one form, seed by seed."""
    return tuple(accuracy_after_training(task, form, seed=seed, recipe=recipe, network=network) for seed in seeds)


def shown(values: Sequence[float]) -> str:
    """Seed by seed."""
    return ", ".join(f"{value:.3f}" for value in values)


@claim(
    "urpe",
    name="position_identification",
    grade="scaled",
    statement="On the synthetic task of position identification URPE is right, and relative biases fail",
    where=f"{PAPER}, experiments, synthetic tasks",
    criterion="2 layers, 64 wide, 4 heads, 32 tokens of 30 kinds, 1,500 steps of 32 rows, Adam with 1e-3: accuracy of "
    "URPE >= 0.99 and of RPE <= 0.5 for every one of seeds 0, 1, 2",
)
def position_identification() -> Measured:
    """Chance is 1 / 31."""
    universal, relative = accuracies(POSITIONS, "URPE"), accuracies(POSITIONS, "RPE")
    return Measured(
        value=f"URPE {shown(universal)}; RPE {shown(relative)}",
        held=min(universal) >= 0.99 and max(relative) <= 0.5,
        detail=f"seeds 0, 1, 2; chance {1 / 31:.3f}",
    )


LANGUAGE_TEXT = (
    "bytes of tiny Shakespeare (1.1 MB), 2 layers, 64 wide, 4 heads, 128 tokens x 8 rows, 400 steps, learning rate "
    "3e-3, seeds 0, 1, 2"
)


@functools.cache
def language_losses(factors: str) -> tuple[float, ...]:
    """Nats per byte of held-out text after training, with a bias per distance, for every seed."""
    corpus, losses = text_corpus(), []
    config = DecoderConfig(
        dim=64,
        num_layers=2,
        num_heads=4,
        mixer="urpe",
        mixer_options={"biases": "unique", "factors": factors, "max_positions": 128},
    )
    with one_thread():
        for seed in SEEDS:
            torch.manual_seed(seed)
            model = Decoder(config)
            fit_language(model, corpus, steps=400, batch=8, length=128, seed=seed)
            losses.append(language_loss(model, corpus, length=128, total=65_536))
    return tuple(losses)


@claim(
    "urpe",
    name="language_model",
    grade="scaled",
    statement="URPE improves language models over their relative positions alone",
    where=f"{PAPER}, experiments, language modelling",
    criterion=f"mean perplexity of held-out text with factors <= without, at equal steps; {LANGUAGE_TEXT}",
)
def language_model() -> Measured:
    """A pre-norm decoder with a learned bias per distance in every layer."""
    universal, relative = language_losses("unique"), language_losses("none")
    perplexities = [mean([math.exp(loss) for loss in losses]) for losses in (universal, relative)]
    wins = sum(ours < theirs for ours, theirs in zip(universal, relative, strict=True))
    return Measured(
        value=f"{perplexities[0]:.4f} with factors, {perplexities[1]:.4f} without (per byte)",
        held=perplexities[0] <= perplexities[1],
        detail=f"{text_corpus().source}; lower in {wins} of {len(SEEDS)} seeds; nats per byte {shown(universal)} with, "
        f"{shown(relative)} without",
    )


# --------------------------------------------------------------------------------------------------- out of reach


out_of_reach(
    "urpe",
    name="large_language_model",
    statement="Transformer-XL with URPE has a lower perplexity on WikiText-103",
    where=f"{PAPER}, experiments, language modelling",
    criterion="perplexity on WikiText-103 of Transformer-XL base with and without URPE",
    reason="training it takes several GPUs for days; the small language model stands in",
)
out_of_reach(
    "urpe",
    name="graphs",
    statement="Graphormer with URPE has lower errors on ZINC and PCQM4M",
    where=f"{PAPER}, experiments, graph learning",
    criterion="mean absolute error on ZINC and PCQM4M of Graphormer with and without URPE",
    reason="training on millions of molecules takes GPUs for days, and factors by a graph's distances are not offered; "
    "the synthetic tasks stand in",
)
