"""Reversed attention as a layer: a second stream m says how much each token still sends.

Paper: "Visual Dependency Transformers: Dependency Tree Emerges from Reversed Attention", Ding et al., CVPR 2023,
https://arxiv.org/abs/2304.03282, section 3, figure 2 and appendix D.1.
The authors' repository, dingmyu/DependencyViT, holds a licence and no code. The formula is that of an independent
implementation in timm's style (Fredo Guan, 2023, `timm/models/dependencyvit.py:ReversedAttention`), and agrees with it
to rounding; nothing here could be compared with the authors. What their paper leaves open is an option: the selector's
bias and temperature, the controller's width and biases, and the score by which tokens are pruned.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from regard.contract import load_strictly
from regard.layers.reference_names import rename_all
from regard.ops.heads import head_width, merge_heads
from regard.ops.precision import compute_dtype
from regard.ops.reversed_attention import choose_heads, dependency_mask, reversed_attention

Tokens = Float[Tensor, "batch tokens dim"]
TokenWeights = Float[Tensor, "batch tokens"]
Score = Literal["received", "sent", "random"]
SCORES: tuple[Score, ...] = ("received", "sent", "random")


class Messages(NamedTuple):
    """What a layer of reversed attention gives.

    Args:
        y: the tokens' output.
        m: how much each token still sends, for the next layer.
        score: the score by which tokens are pruned; None where none was asked for.
    """

    y: Tokens
    m: TokenWeights
    score: TokenWeights | None = None


class MessageController(nn.Module):
    """sigmoid of a two-layer perceptron: the share of its message that a token sends on, in at least float32.

    Args:
        dim: width of a token.
        hidden: width inside.
        bias: biases in both linear maps.
    """

    def __init__(self, dim: int, hidden: int, *, bias: bool = False) -> None:
        super().__init__()
        self.up_proj = nn.Linear(dim, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, 1, bias=bias)

    def forward(self, x: Tokens) -> TokenWeights:
        """Every token by itself."""
        logits = self.down_proj(gelu(self.up_proj(x))).squeeze(-1)
        return logits.to(compute_dtype(logits)).sigmoid()


class ReversedAttention(nn.Module):
    """Y_j = sum_i softmax_j(q_i . k_j / sqrt(d)) P_i m_i v_i per head, then a projection.

    P = softmax over heads of (x W_P / T) is the sender's choice of a head, and m = m of the layer before times
    sigmoid(MLP(x)) how much it still sends. As both belong to the sender, all that a token sends sums to m <= 1.

    Args:
        dim: width, C.
        num_heads: number of heads, H; must divide `dim`.
        qkv_bias: biases in the projections of queries, keys and values.
        temperature: T of the head selector; computed in at least float32.
        selector_bias: a bias in the head selector.
        controller_width: width inside the message controller; None = half of `dim`.
        controller_bias: biases in the message controller.

    Raises:
        ValueError: heads that do not divide the width, or a temperature or a width that is not positive.

    Cost: N (4 C^2 + C H + C controller_width + controller_width) + 2 N^2 C MACs for N tokens.
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int,
        qkv_bias: bool = False,
        temperature: float = 0.1,
        selector_bias: bool = False,
        controller_width: int | None = None,
        controller_bias: bool = False,
    ) -> None:
        super().__init__()
        head_width(dim, num_heads)
        hidden = max(1, dim // 2) if controller_width is None else controller_width
        if not temperature > 0 or hidden < 1:
            raise ValueError(f"temperature and controller_width must be positive, got {temperature} and {hidden}")
        self.num_heads = num_heads
        self.temperature = temperature
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.head_selector = nn.Linear(dim, num_heads, bias=selector_bias)
        self.message_controller = MessageController(dim, hidden, bias=controller_bias)
        self.o_proj = nn.Linear(dim, dim)

    def forward(self, x: Tokens, m: TokenWeights | None = None, *, score: Score | None = None) -> Messages:
        """Send every token's message to its parents.

        Args:
            x: the tokens, normed.
            m: how much each of them still sends after the layers before; None = 1.
            score: "received" = what a token receives, summed over heads and senders, by which leaves are low;
                "sent" = what it sends, the column sums of the dependency mask, which equal m; "random" as a control.

        Raises:
            ValueError: an m of another shape than the tokens, or an unknown score.
        """
        if score is not None and score not in SCORES:
            raise ValueError(f"score must be one of {', '.join(SCORES)}, got {score!r}")
        q, k, v = self._project(x)
        m, weights = self._weigh_senders(x, m)
        messages = v * weights.to(v.dtype)[..., None]
        if score == "received":
            # one column more of the product: what each parent receives, whatever the values are
            messages = torch.cat((messages, weights.detach().to(v.dtype)[..., None]), dim=-1)
        received = reversed_attention(q, k, messages)
        y = self.o_proj(merge_heads(received[..., : v.shape[-1]]))
        if score is None:
            return Messages(y, m)
        if score == "sent":
            return Messages(y, m, m.detach())
        return Messages(y, m, torch.rand_like(m) if score == "random" else received[..., -1].detach().sum(dim=1))

    def dependency_mask(self, x: Tokens, m: TokenWeights | None = None) -> Float[Tensor, "batch receivers senders"]:
        """How much every token (a row) receives of every other (a column), summed over heads; columns sum to m.

        Args:
            x: the tokens, normed.
            m: how much each of them still sends after the layers before; None = 1.

        Raises:
            ValueError: an m of another shape than the tokens.
        """
        q, k, _ = self._project(x)
        return dependency_mask(q, k, self._weigh_senders(x, m)[1])

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return q, k, v

    def _weigh_senders(self, x: Tensor, m: Tensor | None) -> tuple[Tensor, Tensor]:
        """M after this layer, and P times it, `(batch, heads, tokens)`."""
        sent = self.message_controller(x)
        if m is not None:
            if m.shape != x.shape[:2]:
                raise ValueError(f"m has shape {tuple(m.shape)}, it must be (batch, tokens) = {tuple(x.shape[:2])}")
            sent = m * sent
        return sent, choose_heads(self.head_selector(x), self.temperature) * sent[:, None]

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the layout of the independent implementation: `qkv`, `head_selector`, `message_controller.fc1`, `proj`.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, rename_all(state_dict, REVERSED_ATTENTION_NAMES))


REVERSED_ATTENTION_NAMES = (
    (r"(^|\.)message_controller\.fc1\.", r"\1message_controller.up_proj."),
    (r"(^|\.)message_controller\.fc2\.", r"\1message_controller.down_proj."),
    (r"(^|\.attn\.)proj\.", r"\1o_proj."),
)
"""Parts of the layer in the independent implementation as ours."""
