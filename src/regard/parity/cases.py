"""Reading parity cases: every tensor of a file is classified, and what cannot be is an error that names it.

A case is a pair of files in one folder. `<case>.safetensors` holds

- `state.<key>`: the reference's parameters and buffers,
- `in.<name>`: inputs, `in.loss_weight...` being the weights of the loss,
- `out.<name>`: outputs,
- `grad.<key>` and `grad.in.<input>`: gradients of the case's loss,
- `grad.<loss>.<key>` and `grad.<loss>.in.<input>`: gradients of a further, named loss.

`<case>.json` says what was called, how, and within which tolerance ours must agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

LOSS_WEIGHT = "loss_weight"
NOT_CHECKED = "not checked"
GRADIENTS_OF = ("weighted", "out.loss", "notes")
MODES = ("eval", "train")

_FIELDS: dict[str, type] = {
    "system": str,
    "case": str,
    "reference": dict,
    "config": dict,
    "call": dict,
    "outputs": list,
    "mode": str,
    "tolerance": dict,
    "notes": str,
}
_OPTIONAL_FIELDS: dict[str, type] = {"gradients_of": str, "layer_order": list}


class CaseError(ValueError):
    """A case's files are not what they must be; the message names the file and, where there is one, the tensor."""


class Tensors(Mapping[str, Tensor]):
    """Tensors by name, which remembers which of them were asked for.

    What an adapter never reads cannot have been compared with anything, so the runner refuses it.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        self._read: set[str] = set()

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        self._read.add(name)
        return tensor

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def __repr__(self) -> str:
        return f"Tensors({', '.join(self._tensors)})"

    def peek(self, name: str) -> Tensor:
        """The tensor, without counting it as read."""
        return self._tensors[name]

    @property
    def unread(self) -> list[str]:
        """Names that nobody has asked for, sorted."""
        return sorted(set(self._tensors) - self._read)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One stored call of the authors' code.

    Args:
        path: the JSON file.
        system: id of the paper's system.
        name: the case's own name.
        reference: repository, commit and entry of the authors' code.
        config: constructor arguments of the reference.
        call: `inputs` (names, sometimes in words) and `kwargs` of the call.
        output_names: the outputs in the reference's order.
        mode: "train" or "eval".
        tolerance: `rtol` and `atol`, and what further the case says about them: `<words>_rtol` and `<words>_atol` are
            for outputs in whose name all these words stand, `<words>: "not checked"` leaves such outputs out.
        notes: what else must be known; where it contradicts `call`, the notes are right.
        gradients_of: what the gradients are of: "weighted", "out.loss", "notes"; None where there are none.
        layer_order: names of layers in the order of their creation, for references that have no other names.
        state: parameters and buffers, without `state.`.
        inputs: inputs, without `in.`; those in floating point require gradients where the case has gradients, the
            weights of the loss excepted.
        expected: outputs, without `out.`.
        gradients: for every loss ("" is the case's own) the gradients, without `grad.`: keys of `state`, or
            `in.<input>`.
    """

    path: Path
    system: str
    name: str
    reference: Mapping[str, str]
    config: Mapping[str, Any]
    call: Mapping[str, Any]
    output_names: Sequence[str]
    mode: str
    tolerance: Mapping[str, Any]
    notes: str
    gradients_of: str | None = None
    layer_order: Sequence[str] = ()
    state: Tensors
    inputs: Tensors
    expected: Mapping[str, Tensor]
    gradients: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def entry(self) -> str:
        """The reference's entry, by which its adapter is found."""
        return self.reference["entry"]

    @property
    def rtol(self) -> float:
        """Relative tolerance."""
        return float(self.tolerance["rtol"])

    @property
    def atol(self) -> float:
        """Absolute tolerance."""
        return float(self.tolerance["atol"])

    def tolerance_of(self, output: str) -> tuple[float, float] | None:
        """Relative and absolute tolerance of an output, by its name without `out.`; None = it is not checked.

        Of several rules that fit, the one with the most words holds.
        """
        words = _words(output)
        unchecked = [key for key, value in self.tolerance.items() if value == NOT_CHECKED and _words(key) <= words]
        if unchecked:
            return None
        return self._closest("rtol", words), self._closest("atol", words)

    def _closest(self, kind: str, words: set[str]) -> float:
        fitting = [key for key in self.tolerance if _words(key) <= words | {kind} and kind in _words(key)]
        return float(self.tolerance[max(fitting, key=lambda key: len(_words(key)))])

    @property
    def input_leaves(self) -> dict[str, Tensor]:
        """The inputs that have a gradient in the file, under the gradients' names (`in.x`)."""
        wanted = {name for named in self.gradients.values() for name in named if name.startswith("in.")}
        return {name: self.inputs.peek(name.removeprefix("in.")) for name in sorted(wanted)}

    @property
    def weighted_output(self) -> str:
        """The output that `in.loss_weight` belongs to: the first in the reference's order that has its shape.

        Raises:
            CaseError: no output has that shape.
        """
        shape = self.inputs.peek(LOSS_WEIGHT).shape
        for name in self.output_names:
            if self.expected[name].shape == shape and self.expected[name].is_floating_point():
                return name
        raise CaseError(f"{self.path}: no output has the shape {tuple(shape)} of in.{LOSS_WEIGHT}")


