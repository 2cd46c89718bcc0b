"""Running parity cases: every output and every gradient of the file is compared, or the case fails."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regard.errors import UserError, describe_exception
from regard.parity.adapters import AdapterError, Outcome, assemble, find_adapter, parts_of
from regard.parity.cases import LOSS_WEIGHT, Case, CaseError, find_cases, load_case, system_of
from regard.parity.rounding import is_rounding, rounding_allowance

SEED = 20261


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """How one case ended.

    Args:
        system: id of the paper's system.
        name: the case's name.
        path: its JSON file.
        compared: number of tensors that were compared.
        worst: largest error over tolerance of all compared tensors; at most 1 passes. NaN where nothing was compared.
        worst_name: the tensor that it belongs to.
        problems: what is wrong, a sentence each; empty for a case that passed.
        settled: tensors whose mismatch was found to be rounding, in float64.
        unchecked: outputs that the case itself leaves out of the comparison.
        seconds: how long it took.
    """

    system: str
    name: str
    path: Path
    compared: int = 0
    worst: float = math.nan
    worst_name: str = ""
    problems: tuple[str, ...] = ()
    settled: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """No problem, and something was compared."""
        return not self.problems and self.compared > 0

    def as_json(self) -> dict[str, Any]:
        """Plain data; numbers that JSON cannot write become None."""
        return {
            "system": self.system,
            "case": self.name,
            "path": str(self.path),
            "passed": self.passed,
            "compared_tensors": self.compared,
            "worst_error_over_tolerance": self.worst if math.isfinite(self.worst) else None,
            "worst_tensor": self.worst_name,
            "problems": list(self.problems),
            "settled_in_float64": list(self.settled),
            "not_checked": list(self.unchecked),
            "elapsed_s": self.seconds,
        }


@dataclass(frozen=True)
class Report:
    """How all cases of a folder ended."""

    results: tuple[CaseResult, ...] = field(default_factory=tuple)

    @property
    def passed(self) -> int:
        """Number of cases that passed."""
        return sum(result.passed for result in self.results)

    @property
    def failed(self) -> int:
        """Number of cases that did not."""
        return len(self.results) - self.passed

    @property
    def ok(self) -> bool:
        """At least one case, and none failed."""
        return self.passed > 0 and self.failed == 0

    def by_system(self) -> dict[str, list[CaseResult]]:
        """The results of each system, in alphabetical order."""
        grouped: dict[str, list[CaseResult]] = {}
        for result in sorted(self.results, key=lambda result: (result.system, result.name)):
            grouped.setdefault(result.system, []).append(result)
        return grouped

    def as_json(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return {
            "passed": self.passed,
            "failed": self.failed,
            "torch": torch.__version__,
            "cases": [result.as_json() for result in self.results],
        }


# --------------------------------------------------------------------------------------------------- comparing


def compare_tensors(name: str, ours: Any, expected: Tensor, *, rtol: float, atol: float) -> tuple[float, str]:
    """Error over tolerance, max |a - b| / (atol + rtol |b|), and what is wrong ("" if nothing).

    Integers and booleans must be equal and of the same type.
    """
    if not isinstance(ours, Tensor):
        return math.inf, f"{name} must be a tensor, got {type(ours).__name__}"
    if ours.shape != expected.shape:
        return math.inf, f"{name} has shape {tuple(ours.shape)}, the reference's is {tuple(expected.shape)}"
    ours = ours.detach().cpu()
    if not expected.is_floating_point():
        if ours.dtype != expected.dtype:
            return math.inf, f"{name} is of type {ours.dtype}, the reference's is {expected.dtype}"
        wrong = int((ours != expected).sum())
        return (math.inf, f"{name} differs in {wrong} of {expected.numel()} elements") if wrong else (0.0, "")
    if not ours.is_floating_point():
        return math.inf, f"{name} is of type {ours.dtype}, the reference's is {expected.dtype}"
    return _compare_floats(name, ours.double(), expected.detach().double(), rtol, atol)


def _compare_floats(name: str, ours: Tensor, expected: Tensor, rtol: float, atol: float) -> tuple[float, str]:
    if bool(expected.isnan().any()):
        return math.inf, f"{name} is NaN in the file"
    if bool(ours.isnan().any()):
        return math.inf, f"{name} has {int(ours.isnan().sum())} NaN of {ours.numel()} elements"
    if expected.numel() == 0:
        return 0.0, ""
    equal = ours == expected
    allowed = atol + rtol * expected.abs()
    # equal elements are no error, also where the tolerance is 0 or both are infinite; a difference that is infinite
    # or allowed nothing is an infinite one
    excess = torch.where(equal, 0.0, (ours - expected).abs() / allowed)
    excess = torch.where(excess.isnan() | (~equal & expected.isinf()), math.inf, excess)
    worst = float(excess.max())
    if worst <= 1:
        return worst, ""
    at = int(excess.argmax())
    place = tuple(int(index) for index in torch.unravel_index(torch.tensor(at), ours.shape))
    return worst, (
        f"{name} is off by {worst:.3g} times the tolerance at {place}: "
        f"{float(ours.flatten()[at]):.7g}, the reference's {float(expected.flatten()[at]):.7g}"
    )


class _Comparison:
    """What has been compared of one case so far."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.compared = 0
        self.errors: dict[str, float] = {}
        self.off: dict[str, tuple[str, Tensor, Tensor]] = {}
        """Tensors that miss the tolerance: what is wrong, ours, and the reference's."""
        self.settled: list[str] = []
        self.unchecked: list[str] = []
        self.problems: list[str] = []

    def add(self, name: str, ours: Any, expected: Tensor) -> None:
        rtol, atol = self._tolerance(name)
        error, problem = compare_tensors(name, ours, expected, rtol=rtol, atol=atol)
        self.compared += 1
        self.errors[name] = error
        if problem and math.isfinite(error):
            self.off[name] = (problem, ours.detach().cpu(), expected)
        elif problem:
            self.problems.append(problem)

    def settle(self) -> None:
        """Tell rounding from error among the tensors that miss the tolerance."""
        if not self.off:
            return
        try:
            exact, allowance = rounding_allowance(self.case, _collect)
        except Exception as error:
            # what cannot be settled stays a mismatch
            self.problems += [problem for problem, _, _ in self.off.values()]
            self.problems.append(f"cannot be settled in float64: {describe_exception(error)}")
            return
        for name, (problem, ours, expected) in self.off.items():
            rtol, atol = self._tolerance(name)
            if is_rounding(expected, ours, exact[name], allowance[name], rtol=rtol, atol=atol):
                self.settled.append(name)
            else:
                self.problems.append(problem)

    def _tolerance(self, name: str) -> tuple[float, float]:
        of_output = self.case.tolerance_of(name.removeprefix("out.")) if name.startswith("out.") else None
        return of_output or (self.case.rtol, self.case.atol)

    @property
    def worst_name(self) -> str:
        """The tensor with the largest error."""
        return max(self.errors, key=lambda name: self.errors[name], default="")

    @property
    def worst(self) -> float:
        """The largest error over tolerance; NaN where nothing was compared."""
        return self.errors[self.worst_name] if self.errors else math.nan


