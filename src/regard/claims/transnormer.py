"""The claims of TransNormerLLM: exact and robust linear attention, cheap norms, and better models by its changes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from regard.claims import Measured, claim, out_of_reach
from regard.claims._operators import HEADS, WIDTH, random_tensors, timed_inputs, worst_error
from regard.claims._training import SEEDS, fit_language, language_loss, mean, text_corpus
from regard.contract import State
from regard.measure import Race, one_thread, peak_bytes, race
from regard.mixers.sequence.transnormer import NormLinearAttention
from regard.models.language.decoder import Decoder, DecoderConfig
from regard.models.language.transnormer import TransNormerConfig, TransNormerLM
from regard.ops.decay import alibi_slopes
from regard.ops.linear_attention import linear_attention, linear_attention_recurrent
from regard.ops.norms import simple_rms_norm

PAPER = "TransNormerLLM (arXiv 2307.14995)"
LENGTHS = (1, 7, 256, 257, 700)
SLOPES = alibi_slopes(HEADS)
PARAMETERS = {"transnormer_385m": 464_520_192, "transnormer_1b": 1_151_338_496, "transnormer_7b": 7_098_863_616}
BODY = 333_448_192
"""Parameters of the 385M network without its two embeddings."""


def decay_mask(tokens: int) -> Tensor:
    """The factors of the plain masked form, `(heads, tokens, tokens)`: 0 in the future."""
    places = torch.arange(tokens)
    distance = (places[:, None] - places).float()
    return torch.exp(-torch.tensor(SLOPES)[:, None, None] * distance.clamp(min=0)) * (distance >= 0)


def masked_form(q: Tensor, k: Tensor, v: Tensor, factors: Tensor) -> Tensor:
    """Linear attention as it is plainly written in PyTorch: the whole square of scores, times the factors."""
    return (q @ k.transpose(2, 3) * factors) @ v


def naive_recurrence(q: Tensor, k: Tensor, v: Tensor, slope: float) -> Tensor:
    """The sums of exp(s t) k_t v_t that are scaled back by exp(-s t), all in the type of the inputs."""
    times = slope * torch.arange(q.shape[2], dtype=q.dtype)
    grown = (torch.exp(times)[:, None] * k)[..., :, None] * v[..., None, :]
    return torch.exp(-times)[:, None] * torch.einsum("bhnd,bhnde->bhne", q, grown.cumsum(dim=2))


def eager_rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    """RMSNorm with a weight, as it is plainly written in PyTorch."""
    return x * torch.rsqrt(x.pow(2).mean(dim=-1, keepdim=True) + 1e-6) * weight


# --------------------------------------------------------------------------------------------------- exact


@claim(
    "transnormer",
    name="parameter_counts",
    grade="exact",
    statement="Networks of 385M, 1B and 7B parameters",
    figure="385M, 1B, 7B by name",
    where=f"{PAPER}, section 4",
    criterion="464,520,192, 1,151,338,496 and 7,098,863,616 parameters, as counted on the authors' code with both "
    "embeddings; 333,448,192 in the first without them",
)
def parameter_counts() -> Measured:
    """Counted without memory for weights."""
    counts = {}
    with torch.device("meta"):
        for name in PARAMETERS:
            model = TransNormerLM(TransNormerLM.VARIANTS[name].config)
            counts[name] = sum(parameter.numel() for parameter in model.parameters())
    config = TransNormerLM.VARIANTS["transnormer_385m"].config
    body = counts["transnormer_385m"] - 2 * config.vocab_size * config.dim
    return Measured(
        value=", ".join(f"{count:,}" for count in counts.values()),
        held=counts == PARAMETERS and body == BODY,
        detail=f"the first without embeddings: {body:,}",
    )


@claim(
    "transnormer",
    name="forms_agree",
    grade="exact",
    statement="Lightning attention, the plain masked form and the recurrence of inference compute the same",
    where=f"{PAPER}, section 3",
    criterion="quadratic = block = recurrent form to a relative error of 1e-4 in float32, for n in {1, 7, 256, 257, "
    "700}, with and without LRPE",
)
def forms_agree() -> Measured:
    """The whole layer; the recurrence takes one token at a time."""
    worst = 0.0
    for lrpe in (True, False):
        torch.manual_seed(0)
        layer = NormLinearAttention(64, num_heads=4, layer_idx=1, num_layers=4, lrpe=lrpe).eval()
        for tokens in LENGTHS:
            (x,) = random_tensors((2, tokens, 64), seed=tokens)
            with torch.no_grad():
                quadratic = layer.out(layer.attention_map(x) @ layer.values(x), x)
                _, steps = decode(layer, x)
                worst = max(worst, worst_error(layer(x), quadratic), worst_error(steps, quadratic))
    return Measured(
        value=f"largest relative error {worst:.1e}",
        held=worst <= 1e-4,
        detail=f"layer 1 of 4, 64 wide, 4 heads; n in {LENGTHS}",
    )


def decode(layer: NormLinearAttention, x: Tensor) -> tuple[State, Tensor]:
    """The layer's state after all tokens, and its outputs, token by token."""
    state, outputs = layer.init_state(x.shape[0]), []
    for token in x.split(1, dim=1):
        y, state = layer.step(token, state)
        outputs.append(y)
    return state, torch.cat(outputs, dim=1)


