"""What is known of a system without building it: frozen dataclasses, no torch.

Everything here is data that `regard list`, `regard info`, the generated index, the README and the docs read.
A capability is `True` or `No("reason")`: every capability that a mechanism lacks says why, and the contract
check that it takes away is listed with that reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal


@dataclass(frozen=True)
class No:
    """A capability that a mechanism does not have, and why. False in a boolean context."""

    reason: str

    def __post_init__(self) -> None:
        if not self.reason.strip():
            raise ValueError("a missing capability needs a reason, got an empty one")

    def __bool__(self) -> bool:
        return False


Capability = Literal[True] | No

SEQUENCE_CAPABILITIES = (
    "causal",
    "bidirectional",
    "cross",
    "masks",
    "segments",
    "bias",
    "decodes",
    "step_exact",
    "any_length",
)
SHARED_CAPABILITIES = ("has_map", "row_stochastic", "exports", "compiles")


@dataclass(frozen=True, kw_only=True)
class Paper:
    """Where a mechanism comes from.

    Args:
        title: the paper's title.
        authors: first author or authors, as cited.
        venue: where it appeared.
        year: when.
        url: a link to the paper.
        code: the implementation compared with, as `owner/name@commit`; None where none was published.
        where: equation, algorithm or section numbers.
    """

    title: str
    authors: str
    venue: str
    year: int
    url: str
    code: str | None = None
    where: str = ""


@dataclass(frozen=True, kw_only=True)
class Traits:
    """What a mixer can do, asked of the class without building it.

    Args:
        causal: has a form in which the future has no influence.
        bidirectional: has a form in which every token sees every other.
        cross: takes `context`.
        masks: takes `mask`.
        segments: takes `segments` (packed sequences).
        bias: takes an additive score `bias`.
        decodes: has `init_state` and `step`.
        step_exact: `step` over any chunking equals `forward`.
        any_length: any number of tokens, or any spatial size, is accepted.
        has_map: offers `attention_map`.
        row_stochastic: the rows of the map are non-negative and sum to 1.
        exports: passes `torch.export`.
        compiles: passes `torch.compile(fullgraph=True)`.
        causality: "strict", or "values" where the future may influence which keys are chosen, but not their values.
        spatial_dims: for feature mixers, the numbers of spatial dimensions that are accepted.
        training_free: can replace softmax attention in a trained model without training.
        time: order of the running time in the number of tokens, such as "n" or "n^2".
        memory: order of the memory beyond inputs and outputs.
    """

    causal: Capability = True
    bidirectional: Capability = True
    cross: Capability = True
    masks: Capability = True
    segments: Capability = True
    bias: Capability = True
    decodes: Capability = True
    step_exact: Capability = True
    any_length: Capability = True
    has_map: Capability = True
    row_stochastic: Capability = True
    exports: Capability = True
    compiles: Capability = True
    causality: Literal["strict", "values"] = "strict"
    spatial_dims: tuple[int, ...] = ()
    training_free: bool = False
    time: str = "n^2"
    memory: str = "n"

    def __post_init__(self) -> None:
        for name in SEQUENCE_CAPABILITIES + SHARED_CAPABILITIES:
            value = getattr(self, name)
            if not (value is True or isinstance(value, No)):
                raise TypeError(f"trait {name} must be True or No('reason'), got {value!r}")

    @classmethod
    def of_feature_mixer(
        cls,
        *,
        spatial_dims: tuple[int, ...],
        has_map: Capability | None = None,
        row_stochastic: Capability | None = None,
        exports: Capability = True,
        compiles: Capability = True,
        any_length: Capability = True,
        cross: Capability | None = None,
        time: str = "n",
        memory: str = "n",
    ) -> Traits:
        """Traits of a mechanism on feature maps, for which token order, padding and decoding mean nothing."""
        order = No("acts on feature maps, which have no token order")
        gate = No("a gate, not a distribution over keys: it offers gate(x)")
        return cls(
            causal=order,
            bidirectional=order,
            cross=cross if cross is not None else No("takes one feature map"),
            masks=order,
            segments=order,
            bias=No("has no scores between positions"),
            decodes=order,
            step_exact=order,
            any_length=any_length,
            has_map=has_map if has_map is not None else gate,
            row_stochastic=row_stochastic if row_stochastic is not None else gate,
            exports=exports,
            compiles=compiles,
            spatial_dims=spatial_dims,
            time=time,
            memory=memory,
        )

    def capabilities(self) -> dict[str, Capability]:
        """All capabilities by name, in the order in which they are shown."""
        return {name: getattr(self, name) for name in SEQUENCE_CAPABILITIES + SHARED_CAPABILITIES}

    def as_json(self) -> dict[str, Any]:
        """Plain data for `--json`: a missing capability becomes `{"value": false, "reason": ...}`."""
        shown: dict[str, Any] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            shown[item.name] = {"value": False, "reason": value.reason} if isinstance(value, No) else value
        return shown


@dataclass(frozen=True, kw_only=True)
class Example:
    """Awkward sizes on which a mixer is checked: not powers of two, all different.

    Args:
        kwargs: constructor arguments, without `causal`.
        batch: number of rows.
        tokens: length of a sequence; for feature mixers unused.
        context: number of keys in cross-attention.
        space: spatial size for feature mixers, one number per dimension of the largest `spatial_dims`.
    """

    kwargs: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 2
    tokens: int = 13
    context: int = 7
    space: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reported:
    """Figures that a paper gives for a configuration.

    Args:
        params: number of parameters, as a count.
        macs: multiply-accumulates of one forward pass, as a count; None where the paper gives none.
        where: table or section.
        params_tolerance: relative tolerance, from the digits that the paper prints.
        macs_tolerance: the same for `macs`.
        image_size: pixels per side of the image that `macs` are for, where the config does not say it; None = 224.
    """

    params: float | None = None
    macs: float | None = None
    where: str = ""
    image_size: int | None = None
    params_tolerance: float = 0.005
    macs_tolerance: float = 0.05


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A published configuration of a model: its config object and what the paper reports for it."""

    config: Any
    reported: Reported = Reported()

    @property
    def image_size(self) -> int:
        """Pixels per side of the images that the paper's figures are for; 224 where neither it nor the config says."""
        return getattr(self.config, "image_size", None) or self.reported.image_size or 224


