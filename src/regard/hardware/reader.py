"""Cascades from text, one statement per line; every fault names its line and column.

    # FlashAttention's recurrence
    cascade one_pass: attention in one pass
    rank e, f, p
    rank m = m1, m0
    input Q[e, p], K[e, m1, m0], V[f, m1, m0]
    output AV[f, p]
    operator square(x) = x * x
    QK[m1, m0, p] = sum(e) Q[e, p] * K[e, m1, m0]
    RM[0, p] = -inf
    RM[m1+1, p] = max(RM[m1, p], LM[m1, p])
    AV[f, p] = RNV[end, f, p] / RD[end, p]

`end` is the coordinate behind the last one of a rank on which a tensor is defined at m1+1.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from regard.hardware.checking import check
from regard.hardware.einsum import (
    END,
    Apply,
    Cascade,
    CascadeError,
    Coordinate,
    Einsum,
    Expression,
    Index,
    Number,
    Operator,
    Place,
    Reduction,
    Reference,
    walk,
)
from regard.hardware.operators import CONSTANTS, FUNCTIONS, REDUCTIONS

_TOKEN = re.compile(
    r"(?P<space>\s+)|(?P<number>\d+(\.\d+)?([eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)|(?P<sign><=|>=|==|[-+*/()\[\],=<>:])"
)
_KEYWORDS = ("cascade", "rank", "input", "output", "operator")
_LOOSEST = (("and",), ("<=", "<", ">=", ">", "=="), ("+", "-"), ("*", "/"))
"""Operators between two values, those that bind least first."""
LARGEST_FILE = 1 << 20
DEEPEST = 64


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    place: Place


class _Line:
    """The tokens of a line, read from the left."""

    def __init__(self, text: str, number: int) -> None:
        self.tokens: list[_Token] = []
        start = 0
        while start < len(text):
            match = _TOKEN.match(text, start)
            place = Place(number, start + 1)
            if match is None:
                raise CascadeError(f"unexpected character {text[start]!r}", place)
            kind = str(match.lastgroup) if match.lastgroup in ("space", "number", "name", "sign") else "number"
            if kind != "space":
                self.tokens.append(_Token(kind, match.group(), place))
            start = match.end()
        self.end = Place(number, len(text) + 1)
        self.position = 0

    @property
    def place(self) -> Place:
        """Where the next token stands."""
        return self.tokens[self.position].place if self.position < len(self.tokens) else self.end

    def peek(self, offset: int = 0) -> str:
        """The text of a coming token; empty behind the last."""
        index = self.position + offset
        return self.tokens[index].text if index < len(self.tokens) else ""

    def take(self, text: str | None = None, *, kind: str | None = None) -> _Token:
        """The next token, which must be as wanted.

        Raises:
            CascadeError: it is something else.
        """
        wanted = repr(text) if text is not None else f"a {kind}"
        if self.position >= len(self.tokens):
            raise CascadeError(f"expected {wanted}, and the line ends", self.end)
        token = self.tokens[self.position]
        if (text is not None and token.text != text) or (kind is not None and token.kind != kind):
            raise CascadeError(f"expected {wanted}, got {token.text!r}", token.place)
        self.position += 1
        return token

    def done(self) -> bool:
        """Whether nothing is left."""
        return self.position >= len(self.tokens)

    def finish(self) -> None:
        """Refuse what is left.

        Raises:
            CascadeError: there is something.
        """
        if not self.done():
            raise CascadeError(f"unexpected {self.peek()!r}", self.place)


class _Reader:
    """What has been read so far."""

    def __init__(self) -> None:
        self.name, self.summary = "", ""
        self.ranks: list[str] = []
        self.parts: dict[str, str] = {}
        self.inputs: dict[str, tuple[str, ...]] = {}
        self.outputs: list[tuple[str, Place]] = []
        self.einsums: list[Einsum] = []
        self.operators: dict[str, Operator] = {}
        self.depth = 0

    def statement(self, text: str, number: int) -> None:
        """Read one line."""
        bare = text.partition("#")[0].rstrip()
        if not bare.strip():
            return
        if re.match(r"\s*cascade\s+\w+\s*:", bare):
            name, _, self.summary = bare.strip().removeprefix("cascade").partition(":")
            self.name, self.summary = name.strip(), self.summary.strip()
            return
        line = _Line(bare, number)
        first = line.peek()
        if first in _KEYWORDS and line.peek(1) != "[":
            line.take()
            getattr(self, f"_{first}")(line)
        else:
            self._einsum(line)
        line.finish()

    def _cascade(self, line: _Line) -> None:
        self.name = line.take(kind="name").text

    def _rank(self, line: _Line) -> None:
        names = self._names(line)
        if line.peek() != "=":
            for name in names:
                self.ranks.append(self._fresh(name))
            return
        line.take("=")
        parts = self._names(line)
        if len(names) != 1 or len(parts) != 2:
            raise CascadeError("a rank is split into two: rank m = m1, m0", names[0].place)
        self._fresh(names[0])
        for part in parts:
            self.ranks.append(self._fresh(part))
            self.parts[part.text] = names[0].text

    def _fresh(self, token: _Token) -> str:
        if token.text in self.ranks or token.text in self.parts.values() or token.text in (END, *CONSTANTS):
            raise CascadeError(f"the rank {token.text} is there twice, or its name is taken", token.place)
        return token.text

    def _names(self, line: _Line) -> list[_Token]:
        found = [line.take(kind="name")]
        while line.peek() == ",":
            line.take(",")
            found.append(line.take(kind="name"))
        return found

    def _input(self, line: _Line) -> None:
        while True:
            reference = self._reference(line)
            if reference.tensor in self.inputs:
                raise CascadeError(f"the input {reference.tensor} is there twice", reference.place)
            if any(index.rank is None or index.shift for index in reference.indices):
                raise CascadeError("an input is given by its ranks alone, such as K[e, m]", reference.place)
            self.inputs[reference.tensor] = tuple(str(index.rank) for index in reference.indices)
            if line.peek() != ",":
                return
            line.take(",")

    def _output(self, line: _Line) -> None:
        while True:
            token = line.take(kind="name")
            if line.peek() == "[":
                line.position -= 1
                self._reference(line)
            self.outputs.append((token.text, token.place))
            if line.peek() != ",":
                return
            line.take(",")

    def _operator(self, line: _Line) -> None:
        name = line.take(kind="name")
        if name.text in FUNCTIONS or name.text in REDUCTIONS or name.text in self.operators:
            raise CascadeError(f"the operator {name.text} is there already", name.place)
        line.take("(")
        parameters = self._names(line)
        line.take(")")
        line.take("=")
        names = tuple(token.text for token in parameters)
        body = self._expression(line, names)
        for part in walk(body):
            is_argument = isinstance(part, Reference) and part.tensor in names and not part.indices
            if isinstance(part, Reference | Coordinate) and not is_argument:
                told = f"the operator {name.text} may use its arguments alone: {', '.join(names)}"
                raise CascadeError(told, part.place)
        self.operators[name.text] = Operator(name.text, names, body)

    def _einsum(self, line: _Line) -> None:
        result = self._reference(line)
        line.take("=")
        reduction = None
        if line.peek() in REDUCTIONS and line.peek(1) == "(" and self._reduces(line):
            operator = line.take().text
            line.take("(")
            ranks = tuple(self._known(token) for token in self._names(line))
            line.take(")")
            reduction = Reduction(operator, ranks)
        self.einsums.append(Einsum(result, reduction, self._expression(line)))

    def _reduces(self, line: _Line) -> bool:
        """Whether `max(` begins a reduction over ranks, and not the maximum of two values."""
        offset = 2
        while line.peek(offset) in self.ranks and line.peek(offset + 1) == ",":
            offset += 2
        return line.peek(offset + 1) == ")" and line.peek(offset + 2) not in ("", *"+-*/,<>")

    def _known(self, token: _Token) -> str:
        if token.text not in self.ranks:
            raise CascadeError(
                f"unknown rank {token.text}: the ranks are {', '.join(self.ranks) or 'none'}", token.place
            )
        return token.text

    def _reference(self, line: _Line) -> Reference:
        name = line.take(kind="name")
        line.take("[")
        indices: list[Index] = []
        while line.peek() != "]":
            indices.append(self._index(line))
            if line.peek() != ",":
                break
            line.take(",")
        line.take("]")
        return Reference(name.text, tuple(indices), name.place)

    def _index(self, line: _Line) -> Index:
        token = line.take()
        if token.kind == "number":
            if not token.text.isdigit():
                raise CascadeError(f"a coordinate is a whole number, got {token.text}", token.place)
            return Index(None, int(token.text))
        if token.text == END:
            return Index(None, 0, at_end=True)
        rank = self._known(token)
        if line.peek() not in ("+", "-"):
            return Index(rank)
        sign = line.take().text
        shift = line.take(kind="number")
        if not shift.text.isdigit():
            raise CascadeError(f"a shift is a whole number, got {shift.text}", shift.place)
        return Index(rank, int(sign + shift.text))

    def _expression(self, line: _Line, parameters: tuple[str, ...] = (), level: int = 0) -> Expression:
        if level == len(_LOOSEST):
            return self._unary(line, parameters)
        left = self._expression(line, parameters, level + 1)
        while line.peek() in _LOOSEST[level]:
            token = line.take()
            left = Apply(token.text, (left, self._expression(line, parameters, level + 1)), token.place)
        return left

    def _unary(self, line: _Line, parameters: tuple[str, ...]) -> Expression:
        self.depth += 1
        try:
            if self.depth > DEEPEST:
                raise CascadeError("too many brackets inside each other", line.place)
            if line.peek() == "-":
                token = line.take("-")
                return Apply("neg", (self._unary(line, parameters),), token.place)
            if line.peek() == "(":
                line.take("(")
                inner = self._expression(line, parameters)
                line.take(")")
                return inner
            return self._value(line, parameters)
        finally:
            self.depth -= 1

    def _value(self, line: _Line, parameters: tuple[str, ...]) -> Expression:
        if line.done():
            raise CascadeError("expected a value, and the line ends", line.end)
        token = line.tokens[line.position]
        if token.kind == "number":
            return Number(float(line.take().text))
        if token.kind != "name":
            raise CascadeError(f"expected a value, got {token.text!r}", token.place)
        if line.peek(1) == "[":
            return self._reference(line)
        line.take()
        if line.peek() == "(":
            return self._call(line, token, parameters)
        if token.text in parameters:
            return Reference(token.text, (), token.place)
        if token.text in CONSTANTS:
            return Number(CONSTANTS[token.text])
        if token.text in self.ranks:
            return Coordinate(token.text, token.place)
        raise CascadeError(f"{token.text} is no tensor with coordinates, no rank and no constant", token.place)

    def _call(self, line: _Line, name: _Token, parameters: tuple[str, ...]) -> Expression:
        known = {text: count for text, (count, _) in FUNCTIONS.items()}
        known |= {text: len(operator.parameters) for text, operator in self.operators.items()}
        if name.text not in known:
            names = ", ".join(sorted(text for text in known if text.isalpha()))
            raise CascadeError(f"unknown operator {name.text}: there are {names}", name.place)
        line.take("(")
        arguments = [self._expression(line, parameters)]
        while line.peek() == ",":
            line.take(",")
            arguments.append(self._expression(line, parameters))
        line.take(")")
        if len(arguments) != known[name.text]:
            raise CascadeError(f"{name.text} takes {known[name.text]} values, got {len(arguments)}", name.place)
        return Apply(name.text, tuple(arguments), name.place)


def read_text(text: str) -> Cascade:
    """A cascade from its text.

    Raises:
        CascadeError: a fault, with line and column.
    """
    reader = _Reader()
    for number, line in enumerate(text.splitlines(), 1):
        reader.statement(line, number)
    cascade = Cascade(
        name=reader.name or "cascade",
        summary=reader.summary,
        ranks=tuple(reader.ranks),
        inputs=reader.inputs,
        outputs=tuple(name for name, _ in reader.outputs),
        einsums=tuple(reader.einsums),
        operators=reader.operators,
        parts=reader.parts,
    )
    check(cascade, dict(reader.outputs))
    return cascade


def read_file(path: Path) -> Cascade:
    """A cascade from a file.

    Raises:
        CascadeError: a file that cannot be read, or a fault in it, with line and column.
    """
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise CascadeError(f"the file has more than {LARGEST_FILE:,} bytes")
        return read_text(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CascadeError(f"it cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise CascadeError("it is no text") from None
