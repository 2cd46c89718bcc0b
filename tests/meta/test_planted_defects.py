"""The checks check: each planted defect is caught by the check of its name, and the correct toys pass them all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from defects_of_modules import BranchesOnData, PromisesAGate
from defects_of_sequences import NeverCounts
from planted_defects import DEFECTS, Defect
from torch import Tensor, nn
from toy_mixers import ToyGate, ToyPositions, ToyRunningMean, ToySoftmax

from regard import ContractError, No, Traits
from regard.testing import Check, check_mixer, contract_checks, skipped_checks
from regard.testing.export_process import check_exports, export_failures

TOYS = (ToySoftmax, ToyGate, ToyPositions, ToyRunningMean)
EVERY_CHECK = [check for toy in TOYS for check in contract_checks(toy)]
IN_THIS_PROCESS = [check for check in EVERY_CHECK if check.name != "export"]


@pytest.mark.parametrize("check", IN_THIS_PROCESS, ids=lambda check: f"{check.subject}-{check}")
def test_correct_toys_pass(check: Check) -> None:
    assert check() is None


def test_correct_toys_export() -> None:
    assert {check.subject for check in EVERY_CHECK if check.name == "export"} == {toy.__qualname__ for toy in TOYS}
    assert export_failures(TOYS) == {toy: {} for toy in TOYS}


@pytest.mark.parametrize("defect", DEFECTS, ids=str)
def test_defect_is_caught(defect: Defect) -> None:
    named = [check for check in contract_checks(defect.mixer) if check.name == defect.check]
    caught = []
    for check in named:
        try:
            check()
        except ContractError as error:
            caught.append(str(error))
    assert caught, f"none of {len(named)} checks called {defect.check} caught {defect.mixer.__name__}"
    assert any(defect.message in message for message in caught), caught


def test_every_check_has_a_defect() -> None:
    names = {check.name for check in EVERY_CHECK}
    assert names == {defect.check for defect in DEFECTS}


def test_every_feature_check_of_its_own_has_a_defect() -> None:
    of_features = {"sizes", "attention_map", "cost", "gate", "ill_arguments"}
    planted = {defect.check for defect in DEFECTS if issubclass(defect.mixer, ToyGate | ToyPositions)}
    assert of_features <= planted


def test_check_mixer_names_every_failure_and_runs_the_rest() -> None:
    with pytest.raises(ContractError) as caught:
        check_mixer(NeverCounts, skip_slow=True)
    message = str(caught.value)
    for name in ("chunked_steps-causal", "masked_steps-causal", "state-causal"):
        assert f"NeverCounts fails {name}: " in message
    assert "fails 3 of" in message


def test_check_mixer_reports_times_and_what_was_not_asked() -> None:
    report = check_mixer(ToyRunningMean, skip_slow=True)
    assert "shapes-causal" in report.seconds
    assert "export-every form" not in report.seconds
    assert report.skipped["bias"] == "has no scores"
    assert report.skipped["every check of the form cross"] == "the mean runs over the past"
    assert "not asked: bias (has no scores)" in str(report)


def test_missing_capabilities_take_checks_away_with_their_reason() -> None:
    class Denies(ToySoftmax):
        traits = Traits(compiles=No("calls out"), exports=No("calls out"), any_length=No("one size"))

    assert skipped_checks(Denies) == {"compile": "calls out", "export": "calls out", "sizes": "one size"}
    names = {check.name for check in contract_checks(Denies)}
    assert names.isdisjoint({"compile", "export", "sizes"})
    check_mixer(Denies, skip_slow=True)


class FixedLength(ToySoftmax):
    """Takes multiples of the example's lengths alone, as mechanisms with learned grids do."""

    traits = replace(ToySoftmax.traits, any_length=No("needs multiples of 11 tokens and 7 keys"))

    def mix(self, x: Tensor, *, context: Tensor | None, **options: Any) -> Tensor:
        lengths = (x.shape[1] % 11, 0 if context is None else context.shape[1] % 7)
        if any(lengths):
            raise ValueError(f"lengths leave {lengths} over")
        return super().mix(x, context=context, **options)


def test_a_mixer_of_fixed_lengths_is_asked_for_no_others() -> None:
    report = check_mixer(FixedLength, skip_slow=True)
    assert {"padding-causal", "padding-cross", "segments-bidirectional", "chunked_steps-causal"} <= set(report.seconds)


@pytest.mark.slow
def test_a_class_that_cannot_be_imported_is_exported_in_a_copy_of_this_process() -> None:
    class Local(ToyRunningMean):
        pass

    class Branches(ToyRunningMean):
        def mix(self, x: Tensor, **_: object) -> Tensor:
            return super().mix(x if x.sum() > 0 else x + 1)

    check_exports(Local)
    with pytest.raises(ContractError, match="causal: "):
        check_exports(Branches)


@pytest.mark.slow
def test_an_export_that_fails_leaves_this_process_as_it_was() -> None:
    with pytest.raises(ContractError, match=r"bidirectional: .*cross: "):
        check_exports(BranchesOnData)
    module = ToySoftmax(6).eval()
    x = torch.randn(1, 3, 6)
    torch.testing.assert_close(torch.compile(module, backend="eager")(x), module(x))
    torch.compiler.reset()


def test_checks_leave_the_callers_random_state() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    next(check for check in contract_checks(ToyGate) if check.name == "dropout")()
    torch.testing.assert_close(torch.rand(3), expected)


def test_what_is_no_mixer_is_refused() -> None:
    with pytest.raises(ContractError, match="neither a SequenceMixer nor a FeatureMixer"):
        check_mixer(nn.Linear)

    class WithoutExample(ToySoftmax):
        example = None

    with pytest.raises(ContractError, match="needs class-level example"):
        check_mixer(WithoutExample)
    with pytest.raises(ContractError, match="promise gate"):
        check_mixer(PromisesAGate, skip_slow=True)
