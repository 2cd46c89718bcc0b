"""What is checked: a mixer class in one form, and how to build it and its inputs from its `Example`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from regard.contract import FeatureMixer, SequenceMixer

Inputs = dict[str, Tensor]
Size = Literal["example", "small", "long"]
Place = Literal["left", "right", "scattered"]
PLACES: tuple[Place, ...] = ("left", "right", "scattered")

NOISE = 0.1
"""Standard deviation of what is added to every parameter, so that none hides behind zero or one."""
LONG = 263
"""Beyond the block sizes 64, 128 and 256, and prime."""


def random_tensor(shape: tuple[int, ...], *, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers that depend on the seed alone."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def scatter_parameters(module: nn.Module, *, seed: int) -> None:
    """Add noise to every parameter: what begins as zero, one or identity could hide a defect."""
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            noise = random_tensor(tuple(parameter.shape), seed=seed * 1000 + number, dtype=parameter.dtype)
            parameter.add_(NOISE * noise)


def run(module: Callable[..., Tensor], inputs: Inputs, **more: Any) -> Tensor:
    """Call the module with `x` first and the rest by name."""
    return module(inputs["x"], **{name: value for name, value in inputs.items() if name != "x"}, **more)


def take_rows(inputs: Inputs, rows: slice) -> Inputs:
    """The same inputs for some rows of the batch."""
    return {name: value[rows] for name, value in inputs.items()}


class Subject(ABC):
    """A mixer class in one form."""

    cls: type[SequenceMixer] | type[FeatureMixer]
    form: str

    @property
    def batch(self) -> int:
        """Rows of the example, at least 2, so that rows can be told apart."""
        return max(2, self.cls.example.batch)

    @property
    def any_length(self) -> bool:
        """Whether sizes other than the example's may be tried."""
        return bool(self.cls.traits.any_length)

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Constructor arguments in this form."""

    @abstractmethod
    def inputs(
        self, size: Size = "example", *, batch: int | None = None, dtype: torch.dtype = torch.float64, seed: int = 1
    ) -> Inputs:
        """Random inputs of the size asked for, or of the example's where the mixer takes no other."""

    @abstractmethod
    def extras(self, inputs: Inputs) -> Inputs:
        """One of each optional argument that the traits allow, for these inputs."""

    def build_untouched(self, *, seed: int = 0, changes: Mapping[str, Any] | None = None) -> nn.Module:
        """A new instance in eval mode, with its own initialisation; `changes` replace constructor arguments."""
        torch.manual_seed(seed)
        return self.cls(**{**self.options(), **(changes or {})}).eval()

    def build(
        self, *, dtype: torch.dtype = torch.float64, seed: int = 0, changes: Mapping[str, Any] | None = None
    ) -> Any:
        """A new instance in eval mode with noise on every parameter."""
        module = self.build_untouched(seed=seed, changes=changes).to(dtype)
        scatter_parameters(module, seed=seed + 1)
        return module


@dataclass(frozen=True)
class SequenceSubject(Subject):
    """A sequence mixer in its "causal", "bidirectional" or "cross" form."""

    cls: type[SequenceMixer]
    form: str

    @property
    def causal(self) -> bool:
        """Whether instances are built with `causal=True`."""
        return self.form == "causal"

    @property
    def cross(self) -> bool:
        """Whether inputs hold a context."""
        return self.form == "cross"

    @property
    def masked_input(self) -> str:
        """The input that `mask` speaks of."""
        return "context" if self.cross else "x"

    @property
    def dim(self) -> int:
        """Width of the example."""
        return int(self.cls.example.kwargs["dim"])

    @property
    def num_heads(self) -> int:
        """Heads of the example, as an instance has them."""
        return int(self.build().num_heads)

    @property
    def tokens(self) -> int:
        """Tokens of the example."""
        return self.cls.example.tokens

    @property
    def keys(self) -> int:
        """Length of what `mask` speaks of, in the example."""
        return self.cls.example.context if self.cross else self.tokens

    def options(self) -> dict[str, Any]:
        """The example's arguments with `causal` as the form asks."""
        return {**self.cls.example.kwargs, "causal": self.causal}

    def inputs(
        self, size: Size = "example", *, batch: int | None = None, dtype: torch.dtype = torch.float64, seed: int = 1
    ) -> Inputs:
        """`x` and, for cross-attention, `context`."""
        if size == "example" or not self.any_length:
            return self.sized(self.tokens, self.cls.example.context, batch=batch, dtype=dtype, seed=seed)
        tokens, keys = (5, 4) if size == "small" else (LONG, LONG - 22)
        return self.sized(tokens, keys, batch=batch, dtype=dtype, seed=seed)

    def sized(
        self,
        tokens: int,
        keys: int | None = None,
        *,
        batch: int | None = None,
        dtype: torch.dtype = torch.float64,
        seed: int = 1,
    ) -> Inputs:
        """Inputs of `tokens` tokens and, for cross-attention, a context of `keys` (by default as many)."""
        rows = batch or self.batch
        made = {"x": random_tensor((rows, tokens, self.dim), seed=seed, dtype=dtype)}
        if self.cross:
            made["context"] = random_tensor((rows, keys or tokens, self.dim), seed=seed + 500, dtype=dtype)
        return made

    def extras(self, inputs: Inputs) -> Inputs:
        """`mask`, `segments` and `bias`, as the traits allow."""
        x, keys = inputs["x"], inputs[self.masked_input]
        made: Inputs = {}
        if self.cls.traits.masks:
            made["mask"] = scattered_mask(keys.shape[0], keys.shape[1], seed=3)
        if self.cls.traits.segments and not self.cross:
            made["segments"] = torch.arange(x.shape[1]).mul(3).div(x.shape[1], rounding_mode="floor").repeat(len(x), 1)
        if self.cls.traits.bias:
            shape = (x.shape[0], self.num_heads, x.shape[1], keys.shape[1])
            made["bias"] = random_tensor(shape, seed=4, dtype=x.dtype)
        return made