# --------------------------------------------------------------------------------------------------- one case


def run_case(case: Case) -> CaseResult:
    """Run a case's adapter and compare all outputs and gradients of the file."""
    start = time.perf_counter()
    comparison = _Comparison(case)
    try:
        torch.manual_seed(SEED)
        outcome = find_adapter(case.system, case.entry)(case)
        _compare_outputs(comparison, outcome)
        _compare_gradients(comparison, outcome)
        comparison.settle()
        comparison.problems += _unread(case)
    except AdapterError as error:
        comparison.problems.append(str(error))
    except Exception as error:
        # whatever our code or the adapter raises is this case's result, and the next case still runs
        comparison.problems.append(describe_exception(error))
    return CaseResult(
        system=case.system,
        name=case.name,
        path=case.path,
        compared=comparison.compared,
        worst=comparison.worst,
        worst_name=comparison.worst_name,
        problems=tuple(comparison.problems),
        settled=tuple(comparison.settled),
        unchecked=tuple(comparison.unchecked),
        seconds=time.perf_counter() - start,
    )


class _Collected(_Comparison):
    """Keeps what a case gives instead of comparing it."""

    def __init__(self, case: Case) -> None:
        super().__init__(case)
        self.results: dict[str, Tensor] = {}

    def add(self, name: str, ours: Any, expected: Tensor) -> None:
        self.results[name] = ours.detach().cpu()


def _collect(case: Case) -> dict[str, Tensor]:
    """All outputs and gradients of a case under their names in the file."""
    torch.manual_seed(SEED)
    outcome = find_adapter(case.system, case.entry)(case)
    collected = _Collected(case)
    _compare_outputs(collected, outcome)
    _compare_gradients(collected, outcome)
    return collected.results


def _unread(case: Case) -> list[str]:
    names = [f"state.{name}" for name in case.state.unread]
    names += [f"in.{name}" for name in case.inputs.unread if name != LOSS_WEIGHT]
    return [f"the adapter never used {', '.join(names)}"] if names else []


