"""The loader accounts for every tensor, and refuses what it cannot place, naming file and tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from regard.parity.cases import CaseError, Tensors, find_cases, load_case, system_of


def test_every_tensor_is_sorted(write_case) -> None:
    case = load_case(write_case())
    assert case.system == "toy"
    assert case.name == "linear"
    assert case.entry == "toy/layers.py:Linear"
    assert (case.rtol, case.atol) == (1e-4, 1e-5)
    assert set(case.state) == {"weight", "bias"}
    assert set(case.inputs) == {"x", "loss_weight"}
    assert set(case.expected) == {"y", "tokens"}
    assert {loss: set(named) for loss, named in case.gradients.items()} == {
        "": {"weight", "bias", "in.x"},
        "square": {"weight"},
    }
    assert case.weighted_output == "y"


def test_float_inputs_require_gradients_but_weights_of_the_loss_do_not(write_case) -> None:
    extra = {"in.loss_weight_boxes": torch.randn(3), "in.ids": torch.tensor([3, 1])}
    case = load_case(write_case(tensors=extra))
    assert {name: tensor.requires_grad for name, tensor in case.inputs.items()} == {
        "x": True,
        "loss_weight": False,
        "loss_weight_boxes": False,
        "ids": False,
    }


def test_inputs_of_a_case_without_gradients_require_none(write_case) -> None:
    gone = dict.fromkeys(["grad.weight", "grad.bias", "grad.in.x", "grad.square.weight"])
    case = load_case(write_case(tensors=gone, gradients_of=None))
    assert not case.gradients
    assert not case.inputs["x"].requires_grad


def test_a_state_key_with_a_dot_is_not_taken_for_a_named_loss(write_case) -> None:
    more = {"state.square.weight": torch.randn(5, 3)}
    case = load_case(write_case(tensors=more))
    assert set(case.gradients) == {""}
    assert "square.weight" in case.gradients[""]


def test_named_losses_may_have_gradients_of_inputs(write_case) -> None:
    case = load_case(write_case(tensors={"grad.square.in.x": torch.randn(2, 7, 3)}))
    assert set(case.gradients["square"]) == {"weight", "in.x"}


def test_the_weight_of_the_loss_belongs_to_the_first_output_of_its_shape(write_case) -> None:
    more = {"out.z": torch.randn(2, 7, 5), "out.flags": torch.ones(2, 7, 5, dtype=torch.bool)}
    assert load_case(write_case(tensors=more, outputs=["flags", "z", "y", "tokens"])).weighted_output == "z"


@pytest.mark.parametrize(
    ("tensors", "named"),
    [
        ({"extra.x": torch.zeros(1)}, "'extra.x'"),
        ({"stray": torch.zeros(1)}, "'stray'"),
        ({"state.": torch.zeros(1)}, "'state.'"),
        ({"grad.nobody": torch.zeros(1)}, "'grad.nobody'"),
        ({"grad.square.nobody": torch.zeros(1)}, "'grad.square.nobody'"),
        ({"grad.in.y": torch.zeros(1)}, "'grad.in.y'"),
        ({"grad.bias": torch.zeros(4)}, r"'grad.bias' has shape \(4,\), what it is the gradient of has \(5,\)"),
        ({"out.z": torch.zeros(1)}, "'out.z' is not among the outputs"),
        ({"out.y": None}, "no tensor 'out.y'"),
        ({"in.loss_weight": None}, "in.loss_weight"),
        ({"in.loss_weight": torch.zeros(3)}, r"no output has the shape \(3,\)"),
    ],
)
def test_tensors_that_cannot_be_placed_are_named(write_case, tensors, named) -> None:
    path = write_case(tensors=tensors)
    with pytest.raises(CaseError, match=named) as refused:
        load_case(path)
    assert "linear" in str(refused.value)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"gradients_of": "everything"}, "gradients_of must be one of weighted, out.loss, notes, got 'everything'"),
        ({"gradients_of": None}, "has gradients, but does not say of what"),
        ({"gradients_of": "out.loss"}, "no scalar out.loss"),
        ({"mode": "test"}, "mode must be eval or train, got 'test'"),
        ({"notes": None}, "lacks the field 'notes'"),
        ({"seed": 3}, "unknown field 'seed'"),
        ({"outputs": "y"}, "'outputs' must be of type list"),
        ({"outputs": []}, "names no output"),
        ({"outputs": ["y", "y", "tokens"]}, "twice"),
        ({"outputs": ["y", "tokens", "z"]}, "'z'"),
        ({"tolerance": {"rtol": 1e-4}}, "tolerance.atol"),
        ({"tolerance": {"rtol": 1e-4, "atol": "small"}}, "tolerance.atol"),
        ({"tolerance": {"rtol": 1e-4, "atol": 1e9}}, "tolerance.atol"),
        ({"tolerance": {"rtol": 1e-4, "atol": 1e-5, "y_rtol": 1e9}}, "tolerance.y_rtol"),
        ({"reference": {"repo": "r", "commit": "c"}}, "reference.entry"),
    ],
)
def test_descriptions_that_are_wrong_are_refused(write_case, fields, named) -> None:
    path = write_case(**fields)
    with pytest.raises(CaseError, match=named) as refused:
        load_case(path)
    assert "linear.json" in str(refused.value)


def test_gradients_that_are_promised_must_be_there(write_case) -> None:
    gone = dict.fromkeys(["grad.weight", "grad.bias", "grad.in.x"])
    with pytest.raises(CaseError, match="no such gradient"):
        load_case(write_case(tensors=gone))


def test_a_case_must_carry_its_files_name(write_case) -> None:
    path = write_case()
    for suffix in (".json", ".safetensors"):
        path.with_suffix(suffix).rename(path.with_name(f"other{suffix}"))
    with pytest.raises(CaseError, match="calls itself 'linear', it must be 'other'"):
        load_case(path.with_name("other.json"))


@pytest.mark.parametrize(("gone", "left"), [(".json", ".safetensors"), (".safetensors", ".json")])
def test_half_a_pair_is_found_and_refused(write_case, gone, left) -> None:
    path = write_case()
    path.with_suffix(gone).unlink()
    assert find_cases(path.parent) == [path]
    with pytest.raises(CaseError, match=rf"linear\{gone} is missing beside linear\{left}"):
        load_case(path)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\x00\x01"])
def test_malformed_json_is_refused(write_case, text) -> None:
    path = write_case()
    path.write_text(text)
    with pytest.raises(CaseError, match=r"linear\.json"):
        load_case(path)


def test_malformed_tensors_are_refused(write_case) -> None:
    path = write_case()
    path.with_suffix(".safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00notjson!")
    with pytest.raises(CaseError, match=r"linear\.safetensors"):
        load_case(path)


def test_the_system_of_a_broken_case_is_its_folders_name(write_case) -> None:
    path = write_case()
    assert system_of(path) == "toy"
    path.write_text("{")
    assert system_of(path) == "cases"


def test_cases_are_found_in_sub_folders_in_order(tmp_path: Path) -> None:
    for name in ("b/second.json", "a/first.safetensors", "a/first.json", "a/notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_cases(tmp_path) == [tmp_path / "a" / "first.json", tmp_path / "b" / "second.json"]


def test_tensors_remember_which_were_read() -> None:
    tensors = Tensors({name: torch.zeros(1) for name in ("a", "b", "c", "d")})
    assert "a" in tensors
    assert list(tensors) == ["a", "b", "c", "d"]
    assert len(tensors) == 4
    tensors.peek("a")
    assert tensors.unread == ["a", "b", "c", "d"]
    assert tensors.get("b") is not None
    _ = tensors["c"]
    assert tensors.unread == ["a", "d"]
    assert set(dict(tensors)) == {"a", "b", "c", "d"}
    assert tensors.unread == []