@dataclass(frozen=True)
class FeatureSubject(Subject):
    """A feature mixer on maps with a number of spatial dimensions, named "1-D", "2-D" or "3-D"."""

    cls: type[FeatureMixer]
    dimensions: int

    @property
    def form(self) -> str:  # type: ignore[override]
        """The number of spatial dimensions, as a name."""
        return f"{self.dimensions}-D"

    @property
    def channels(self) -> int:
        """Channels of the example."""
        return int(self.cls.example.kwargs["channels"])

    @property
    def space(self) -> tuple[int, ...]:
        """The example's spatial size, cut to this form's dimensions."""
        return tuple(self.cls.example.space[: self.dimensions])

    def options(self) -> dict[str, Any]:
        """The example's arguments."""
        return dict(self.cls.example.kwargs)

    def inputs(
        self, size: Size = "example", *, batch: int | None = None, dtype: torch.dtype = torch.float64, seed: int = 1
    ) -> Inputs:
        """`x` and, where the trait `cross` says so, a second feature map."""
        if size == "example" or not self.any_length:
            return self.sized(self.space, batch=batch, dtype=dtype, seed=seed)
        sizes = {"small": ((5,), (3, 4), (2, 3, 2)), "long": ((LONG,), (17, 31), (5, 7, 11))}
        return self.sized(sizes[size][self.dimensions - 1], batch=batch, dtype=dtype, seed=seed)

    def sized(
        self,
        space: tuple[int, ...],
        *,
        batch: int | None = None,
        dtype: torch.dtype = torch.float64,
        seed: int = 1,
    ) -> Inputs:
        """Inputs of the spatial size `space`."""
        shape = (batch or self.batch, self.channels, *space)
        made = {"x": random_tensor(shape, seed=seed, dtype=dtype)}
        if self.cls.traits.cross:
            made["context"] = random_tensor(shape, seed=seed + 500, dtype=dtype)
        return made

    def extras(self, inputs: Inputs) -> Inputs:
        """Nothing: feature mixers take no optional arguments."""
        return {}


# --------------------------------------------------------------------------------------------------- masks


def scattered_mask(rows: int, keys: int, *, seed: int) -> Tensor:
    """About two thirds of the keys are real, in every row another set; where there are two keys, one is masked."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, keys, generator=generator) < 0.65
    for row in range(rows):
        mask[row, (2 * row + 1) % keys] = False
        mask[row, (2 * row) % keys] = True
    return mask


def mask_with_counts(counts: list[int], keys: int, *, where: Place) -> Tensor:
    """A mask with `counts[row]` real tokens per row and the padding at the left, the right, or anywhere."""
    mask = torch.zeros(len(counts), keys, dtype=torch.bool)
    generator = torch.Generator().manual_seed(keys)
    for row, count in enumerate(counts):
        if where == "left":
            mask[row, keys - count :] = True
        elif where == "right":
            mask[row, :count] = True
        else:
            mask[row, torch.randperm(keys, generator=generator)[:count]] = True
    return mask
