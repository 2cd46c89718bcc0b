"""A pre-norm Transformer block around any sequence mixer, and a stack of them.

Papers: "Attention Is All You Need", Vaswani et al., NeurIPS 2017, https://arxiv.org/abs/1706.03762, section 3.1; the
norms stand before the mixer and the perceptron, as in "On Layer Normalization in the Transformer Architecture",
Xiong et al., ICML 2020, https://arxiv.org/abs/2002.04745.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from regard.contract import SequenceMixer, State
from regard.layers.feed_forward import FeedForward
from regard.layers.mixer_by_name import mixer_by_name
from regard.ops.absolute_positions import sinusoids, token_positions
from regard.registry import get_class

EncoderState = tuple[State, ...]
"""The state of a stack: one per layer."""


class EncoderBlock(nn.Module):
    """x + mixer(norm(x)), then x + MLP(norm(x)), with dropout on both branches.

    Args:
        mixer: the mechanism.
        dim: width.
        hidden: width inside the perceptron.
        dropout: probability of dropping a number of the mixer's output, and twice in the perceptron.
        norm_eps: added to the variance in both norms.
    """

    def __init__(
        self, mixer: SequenceMixer, *, dim: int, hidden: int, dropout: float = 0.0, norm_eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.mixer_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mixer = mixer
        self.dropout = nn.Dropout(dropout)
        self.mlp_norm = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = FeedForward(dim, hidden, dropout=dropout)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], *, mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """Mix tokens, then features; `mask` is True where a token is real."""
        x = x + self.dropout(self.mixer(self.mixer_norm(x), mask=mask))
        return x + self.mlp(self.mlp_norm(x))

    def step(
        self, x: Float[Tensor, "batch tokens dim"], state: State, *, mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> tuple[Float[Tensor, "batch tokens dim"], State]:
        """The same for tokens that follow those in `state`, which is consumed."""
        mixed, after = self.mixer.step(self.mixer_norm(x), state, mask=mask)
        x = x + self.dropout(mixed)
        return x + self.mlp(self.mlp_norm(x)), after


class Encoder(nn.Module):
    """A stack of blocks around a registered mixer, with a norm at the end.

    Projections of queries, keys and values have a bias where the mixer offers one, as in the Transformer's usual
    encoder layer; positions are added to the input, and never rotate inside a mixer, which not every mixer could.

    Args:
        mixer: registered name of the mechanism.
        dim: width.
        num_layers: number of blocks.
        num_heads: heads of every mixer.
        hidden: width inside the perceptrons.
        causal: hide the future.
        positions: "sinusoidal" are added to the input; "none" leaves positions to the caller.
        dropout: probability of dropping a number of the input and of every branch.
        norm_eps: added to the variance in all norms.
        mixer_options: further constructor arguments of the mixer.
        checkpointing: in training, compute the activations inside blocks again instead of keeping them.

    Raises:
        UnknownSystemError: no such mixer.
        ValueError: a size that is not positive, or one that the mixer refuses.
    """

    def __init__(
        self,
        mixer: str,
        *,
        dim: int,
        num_layers: int,
        num_heads: int,
        hidden: int,
        causal: bool,
        positions: Literal["none", "sinusoidal"] = "none",
        dropout: float = 0.0,
        norm_eps: float = 1e-5,
        mixer_options: Mapping[str, Any] | None = None,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers must be positive, got {num_layers}")
        has_bias = "qkv_bias" in inspect.signature(get_class(mixer)).parameters
        options = {**({"qkv_bias": True} if has_bias else {}), **(mixer_options or {})}
        self.positions = positions
        self.checkpointing = checkpointing
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList()
        for layer in range(num_layers):
            made = mixer_by_name(
                mixer,
                dim=dim,
                num_heads=num_heads,
                causal=causal,
                layer_idx=layer,
                num_layers=num_layers,
                rotary=False,
                options=options,
            )
            self.blocks.append(EncoderBlock(made, dim=dim, hidden=hidden, dropout=dropout, norm_eps=norm_eps))
        self.norm = nn.LayerNorm(dim, eps=norm_eps)

    def mixers(self) -> list[SequenceMixer]:
        """The mechanism of every layer."""
        return [block.mixer for block in self._blocks()]

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], *, mask: Bool[Tensor, "batch tokens"] | None = None
    ) -> Float[Tensor, "batch tokens dim"]:
        """The last block's output, normed; `mask` is True where a token is real. Other tokens' output has no meaning.

        Raises:
            ValueError: shapes that do not fit, or a mask that the mixer does not take.
        """
        x = self._place(x, mask, None)
        recompute = self.checkpointing and self.training and torch.is_grad_enabled()
        for block in self._blocks():
            x = checkpoint(block, x, mask=mask, use_reentrant=False) if recompute else block(x, mask=mask)
        return self.norm(x)

    def init_state(self, batch: int, *, max_len: int | None = None) -> EncoderState:
        """One empty state per layer.

        Raises:
            ValueError: a mixer that does not decode.
        """
        return tuple(mixer.init_state(batch, max_len=max_len) for mixer in self.mixers())

    def step(
        self,
        x: Float[Tensor, "batch tokens dim"],
        state: EncoderState,
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens dim"], EncoderState]:
        """`forward` for one or more tokens that follow those in `state`, which is consumed.

        Raises:
            ValueError: a mixer that does not decode or is not causal, or shapes that do not fit.
        """
        x, after = self._place(x, mask, state[0]), []
        for block, before in zip(self._blocks(), state, strict=True):
            x, layer_state = block.step(x, before, mask=mask)
            after.append(layer_state)
        return self.norm(x), tuple(after)

    def _place(self, x: Tensor, mask: Tensor | None, state: State | None) -> Tensor:
        if self.positions == "sinusoidal":
            start = None if state is None else state.position
            positions = token_positions(x[..., 0], mask=mask, start=start)
            x = x + sinusoids(positions, x.shape[-1]).to(x.dtype)
        return self.dropout(x)

    def _blocks(self) -> list[EncoderBlock]:
        return [block for block in self.blocks if isinstance(block, EncoderBlock)]