def _compare_outputs(comparison: _Comparison, outcome: Outcome) -> None:
    expected = comparison.case.expected
    for name, tensor in expected.items():
        if comparison.case.tolerance_of(name) is None:
            comparison.unchecked.append(f"out.{name}")
        elif name in outcome.outputs:
            comparison.add(f"out.{name}", outcome.outputs[name], tensor)
        else:
            comparison.problems.append(f"the adapter left out out.{name}")
    for name in outcome.outputs:
        if name not in expected:
            comparison.problems.append(f"the adapter gave out.{name}, which the file does not have")


def _compare_gradients(comparison: _Comparison, outcome: Outcome) -> None:
    case = comparison.case
    for loss_name, expected in case.gradients.items():
        prefix = f"grad.{loss_name}." if loss_name else "grad."
        try:
            loss = _loss(case, outcome, loss_name)
        except CaseError as error:
            comparison.problems.append(str(error))
            continue
        given = {name: leaf for name in expected if (leaf := outcome.leaf(name)) is not None}
        for name in expected:
            if name not in given:
                comparison.problems.append(f"no leaf was given for {prefix}{name}")
        usable = {}
        for name, leaf in given.items():
            if all(tensor.requires_grad for tensor in parts_of(leaf)):
                usable[name] = leaf
            else:
                comparison.problems.append(f"the leaf of {prefix}{name} does not require gradients")
        tensors = [tensor for leaf in usable.values() for tensor in parts_of(leaf)]
        gradients = _gradients(loss, tensors)
        for name, leaf in usable.items():
            count = len(parts_of(leaf))
            comparison.add(f"{prefix}{name}", assemble(leaf, gradients[:count]), expected[name])
            gradients = gradients[count:]


def _gradients(loss: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    if not tensors:
        return []
    found = torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
    return [
        torch.zeros_like(tensor) if gradient is None else gradient
        for tensor, gradient in zip(tensors, found, strict=True)
    ]


def _loss(case: Case, outcome: Outcome, name: str) -> Tensor:
    """The scalar whose gradients the file holds under this name ("" is the case's own).

    Raises:
        CaseError: it cannot be built from what the adapter gave.
    """
    if name or case.gradients_of == "notes":
        loss = outcome.losses.get(name)
        if loss is None:
            shown = f"the loss {name!r}" if name else "the loss of the case's notes (losses[''])"
            raise CaseError(f"the adapter left out {shown}")
    elif name in outcome.losses:
        raise CaseError(f"the adapter gave losses[''], which for gradients_of={case.gradients_of!r} the runner builds")
    else:
        output = "loss" if case.gradients_of == "out.loss" else case.weighted_output
        loss = outcome.outputs.get(output)
        if loss is None:
            raise CaseError(f"no gradients without out.{output}")
        if case.gradients_of == "weighted":
            if loss.shape != case.inputs[LOSS_WEIGHT].shape:
                raise CaseError(f"no gradients: out.{output} and in.{LOSS_WEIGHT} differ in shape")
            loss = loss * case.inputs[LOSS_WEIGHT]
        loss = loss.sum()
    if loss.numel() != 1:
        raise CaseError(f"the loss {name!r} must be a scalar, got shape {tuple(loss.shape)}")
    if not loss.requires_grad:
        raise CaseError(f"the loss {name!r} does not depend on anything that requires gradients")
    return loss


# --------------------------------------------------------------------------------------------------- all cases


def run_file(path: Path) -> CaseResult:
    """Read and run one case; a case that cannot be read fails, with the reason."""
    try:
        case = load_case(path)
    except CaseError as error:
        return CaseResult(system=system_of(path), name=path.stem, path=path, problems=(str(error),))
    return run_case(case)


def verify(
    folder: str | Path,
    systems: Iterable[str] | None = None,
    *,
    on_result: Callable[[CaseResult, int], object] | None = None,
) -> Report:
    """Run every case below `folder`.

    Args:
        folder: where the cases are, in sub-folders or directly.
        systems: only the cases of these systems.
        on_result: called after each case with its result and the number of cases in all.

    Raises:
        UserError: no such folder, or one of `systems` has no case there.
    """
    root = Path(folder)
    if not root.is_dir():
        raise UserError(f"{root} is not a folder")
    paths = _of_systems(find_cases(root), None if systems is None else list(systems), root)
    results = []
    for path in paths:
        result = run_file(path)
        results.append(result)
        if on_result is not None:
            on_result(result, len(paths))
    return Report(tuple(results))


def _of_systems(paths: list[Path], systems: Sequence[str] | None, root: Path) -> list[Path]:
    if systems is None:
        return paths
    owners: Mapping[Path, str] = {path: system_of(path) for path in paths}
    for system in systems:
        if system not in owners.values():
            raise UserError(f"no case of the system {system!r} below {root}")
    return [path for path in paths if owners[path] in systems]