Grade = Literal["exact", "ratio", "scaled", "out of reach"]
GRADES: tuple[Grade, ...] = ("exact", "ratio", "scaled", "out of reach")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A paper's claim and the criterion by which it is judged here, fixed before measuring.

    Args:
        name: short identifier, unique within the system.
        grade: `exact` (counted), `ratio` (two things raced in one run), `scaled` (a small training run)
            or `out of reach`.
        statement: what the paper says.
        figure: the paper's figure; empty where it gives none.
        where: the place in the paper.
        criterion: what must be measured here for the claim to hold.
        reason: for `out of reach`, why, and what stands in for it.
    """

    name: str
    grade: Grade
    statement: str
    criterion: str
    figure: str = ""
    where: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        if self.grade not in GRADES:
            raise ValueError(f"grade must be one of {', '.join(GRADES)}, got {self.grade!r}")
        if self.grade == "out of reach" and not self.reason:
            raise ValueError(f"claim {self.name!r} is out of reach without a reason")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One registered class, as the generated index holds it.

    Args:
        name: public name, as given to `regard.create`.
        system: the id of the paper's system.
        kind: "sequence", "feature", "model", "task", "technique" or "analysis".
        module: where the class is defined.
        qualname: the class's name there.
        summary: the first line of its docstring.
        paper: where it comes from.
        traits: what it can do; None where the kind has no traits.
        variants: public names of a model's published configurations.
    """

    name: str
    system: str
    kind: str
    module: str
    qualname: str
    summary: str
    paper: Paper
    traits: Traits | None = None
    variants: tuple[str, ...] = ()
