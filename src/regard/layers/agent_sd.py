"""Agent attention without training in the self-attention of a diffusion U-Net (AgentSD): merge, attend, unmerge.

Similar tokens of the latent map are merged; a smaller, more strongly merged set of the same tokens becomes the agents,
which go through the layer's own query projection. Only the layer's trained weights are used.
Paper: "Agent Attention: On the Integration of Softmax and Linear Attention", Han et al., ECCV 2024,
https://arxiv.org/abs/2312.08874, the section on Stable Diffusion; merging as in "Token Merging for Fast Stable
Diffusion", Bolya and Hoffman, CVPR Workshops 2023, https://arxiv.org/abs/2303.17604.
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agentsd/patch.py:make_agent_attn`, the branch for latent diffusion
(the one for diffusers never hands agents over, and fails). There every layer of a network is patched; here the layer
stands by itself, and `agent_sd_unet` puts it into a network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import load_strictly
from regard.layers.reference_names import rename_all
from regard.ops.agent_attention import agent_attention
from regard.ops.heads import head_width, merge_heads, split_heads
from regard.ops.softmax_attention import softmax_attention
from regard.ops.token_merging import Size, match_tokens

Tokens = Float[Tensor, "batch tokens channels"]


@dataclass(frozen=True, kw_only=True)
class MergingPhase:
    """How tokens are merged during some steps of sampling.

    Args:
        cell: rows and columns of a cell of the map, of which one token takes others up.
        ratio: share of the tokens that are merged.
        agent_ratio: share of the tokens that are merged to give the agents.

    Raises:
        ValueError: a cell that is not positive, or a ratio outside [0, 1].
    """

    cell: Size
    ratio: float
    agent_ratio: float

    def __post_init__(self) -> None:
        if min(self.cell) < 1:
            raise ValueError(f"cell must be positive, got {self.cell}")
        for name in ("ratio", "agent_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class AgentSDSchedule:
    """Agents in the first steps, merging alone in the later ones, whose agents would be too many.

    Args:
        early: the first steps.
        late: all others.
        early_share: share of the steps that are early: 20 of 50.
        max_downsample: pixels of the latent per token and side up to which a layer merges.

    Raises:
        ValueError: a share outside [0, 1].
    """

    early: MergingPhase = MergingPhase(cell=(4, 4), ratio=0.4, agent_ratio=0.95)
    late: MergingPhase = MergingPhase(cell=(2, 2), ratio=0.4, agent_ratio=0.5)
    early_share: float = 0.4
    max_downsample: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.early_share <= 1:
            raise ValueError(f"early_share must be in [0, 1], got {self.early_share}")

    def phase(self, step: int, num_steps: int = 50) -> MergingPhase:
        """The phase of a step, counted from 0.

        Raises:
            ValueError: a step that is not one of `num_steps`.
        """
        if not 0 <= step < num_steps:
            raise ValueError(f"step must be in [0, {num_steps}), got {step}")
        return self.early if step < round(self.early_share * num_steps) else self.late


class AgentSDAttention(nn.Module):
    """softmax(d^(-e/2) Q A^T) softmax(d^(-1/2) A K^T) V + k V with the projections of a trained self-attention.

    Args:
        q_proj: projection to queries, of tokens and of agents alike.
        k_proj: projection to keys.
        v_proj: projection to values.
        o_proj: what follows the heads.
        num_heads: number of heads; must divide the width of `q_proj`.
        query_exponent: e, which flattens the second softmax (the authors' `k_scale2`).
        shortcut: k, the factor of the merged tokens' values that are added.
        float32_scores: compute scores in float32 at least, for weights whose scores leave the range of float16.

    Raises:
        ValueError: heads that do not divide the width.

    Cost: for N tokens of which M stay and n become agents, 2 n (M + M) C + 4 M C^2 + n C^2 MACs, and N D C for the
    similarity of N - D tokens with one per cell, D in number.
    """

    def __init__(
        self,
        q_proj: nn.Linear,
        k_proj: nn.Linear,
        v_proj: nn.Linear,
        o_proj: nn.Module,
        *,
        num_heads: int,
        query_exponent: float = 0.3,
        shortcut: float = 0.075,
        float32_scores: bool = False,
    ) -> None:
        super().__init__()
        self.head_dim = head_width(q_proj.out_features, num_heads)
        self.num_heads = num_heads
        self.query_exponent = query_exponent
        self.shortcut = shortcut
        self.float32_scores = float32_scores
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = q_proj, k_proj, v_proj, o_proj

    @classmethod
    def around(cls, attention: Any, *, float32_scores: bool = False) -> AgentSDAttention:
        """The layer around a U-Net's attention (latent diffusion's or diffusers'), whose weights it shares.

        Args:
            attention: has `to_q`, `to_k`, `to_v`, `to_out` and `heads`.
            float32_scores: compute scores in float32 at least, as Stable Diffusion 2.1 needs it.
        """
        out = attention.to_out
        return cls(
            attention.to_q,
            attention.to_k,
            attention.to_v,
            nn.Sequential(*out) if isinstance(out, nn.ModuleList) else out,
            num_heads=attention.heads,
            float32_scores=float32_scores,
        )

    def forward(
        self,
        x: Tokens,
        space: Size,
        phase: MergingPhase,
        *,
        metric: Tokens | None = None,
        random: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tokens:
        """The attention's output for every token, without the residual.

        Args:
            x: normed tokens of a map, row-major.
            space: rows and columns of the map; one that is smaller than a cell is attended to without merging.
            phase: how to merge.
            metric: what is compared to match tokens; None = `x`. The authors compare the tokens before the norm.
            random: a random token per cell takes others up, if the batch is even (an image and its unconditional twin
                must share the choice), else the top left one.
            generator: where the random numbers come from, on the device of `x`.

        Raises:
            ValueError: a map that has another number of tokens.
        """
        if space[0] < phase.cell[0] or space[1] < phase.cell[1]:
            return self.attend(x)
        chosen = random and x.shape[0] % 2 == 0
        matching = match_tokens(x if metric is None else metric, space, phase.cell, random=chosen, generator=generator)
        count = matching.merged_count(int(x.shape[1] * phase.ratio))
        agent_count = matching.merged_count(int(x.shape[1] * phase.agent_ratio))
        has_agents = 2 * (matching.tokens - agent_count) < matching.tokens - count
        agents = matching.merge(x, agent_count) if has_agents else None
        return matching.unmerge(self.attend(matching.merge(x, count), agents), count)

    def attend(self, x: Tokens, agents: Float[Tensor, "batch agents channels"] | None = None) -> Tokens:
        """Attention between tokens through agents; ordinary attention where there are not twice as many tokens.

        Args:
            x: tokens, merged or not.
            agents: tokens before the query projection.
        """
        q, k, v = (self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        if agents is None or 2 * agents.shape[1] >= x.shape[1]:
            return self._out(softmax_attention(q, k, v), x)
        through = agent_attention(
            q, self._heads(self.q_proj(agents)), k, v, query_scale=self.head_dim ** (-self.query_exponent / 2)
        )
        return self._out(through + self.shortcut * v, x)

    def _heads(self, projected: Tensor) -> Float[Tensor, "batch heads tokens head_dim"]:
        heads = split_heads(projected, self.num_heads)
        return heads.to(torch.promote_types(heads.dtype, torch.float32)) if self.float32_scores else heads

    def _out(self, mixed: Tensor, x: Tokens) -> Tokens:
        return self.o_proj(merge_heads(mixed).to(x.dtype))

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load latent diffusion's layout of the attention: `to_q`, `to_k`, `to_v`, `to_out.0`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, rename_all(state_dict, AGENT_SD_NAMES))


AGENT_SD_NAMES = ((r"^to_([qkv])\.", r"\1_proj."), (r"^to_out\.", "o_proj."))
"""Latent diffusion's names of an attention's parts as ours."""
