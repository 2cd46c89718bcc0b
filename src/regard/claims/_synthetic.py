"""The two synthetic tasks of URPE: to say where a token stands, and to gather every second token at the front.

Paper: "Your Transformer May Not be as Powerful as You Expect", Luo et al., NeurIPS 2022,
https://arxiv.org/abs/2205.13401, the synthetic tasks; as lsj2408/URPE@47b711f8 makes them,
`fairseq/tasks/synthetic_task.py`: random tokens, and targets that follow from positions alone (position
identification) or from tokens at given positions (even token prediction).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from regard.measure import one_thread
from regard.models.language.urpe_encoder import URPEEncoder, URPEEncoderConfig

SPECIAL = 11
"""Ids before the first token that is drawn."""
LEFT_OUT = 20
"""How many of the ids are never drawn."""
PADDING = 1
"""A target of this id is not learned."""
VALIDATION_STEP = 1_000_000
"""The step whose examples no training run sees."""

Ids = Int[Tensor, "batch tokens"]


@dataclass(frozen=True, kw_only=True)
class SyntheticTask:
    """Rows of random tokens with a target for each.

    Args:
        name: "positions" (position identification) or "even" (even token prediction).
        tokens: length of a row; even for even token prediction.
        ids: V; tokens are drawn from 11 to V - 10, and the dictionary has V + 11 ids.

    Raises:
        ValueError: an unknown task, an odd length where every second token is asked, or too few ids.
    """

    name: str
    tokens: int = 32
    ids: int = 50

    def __post_init__(self) -> None:
        if self.name not in ("positions", "even"):
            raise ValueError(f"name must be 'positions' or 'even', got {self.name!r}")
        if self.tokens < 2 or (self.name == "even" and self.tokens % 2):
            raise ValueError(f"even token prediction needs an even number of tokens, got {self.tokens}")
        if self.ids <= LEFT_OUT or (self.name == "positions" and self.tokens >= self.vocab_size):
            raise ValueError(f"{self.ids} ids are too few for {self.tokens} tokens: more than {LEFT_OUT} are needed")

    @property
    def vocab_size(self) -> int:
        """Ids of the dictionary."""
        return self.ids + SPECIAL

    @property
    def scored(self) -> slice:
        """Where answers count: of even token prediction the first half, since the rest is one constant token."""
        return slice(0, self.tokens // 2) if self.name == "even" else slice(1, self.tokens)

    def examples(self, *, batch: int, seed: int, step: int) -> tuple[Ids, Ids]:
        """Tokens and targets; the same for the same seed and step."""
        generator = torch.Generator().manual_seed(1_000_003 * seed + step)
        shape = (batch, self.tokens)
        tokens = torch.randint(SPECIAL, self.ids + SPECIAL - LEFT_OUT, shape, generator=generator)
        if self.name == "positions":
            return tokens, torch.arange(1, self.tokens + 1).expand(shape)
        end = torch.full((batch, self.tokens // 2), self.ids - 2)
        return tokens, torch.cat((tokens[:, 1::2], end), dim=1)

    def loss(self, scores: Float[Tensor, "batch tokens vocab"], targets: Ids) -> Float[Tensor, ""]:
        """Cross-entropy over all targets but the padding's id."""
        return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=PADDING)

    def accuracy(self, scores: Float[Tensor, "batch tokens vocab"], targets: Ids) -> float:
        """Share of scored targets that have the highest score."""
        right = scores.argmax(dim=-1) == targets
        return float(right[:, self.scored].float().mean())


@dataclass(frozen=True, kw_only=True)
class SyntheticRecipe:
    """One training run: Adam, a warm-up, then a linear decay to 0."""

    steps: int = 1500
    batch: int = 32
    learning_rate: float = 1e-3
    warmup: int = 150

    def rate(self, step: int) -> float:
        """The learning rate's factor at a step, from 0."""
        return min((step + 1) / self.warmup, (self.steps - step) / max(1, self.steps - self.warmup))


NETWORK = URPEEncoderConfig(dim=64, num_layers=2, num_heads=4, hidden=256, head="untied")


def network_of(task: SyntheticTask, form: str, network: URPEEncoderConfig = NETWORK) -> URPEEncoder:
    """An encoder for the task: "URPE", "RPE" (C = 1) or "noPE" (neither B nor C)."""
    return URPEEncoder(
        replace(
            network,
            vocab_size=task.vocab_size,
            max_positions=task.tokens,
            biases="none" if form == "noPE" else "unique",
            factors="unique" if form == "URPE" else "none",
        )
    )


def accuracy_after_training(
    task: SyntheticTask,
    form: str,
    *,
    seed: int,
    recipe: SyntheticRecipe | None = None,
    network: URPEEncoderConfig = NETWORK,
) -> float:
    """Train a new network on fresh examples, and score 256 that it has not seen."""
    recipe = recipe or SyntheticRecipe()
    with one_thread():
        torch.manual_seed(seed)
        model = network_of(task, form, network).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=recipe.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, recipe.rate)
        for step in range(recipe.steps):
            tokens, targets = task.examples(batch=recipe.batch, seed=seed, step=step)
            optimizer.zero_grad(set_to_none=True)
            task.loss(model(tokens), targets).backward()
            optimizer.step()
            schedule.step()
        tokens, targets = task.examples(batch=256, seed=seed, step=VALIDATION_STEP)
        with torch.no_grad():
            return task.accuracy(model.eval()(tokens), targets)
