"""The contract that every mechanism keeps: `SequenceMixer`, `FeatureMixer`, `Model`, `State`, `ContractError`.

A `SequenceMixer` maps `(batch, tokens, dim)` to the same shape; a `FeatureMixer` maps `(batch, channels, *space)`
to the same shape. The base classes own what must be equal everywhere: argument checks, the mask rule, decoding,
`attention_map` and cost; a mechanism owns its projections, norms, gates and its mathematics.

The mask rule: time stands still at a masked token. The base class moves the real tokens of each row to its front
(`pack_rows`), runs the mechanism, and moves the results back, so a mechanism only ever sees padding at the right:
positions, decay and counts need no further care. `y` is exactly 0 at masked tokens and in rows that can attend
to nothing.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from regard.decoding_state import State, state, static
from regard.metadata import Example, No, Paper, Traits, Variant
from regard.packing import pack_rows, take_tokens


class ContractError(AssertionError):
    """A mixer breaks the contract; the message names each failed check."""


# --------------------------------------------------------------------------------------------------- mixers


class _Mixer(nn.Module, ABC):
    """What both kinds of mixer share: class-level data, cost, parameters without effect, strict loading."""

    kind: ClassVar[str]
    traits: ClassVar[Traits]
    example: ClassVar[Example]
    paper: ClassVar[Paper]
    registered_name: ClassVar[str]
    system: ClassVar[str]

    def inert_parameters(self) -> set[str]:
        """Names of parameters whose gradient is zero by theory (such as a key bias without rotary embedding)."""
        return set()

    @classmethod
    def _bind_options(cls, options: Mapping[str, Any]) -> SimpleNamespace:
        try:
            bound = inspect.signature(cls).bind(**options)
        except TypeError as error:
            raise TypeError(f"{cls.__name__}.macs takes the constructor's own arguments: {error}") from None
        bound.apply_defaults()
        return SimpleNamespace(**bound.arguments)

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' layout of this layer; by default it equals ours.

        Raises:
            KeyError: an unknown or a missing key, named.
        """
        load_strictly(self, state_dict)


