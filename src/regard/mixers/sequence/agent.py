"""Agent attention on sequences: a few agents, pooled from the queries, gather from all tokens and are attended to.

Paper: "Agent Attention: On the Integration of Softmax and Linear Attention", Han et al., ECCV 2024,
https://arxiv.org/abs/2312.08874, agent attention and generalised linear attention.
Compared with LeapLabTHU/Agent-Attention@207ce3eb, `agent_transformer/models/agent_swin.py:AgentAttention`, of
which this is the core: agents are means over stretches of the sequence instead of rectangles of a map, and there are
neither position biases nor a convolution of the values, which need a map (`agent_2d` has both).
"""

from __future__ import annotations

from types import SimpleNamespace

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.contract import SequenceMixer
from regard.metadata import Example, No, Paper, Traits
from regard.ops.agent_attention import agent_attention, agent_attention_macs, agent_weights, pool_sequence
from regard.ops.heads import head_width, merge_heads, split_heads
from regard.registry import register

AGENT_PAPER = Paper(
    title="Agent Attention: On the Integration of Softmax and Linear Attention",
    authors="Han et al.",
    venue="ECCV",
    year=2024,
    url="https://arxiv.org/abs/2312.08874",
    code="LeapLabTHU/Agent-Attention@207ce3eb357b22ef8a15f8fa21cd1f14697bbaba",
    where="agent attention and generalised linear attention",
)

_SEES_ALL = "agents are pooled from all queries, the future's too"


@register(
    name="agent",
    system="agent",
    paper=AGENT_PAPER,
    traits=Traits(
        causal=No(_SEES_ALL),
        segments=No("agents are pooled from the whole row: packed sequences would share them"),
        bias=No("queries and keys meet through agents, so there are no scores between them to add to"),
        decodes=No(_SEES_ALL),
        step_exact=No(_SEES_ALL),
        time="n",
        memory="n",
    ),
    example=Example(kwargs={"dim": 21, "num_heads": 3, "num_agents": 5}, batch=2, tokens=13, context=7),
)
class AgentAttention(SequenceMixer):
    """Softmax attention through agents, linear in the number of tokens.

    y = W_o softmax(Q A^T / sqrt(d)) softmax(A K^T / sqrt(d)) V in every head, A = Pool(Q), the paper's quadruple
    (Q, A, K, V).

    Args:
        dim: width of the model.
        num_heads: number of heads; must divide `dim`.
        num_agents: number of agents, n: means over as many stretches of the real tokens' queries.
        causal: must be False.
        qkv_bias: bias in the three input projections.
        attn_drop: probability of dropping a weight of either softmax in training.
        proj_drop: probability of dropping an output feature in training.

    Raises:
        ValueError: sizes that do not divide, no agent, or `causal=True`.

    Cost: 4 N C^2 + 4 n N C MACs for N tokens.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        num_agents: int = 49,
        causal: bool = False,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.head_dim = head_width(dim, num_heads)
        if num_agents < 1:
            raise ValueError(f"num_agents must be positive, got {num_agents}")
        self.num_agents = num_agents
        self.attn_drop = attn_drop
        self.q_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.k_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.v_proj = nn.Linear(dim, dim, bias=qkv_bias)
        self.o_proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def inert_parameters(self) -> set[str]:
        """A key bias adds the same number to all scores of an agent."""
        return {"k_proj.bias"} if self.k_proj.bias is not None else set()

    def _project(
        self, x: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Bool[Tensor, "batch 1 1 keys"] | None]:
        """Queries, agents and keys, split into heads, and which keys are real."""
        q = self.q_proj(x)
        agents = pool_sequence(q, self.num_agents, mask=mask if context is None else None)
        k = self.k_proj(x if context is None else context)
        visible = None if mask is None else mask[:, None, None, :]
        q, agents, k = (split_heads(part, self.num_heads) for part in (q, agents, k))
        return q, agents, k, visible

    def mix(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        context: Float[Tensor, "batch keys dim"] | None,
        mask: Bool[Tensor, "batch keys"] | None,
        segments: Int[Tensor, "batch tokens"] | None,
        bias: Float[Tensor, "batch heads tokens keys"] | None,
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        """Two fused attentions; a mask limits both what is pooled and what agents see."""
        q, agents, k, visible = self._project(x, context, mask)
        dropout = self.attn_drop if self.training else 0.0
        return agent_attention(q, agents, k, self.values(x, context=context), visible=visible, dropout=dropout)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        """Merge the heads and project."""
        return self.proj_drop(self.o_proj(merge_heads(mixed)))

    def weights(
        self, x: Tensor, *, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The product of both softmaxes."""
        q, agents, k, visible = self._project(x, context, mask)
        return agent_weights(q, agents, k, visible=visible)

    def values(self, x: Tensor, *, context: Tensor | None = None) -> Float[Tensor, "batch heads keys head_dim"]:
        """Projected values."""
        return split_heads(self.v_proj(x if context is None else context), self.num_heads)

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Four projections and both attentions; pooling counts nothing."""
        attention = agent_attention_macs(queries=tokens, keys=keys, num_agents=options.num_agents, dim=options.dim)
        return batch * (2 * (tokens + keys) * options.dim**2 + attention)
