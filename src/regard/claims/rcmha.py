"""The claims of RCMHA: more accurate than MHA, MDHA and RMHA, with less memory than RMHA."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from regard.claims import Measured, claim, out_of_reach
from regard.claims._operators import random_tensors
from regard.claims._relative_networks import RECIPE, plain_twin, validation_accuracy
from regard.claims._training import SEEDS, mean, text_corpus
from regard.measure import one_thread, peak_bytes
from regard.mixers.sequence.rcmha import RCMHA
from regard.mixers.sequence.rmha import RMHA
from regard.mixers.sequence.softmax import SoftmaxAttention
from regard.models.language.rcmha import ATTENTIONS, Attention, RCMHALanguageModel

PAPER = "RCMHA (arXiv 2308.03429)"
LIKE_THE_PAPERS = 2.98 / 3.5
"""RCMHA's memory over RMHA's, as the paper reports it."""
SHOWN: dict[Attention, str] = {"rcmha": "RCMHA", "rmha": "RMHA", "mdha": "MDHA", "softmax": "MHA"}


@claim(
    "rcmha",
    name="parameter_counts",
    grade="exact",
    statement="The convolutions are depthwise, and the heads share them",
    where=f"{PAPER}, the attention's definition",
    criterion="parameters as counted on the authors' code: 1,180,224 in an attention layer (128 wide, 8 heads), "
    "1,180,032 in RMHA's and 66,048 in MHA's, so that convolutions add 3 (3 d + d) = 192 at d = 16; 7,496,897 in the "
    "language model of tiny Shakespeare",
)
def parameter_counts() -> Measured:
    """Counted without memory for weights."""
    with torch.device("meta"):
        modules: list[nn.Module] = [
            RCMHA(128, num_heads=8),
            RMHA(128, num_heads=8),
            SoftmaxAttention(128, num_heads=8, qkv_bias=True),
            RCMHALanguageModel(RCMHALanguageModel.VARIANTS["rcmha_shakespeare"].config),
        ]
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in modules]
    return Measured(
        value=", ".join(f"{count:,}" for count in counts),
        held=counts == [1_180_224, 1_180_032, 66_048, 7_496_897] and counts[0] - counts[1] == 192,
        detail=f"convolutions add {counts[0] - counts[1]}; RCMHA, RMHA, MHA, the language model",
    )


def training_step(module: nn.Module, x: Tensor) -> Callable[[], object]:
    """Forward and backward of one layer; gradients of its parameters are part of the step."""
    parameters = list(module.parameters())

    def step() -> object:
        return torch.autograd.grad(module(x).square().sum(), parameters)

    return step


@claim(
    "rcmha",
    name="memory",
    grade="ratio",
    statement="RCMHA needs less memory than RMHA",
    figure="2.98 GB on average, against RMHA's 3.5 GB: 0.85x",
    where=f"{PAPER}, abstract",
    criterion="peak extra memory of a training step of RCMHA, with tables of 512 positions, <= 0.85x that of RMHA in "
    "its plain form with 8,192 rows (128 wide, 8 heads, 512 tokens, 1 row, float32); against RMHA in our form, with "
    "the same tables, it is reported",
)
def memory() -> Measured:
    """The smallest of three peaks each."""
    torch.manual_seed(0)
    with one_thread():
        peaks = {name: min(peak_bytes(step, warmup=1) for _ in range(3)) for name, step in memory_race().items()}
    lean, same = peaks["RCMHA"] / peaks["plain RMHA"], peaks["RCMHA"] / peaks["RMHA"]
    return Measured(
        value=f"{lean:.2f}x of the plain form, {same:.2f}x of RMHA in the same form",
        held=lean <= LIKE_THE_PAPERS,
        detail=", ".join(f"{name} {peak / 2**20:.0f} MiB" for name, peak in peaks.items()) + "; 1 thread",
    )


def memory_race() -> dict[str, Callable[[], object]]:
    """Training steps of both attentions as they are here, and of RMHA in its plain form, which is sequence first."""
    (x,) = random_tensors((1, 512, 128), seed=0)
    return {
        "RCMHA": training_step(RCMHA(128, num_heads=8, max_positions=512), x),
        "RMHA": training_step(RMHA(128, num_heads=8, max_positions=512), x),
        "plain RMHA": training_step(plain_twin(RMHA(128, num_heads=8)), x.transpose(0, 1)),
    }


@claim(
    "rcmha",
    name="accuracy",
    grade="scaled",
    statement="RCMHA predicts the next character more accurately than MHA, MDHA and RMHA",
    figure="accuracy 0.572, the others below",
    where=f"{PAPER}, abstract",
    criterion="mean accuracy on held-out bytes: RCMHA > RMHA > MHA > MDHA; tiny Shakespeare, 2 layers, 64 wide, 4 "
    f"heads, segments of {RECIPE.length} with a memory of {RECIPE.mem_len}, {RECIPE.batch} rows, {RECIPE.steps} steps, "
    "seeds 0, 1, 2; MHA and MDHA know no positions, and MDHA has Primer's filters",
)
def accuracy() -> Measured:
    """All four networks read the same segments."""
    reached = {name: [validation_accuracy(name, seed) for seed in SEEDS] for name in ATTENTIONS}
    means = {name: mean(values) for name, values in reached.items()}
    order: list[Attention] = ["rcmha", "rmha", "softmax", "mdha"]
    shown = "; ".join(f"{SHOWN[name]} " + ", ".join(f"{value:.4f}" for value in reached[name]) for name in order)
    return Measured(
        value=", ".join(f"{SHOWN[name]} {means[name]:.4f}" for name in order),
        held=all(means[better] > means[worse] for better, worse in itertools.pairwise(order)),
        detail=f"{text_corpus().source}; seed by seed: {shown}",
    )


out_of_reach(
    "rcmha",
    name="gigabytes",
    statement="2.98 GB of memory on average, where RMHA needs 3.5 GB",
    figure="2.98 GB, 3.5 GB",
    where=f"{PAPER}, abstract",
    criterion="memory of both networks in training on a GPU",
    reason="the batch that was measured is not told; the ratio of a training step's peaks stands in",
)
