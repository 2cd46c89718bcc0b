"""Which checks the traits of a class call for, and running them all."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from regard.contract import ContractError, FeatureMixer, SequenceMixer
from regard.metadata import Example, No, Traits
from regard.testing import (
    class_checks,
    common_checks,
    decoding_checks,
    feature_checks,
    mask_checks,
    refusal_checks,
    sequence_checks,
    storage_checks,
    tracing_checks,
)
from regard.testing.check import Check, Report
from regard.testing.export_process import check_exports, why_not_exportable
from regard.testing.subjects import FeatureSubject, SequenceSubject, Subject

EVERY_FORM = ("causal", "bidirectional", "cross", "1-D", "2-D", "3-D")
SELF_ATTENTION = ("causal", "bidirectional")


@dataclass(frozen=True)
class _Planned:
    """A check by name: what judges it, which traits it needs, in which forms, and whether it takes seconds."""

    name: str
    judge: Callable[[Any], None]
    needs: tuple[str, ...] = ()
    forms: tuple[str, ...] = EVERY_FORM
    slow: bool = False


_COMMON = (
    _Planned("shapes", common_checks.shapes),
    _Planned("inputs_kept", common_checks.inputs_kept),
    _Planned("gradients", common_checks.gradients),
    _Planned("gradcheck", common_checks.gradients_by_differences),
    _Planned("rows", common_checks.rows),
    _Planned("strides", common_checks.strides),
    _Planned("bfloat16", common_checks.bfloat16),
    _Planned("autocast", common_checks.autocast),
    _Planned("dropout", common_checks.dropout),
    _Planned("state_dict", storage_checks.state_dict),
    _Planned("cast_round_trip", storage_checks.cast_round_trip),
    _Planned("meta_device", storage_checks.meta_device),
    _Planned("compile", tracing_checks.compiled, needs=("compiles",), slow=True),
)
_SEQUENCE = (
    *_COMMON,
    _Planned("masked_keys", mask_checks.masked_keys, needs=("masks",)),
    _Planned("padding", mask_checks.padding, needs=("masks",)),
    _Planned("fully_masked", mask_checks.fully_masked, needs=("masks",)),
    _Planned("future", mask_checks.future, forms=("causal",)),
    _Planned("segments", mask_checks.segments, needs=("segments",), forms=SELF_ATTENTION),
    _Planned("bias", mask_checks.bias, needs=("bias",)),
    _Planned("chunked_steps", decoding_checks.chunked_steps, needs=("decodes", "step_exact"), forms=("causal",)),
    _Planned("masked_steps", decoding_checks.masked_steps, needs=("decodes", "masks"), forms=("causal",)),
    _Planned("state", decoding_checks.state, needs=("decodes",), forms=("causal",)),
    _Planned("sizes", sequence_checks.sizes, needs=("any_length",)),
    _Planned("attention_map", sequence_checks.attention_map, needs=("has_map",)),
    _Planned("cost", sequence_checks.cost),
    _Planned("ill_arguments", refusal_checks.sequence_arguments),
)
_FEATURE = (
    *_COMMON,
    _Planned("sizes", feature_checks.sizes, needs=("any_length",)),
    _Planned("attention_map", feature_checks.attention_map, needs=("has_map",)),
    _Planned("cost", feature_checks.cost),
    _Planned("ill_arguments", refusal_checks.feature_arguments),
)
_GATE = _Planned("gate", feature_checks.gate)
_CLASS = (_Planned("constructor", class_checks.constructor), _Planned("traits", class_checks.traits))


def subjects_of(cls: Any) -> list[Subject]:
    """The class in each form that its traits allow."""
    traits: Traits = cls.traits
    if issubclass(cls, FeatureMixer):
        return [FeatureSubject(cls, dimensions) for dimensions in traits.spatial_dims]
    forms = [("causal", traits.causal), ("bidirectional", traits.bidirectional)]
    forms.append(("cross", traits.bidirectional and traits.cross))
    return [SequenceSubject(cls, form) for form, allowed in forms if allowed]


def contract_checks(cls: type) -> Iterator[Check]:
    """Every check that the traits of `cls` call for, one per form.

    Args:
        cls: a `SequenceMixer` or `FeatureMixer` with class-level `traits` and `example`, registered or not.

    Raises:
        ContractError: `cls` is no mixer, or lacks traits or example.
    """
    _require_mixer(cls)
    for planned in _CLASS:
        yield Check(planned.name, "class", cls.__qualname__, planned.slow, partial(planned.judge, cls))
    taken = skipped_checks(cls)
    for subject in subjects_of(cls):
        for planned in _planned_for(cls):
            if subject.form in planned.forms and planned.name not in taken:
                judge = partial(planned.judge, subject)
                yield Check(planned.name, subject.form, cls.__qualname__, planned.slow, judge)
    if "export" not in taken:
        yield Check("export", "every form", cls.__qualname__, True, partial(check_exports, cls))


def skipped_checks(cls: type) -> dict[str, str]:
    """What the traits took away: the name of a check, or of a form with all its checks, and the reason.

    Raises:
        ContractError: `cls` is no mixer, or lacks traits or example.
    """
    mixer = _require_mixer(cls)
    capabilities = mixer.traits.capabilities()
    reasons: dict[str, str] = {}
    if issubclass(mixer, SequenceMixer):
        for form in ("causal", "bidirectional", "cross"):
            missing = capabilities[form]
            if isinstance(missing, No):
                reasons[f"every check of the form {form}"] = missing.reason
    for planned in _planned_for(mixer):
        # a check of the causal form alone goes with that form
        needs = (*planned.needs, *(("causal",) if planned.forms == ("causal",) else ()))
        for name in needs:
            missing = capabilities[name]
            if isinstance(missing, No):
                reasons.setdefault(planned.name, missing.reason)
    unexportable = capabilities["exports"].reason if isinstance(capabilities["exports"], No) else None
    reason = unexportable or why_not_exportable(cls)
    if reason is not None:
        reasons["export"] = reason
    return reasons


def check_mixer(cls: type, *, skip_slow: bool = False) -> Report:
    """Run every check that the traits of `cls` call for.

    Args:
        cls: a `SequenceMixer` or `FeatureMixer` with class-level `traits` and `example`, registered or not.
        skip_slow: leave out compilation and export, which take seconds.

    Returns:
        The time of each check, and what the traits took away.

    Raises:
        ContractError: at least one check failed; the message has a line for each.
    """
    seconds: dict[str, float] = {}
    failures: list[str] = []
    checks = [check for check in contract_checks(cls) if not (skip_slow and check.slow)]
    for check in checks:
        start = time.perf_counter()
        try:
            check()
        except ContractError as error:
            failures.append(str(error))
        seconds[str(check)] = time.perf_counter() - start
    if failures:
        listed = "\n".join(f"- {failure}" for failure in failures)
        raise ContractError(f"{cls.__qualname__} fails {len(failures)} of {len(checks)} checks:\n{listed}")
    return Report(cls.__qualname__, seconds, skipped_checks(cls))


def _planned_for(cls: Any) -> tuple[_Planned, ...]:
    if issubclass(cls, SequenceMixer):
        return _SEQUENCE
    return (*_FEATURE, _GATE) if hasattr(cls, "gate") else _FEATURE


def _require_mixer(cls: Any) -> Any:
    if not (isinstance(cls, type) and issubclass(cls, SequenceMixer | FeatureMixer)):
        raise ContractError(f"{cls!r} is neither a SequenceMixer nor a FeatureMixer class")
    for name, wanted in (("traits", Traits), ("example", Example)):
        found = getattr(cls, name, None)
        if not isinstance(found, wanted):
            raise ContractError(
                f"{cls.__qualname__} needs class-level {name}: {wanted.__name__}(...), it has {found!r}"
            )
    return cls
