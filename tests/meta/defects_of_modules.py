"""Planted defects of any module: its class, its values and gradients, its storage, its tracing."""

from __future__ import annotations

import abc
from dataclasses import replace
from typing import Any

import torch
from planted_defects import caught_by
from torch import Tensor, nn
from toy_mixers import ToyGate, ToyPositions, ToyRunningMean, ToySoftmax, ToyState

from regard import Example, No, Traits

# --------------------------------------------------------------------------------------------------- the class


@caught_by("constructor", "takes **kwargs")
class SwallowsOptions(ToySoftmax):
    def __init__(self, dim: int, *, causal: bool = False, **kwargs: Any) -> None:
        super().__init__(dim, causal=causal, **kwargs)


@caught_by("constructor", "never uses window")
class IgnoresAnOption(ToySoftmax):
    def __init__(self, dim: int, *, num_heads: int = 2, causal: bool = False, window: int = 3) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)


@caught_by("constructor", "no argument causal")
class HasOneFormOnly(ToySoftmax):
    def __init__(self, dim: int, *, num_heads: int = 2) -> None:
        super().__init__(dim, num_heads=num_heads, causal=True)


@caught_by("constructor", "abstract: more missing")
class Unfinished(ToySoftmax):
    @abc.abstractmethod
    def more(self) -> None: ...


@caught_by("traits", "decodes needs init_state and mix_step")
class ClaimsToDecode(ToyRunningMean):
    traits = replace(ToyRunningMean.traits, decodes=True)


@caught_by("traits", "cross needs bidirectional")
class ClaimsToCross(ToyRunningMean):
    traits = replace(ToyRunningMean.traits, cross=True)


@caught_by("traits", "deny both")
class HasNoForm(ToyRunningMean):
    traits = replace(ToyRunningMean.traits, causal=No("none"))


@caught_by("traits", "avoid powers of two")
class ShowsEasySizes(ToySoftmax):
    example = Example(kwargs={"dim": 6}, tokens=16, context=7)


@caught_by("traits", "promise gate(x)")
class PromisesAGate(ToyPositions):
    traits = Traits.of_feature_mixer(spatial_dims=(2,))


@caught_by("traits", "needs 3 sizes")
class LacksASize(ToyGate):
    example = Example(kwargs={"channels": 5}, space=(3, 5))


# --------------------------------------------------------------------------------------------------- values


@caught_by("shapes", "float32 for torch.float64")
class NarrowsTheOutput(ToySoftmax):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x, **options).float()


@caught_by("shapes", "output has shape")
class DropsAColumn(ToyGate):
    def mix(self, x: Tensor, *, context: Tensor | None) -> Tensor:
        return super().mix(x, context=context)[..., :-1]


@caught_by("shapes", "not finite")
class DividesByZero(ToySoftmax):
    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        return super().out(mixed / mixed[:, :, :1].sub(mixed[:, :, :1]), x)


@caught_by("inputs_kept", "input 'x' were overwritten")
class WritesToItsInput(ToySoftmax):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return super().forward(x.mul_(0.5), **options)


@caught_by("gradients", "no gradient reaches spare")
class HasASpareParameter(ToySoftmax):
    def __init__(self, dim: int, *, num_heads: int = 2, causal: bool = False) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.spare = nn.Parameter(torch.zeros(dim))


@caught_by("gradients", "named inert, but with gradient: q_proj.bias")
class CallsALiveParameterInert(ToySoftmax):
    def inert_parameters(self) -> set[str]:
        return {"q_proj.bias", "k_proj.bias"}


@caught_by("gradients", "no gradient reaches k_proj.bias")
class HidesAnInertParameter(ToySoftmax):
    def inert_parameters(self) -> set[str]:
        return set()


@caught_by("gradients", "which do not exist")
class NamesAStranger(ToyGate):
    def inert_parameters(self) -> set[str]:
        return {"fc.slope"}


@caught_by("gradcheck", "Jacobian mismatch")
class ComputesInSinglePrecision(ToySoftmax):
    def mix(self, x: Tensor, **options: Any) -> Tensor:
        return super().mix(x, **options).float().to(x.dtype)


@caught_by("gradcheck", "Jacobian mismatch")
class CutsAGradient(ToyGate):
    def gate(self, x: Tensor) -> Tensor:
        return super().gate(x) * (1 + x.detach().mean())


