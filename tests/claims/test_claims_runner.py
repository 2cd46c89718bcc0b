"""Every claim is run by itself: what one raises does not stop the others."""

from __future__ import annotations

import pytest

from regard import claims
from regard.claims import Measured, claim, out_of_reach
from regard.claims.runner import reproduce


@pytest.fixture
def toy(monkeypatch) -> None:
    monkeypatch.setattr(claims, "_claims", {})

    def register(name: str, grade: str, measure) -> None:
        claim("toy", name=name, grade=grade, statement=f"says {name}", criterion="c", figure="9", where="Eq. 1")(
            measure
        )

    def raises() -> Measured:
        raise ZeroDivisionError("by\nzero")

    register("good", "exact", lambda: Measured(value="1", held=True, detail="n=7"))
    register("bad", "ratio", lambda: Measured(value="0.5x", held=False))
    register("broken", "exact", raises)
    register("mistaken", "exact", lambda: 3)
    register("long", "scaled", lambda: Measured(value="2", held=True))
    out_of_reach("toy", name="far", statement="s", criterion="c", reason="needs a cluster")


def test_each_claim_has_its_verdict(toy) -> None:
    results = {result.name: result for result in reproduce(["toy"])}
    assert {name: result.verdict for name, result in results.items()} == {
        "good": "held",
        "bad": "not held",
        "broken": "error",
        "mistaken": "error",
        "far": "out of reach",
    }
    assert results["good"].value == "1"
    assert results["good"].detail == "n=7"
    assert (results["good"].statement, results["good"].figure, results["good"].where) == ("says good", "9", "Eq. 1")
    assert results["broken"].value.startswith("ZeroDivisionError: by zero (test_claims_runner.py:")
    assert "must return Measured, got int" in results["mistaken"].value
    assert results["far"].value == "needs a cluster"


@pytest.mark.parametrize(
    ("grades", "names"),
    [(["scaled"], ["long", "far"]), (["ratio"], ["bad", "far"]), (["ratio", "scaled"], ["bad", "long", "far"])],
)
def test_grades_choose_and_what_is_out_of_reach_is_always_listed(toy, grades, names) -> None:
    assert [result.name for result in reproduce(["toy"], grades)] == names


def test_progress_is_told(toy) -> None:
    told = []
    reproduce(
        ["toy"],
        ["ratio"],
        on_start=lambda each, number, total: told.append((each.claim.name, number, total)),
        on_result=lambda result: told.append(result.verdict),
    )
    assert told == [("bad", 1, 2), "not held", ("far", 2, 2), "out of reach"]


def test_a_module_that_cannot_be_imported_is_an_error_of_its_system_only(toy, monkeypatch, tmp_path) -> None:
    (tmp_path / "broken.py").write_text("{}['no such key']\n")
    monkeypatch.setattr(claims, "__path__", [*claims.__path__, str(tmp_path)])
    results = reproduce(["broken", "toy"], ["ratio"])
    assert [(result.system, result.verdict) for result in results] == [
        ("broken", "error"),
        ("toy", "not held"),
        ("toy", "out of reach"),
    ]
    assert "KeyError" in results[0].value
    assert "broken.py:1" in results[0].value


def test_an_unknown_system_is_refused_before_anything_runs(toy) -> None:
    started = []
    with pytest.raises(LookupError, match="'nosuchsystem' has no claims"):
        reproduce(["toy", "nosuchsystem"], on_start=lambda *_: started.append(1))
    assert not started


def test_ctrl_c_stops_everything(toy) -> None:
    def interrupted() -> Measured:
        raise KeyboardInterrupt

    claim("toy", name="stop", grade="ratio", statement="s", criterion="c")(interrupted)
    with pytest.raises(KeyboardInterrupt):
        reproduce(["toy"], ["ratio"])