def _words(name: str) -> set[str]:
    return set(name.replace(".", "_").split("_"))


# --------------------------------------------------------------------------------------------------- finding


def find_cases(folder: Path) -> list[Path]:
    """The JSON paths of all cases below `folder`, sorted; a pair of which only one file exists is listed too."""
    stems = {path.with_suffix(".json") for suffix in ("json", "safetensors") for path in folder.rglob(f"*.{suffix}")}
    return sorted(stems)


def system_of(path: Path) -> str:
    """The system that a case says it belongs to, or its folder's name where its JSON cannot be read."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["system"])
    except (OSError, ValueError, KeyError, TypeError):
        return path.parent.name


# --------------------------------------------------------------------------------------------------- reading


def load_case(path: Path) -> Case:
    """Read one case.

    Args:
        path: its JSON file.

    Raises:
        CaseError: a file is missing or malformed, or a tensor of it is not accounted for.
    """
    described = _read_description(path)
    tensors = _read_tensors(path.with_suffix(".safetensors"))
    state, inputs, expected, gradient_tensors = _by_prefix(path, tensors)
    gradients = _by_loss(path, gradient_tensors, state, inputs)
    _check_outputs(path, described["outputs"], expected)
    gradients_of = described.get("gradients_of")
    if gradients_of is not None:
        for name, tensor in inputs.items():
            if tensor.is_floating_point() and not name.startswith(LOSS_WEIGHT):
                tensor.requires_grad_(True)
    case = Case(
        path=path,
        system=described["system"],
        name=described["case"],
        reference=described["reference"],
        config=described["config"],
        call=described["call"],
        output_names=described["outputs"],
        mode=described["mode"],
        tolerance=described["tolerance"],
        notes=described["notes"],
        gradients_of=gradients_of,
        layer_order=described.get("layer_order", ()),
        state=Tensors(state),
        inputs=Tensors(inputs),
        expected=expected,
        gradients=gradients,
    )
    _check_loss(case, inputs)
    return case


def _read_description(path: Path) -> dict[str, Any]:
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CaseError(f"{path} is missing beside {path.with_suffix('.safetensors').name}") from None
    except OSError as error:
        raise CaseError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise CaseError(f"{path} is not JSON: {error}") from None
    if not isinstance(described, dict):
        raise CaseError(f"{path} must hold a JSON object, got {type(described).__name__}")
    known = _FIELDS | _OPTIONAL_FIELDS
    for name in described:
        if name not in known:
            raise CaseError(f"{path} has the unknown field {name!r}; known are {', '.join(known)}")
    for name, kind in known.items():
        if name not in described and name in _FIELDS:
            raise CaseError(f"{path} lacks the field {name!r}")
        if name in described and not isinstance(described[name], kind):
            raise CaseError(f"{path}: {name!r} must be of type {kind.__name__}, got {described[name]!r}")
    _check_values(path, described)
    return described


def _check_values(path: Path, described: Mapping[str, Any]) -> None:
    if described["case"] != path.stem:
        raise CaseError(f"{path} calls itself {described['case']!r}, it must be {path.stem!r}")
    if described["mode"] not in MODES:
        raise CaseError(f"{path}: mode must be {' or '.join(MODES)}, got {described['mode']!r}")
    gradients_of = described.get("gradients_of")
    if gradients_of is not None and gradients_of not in GRADIENTS_OF:
        raise CaseError(f"{path}: gradients_of must be one of {', '.join(GRADIENTS_OF)}, got {gradients_of!r}")
    for name in ("repo", "commit", "entry"):
        if not isinstance(described["reference"].get(name), str):
            raise CaseError(f"{path}: reference.{name} must be a string")
    rules = [name for name in described["tolerance"] if name.endswith(("_rtol", "_atol"))]
    for name in ("rtol", "atol", *rules):
        value = described["tolerance"].get(name)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1:
            raise CaseError(f"{path}: tolerance.{name} must be a number of at least 0 and below 1, got {value!r}")
    if len(set(described["outputs"])) != len(described["outputs"]):
        raise CaseError(f"{path}: outputs names something twice: {', '.join(described['outputs'])}")


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CaseError(f"{path} is missing beside {path.with_suffix('.json').name}") from None
    except (OSError, SafetensorError) as error:
        raise CaseError(f"cannot read {path}: {error}") from None


def _by_prefix(path: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], ...]:
    sorted_out: dict[str, dict[str, Tensor]] = {"state": {}, "in": {}, "out": {}, "grad": {}}
    for full_name, tensor in tensors.items():
        prefix, _, name = full_name.partition(".")
        if prefix not in sorted_out or not name:
            raise CaseError(
                f"{path.with_suffix('.safetensors')}: the tensor {full_name!r} is neither state., in., out. nor grad."
            )
        sorted_out[prefix][name] = tensor
    return tuple(sorted_out.values())


def _by_loss(
    path: Path, gradients: Mapping[str, Tensor], state: Mapping[str, Tensor], inputs: Mapping[str, Tensor]
) -> dict[str, dict[str, Tensor]]:
    leaves = {**state, **{f"in.{name}": tensor for name, tensor in inputs.items()}}
    sorted_out: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in gradients.items():
        loss, name = ("", full_name) if full_name in leaves else _split_loss(full_name)
        file = path.with_suffix(".safetensors")
        if name not in leaves:
            raise CaseError(f"{file}: the tensor 'grad.{full_name}' belongs to no state key and to no input")
        if tensor.shape != leaves[name].shape:
            raise CaseError(
                f"{file}: the tensor 'grad.{full_name}' has shape {tuple(tensor.shape)}, "
                f"what it is the gradient of has {tuple(leaves[name].shape)}"
            )
        sorted_out.setdefault(loss, {})[name] = tensor
    return sorted_out


def _split_loss(full_name: str) -> tuple[str, str]:
    loss, _, name = full_name.partition(".")
    return loss, name


def _check_outputs(path: Path, named: Sequence[str], expected: Mapping[str, Tensor]) -> None:
    if not named:
        raise CaseError(f"{path} names no output: there is nothing to compare")
    for name in named:
        if name not in expected:
            raise CaseError(f"{path} names the output {name!r}, but {path.stem}.safetensors has no tensor 'out.{name}'")
    for name in expected:
        if name not in named:
            raise CaseError(f"{path.with_suffix('.safetensors')}: the tensor 'out.{name}' is not among the outputs")


def _check_loss(case: Case, inputs: Mapping[str, Tensor]) -> None:
    if case.gradients_of is None:
        if case.gradients:
            raise CaseError(f"{case.path} has gradients, but does not say of what (gradients_of)")
        return
    if "" not in case.gradients:
        raise CaseError(f"{case.path} says gradients_of={case.gradients_of!r}, but the file has no such gradient")
    if case.gradients_of == "weighted":
        if LOSS_WEIGHT not in inputs:
            raise CaseError(f"{case.path} says gradients_of='weighted', but the file has no in.{LOSS_WEIGHT}")
        # refuses a weight that no output fits
        _ = case.weighted_output
    if case.gradients_of == "out.loss" and ("loss" not in case.expected or case.expected["loss"].numel() != 1):
        raise CaseError(f"{case.path} says gradients_of='out.loss', but the file has no scalar out.loss")
