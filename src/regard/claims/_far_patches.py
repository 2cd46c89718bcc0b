"""A task whose answer lies far away: a patch asks for the value of the one other patch that has the key it names.

A map of 4 x 4 patches, each of 2 x 2 positions that are equal but for a little noise. A vector has three parts: a key
that is asked for, a key that the patch has, both of random signs, and a value in one-hot form. Six patches ask, each is
answered by a patch at least two patches away, and four more have keys and values that nobody asks for.

A patch fills a region, so that a region's mean says what it holds. That is the favourable case: in two trial runs of
one block in which keys stood at single positions of otherwise empty regions, 800 steps ended at 39 and 70 % right, and
the region that answers was chosen for 8 and 59 % of the questions; no gradient teaches the choice.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from regard.claims._training import fit
from regard.contract import FeatureMixer
from regard.layers.biformer_block import BiFormerBlock

PATCHES, PATCH = 4, 2
"""Patches per side of the map, and positions per side of a patch."""
ASKING, OTHERS, FAR = 6, 4, 2
VALUES, KEY_WIDTH, NOISE = 8, 16, 0.1
CHANNELS, DIM, HIDDEN, BLOCKS = 2 * KEY_WIDTH + VALUES, 48, 72, 2
Batch = tuple[Float[Tensor, "batch channels y x"], Int[Tensor, "batch asking"], Int[Tensor, "batch asking"]]


class Reader(nn.Module):
    """Blocks around a mixer, and the scores of the values for every patch.

    Args:
        mixer: makes the mixer of a block from the width.
    """

    def __init__(self, mixer: Callable[[int], FeatureMixer]) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(CHANNELS, DIM, 1)
        self.blocks = nn.Sequential(*(BiFormerBlock(mixer(DIM), channels=DIM, hidden=HIDDEN) for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(DIM)
        self.head = nn.Linear(DIM, VALUES)

    def forward(self, x: Float[Tensor, "batch channels y x"]) -> Float[Tensor, "batch patches values"]:
        """Patches in row-major order."""
        patches = avg_pool2d(self.blocks(self.embedding(x)), PATCH).flatten(2).transpose(1, 2)
        return self.head(self.norm(patches))


def _placed(random: np.random.Generator, batch: int) -> np.ndarray:
    """Patches that ask, those that answer them, and the others, in every row; none twice."""
    found: list[np.ndarray] = []
    while len(found) < batch:
        drawn = random.random((16 * batch, PATCHES**2)).argsort(axis=1)[:, : 2 * ASKING + OTHERS]
        asking, answering = drawn[:, :ASKING], drawn[:, ASKING : 2 * ASKING]
        rows, columns = asking // PATCHES - answering // PATCHES, asking % PATCHES - answering % PATCHES
        found += list(drawn[(np.maximum(np.abs(rows), np.abs(columns)) >= FAR).all(axis=1)])
    return np.stack(found[:batch])


def sample(seed: int, step: int, *, batch: int) -> Batch:
    """Maps, the patches that ask, and the values that answer them."""
    random = np.random.default_rng([seed, step])
    placed, row = _placed(random, batch), np.arange(batch)[:, None]
    asking, holding = placed[:, :ASKING], placed[:, ASKING:]
    keys = random.choice(np.array([-1, 1], dtype=np.float32), size=(batch, ASKING + OTHERS, KEY_WIDTH))
    values = random.integers(VALUES, size=(batch, ASKING + OTHERS))
    patches = np.zeros((batch, PATCHES**2, CHANNELS), dtype=np.float32)
    patches[row, asking, :KEY_WIDTH] = keys[:, :ASKING]
    patches[row, holding, KEY_WIDTH : 2 * KEY_WIDTH] = keys
    patches[row, holding, 2 * KEY_WIDTH + values] = 1
    maps = patches.transpose(0, 2, 1).reshape(batch, CHANNELS, PATCHES, PATCHES).repeat(PATCH, 2).repeat(PATCH, 3)
    maps += NOISE * random.standard_normal(maps.shape, dtype=np.float32)
    return torch.from_numpy(maps), torch.from_numpy(asking), torch.from_numpy(values[:, :ASKING])


def scores_where_asked(model: nn.Module, given: Batch) -> Float[Tensor, "batch asking values"]:
    """The network's scores for the patches that ask."""
    x, asking, _ = given
    return model(x).take_along_dim(asking[..., None], dim=1)


def trained_reader(
    mixer: Callable[[int], FeatureMixer], *, steps: int, batch: int, learning_rate: float, seed: int
) -> Reader:
    """A network built and trained from `seed`; all mixers see the same maps."""
    torch.manual_seed(seed)
    model = Reader(mixer)

    def loss(network: nn.Module, given: Batch) -> Tensor:
        return F.cross_entropy(scores_where_asked(network, given).flatten(0, 1), given[2].flatten())

    fit(
        model,
        lambda step: sample(seed, step, batch=batch),
        loss,
        steps=steps,
        learning_rate=learning_rate,
        weight_decay=0.0,
        seed=seed,
    )
    return model


@torch.no_grad()
def reading_accuracy(model: nn.Module, *, maps: int = 256) -> float:
    """Percent of the questions of unseen maps that are answered rightly."""
    given = sample(10_000, 0, batch=maps)
    return 100 * float((scores_where_asked(model, given).argmax(dim=-1) == given[2]).float().mean())
