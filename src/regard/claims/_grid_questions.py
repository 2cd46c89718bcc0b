"""A tiny multimodal transformer that answers questions about one patch of a grid, and sinks that are made stronger.

A sequence holds a start token, an image of 4 x 4 patches behind one register, and a question: which patch, and whether
its colour or its shape is asked. A patch's features are its colour and its shape in one-hot form and noise. The start
token and the register carry large numbers in two dimensions of the residual stream, where no other token has any: they
are what sinks are in a large model. Norms have no weight, so that what enters a mixer shows the same phi.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from regard.claims._training import fit
from regard.layers.feed_forward import FeedForward
from regard.layers.norms import SimpleRMSNorm
from regard.mixers.sequence.var import VARAttention

GRID, COLOURS, SHAPES = 4, 4, 4
PATCHES = GRID**2
TOKENS = 1 + 1 + PATCHES + 2
"""Start, register, patches, place, attribute."""
SINKS, SINK_DIMS, SINK_SIZE = (0, 1), (5, 40), 20.0
DIM, HEADS, LAYERS, HIDDEN = 64, 4, 2, 128
NOISE = 0.5
TAU = 4.0
"""Half of the largest possible phi, sqrt(64)."""


@dataclass(frozen=True)
class Questions:
    """Images, and one question about each.

    Args:
        patches: features of the patches.
        places: number of the patch that is asked about.
        attributes: 0 where its colour is asked, 1 where its shape is.
        answers: colours first, then shapes.
    """

    patches: Float[Tensor, "batch patches features"]
    places: Int[Tensor, " batch"]
    attributes: Int[Tensor, " batch"]
    answers: Int[Tensor, " batch"]


def sample(*, seed: int, step: int, batch: int) -> Questions:
    """Random images and questions."""
    random = np.random.default_rng([seed, step])
    colours, shapes = (random.integers(0, kinds, size=(batch, PATCHES)) for kinds in (COLOURS, SHAPES))
    features = np.concatenate((np.eye(COLOURS)[colours], np.eye(SHAPES)[shapes]), axis=2)
    features += NOISE * random.standard_normal(features.shape)
    places, attributes, rows = (
        random.integers(0, PATCHES, size=batch),
        random.integers(0, 2, size=batch),
        np.arange(batch),
    )
    answers = np.where(attributes == 0, colours[rows, places], COLOURS + shapes[rows, places])
    made = (torch.from_numpy(each) for each in (places, attributes, answers))
    return Questions(torch.from_numpy(features).float(), *made)


class Block(nn.Module):
    """h + mixer(norm(h)), then h + MLP(norm(h)); `bias` is added to the mixer's scores."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = SimpleRMSNorm()
        self.mixer = VARAttention(
            DIM, num_heads=HEADS, image_span=(1, 1 + PATCHES), sink_dims=SINK_DIMS, tau=TAU, active=False
        )
        self.mlp = FeedForward(DIM, HIDDEN)

    def forward(self, h: Float[Tensor, "batch tokens dim"], bias: Tensor | None) -> Float[Tensor, "batch tokens dim"]:
        """One layer."""
        h = h + self.mixer(self.norm(h), bias=bias)
        return h + self.mlp(self.norm(h))


class GridReader(nn.Module):
    """Scores of the answers, read at the last token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_patches = nn.Linear(COLOURS + SHAPES, DIM)
        self.embed_places = nn.Embedding(PATCHES, DIM)
        self.embed_attributes = nn.Embedding(2, DIM)
        self.positions = nn.Parameter(0.5 * torch.randn(TOKENS, DIM))
        planted = torch.zeros(TOKENS, DIM)
        planted[torch.tensor(SINKS)[:, None], torch.tensor(SINK_DIMS)] = SINK_SIZE
        self.register_buffer("planted", planted)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = SimpleRMSNorm()
        self.head = nn.Linear(DIM, COLOURS + SHAPES)

    def embed(self, asked: Questions) -> Float[Tensor, "batch tokens dim"]:
        """What enters the first layer."""
        patches = self.embed_patches(asked.patches)
        empty = patches.new_zeros(len(patches), len(SINKS), DIM)
        question = torch.stack((self.embed_places(asked.places), self.embed_attributes(asked.attributes)), dim=1)
        return torch.cat((empty, patches, question), dim=1) + self.positions + self.get_buffer("planted")

    def forward(self, asked: Questions, bias: Tensor | None = None) -> Float[Tensor, "batch answers"]:
        """Scores under a bias of attention scores."""
        h = self.embed(asked)
        for block in self.blocks:
            h = block(h, bias)
        return self.head(self.norm(h[:, -1]))

    def mixers(self) -> list[VARAttention]:
        """The mechanism of every layer."""
        return [block.mixer for block in self.blocks if isinstance(block, Block)]


def trained_reader(*, seed: int, steps: int, batch: int = 64, learning_rate: float = 3e-3) -> GridReader:
    """A reader trained with plain attention."""
    torch.manual_seed(seed)
    model = GridReader()
    fit(
        model,
        lambda step: sample(seed=seed, step=step, batch=batch),
        lambda network, asked: F.cross_entropy(network(asked), asked.answers),
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
    )
    return model


@torch.no_grad()
def accuracy(model: GridReader, *, sink_bias: float = 0.0, redistribute: bool, questions: int = 4096) -> float:
    """Percent of unseen questions that are answered rightly.

    Args:
        model: the reader.
        sink_bias: added to the scores of both sinks in all heads and layers.
        redistribute: switch redistribution on, in all layers.
        questions: number of questions.
    """
    asked = sample(seed=10_000, step=0, batch=questions)
    bias = torch.zeros(1, HEADS, TOKENS, TOKENS)
    bias[..., list(SINKS)] = sink_bias
    mixers = model.mixers()
    for mixer in mixers:
        mixer.active = redistribute
    scores = model(asked, bias)
    for mixer in mixers:
        mixer.active = False
    return 100 * float((scores.argmax(dim=-1) == asked.answers).float().mean())