@claim(
    "transnormer",
    name="constant_state",
    grade="exact",
    statement="Inference at constant cost per token, whatever the length",
    where=f"{PAPER}, section 3",
    criterion="bytes of a layer's sums = 4 * batch * heads * d_qk * d_v at every n, where LRPE doubles d_qk",
)
def constant_state() -> Measured:
    """Beside the sums the state counts the tokens of each row, 8 bytes."""
    batch, heads, width, sizes = 3, 4, 16, {}
    for lrpe in (True, False):
        layer = NormLinearAttention(heads * width, num_heads=heads, lrpe=lrpe).eval()
        for tokens in (1, 64, 4096):
            with torch.no_grad():
                _, state = layer.step(torch.ones(batch, tokens, heads * width), layer.init_state(batch))
            sizes[lrpe, tokens] = state.nbytes - state.position.nbytes
    wanted = {key: 4 * batch * heads * (2 * width if key[0] else width) * width for key in sizes}
    return Measured(
        value=f"{sizes[True, 1]:,} bytes with LRPE, {sizes[False, 1]:,} without",
        held=sizes == wanted,
        detail="3 rows, 4 heads, d = 16; the same after 1, 64 and 4,096 tokens",
    )


@claim(
    "transnormer",
    name="robust_inference",
    grade="exact",
    statement="The robust inference algorithm is numerically stable at any length, unlike the naive one",
    where=f"{PAPER}, section 3, robust inference",
    criterion="slope 0.5, n = 4,096, float32: the recurrence that sums up exp(s t) k v gives inf or NaN, the robust "
    "one stays within a relative error of 1e-3 of float64",
)
def robust_inference() -> Measured:
    """Truth is the robust recurrence in float64."""
    q, k, v = random_tensors(*[(1, 1, 4096, 16)] * 3, seed=0)
    naive = naive_recurrence(q, k, v, 0.5)
    truth, _ = linear_attention_recurrent(q.double(), k.double(), v.double(), slopes=(0.5,))
    robust, _ = linear_attention_recurrent(q, k, v, slopes=(0.5,))
    blocks = linear_attention(q, k, v, slopes=(0.5,))
    spoiled = (~naive.isfinite()).any(dim=-1).flatten()
    first = int(spoiled.int().argmax()) if bool(spoiled.any()) else 4096
    error, error_of_blocks = worst_error(robust, truth), worst_error(blocks, truth)
    return Measured(
        value=f"naive: {int(spoiled.sum()):,} of 4,096 tokens inf or NaN; robust: relative error {error:.1e}",
        held=bool(spoiled.any()) and error <= 1e-3 and error_of_blocks <= 1e-3,
        detail=f"naive fails from token {first} on; in blocks {error_of_blocks:.1e}",
    )


# --------------------------------------------------------------------------------------------------- ratio


