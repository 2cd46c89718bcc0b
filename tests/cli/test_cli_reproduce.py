"""`regard reproduce`: each claim with its figure and verdict; one that does not hold is a result, not a failure."""

from __future__ import annotations

import json

import pytest

# the runner is imported before the tests hide the package's own modules
import regard.claims.runner  # noqa: F401
from regard import claims
from regard.claims import Measured, claim, out_of_reach


@pytest.fixture(autouse=True)
def _toy(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(claims, "_claims", {})
    # without the package's own claims, which would be measured for minutes
    monkeypatch.setattr(claims, "__path__", [str(tmp_path)])

    @claim(
        "toy", name="good", grade="exact", statement="says [b]good[/b]", figure="9", where="Eq. 1", criterion="c >= 2"
    )
    def good() -> Measured:
        return Measured(value="3.1e-7", held=True, detail="n=7")

    @claim("toy", name="bad", grade="ratio", statement="says bad", criterion="r >= 5")
    def bad() -> Measured:
        return Measured(value="0.5x", held=False)

    @claim("toy", name="long", grade="scaled", statement="says long", criterion="l >= 5")
    def long() -> Measured:
        return Measured(value="6", held=True)

    out_of_reach("toy", name="far", statement="says far", criterion="f", reason="needs a cluster")


def broken() -> Measured:
    raise RuntimeError("it broke")


def test_claims_are_printed_with_figure_and_verdict(regard) -> None:
    ran = regard("reproduce", "toy")
    assert ran.status == 0
    shown = " ".join(ran.out.split())
    assert "toy good [exact] held paper says [b]good[/b]; 9; Eq. 1 criterion c >= 2 measured 3.1e-7 detail n=7" in shown
    assert "toy bad [ratio] not held paper says bad criterion r >= 5 measured 0.5x" in shown
    assert "toy far [out of reach] out of reach paper says far criterion f reason needs a cluster" in shown
    assert "long" not in shown
    assert ran.out.splitlines()[-1] == "1 held, 1 not held, 1 out of reach, 0 error"


def test_an_error_in_a_claim_is_shown_and_the_others_go_on(regard, tmp_path) -> None:
    claim("toy", name="broken", grade="exact", statement="s", criterion="c")(broken)
    claim("toy", name="last", grade="exact", statement="s", criterion="c")(lambda: Measured(value="1", held=True))
    path = tmp_path / "claims.json"
    ran = regard("reproduce", "--grade", "exact", "--json", str(path))
    assert ran.status == 1
    assert "error RuntimeError: it broke (test_cli_reproduce.py:" in " ".join(ran.out.split())
    verdicts = {result["claim"]: result["verdict"] for result in json.loads(path.read_text())}
    assert verdicts == {"good": "held", "far": "out of reach", "broken": "error", "last": "held"}


def test_grades_and_systems_choose(regard) -> None:
    claim("other", name="one", grade="exact", statement="s", criterion="c")(lambda: Measured(value="1", held=True))
    assert (
        regard("reproduce", "--grade", "scaled").out.splitlines()[-1] == "1 held, 0 not held, 1 out of reach, 0 error"
    )
    assert regard("reproduce", "other").out.splitlines()[-1] == "1 held, 0 not held, 0 out of reach, 0 error"
    assert regard("reproduce", "toy", "other", "toy").out.splitlines()[-1].startswith("2 held, 1 not held, 1 out")


def test_results_are_kept_when_it_is_interrupted(regard, tmp_path) -> None:
    def interrupted() -> Measured:
        raise KeyboardInterrupt

    claim("toy", name="stop", grade="exact", statement="s", criterion="c")(interrupted)
    path = tmp_path / "claims.json"
    ran = regard("reproduce", "toy", "--json", str(path))
    assert ran.status == 130
    assert ran.err.splitlines()[-1] == "regard reproduce: interrupted"
    assert [result["claim"] for result in json.loads(path.read_text())] == ["good", "bad", "far"]


def test_wrong_arguments_are_one_line_and_exit_2(refused, tmp_path) -> None:
    assert refused("reproduce", "tooy") == "regard reproduce: the system 'tooy' has no claims: did you mean toy?"
    assert "--grade must be of exact, ratio, scaled" in refused("reproduce", "toy", "--grade", "exact,roughly")
    assert "--grade must be of" in refused("reproduce", "toy", "--grade", "out of reach")
    assert "there is no folder" in refused("reproduce", "toy", "--json", str(tmp_path / "nowhere" / "a.json"))


def test_the_help_says_that_not_held_is_no_failure(regard) -> None:
    assert "is a result, not a failure" in " ".join(regard("reproduce", "--help").out.split())
