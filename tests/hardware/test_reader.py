"""Cascades from text: what is read, and what is refused with line and column."""

from __future__ import annotations

import pytest

from regard.hardware.einsum import Apply, CascadeError, Index, Number
from regard.hardware.reader import read_file, read_text

GOOD = """
# a comment
cascade small: scores and their sum
rank e, p
rank m = m1, m0     # split
input Q[e, p], K[e, m1, m0], scale[]
output S
operator square(x) = x * x
QK[m1, m0, p] = sum(e) scale[] * Q[e, p] * K[e, m1, m0]
R[0, p] = -inf
R[m1+1, p] = max(R[m1, p], L[m1, p])
L[m1, p] = max(m0) QK[m1, m0, p]
S[p] = square(R[end, p]) + 2.5e-1
"""


def test_a_text_becomes_a_cascade() -> None:
    cascade = read_text(GOOD)
    assert (cascade.name, cascade.summary) == ("small", "scores and their sum")
    assert cascade.ranks == ("e", "p", "m1", "m0")
    assert cascade.parts == {"m1": "m", "m0": "m"}
    assert cascade.inputs == {"Q": ("e", "p"), "K": ("e", "m1", "m0"), "scale": ()}
    assert cascade.outputs == ("S",)
    assert [einsum.name for einsum in cascade.einsums] == ["QK", "R", "R", "L", "S"]
    running = cascade.einsums[2]
    assert running.reduction is None
    assert running.result.indices == (Index("m1", 1), Index("p"))
    local = cascade.einsums[3]
    assert local.reduction is not None
    assert (local.reduction.operator, local.reduction.ranks) == ("max", ("m0",))
    last = cascade.einsums[4].expression
    assert isinstance(last, Apply)
    assert last.operator == "+"
    assert last.arguments[1] == Number(0.25)
    assert (cascade.outer("m"), cascade.inner("m"), cascade.whole("m0"), cascade.whole("e")) == ("m1", "m0", "m", "e")


def test_products_bind_more_than_sums_and_comparisons_least() -> None:
    cascade = read_text("rank m, p\ninput A[m]\noutput B\nB[m, p] = where(m <= p + 1, A[m] * 2 - -1 / 4, 0)")
    call = cascade.einsums[0].expression
    assert isinstance(call, Apply)
    condition, value, _ = call.arguments
    assert (condition.operator, value.operator) == ("<=", "-")
    assert [part.operator for part in value.arguments] == ["*", "/"]