@claim(
    "transnormer",
    name="faster_than_masked",
    grade="ratio",
    statement="Lightning attention is more than twice as fast as the plain form of linear attention, with a quarter of "
    "the memory, forward and backward",
    figure="> 2x faster, 4x less memory",
    where=f"{PAPER}, abstract",
    criterion="1 row, 8 heads, d = 64, n = 4,096, float32: the block form >= 2x faster forward and backward than the "
    "plain masked form, with <= 1/4 of its extra memory",
)
def faster_than_masked() -> Measured:
    """The masked form is given its factors, which are computed once and count neither as time nor as memory."""
    q, k, v = (x.requires_grad_() for x in timed_inputs(4096))
    factors, (upstream,) = decay_mask(4096), random_tensors((1, HEADS, 4096, WIDTH), seed=1)

    def trained(form: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(form(), (q, k, v), upstream)

    forms = {
        "masked": trained(lambda: masked_form(q, k, v, factors)),
        "blocks": trained(lambda: linear_attention(q, k, v, slopes=SLOPES)),
    }
    with one_thread():
        times = race(forms, rounds=3)
        peaks = {name: min(peak_bytes(form) for _ in range(2)) for name, form in forms.items()}
    speed, memory = times.ratio("masked", "blocks"), peaks["blocks"] / peaks["masked"]
    return Measured(
        value=f"{speed:.1f}x faster, {memory:.3f} of the memory",
        held=speed >= 2 and memory <= 0.25,
        detail=f"1 thread; {peaks['masked'] / 2**20:.0f} MiB against {peaks['blocks'] / 2**20:.0f} MiB",
    )


@claim(
    "transnormer",
    name="constant_decoding",
    grade="ratio",
    statement="Constant inference time per token, whatever the length",
    where=f"{PAPER}, section 3, robust inference",
    criterion="time of a token at position 8,192 / at position 128 <= 1.2",
)
def constant_decoding() -> Measured:
    """The whole layer with LRPE, 8 heads of 64."""
    times = race_of_decoding()
    ratio = times.ratio("8192", "128")
    micro = {name: seconds / DECODED * 1e6 for name, seconds in times.median_s.items()}
    return Measured(
        value=f"{ratio:.2f}",
        held=ratio <= 1.2,
        detail=f"{micro['128']:.0f} and {micro['8192']:.0f} microseconds, 1 thread, float32",
    )


DECODED = 50
"""Tokens decoded in each turn of the race."""


@torch.no_grad()
def race_of_decoding(rounds: int = 15) -> Race:
    """Decoding after 128 and after 8,192 tokens, from the same state in every turn."""
    dim = HEADS * WIDTH
    torch.manual_seed(0)
    layer = NormLinearAttention(dim, num_heads=HEADS, lrpe=True).eval()
    (x,) = random_tensors((1, 8192, dim), seed=0)
    states = {tokens: layer.step(x[:, :tokens], layer.init_state(1))[1] for tokens in (128, 8192)}

    def go_on(state: State) -> None:
        for token in x[:, :DECODED].split(1, dim=1):
            _, state = layer.step(token, state)

    with one_thread():
        return race({str(n): functools.partial(go_on, state) for n, state in states.items()}, rounds=rounds)


@claim(
    "transnormer",
    name="cheap_norm",
    grade="ratio",
    statement="SRMSNorm is cheaper than RMSNorm, at the same quality; with the other changes the network is more than "
    "20 % faster",
    figure="> 20 % for all changes together, on a GPU",
    where=f"{PAPER}, abstract and section 3",
    criterion="SRMSNorm at least as fast as an eager RMSNorm with weight at (8192, 1024), float32, forward, and "
    "forward and backward",
)
def cheap_norm() -> Measured:
    """The weight's gradient is part of the other's backward."""
    forward, training = race_of_norms()
    ratios = [times.ratio("rms", "srms") for times in (forward, training)]
    return Measured(
        value=f"{ratios[0]:.2f}x as fast forward, {ratios[1]:.2f}x forward and backward",
        held=min(ratios) >= 1,
        detail=f"1 thread; nn.RMSNorm takes {forward.ratio('torch', 'srms'):.2f} and "
        f"{training.ratio('torch', 'srms'):.2f} times as long as SRMSNorm",
    )


def race_of_norms(rounds: int = 7) -> tuple[Race, Race]:
    """SRMSNorm ("srms"), RMSNorm written out ("rms") and PyTorch's module ("torch"): forward, then both passes."""
    x, upstream = random_tensors((8192, 1024), (8192, 1024), seed=0)
    weight, module = torch.ones(1024), nn.RMSNorm(1024, eps=1e-6)
    forms: dict[str, tuple[Callable[[Tensor], Tensor], list[Tensor]]] = {
        "srms": (simple_rms_norm, []),
        "rms": (lambda x: eager_rms_norm(x, weight), [weight]),
        "torch": (module, [module.weight]),
    }
    with one_thread():
        with torch.no_grad():
            forward = race({name: functools.partial(form, x) for name, (form, _) in forms.items()}, rounds=rounds)
        leaf = x.requires_grad_()
        weight.requires_grad_()

        def trained(form: Callable[[Tensor], Tensor], leaves: list[Tensor]) -> object:
            return torch.autograd.grad(form(leaf), [leaf, *leaves], upstream)

        training = race({name: functools.partial(trained, *form) for name, form in forms.items()}, rounds=rounds)
    return forward, training


# --------------------------------------------------------------------------------------------------- scaled


@dataclass(frozen=True)
class Recipe:
    """A small language model's training run; the same windows of text for all networks that share a seed."""

    steps: int = 300
    batch: int = 8
    length: int = 128
    evaluated: int = 65_536


RECIPE = Recipe()
SMALL = TransNormerConfig(dim=64, num_layers=2, num_heads=4, hidden=176)
RECIPE_TEXT = (
    "bytes of tiny Shakespeare (1.1 MB), 2 layers, 64 wide, 4 heads, 128 tokens x 8 rows, 300 steps, learning rate "
    "3e-3, seeds 0, 1, 2"
)
NETWORKS: Mapping[str, Callable[[], TransNormerLM | Decoder]] = {
    "mix": lambda: TransNormerLM(SMALL),
    # what the gate's projection had goes to the gated units, so that both have the same number of parameters
    "no gate": lambda: TransNormerLM(replace(SMALL, gate=False, hidden=197)),
    "decay": lambda: TransNormerLM(replace(SMALL, positions="decay")),
    "sinusoidal": lambda: TransNormerLM(replace(SMALL, positions="sinusoidal")),
    "softmax": lambda: Decoder(DecoderConfig(dim=64, num_layers=2, num_heads=4, hidden=290, mixer="softmax")),
}


@functools.cache
def validation_losses(network: str, recipe: Recipe = RECIPE) -> tuple[float, ...]:
    """Nats per byte of held-out text after training, for every seed."""
    corpus, losses = text_corpus(), []
    with one_thread():
        for seed in SEEDS:
            torch.manual_seed(seed)
            model = NETWORKS[network]()
            fit_language(model, corpus, steps=recipe.steps, batch=recipe.batch, length=recipe.length, seed=seed)
            losses.append(language_loss(model, corpus, length=recipe.length, total=recipe.evaluated))
    return tuple(losses)


def shown(network: str) -> str:
    """Mean, seeds and size of a network, for a measurement's detail."""
    losses = validation_losses(network)
    size = sum(parameter.numel() for parameter in NETWORKS[network]().parameters())
    seeds = ", ".join(f"{loss:.3f}" for loss in losses)
    return f"{network} {mean(losses):.4f} ({seeds}; {size:,} parameters)"


@claim(
    "transnormer",
    name="gate",
    grade="scaled",
    statement="The gate after the attention smooths training and improves the loss",
    figure="perplexity 4.770 with, 4.820 without (385M)",
    where=f"{PAPER}, ablations",
    criterion=f"mean validation loss with the gate < without it, at equal parameters; {RECIPE_TEXT}",
)
def gate() -> Measured:
    """Without the gate the gated units are wider."""
    with_gate, without = (mean(validation_losses(name)) for name in ("mix", "no gate"))
    wins = sum(a < b for a, b in zip(validation_losses("mix"), validation_losses("no gate"), strict=True))
    return Measured(
        value=f"{with_gate:.4f} with, {without:.4f} without (nats per byte); lower in {wins} of {len(SEEDS)} seeds",
        held=with_gate < without,
        detail=f"{text_corpus().source}; {shown('mix')}; {shown('no gate')}",
    )


@claim(
    "transnormer",
    name="positions",
    grade="scaled",
    statement="LRPE in the first layer and decay in all of them (Mix) is better than decay alone, and both are better "
    "than absolute positions",
    figure="perplexity: Mix 4.770, decay only 4.834, absolute 5.253 (385M)",
    where=f"{PAPER}, ablations",
    criterion=f"mean validation loss Mix <= decay only <= sinusoidal; {RECIPE_TEXT}",
)
def positions() -> Measured:
    """Sinusoids are added to the embedding, and the layers have neither decay nor LRPE."""
    mix, decay, sinusoidal = (mean(validation_losses(name)) for name in ("mix", "decay", "sinusoidal"))
    return Measured(
        value=f"Mix {mix:.4f}, decay only {decay:.4f}, sinusoidal {sinusoidal:.4f} (nats per byte)",
        held=mix <= decay <= sinusoidal,
        detail=f"{text_corpus().source}; {shown('mix')}; {shown('decay')}; {shown('sinusoidal')}",
    )


@claim(
    "transnormer",
    name="absolute_positions_worst",
    grade="scaled",
    statement="Absolute positions are worse than decay, with or without LRPE",
    figure="perplexity: absolute 5.253, decay only 4.834, Mix 4.770 (385M)",
    where=f"{PAPER}, ablations",
    criterion=f"the sinusoidal network's mean validation loss is the largest of the three; {RECIPE_TEXT}",
)
def absolute_positions_worst() -> Measured:
    """The part of the order over positions that must hold."""
    mix, decay, sinusoidal = (mean(validation_losses(name)) for name in ("mix", "decay", "sinusoidal"))
    return Measured(
        value=f"sinusoidal {sinusoidal:.4f}, the others at most {max(mix, decay):.4f} (nats per byte)",
        held=sinusoidal > max(mix, decay),
        detail=f"{text_corpus().source}; {shown('mix')}; {shown('decay')}; {shown('sinusoidal')}",
    )


@claim(
    "transnormer",
    name="as_good_as_softmax",
    grade="scaled",
    statement="The first linear-attention language model that is better than softmax attention",
    where=f"{PAPER}, abstract",
    criterion="mean validation loss within 3 % of that of a softmax Transformer with rotary positions and as many "
    f"parameters, or below it; {RECIPE_TEXT}",
)
def as_good_as_softmax() -> Measured:
    """The Transformer is pre-norm, with LayerNorm and a GELU perceptron."""
    ours, theirs = (mean(validation_losses(name)) for name in ("mix", "softmax"))
    return Measured(
        value=f"{ours:.4f} against {theirs:.4f} (nats per byte): {ours / theirs - 1:+.1%}",
        held=ours <= 1.03 * theirs,
        detail=f"{text_corpus().source}; {shown('mix')}; {shown('softmax')}",
    )


# --------------------------------------------------------------------------------------------------- out of reach


out_of_reach(
    "transnormer",
    name="large_language_models",
    statement="Networks of up to 7B parameters match softmax language models on benchmarks; the layout scales to 175B",
    figure="7B zero-shot: BoolQ 75.87, PIQA 80.09, HellaSwag 75.21, MMLU 43.10 (LLaMA-2 7B: 77.68, 78.07, 76.02, "
    "45.30)",
    where=PAPER,
    criterion="benchmark scores of trained networks with 0.4 to 175 billion parameters",
    reason="training takes clusters of GPUs for weeks and the authors' own corpus; a test loads the names and shapes "
    "of the released 385M, and counted parameters stand in",
)
out_of_reach(
    "transnormer",
    name="inference_throughput",
    statement="At 7B, inference has several times the throughput of softmax networks of that size",
    figure="2,819.6 tokens/s on an A100, against 252 to 967 for seven softmax networks of 6B to 7B",
    where=PAPER,
    criterion="tokens per second of 7B networks on one A100",
    reason="it takes an A100 and the weights; the time of a token at position 8,192 against that at 128 stands in",
)