@caught_by("gradcheck", "backward says")
class CutsAGradientAtABlockBorder(ToySoftmax):
    def values(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        values = super().values(x, context=context)
        return torch.cat((values[:, :, :64], values[:, :, 64:128].detach(), values[:, :, 128:]), dim=2)


@caught_by("chunked_steps", "writes to its input")
class StepsOverItsInput(ToySoftmax):
    def step(self, x: Tensor, state: Any, *, mask: Tensor | None = None) -> tuple[Tensor, Any]:
        y, after = super().step(x, state, mask=mask)
        x.zero_()
        return y, after


@caught_by("rows", "row 0 in a batch of 3")
class NormalisesOverTheBatch(ToySoftmax):
    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        return super().out(mixed - 0.01 * mixed.mean(dim=0, keepdim=True), x)


@caught_by("strides", "strided input")
class TrustsTheLayout(ToySoftmax):
    def forward(self, x: Tensor, **options: Any) -> Tensor:
        tokens, dim = x.shape[1:]
        return super().forward(x.as_strided(x.shape, (tokens * dim, dim, 1)), **options)


@caught_by("strides", "channels-last input")
class TrustsChannelsFirst(ToyGate):
    def mix(self, x: Tensor, *, context: Tensor | None) -> Tensor:
        if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
            x = x.permute(0, 2, 3, 1).reshape(x.shape)
        return super().mix(x, context=context)


@caught_by("bfloat16", "bfloat16 against float32")
class LosesDigits(ToySoftmax):
    def values(self, x: Tensor, *, context: Tensor | None = None) -> Tensor:
        return (super().values(x, context=context) + 300) - 300


@caught_by("bfloat16", "bfloat16 decoding against float32")
class LosesDigitsInItsState(ToySoftmax):
    def mix_step(self, x: Tensor, state: ToyState, *, mask: Tensor | None) -> tuple[Tensor, ToyState]:
        return super().mix_step(x, replace(state, values=(state.values + 300) - 300), mask=mask)


@caught_by("autocast", "RuntimeError")
class MixesDtypes(ToySoftmax):
    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        y = super().out(mixed, x)
        return torch.zeros_like(x).index_add(1, torch.arange(x.shape[1]), y)


@caught_by("dropout", "a second call in eval mode")
class NeverStopsDropping(ToySoftmax):
    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        return super().out(nn.functional.dropout(mixed, 0.1, training=True), x)


@caught_by("dropout", "has no effect")
class NeverDrops(ToyGate):
    def gate(self, x: Tensor) -> Tensor:
        means = x.flatten(2).mean(dim=2)
        return self.fc(means).sigmoid().reshape(*means.shape, *[1] * (x.ndim - 2))


@caught_by("dropout", "against proj_drop=0")
class ScalesInsteadOfDropping(ToySoftmax):
    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        return super().out(mixed, x) * (1 - self.proj_drop.p)


# --------------------------------------------------------------------------------------------------- storage


@caught_by("state_dict", "a fresh instance with the loaded state_dict")
class KeepsANumberOutOfItsState(ToySoftmax):
    def __init__(self, dim: int, *, num_heads: int = 2, causal: bool = False) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.shift = torch.randn(1).item()

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        return super().out(mixed, x) + self.shift


class KeepsASlopeInABuffer(ToySoftmax):
    persistent = True

    def __init__(self, dim: int, *, num_heads: int = 2, causal: bool = False) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.register_buffer("slope", torch.tensor(1 / 3), persistent=self.persistent)

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        return super().out(mixed * self.slope, x)


caught_by("cast_round_trip", "buffers: slope")(KeepsASlopeInABuffer)


@caught_by("meta_device", "loaded through the meta device")
class KeepsASlopeInALostBuffer(KeepsASlopeInABuffer):
    persistent = False


# --------------------------------------------------------------------------------------------------- tracing


@caught_by("compile", "Unsupported")
@caught_by("export", "causal: ")
class BranchesOnData(ToySoftmax):
    def mix(self, x: Tensor, **options: Any) -> Tensor:
        return super().mix(x if x.sum() > 0 else x + 1, **options)


@caught_by("compile", "compiled step")
class StepsOtherwiseWhenCompiled(ToySoftmax):
    def mix_step(self, x: Tensor, state: ToyState, *, mask: Tensor | None) -> tuple[Tensor, ToyState]:
        y, after = super().mix_step(x, state, mask=mask)
        return (2 * y if torch.compiler.is_compiling() else y), after


@caught_by("export", "exported forward with a mask")
class MasksOtherwiseWhenExported(ToySoftmax):
    def mix(self, x: Tensor, *, mask: Tensor | None, **options: Any) -> Tensor:
        exporting = torch.compiler.is_exporting() and not self.causal
        return super().mix(x, mask=None if exporting else mask, **options)
