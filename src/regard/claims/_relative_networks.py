"""What RCMHA's claims compare: the plain form of relative attention, and language models trained with a memory."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.claims._training import CLIP_NORM, text_corpus
from regard.layers.xl_attention import XLAttention
from regard.measure import one_thread
from regard.models.language.rcmha import Attention, Memory, RCMHALanguageConfig, RCMHALanguageModel
from regard.tasks.recipe import Recipe


class PlainRelativeAttention(nn.Module):
    """Relative attention as it is plainly written: sequence first, every map whole, the shift by padding.

    Tables hold 8,192 rows, scores are `(queries, keys, batch, heads)`, and the products with distances are copied for
    the shift, as in labml_nn's `transformers/xl`, which the paper's RMHA is.

    Args:
        dim: width of the model.
        num_heads: number of heads.
    """

    def __init__(self, dim: int, num_heads: int, *, max_positions: int = 4096) -> None:
        super().__init__()
        self.num_heads, self.max_positions = num_heads, max_positions
        self.q_proj, self.k_proj = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.v_proj, self.o_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
        width = dim // num_heads
        self.embeddings = nn.Parameter(torch.zeros(2 * max_positions, num_heads, width))
        self.offset_bias = nn.Parameter(torch.zeros(2 * max_positions, num_heads))
        self.content_bias = nn.Parameter(torch.zeros(num_heads, width))

    def forward(self, x: Tensor) -> Tensor:
        """Causal, for `(tokens, batch, dim)`."""
        q, k, v = (part(x).unflatten(-1, (self.num_heads, -1)) for part in (self.q_proj, self.k_proj, self.v_proj))
        tokens = len(x)
        rows = slice(self.max_positions - tokens, self.max_positions + tokens)
        contents = torch.einsum("ibhd,jbhd->ijbh", q + self.content_bias, k)
        products = torch.einsum("ibhd,jhd->ijbh", q, self.embeddings[rows]) + self.offset_bias[rows][None, :, None]
        padded = torch.cat((products, products.new_zeros(tokens, 1, *products.shape[2:])), dim=1)
        laid_out = padded.view(2 * tokens + 1, tokens, *products.shape[2:])[:-1].view_as(products)
        scores = (contents + laid_out[:, -tokens:]) * q.shape[-1] ** -0.5
        past = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).tril()
        weights = scores.masked_fill(~past[..., None, None], -math.inf).softmax(dim=1)
        return self.o_proj(torch.einsum("ijbh,jbhd->ibhd", weights, v).flatten(2))


def plain_twin(mixer: XLAttention) -> PlainRelativeAttention:
    """The plain form with the mixer's parameters, which has relative scores and no convolution."""
    plain = PlainRelativeAttention(mixer.dim, mixer.num_heads, max_positions=mixer.max_positions)
    plain.load_state_dict(mixer.state_dict())
    return plain


# --------------------------------------------------------------------------------------------------- language models


@dataclass(frozen=True)
class MemoryRecipe:
    """Training on consecutive segments of several stretches of text, each with a memory of the segment before."""

    steps: int = 600
    batch: int = 8
    length: int = 64
    mem_len: int = 64
    learning_rate: float = 3e-3
    evaluated: int = 32_768


RECIPE = MemoryRecipe()


def small_network(attention: Attention, recipe: MemoryRecipe) -> RCMHALanguageModel:
    """2 layers, 64 wide, 4 heads; tables no longer than a segment and its memory."""
    return RCMHALanguageModel(
        RCMHALanguageConfig(
            dim=64,
            num_layers=2,
            num_heads=4,
            hidden=128,
            attention=attention,
            mem_len=recipe.mem_len,
            max_positions=recipe.length + recipe.mem_len,
        )
    )


def segments(content: Tensor, *, batch: int, length: int, step: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and targets `(batch, length)` of a step: every row reads a stretch of its own, from a seed's start on."""
    stretch = (len(content) - 1) // batch
    start = (7919 * seed + step * length) % max(1, stretch - length)
    rows = content[torch.arange(batch)[:, None] * stretch + start + torch.arange(length + 1)]
    return rows[:, :-1], rows[:, 1:]


@functools.cache
def validation_accuracy(attention: Attention, seed: int, recipe: MemoryRecipe = RECIPE) -> float:
    """Share of held-out bytes that are predicted rightly after training."""
    corpus = text_corpus()
    with one_thread():
        torch.manual_seed(seed)
        model = small_network(attention, recipe).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95))
        rate = Recipe(steps=recipe.steps, learning_rate=1.0).rate
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        memory: Memory | None = None
        for step in range(recipe.steps):
            tokens, targets = segments(corpus.train, batch=recipe.batch, length=recipe.length, step=step, seed=seed)
            scores, memory = model.read(tokens, memory)
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(scores.flatten(0, 1), targets.flatten()).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            schedule.step()
        return _accuracy(model.eval(), corpus.validation, recipe)


@torch.no_grad()
def _accuracy(model: RCMHALanguageModel, content: Tensor, recipe: MemoryRecipe) -> float:
    right, asked, memory = 0, 0, None
    for step in range(max(1, recipe.evaluated // (recipe.batch * recipe.length))):
        tokens, targets = segments(content, batch=recipe.batch, length=recipe.length, step=step)
        scores, memory = model.read(tokens, memory)
        right += int((scores.argmax(dim=-1) == targets).sum())
        asked += targets.numel()
    return right / asked