BASE = "rank e, m, p\ninput Q[e, p], K[e, m]\noutput X\n"
FAULTS = {
    "operator of a rank": ("operator f(x) = x * m", 4, 21, "the operator f may use its arguments alone: x"),
    "operator of a tensor": ("operator f(x) = x * K[e, m]", 4, 21, "the operator f may use its arguments alone: x"),
    "argument with ranks": ("operator f(x) = x[e]", 4, 17, "the operator f may use its arguments alone: x"),
    "unknown rank": ("X[p] = sum(z) Q[e, p]", 4, 12, "unknown rank z: the ranks are e, m, p"),
    "unknown index": ("X[q] = sum(e) Q[e, p]", 4, 3, "unknown rank q"),
    "unbound": ("X[p] = Q[e, p]", 4, 8, "the rank e is unbound: X neither has it nor reduces over it"),
    "reduced for nothing": ("X[p] = sum(m, e) Q[e, p]", 4, 1, "X reduces over m, which its map does not have"),
    "reduced and kept": ("X[e, p] = sum(e) Q[e, p]", 4, 1, "X has the rank e and reduces over it"),
    "wrong rank": (
        "X[p] = sum(e, m) Q[e, m] + K[e, p]",
        4,
        18,
        "Q has the rank p here, got m: a rank cannot have two sizes",
    ),
    "undefined": ("X[p] = sum(e) Q[e, p] * Z[e]", 4, 25, "Z is not defined"),
    "coordinates": ("X[p] = sum(e) Q[e]", 4, 15, "Q has the ranks e, p, got 1 coordinates"),
    "unknown operator": ("X[p] = sum(e) expp(Q[e, p])", 4, 15, "unknown operator expp: there are"),
    "number of values": ("X[p] = sum(e) exp(Q[e, p], 2)", 4, 15, "exp takes 1 values, got 2"),
    "nested reduction": ("X[p] = sum(m) Y[m, p]\nY[m, p] = X[p] + sum(e) Q[e, p]", 5, 18, "unknown operator sum"),
    "written twice": ("X[p] = sum(e) Q[e, p]\nX[p] = sum(e) Q[e, p]", 5, 1, "X is written twice"),
    "input written": ("Q[e, p] = K[e, p]", 4, 1, "Q is an input and cannot be written"),
    "no start": ("X[m+1, p] = X[m, p] + 1", 4, 1, "X runs over m and has no value at m = 0"),
    "no running quantity": ("X[e, p] = Q[e, p+1]", 4, 11, "Q is no running quantity over p"),
    "bracket": ("X[p] = sum(e) (Q[e, p]", 4, 23, r"expected '\)', and the line ends"),
    "character": ("X[p] = sum(e) Q[e, p] ? 2", 4, 23, "unexpected character '\\?'"),
    "left over": ("X[p] = sum(e) Q[e, p] 3", 4, 23, "unexpected '3'"),
    "no value": ("X[p] =", 4, 7, "expected a value, and the line ends"),
    "bare name": ("X[p] = sum(e) Q[e, p] + y", 4, 25, "y is no tensor with coordinates, no rank and no constant"),
    "shift": ("X[m+1.5, p] = 0", 4, 5, "a shift is a whole number, got 1.5"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_has_a_line_and_a_column(kind) -> None:
    text, line, column, told = FAULTS[kind]
    with pytest.raises(CascadeError, match=told) as caught:
        read_text(BASE + text)
    assert caught.value.place is not None
    assert (caught.value.place.line, caught.value.place.column) == (line, column)
    assert str(caught.value).startswith(f"line {line}, column {column}: ")


def test_a_cycle_is_told() -> None:
    text = "rank p\ninput A[p]\noutput X\nX[p] = Y[p] + A[p]\nY[p] = X[p] * 2"
    with pytest.raises(CascadeError, match="line 4, column 1: X depends on itself, and not on an earlier coordinate"):
        read_text(text)
    with pytest.raises(CascadeError, match="depends on itself"):
        read_text("rank m\ninput A[m]\noutput X\nX[0] = 0\nX[m+1] = X[m+1] + A[m]")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rank p\ninput A[p]\nX[p] = A[p]", "there is no output"),
        ("rank p\ninput A[p]\noutput Z\nX[p] = A[p]", "line 3, column 8: the output Z is not defined"),
        ("rank p, p", "line 1, column 9: the rank p is there twice"),
        ("rank m = a, b, c", "line 1, column 6: a rank is split into two"),
        ("rank p\ninput A[p], A[p]", "line 2, column 13: the input A is there twice"),
        ("rank p\ninput A[p+1]", "line 2, column 7: an input is given by its ranks alone"),
        ("operator exp(x) = x", "line 1, column 10: the operator exp is there already"),
        ("rank p\ninput A[p]\noutput X\nX[p] = " + "(" * 100 + "A[p]", "too many brackets"),
    ],
    ids=["output", "undefined output", "rank", "split", "input", "input shift", "operator", "depth"],
)
def test_declarations_that_cannot_be(text, told) -> None:
    with pytest.raises(CascadeError, match=told):
        read_text(text)


def test_files_that_are_none(tmp_path) -> None:
    with pytest.raises(CascadeError, match="cannot be read: No such file"):
        read_file(tmp_path / "none.cascade")
    (tmp_path / "b.cascade").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CascadeError, match="no text"):
        read_file(tmp_path / "b.cascade")
    (tmp_path / "a.cascade").write_text(GOOD)
    assert read_file(tmp_path / "a.cascade").name == "small"
