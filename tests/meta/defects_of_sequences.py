"""Planted defects of what must not be seen, of decoding, sizes, maps, cost and refusals."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from planted_defects import caught_by
from torch import Tensor
from toy_mixers import ToyGate, ToyPositions, ToyRunningMean, ToySoftmax, ToyState

from regard import state

# --------------------------------------------------------------------------------------------------- masks


@caught_by("masked_keys", "masked tokens filled")
class PeeksAtMaskedTokens(ToySoftmax):
    def forward(self, x: Tensor, *, context: Tensor | None = None, **options: Any) -> Tensor:
        everything = (x if context is None else context).mean(dim=1, keepdim=True)
        return super().forward(x, context=context, **options) + 0.01 * everything


@caught_by("masked_keys", "the gradient at masked tokens")
class LetsGradientsIntoMaskedTokens(ToySoftmax):
    def forward(self, x: Tensor, *, context: Tensor | None = None, **options: Any) -> Tensor:
        everything = (x if context is None else context).mean(dim=1, keepdim=True).nan_to_num(0.0, 0.0, 0.0)
        return super().forward(x, context=context, **options) + everything - everything.detach()


@caught_by("padding", "row 0 against the unpadded call")
class IgnoresTheMask(ToySoftmax):
    def mix(self, x: Tensor, *, mask: Tensor | None, **options: Any) -> Tensor:
        return super().mix(x, mask=None, **options)


@caught_by("padding", "left padding")
class CountsMaskedTokens(ToySoftmax):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x + 0.1 * torch.arange(x.shape[1])[:, None], **options)


@caught_by("padding", "the output at masked tokens")
class AddsABiasAtMaskedTokens(ToySoftmax):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x, **options) + self.o_proj.bias


@caught_by("fully_masked", "the gradient of")
class DividesByAnEmptySum(ToySoftmax):
    def attend(self, q: Tensor, k: Tensor, seen: Tensor, bias: Tensor | None = None) -> Tensor:
        return (q @ k.transpose(2, 3)).masked_fill(~seen, -torch.inf).softmax(dim=-1)


@caught_by("fully_masked", "the output there")
class AnswersFromNothing(ToySoftmax):
    def forward(self, x: Tensor, *, mask: Tensor | None = None, **options: Any) -> Tensor:
        y = super().forward(x, mask=mask, **options)
        return y if mask is None else y + (~mask.any(dim=1))[:, None, None] * self.o_proj.bias


@caught_by("future", "after later tokens were replaced")
class SeesTheNextToken(ToySoftmax):
    def visible(self, queries: int, keys: int, mask: Tensor | None, segments: Tensor | None) -> Tensor:
        seen = torch.ones(1, 1, queries, keys, dtype=torch.bool)
        return seen.tril(keys - queries + 1) if self.causal else seen


@caught_by("future", "tokens 0..64 of 300")
class SeesOverOneBlockBorder(ToySoftmax):
    def visible(self, queries: int, keys: int, mask: Tensor | None, segments: Tensor | None) -> Tensor:
        seen = super().visible(queries, keys, mask, segments).clone()
        seen[..., 64:65, 65:66] = True
        return seen


@caught_by("future", "with respect to later tokens")
class LeaksUnderTheWeakerRule(SeesTheNextToken):
    traits = replace(ToySoftmax.traits, causality="values")


@caught_by("segments", "row 0, run 1 at 5..8")
class IgnoresSegments(ToySoftmax):
    def mix(self, x: Tensor, *, segments: Tensor | None, **options: Any) -> Tensor:
        return super().mix(x, segments=None, **options)


@caught_by("segments", "row 0, run 0 at 9..12")
class JoinsEqualSegments(ToySoftmax):
    def visible(self, queries: int, keys: int, mask: Tensor | None, segments: Tensor | None) -> Tensor:
        seen = super().visible(queries, keys, mask, None)
        return seen if segments is None else seen & (segments[:, :, None] == segments[:, None, :])[:, None]


@caught_by("bias", "it is ignored")
class IgnoresTheBias(ToySoftmax):
    def mix(self, x: Tensor, *, bias: Tensor | None, **options: Any) -> Tensor:
        return super().mix(x, bias=None, **options)


@caught_by("bias", "whose bias is -1e+06")
class BoundsTheBias(ToySoftmax):
    def mix(self, x: Tensor, *, bias: Tensor | None, **options: Any) -> Tensor:
        return super().mix(x, bias=None if bias is None else bias.clamp(min=-3), **options)


# --------------------------------------------------------------------------------------------------- decoding


@caught_by("chunked_steps", "against forward")
class NeverAdvancesItsState(ToySoftmax):
    def mix_step(self, x: Tensor, state: ToyState, *, mask: Tensor | None) -> tuple[Tensor, ToyState]:
        mixed, after = super().mix_step(x, state, mask=mask)
        return mixed, replace(state, position=after.position)


@caught_by("chunked_steps", "against forward")
class ForgetsTheLastTokenOfAChunk(ToySoftmax):
    def mix_step(self, x: Tensor, state: ToyState, *, mask: Tensor | None) -> tuple[Tensor, ToyState]:
        mixed, after = super().mix_step(x, state, mask=mask)
        shown = after.real.clone()
        shown[:, -1] = x.shape[1] == 1
        return mixed, replace(after, real=shown)


@caught_by("chunked_steps", "the state's position is")
class NeverCounts(ToySoftmax):
    def mix_step(self, x: Tensor, state: ToyState, *, mask: Tensor | None) -> tuple[Tensor, ToyState]:
        mixed, after = super().mix_step(x, state, mask=mask)
        return mixed, replace(after, position=state.position)


@caught_by("chunked_steps", "gradient through steps")
class CutsTheGradientOfItsState(ToySoftmax):
    def mix_step(self, x: Tensor, state: ToyState, *, mask: Tensor | None) -> tuple[Tensor, ToyState]:
        return super().mix_step(x, state.detach(), mask=mask)


@caught_by("masked_steps", "single tokens after it")
class RemembersMaskedTokens(ToySoftmax):
    def mix_step(self, x: Tensor, state: ToyState, *, mask: Tensor | None) -> tuple[Tensor, ToyState]:
        mixed, after = super().mix_step(x, state, mask=None)
        counted = x.shape[1] if mask is None else mask.sum(dim=1)
        return mixed, replace(after, position=state.position + counted)


@caught_by("masked_steps", "position is [22, 22, 22]")
class CountsPadding(ToySoftmax):
    def mix_step(self, x: Tensor, state: ToyState, *, mask: Tensor | None) -> tuple[Tensor, ToyState]:
        mixed, after = super().mix_step(x, state, mask=mask)
        return mixed, replace(after, position=state.position + x.shape[1])


@caught_by("masked_steps", "with masked tokens between")
class ForgetsWhilePausing(ToySoftmax):
    """A masked single token wipes what the row saw last."""

    def mix_step(self, x: Tensor, state: ToyState, *, mask: Tensor | None) -> tuple[Tensor, ToyState]:
        mixed, after = super().mix_step(x, state, mask=mask)
        if x.shape[1] > 1 or mask is None or after.real.shape[1] < 2:
            return mixed, after
        real = after.real.clone()
        real[:, -2] &= mask[:, 0]
        return mixed, replace(after, real=real)


@state
class SharingState(ToyState):
    def clone(self) -> SharingState:
        return self


@state
class MisorderingState(ToyState):
    def reorder(self, index: Tensor) -> MisorderingState:
        return replace(super().reorder(index), keys=self.keys.index_select(0, index.flip(0).roll(1)))


@state
class AttachedState(ToyState):
    def detach(self) -> AttachedState:
        return self


@state
class MiscountingState(ToyState):
    @property
    def nbytes(self) -> int:
        return super().nbytes // 2


@state
class TransposedState(ToyState):
    shared: Tensor


class HasAnotherState(ToySoftmax):
    kind_of_state: type[ToyState] = ToyState

    def init_state(self, batch: int, *, max_len: int | None = None) -> ToyState:
        return self.kind_of_state(**vars(super().init_state(batch, max_len=max_len)))


@caught_by("state", "a clone shares 4 tensors")
class ClonesNothing(HasAnotherState):
    kind_of_state = SharingState


@caught_by("state", "after reorder([1, 0, 1])")
class ReordersHalfOfItsState(HasAnotherState):
    kind_of_state = MisorderingState


@caught_by("state", "still require a gradient after detach()")
class StaysAttached(HasAnotherState):
    kind_of_state = AttachedState


@caught_by("state", "nbytes is")
class Miscounts(HasAnotherState):
    kind_of_state = MiscountingState


@caught_by("state", "a state tensor has shape (7, 2)")
class PutsTheBatchLast(ToySoftmax):
    def init_state(self, batch: int, *, max_len: int | None = None) -> ToyState:
        return TransposedState(**vars(super().init_state(batch)), shared=torch.zeros(7, batch))


# --------------------------------------------------------------------------------------------------- sizes, maps


@caught_by("sizes", "3 tokens against the beginning of 300")
class DropsTheLastBlock(ToySoftmax):
    def visible(self, queries: int, keys: int, mask: Tensor | None, segments: Tensor | None) -> Tensor:
        seen = super().visible(queries, keys, mask, segments)
        whole = torch.arange(keys) < max(keys // 2 * 2, 1)
        return seen & (whole | torch.eye(queries, keys, dtype=torch.bool))


@caught_by("sizes", "ZeroDivisionError")
class CannotBeAlone(ToyGate):
    def gate(self, x: Tensor) -> Tensor:
        size = x[0, 0].numel()
        return super().gate(x) * (size / (size - 1))


@caught_by("attention_map", "@ values against mix")
class DrawsAnotherMap(ToySoftmax):
    def weights(self, x: Tensor, **options: Any) -> Tensor:
        seen = (super().weights(x, **options) > 0).double()
        return seen / seen.sum(dim=-1, keepdim=True)

    def mix(self, x: Tensor, **options: Any) -> Tensor:
        return ToySoftmax.weights(self, x, **options) @ self.values(x, context=options["context"])


@caught_by("attention_map", "a row's sum is")
class SumsToTwo(ToySoftmax):
    def attend(self, q: Tensor, k: Tensor, seen: Tensor, bias: Tensor | None = None) -> Tensor:
        return 2 * super().attend(q, k, seen, bias)


@caught_by("attention_map", "above the diagonal")
class MapsTheFuture(ToySoftmax):
    def weights(self, x: Tensor, **options: Any) -> Tensor:
        return super().weights(x, **options) + 1e-9


@caught_by("attention_map", "masked columns")
class MapsMaskedKeys(ToySoftmax):
    def attention_map(self, x: Tensor, *, mask: Tensor | None = None, **options: Any) -> Tensor:
        square = super().attention_map(x, mask=mask, **options)
        return square if mask is None else square + 1e-9


@caught_by("attention_map", "a row's sum is")
class SharesOutTooLittle(ToyPositions):
    def attention_map(self, x: Tensor, *, context: Tensor) -> Tensor:
        return 0.9 * super().attention_map(x, context=context)


@caught_by("cost", "a forward counts")
class ForgetsAProjection(ToySoftmax):
    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        return batch * ((tokens + 2 * keys) * options.dim**2 + 2 * tokens * keys * options.dim)


@caught_by("cost", "a forward counts")
class ConfusesQueriesAndKeys(ToySoftmax):
    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        return batch * (4 * tokens * options.dim**2 + 2 * tokens * keys * options.dim)


@caught_by("cost", "a forward counts")
class CountsSpaceTwice(ToyGate):
    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, space: tuple[int, ...]) -> int:
        return batch * options.channels**2 * space[0]


@caught_by("gate", "does not broadcast")
class FlattensItsGate(ToyGate):
    def gate(self, x: Tensor) -> Tensor:
        return super().gate(x).flatten(1)

    def mix(self, x: Tensor, *, context: Tensor | None) -> Tensor:
        return x * super().gate(x)


@caught_by("gate", "against x * gate(x)")
class GatesOtherwise(ToyGate):
    def mix(self, x: Tensor, *, context: Tensor | None) -> Tensor:
        return x * (1 + super().gate(x))


# --------------------------------------------------------------------------------------------------- refusals


@caught_by("ill_arguments", "it was accepted")
class CropsWideInput(ToySoftmax):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x[..., : self.dim], **options)


@caught_by("ill_arguments", "it raised RuntimeError")
class ChecksNothing(ToySoftmax):
    def _check_tokens(self, x: Tensor, name: str) -> None:
        return


@caught_by("ill_arguments", "refused without naming 6, 7")
class NamesNoNumbers(ToySoftmax):
    def _check_tokens(self, x: Tensor, name: str) -> None:
        if x.shape[-1] != self.dim:
            raise ValueError("wrong shape")
        super()._check_tokens(x, name)


@caught_by("ill_arguments", "a mask must raise ValueError, it was accepted")
class DropsADeniedMask(ToyRunningMean):
    def forward(self, x: Tensor, *, mask: Tensor | None = None, **options: Any) -> Tensor:
        return super().forward(x, **options)


@caught_by("ill_arguments", "a mask of floats must raise ValueError, it was accepted")
class CastsMasks(ToySoftmax):
    def forward(self, x: Tensor, *, mask: Tensor | None = None, **options: Any) -> Tensor:
        return super().forward(x, mask=mask if mask is None else mask.bool(), **options)


@caught_by("ill_arguments", "dim=0 must raise ValueError")
class TakesAnyWidth(ToySoftmax):
    def __init__(self, dim: int, *, num_heads: int = 2, causal: bool = False) -> None:
        super().__init__(max(dim, 6), num_heads=num_heads, causal=causal)


@caught_by("ill_arguments", "x with one channel too many must raise ValueError, it was accepted")
class CropsChannels(ToyGate):
    def forward(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        return super().forward(x[:, : self.channels], context=context)
