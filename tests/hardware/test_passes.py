"""How many passes a cascade takes, and what begins each."""

from __future__ import annotations

import pytest

from regard.hardware.einsum import CascadeError
from regard.hardware.library import along, cascade, names
from regard.hardware.passes import count_passes
from regard.hardware.reader import read_text

EXPECTED = {
    "attention_three_pass": 3,
    "attention_deferred_division": 2,
    "attention_two_pass": 2,
    "attention_one_pass": 1,
    "softplus": 1,
    "window": 1,
    "hip": 1,
    "agent": 2,
    "aaren": 1,
    "lightning": 1,
}


def test_every_shipped_cascade_has_its_number_of_passes() -> None:
    assert {name: count_passes(cascade(name), along(cascade(name))).count for name in names()} == EXPECTED


def test_what_begins_each_pass() -> None:
    steps = {step.tensor: step for step in count_passes(cascade("attention_three_pass"), "m").steps}
    assert {name: step.number for name, step in steps.items()} == {
        "QK": 1, "GM": 1, "SN": 2, "SD": 2, "A": 3, "AV": 3,
    }  # fmt: skip
    assert {name: step.forced_by for name, step in steps.items() if step.forced_by} == {"SN": "GM", "A": "SD"}


def test_queries_are_gone_over_once() -> None:
    assert count_passes(cascade("attention_three_pass"), "p").count == 1


HEAD = "rank e, m, p\ninput Q[e, p], K[e, m], V[m]\noutput Y\n"


@pytest.mark.parametrize(
    ("lines", "passes"),
    [
        ("S[m, p] = sum(e) Q[e, p] * K[e, m]\nY[p] = sum(m) S[m, p] * V[m]", 1),
        # a mean is needed before anything can be centred, and a deviation before it can be divided
        (
            "A[p] = sum(m) V[m] * Q[e, p]\n".replace(" * Q[e, p]", "").replace("[p]", "[]")
            + "B[m] = V[m] - A[]\nC[] = sum(m) B[m] * B[m]\nD[m] = B[m] / C[]\nY[] = sum(m) D[m]",
            3,
        ),
        # a constant of no input along the rank begins no pass
        ("G[p] = sum(e) Q[e, p]\nY[p] = sum(m) V[m] * G[p]", 1),
    ],
    ids=["one", "three", "other rank"],
)
def test_cascades_of_a_users_own(lines: str, passes: int) -> None:
    assert count_passes(read_text(HEAD + lines), "m").count == passes


def test_an_unknown_rank_is_refused() -> None:
    with pytest.raises(CascadeError, match="attention_one_pass has no rank z: it has e, f, p, m"):
        count_passes(cascade("attention_one_pass"), "z")


def test_an_unknown_cascade_is_refused_with_the_nearest() -> None:
    with pytest.raises(CascadeError, match="did you mean lightning"):
        cascade("lightnin")


def test_a_files_own_rank_is_found() -> None:
    assert along(read_text("rank z, w\ninput A[z]\noutput B\nB[] = sum(z) A[z]")) == "z"
    assert along(read_text("rank e, m\ninput A[e, m]\noutput B\nB[e] = sum(m) A[e, m]")) == "m"