class SequenceMixer(_Mixer):
    """A mechanism on sequences: `(batch, tokens, dim)` in and out.

    A subclass is final. It implements `mix`, `out` and `count_macs`; with the traits `decodes` and `has_map` also
    `init_state`, `mix_step`, and `weights`, `values`. Every hook sees masked tokens only at the right end of a row.

    Args:
        dim: width of the model.
        num_heads: number of heads.
        causal: whether the future must have no influence.

    Raises:
        ValueError: a size that is not positive, or a form that the mechanism does not have.
    """

    kind = "sequence"

    def __init__(self, dim: int, *, num_heads: int, causal: bool) -> None:
        super().__init__()
        if dim < 1 or num_heads < 1:
            raise ValueError(f"dim and num_heads must be positive, got dim={dim} and num_heads={num_heads}")
        wanted = self.traits.causal if causal else self.traits.bidirectional
        if isinstance(wanted, No):
            raise ValueError(f"{type(self).__name__} refuses causal={causal}: {wanted.reason}")
        self.dim = dim
        self.num_heads = num_heads
        self.causal = causal

    # -- hooks of a mechanism

    @abstractmethod
    def mix(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        context: Float[Tensor, "batch keys dim"] | None,
        mask: Bool[Tensor, "batch keys"] | None,
        segments: Int[Tensor, "batch tokens"] | None,
        bias: Float[Tensor, "batch heads tokens keys"] | None,
    ) -> Float[Tensor, "batch heads tokens value_dim"]:
        """The mechanism itself. `mask`, where given, is True on a prefix of each row; what it returns elsewhere
        is ignored.
        """

    @abstractmethod
    def out(
        self, mixed: Float[Tensor, "batch heads tokens value_dim"], x: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Merge the heads: norms, gates and the output projection. `x` is the mixer's input."""

    @classmethod
    @abstractmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        """Contraction MACs of an eager forward; `options` holds all constructor arguments. `keys` is `tokens`
        without context.
        """

    def init_state(self, batch: int, *, max_len: int | None = None) -> State:
        """An empty state for `batch` rows; `max_len` is the number of tokens to make room for, if known."""
        raise ValueError(self._lacks("decodes"))

    def mix_step(
        self,
        x: Float[Tensor, "batch tokens dim"],
        state: Any,
        *,
        mask: Bool[Tensor, "batch tokens"] | None,
    ) -> tuple[Float[Tensor, "batch heads tokens value_dim"], State]:
        """`mix` for tokens that follow those in `state`; `mask` is True on a prefix of each row."""
        raise ValueError(self._lacks("decodes"))

    def weights(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        context: Float[Tensor, "batch keys dim"] | None,
        mask: Bool[Tensor, "batch keys"] | None,
        segments: Int[Tensor, "batch tokens"] | None,
        bias: Float[Tensor, "batch heads tokens keys"] | None,
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """The map whose product with `values` is `mix`, for the same right-padded arguments."""
        raise ValueError(self._lacks("has_map"))

    def values(
        self, x: Float[Tensor, "batch tokens dim"], *, context: Float[Tensor, "batch keys dim"] | None = None
    ) -> Float[Tensor, "batch heads keys value_dim"]:
        """The values that the map weighs, one set per head."""
        raise ValueError(self._lacks("has_map"))

    # -- what users call

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        context: Float[Tensor, "batch keys dim"] | None = None,
        mask: Bool[Tensor, "batch keys"] | None = None,
        segments: Int[Tensor, "batch tokens"] | None = None,
        bias: Float[Tensor, "#batch heads tokens keys"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Mix the tokens of `x`, or, with `context`, let them attend to the context's.

        Args:
            x: the tokens.
            context: keys and values for cross-attention.
            mask: True = real token, may be attended to; speaks of the context where there is one.
            segments: packed sequences: runs of equal numbers never see each other (0,1,0 is three runs).
            bias: added to the scores; finite.

        Raises:
            ValueError: shapes that do not fit, or an argument that the traits exclude.
        """
        self._check_arguments(x, context, mask, segments, bias)
        if mask is None:
            return self.out(self.mix(x, context=context, mask=None, segments=segments, bias=bias), x)
        if context is not None:
            order, packed_mask = pack_rows(mask)
            context = take_tokens(torch.where(mask[..., None], context, 0), order, dim=1)
            bias = take_tokens(bias, order, dim=3) if bias is not None else None
            y = self.out(self.mix(x, context=context, mask=packed_mask, segments=None, bias=bias), x)
            return torch.where(mask.any(dim=1)[:, None, None], y, 0)
        x, packed_mask, segments, bias, order = self._pack(x, mask, segments, bias)
        y = self.out(self.mix(x, context=None, mask=packed_mask, segments=segments, bias=bias), x)
        return self._unpack(y, mask, order)

    def step(
        self,
        x: Float[Tensor, "batch tokens dim"],
        state: Any,
        *,
        mask: Bool[Tensor, "batch tokens"] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens dim"], Any]:
        """Mix one or more tokens that follow those in `state`: prefill and decoding are the same call.

        Args:
            x: the new tokens.
            state: from `init_state` or an earlier `step`; it is consumed (branch with `state.clone()`).
            mask: True = real token; a masked token leaves the state of its row as it was.

        Raises:
            ValueError: a mixer that does not decode or is not causal, or shapes that do not fit.
        """
        self._check_step_arguments(x, state, mask)
        if mask is None:
            mixed, state = self.mix_step(x, state, mask=None)
            return self.out(mixed, x), state
        packed, packed_mask, _, _, order = self._pack(x, mask, None, None)
        mixed, state = self.mix_step(packed, state, mask=packed_mask)
        return self._unpack(self.out(mixed, packed), mask, order), state

    def attention_map(
        self,
        x: Float[Tensor, "batch tokens dim"],
        *,
        context: Float[Tensor, "batch keys dim"] | None = None,
        mask: Bool[Tensor, "batch keys"] | None = None,
        segments: Int[Tensor, "batch tokens"] | None = None,
        bias: Float[Tensor, "#batch heads tokens keys"] | None = None,
    ) -> Float[Tensor, "batch heads tokens keys"]:
        """What attends to what: `attention_map(x) @ values(x) == mix(x)`; signed where the mechanism is.

        Takes the same arguments as `forward`; masked rows and columns are 0.

        Raises:
            ValueError: the mechanism has no map, or arguments that `forward` refuses.
        """
        if not self.traits.has_map:
            raise ValueError(self._lacks("has_map"))
        self._check_arguments(x, context, mask, segments, bias)
        if mask is None:
            return self.weights(x, context=context, mask=None, segments=segments, bias=bias)
        if context is not None:
            order, packed_mask = pack_rows(mask)
            context = take_tokens(torch.where(mask[..., None], context, 0), order, dim=1)
            bias = take_tokens(bias, order, dim=3) if bias is not None else None
            rows = self.weights(x, context=context, mask=packed_mask, segments=None, bias=bias)
            rows = take_tokens(rows, torch.argsort(order, dim=1), dim=3)
            return torch.where(mask[:, None, None, :], rows, 0)
        x, packed_mask, segments, bias, order = self._pack(x, mask, segments, bias)
        square = self.weights(x, context=None, mask=packed_mask, segments=segments, bias=bias)
        back = torch.argsort(order, dim=1)
        square = take_tokens(take_tokens(square, back, dim=2), back, dim=3)
        return torch.where(mask[:, None, None, :] & mask[:, None, :, None], square, 0)

    @classmethod
    def macs(cls, *, batch: int = 1, tokens: int, context: int | None = None, **options: Any) -> int:
        """Contraction MACs of one eager forward, as `FlopCounterMode` counts them (1 MAC = 2 FLOPs).

        Args:
            batch: rows.
            tokens: length of `x`.
            context: number of keys in cross-attention; None for self-attention.
            options: the constructor's own arguments.
        """
        keys = tokens if context is None else context
        return cls.count_macs(cls._bind_options(options), batch=batch, tokens=tokens, keys=keys)

    # -- checks and packing

    def _lacks(self, trait: str) -> str:
        missing = self.traits.capabilities()[trait]
        reason = missing.reason if isinstance(missing, No) else "the class does not implement it"
        return f"{type(self).__name__} lacks the trait {trait!r}: {reason}"

    def _require(self, trait: str) -> None:
        if not getattr(self.traits, trait):
            raise ValueError(self._lacks(trait))

    def _check_tokens(self, x: Tensor, name: str) -> None:
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ValueError(
                f"{name} must have shape (batch, tokens, {self.dim}), got {tuple(x.shape)}: "
                f"the last axis must equal dim={self.dim}"
            )
        if x.shape[1] == 0:
            raise ValueError(f"{name} has 0 tokens, at least 1 is needed")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {x.dtype}")

    def _check_arguments(
        self, x: Tensor, context: Tensor | None, mask: Tensor | None, segments: Tensor | None, bias: Tensor | None
    ) -> None:
        self._check_tokens(x, "x")
        keys = x.shape[1]
        if context is not None:
            if self.causal:
                raise ValueError("causal=True with context is refused: a context has no order relative to x")
            self._require("cross")
            self._check_tokens(context, "context")
            if context.shape[0] != x.shape[0]:
                raise ValueError(f"context has {context.shape[0]} rows and x has {x.shape[0]}: they must be equal")
            keys = context.shape[1]
        if mask is not None:
            self._require("masks")
            self._check_mask(mask, x.shape[0], keys)
        if segments is not None:
            self._check_segments(segments, x, context)
        if bias is not None:
            self._require("bias")
            self._check_bias(bias, x, keys)

    def _check_mask(self, mask: Tensor, batch: int, keys: int) -> None:
        if mask.dtype != torch.bool:
            raise ValueError(f"mask must be bool (True = real token), got {mask.dtype}")
        if tuple(mask.shape) != (batch, keys):
            raise ValueError(f"mask has shape {tuple(mask.shape)}, it must be (batch, keys) = ({batch}, {keys})")

    def _check_segments(self, segments: Tensor, x: Tensor, context: Tensor | None) -> None:
        self._require("segments")
        if context is not None:
            raise ValueError("segments with context is refused: segments speak of self-attention")
        if segments.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"segments must be int32 or int64, got {segments.dtype}")
        if segments.shape != x.shape[:2]:
            raise ValueError(
                f"segments has shape {tuple(segments.shape)}, it must be (batch, tokens) = {tuple(x.shape[:2])}"
            )

    def _check_bias(self, bias: Tensor, x: Tensor, keys: int) -> None:
        wanted = (x.shape[0], self.num_heads, x.shape[1], keys)
        if bias.ndim != 4 or bias.shape[0] not in (1, x.shape[0]) or tuple(bias.shape[1:]) != wanted[1:]:
            raise ValueError(
                f"bias has shape {tuple(bias.shape)}, it must be (batch or 1, heads, queries, keys) = {wanted}"
            )

    def _check_step_arguments(self, x: Tensor, state: Any, mask: Tensor | None) -> None:
        self._require("decodes")
        if not self.causal:
            raise ValueError("step needs causal=True: a bidirectional mixer has no past to decode from")
        self._check_tokens(x, "x")
        if not isinstance(state, State):
            raise ValueError(f"state must come from init_state or step, got {type(state).__name__}")
        if state.position.shape[0] != x.shape[0]:
            raise ValueError(f"state has {state.position.shape[0]} rows and x has {x.shape[0]}: they must be equal")
        if mask is not None:
            self._require("masks")
            self._check_mask(mask, x.shape[0], x.shape[1])

    def _pack(
        self, x: Tensor, mask: Tensor, segments: Tensor | None, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]:
        order, packed_mask = pack_rows(mask)
        x = take_tokens(torch.where(mask[..., None], x, 0), order, dim=1)
        if segments is not None:
            segments = take_tokens(segments, order, dim=1)
        if bias is not None:
            bias = take_tokens(take_tokens(bias, order, dim=2), order, dim=3)
        return x, packed_mask, segments, bias, order

    def _unpack(self, y: Tensor, mask: Tensor, order: Tensor) -> Tensor:
        return torch.where(mask[..., None], take_tokens(y, torch.argsort(order, dim=1), dim=1), 0)


class FeatureMixer(_Mixer):
    """A mechanism on feature maps: `(batch, channels, *space)` in and out, in 1-, 2- or 3-D as its traits say.

    A subclass is final and implements `mix` and `count_macs`; a gate also offers `gate(x)`. Any size works:
    a mechanism pads inside and crops back.

    Args:
        channels: number of channels.

    Raises:
        ValueError: `channels` is not positive.
    """

    kind = "feature"

    def __init__(self, channels: int) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"channels must be positive, got {channels}")
        self.channels = channels

    @abstractmethod
    def mix(
        self, x: Float[Tensor, "batch channels *space"], *, context: Float[Tensor, "batch channels *space"] | None
    ) -> Float[Tensor, "batch channels *space"]:
        """The mechanism itself."""

    @classmethod
    @abstractmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        """Contraction MACs of an eager forward; `options` holds all constructor arguments."""

    def forward(
        self,
        x: Float[Tensor, "batch channels *space"],
        *,
        context: Float[Tensor, "batch channels *space"] | None = None,
    ) -> Float[Tensor, "batch channels *space"]:
        """Mix the features of `x`; `context` is a second feature map where the mechanism takes one.

        Raises:
            ValueError: a number of dimensions or channels that does not fit.
        """
        self._check_features(x, "x")
        if context is not None:
            if isinstance(self.traits.cross, No):
                raise ValueError(f"{type(self).__name__} takes no context: {self.traits.cross.reason}")
            self._check_features(context, "context")
        return self.mix(x, context=context)

    @classmethod
    def macs(cls, *, batch: int = 1, space: tuple[int, ...], **options: Any) -> int:
        """Contraction MACs of one eager forward, as `FlopCounterMode` counts them (1 MAC = 2 FLOPs)."""
        return cls.count_macs(cls._bind_options(options), batch=batch, space=space)

    def _check_features(self, x: Tensor, name: str) -> None:
        if x.ndim - 2 not in self.traits.spatial_dims:
            allowed = " or ".join(str(number) for number in self.traits.spatial_dims)
            raise ValueError(
                f"{name} must have {allowed} spatial dimensions after (batch, channels), got shape {tuple(x.shape)}"
            )
        if x.shape[1] != self.channels:
            raise ValueError(f"{name} has {x.shape[1]} channels and the mixer has {self.channels}: they must be equal")
        if min(x.shape[2:]) == 0:
            raise ValueError(f"{name} has an empty spatial axis: shape {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} must be floating point, got {x.dtype}")


# --------------------------------------------------------------------------------------------------- models


class Model(nn.Module, ABC):
    """A network, built from one frozen, keyword-only config dataclass.

    `VARIANTS` names the published configurations and what their papers report; `load_reference` takes the
    authors' checkpoint layout, strictly.
    """

    kind: ClassVar[str] = "model"
    VARIANTS: ClassVar[dict[str, Variant]] = {}
    config: Any

    @abstractmethod
    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' checkpoint layout.

        Raises:
            KeyError: an unknown or a missing key, named.
        """


def load_strictly(module: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load `state_dict` into `module`; every key must fit and none may be missing.

    Raises:
        KeyError: names the unknown and the missing keys.
        ValueError: a tensor has the wrong shape; both shapes are named.
    """
    own = module.state_dict()
    unknown, missing = sorted(set(state_dict) - set(own)), sorted(set(own) - set(state_dict))
    if unknown or missing:
        raise KeyError(f"unknown keys: {', '.join(unknown) or 'none'}; missing keys: {', '.join(missing) or 'none'}")
    for name, tensor in state_dict.items():
        if tensor.shape != own[name].shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, it must be {tuple(own[name].shape)}")
    module.load_state_dict(dict(state_dict), strict=True)


__all__ = [
    "ContractError",
    "FeatureMixer",
    "Model",
    "SequenceMixer",
    "State",
    "load_strictly",
    "pack_rows",
    "state",
    "static",
    "take_tokens",
]
