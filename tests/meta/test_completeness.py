"""Nothing registered is half-done, and no test is without an assertion."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

import regard
from regard.metadata import Entry, Example, Traits

TESTS = Path(__file__).resolve().parents[1]
MIXERS = {**regard.systems(kind="sequence"), **regard.systems(kind="feature")}
FAMILY = ("assert", "check", "expect")
"""A call whose name begins so judges something: `torch.testing.assert_close`, `check_mixer`, Playwright's `expect`."""
OF_PYTEST = ("raises", "warns", "fail")


def test_something_is_registered() -> None:
    assert regard.systems(kind="sequence")


@pytest.mark.parametrize("entry", MIXERS.values(), ids=MIXERS)
def test_mixer_is_complete(entry: Entry) -> None:
    cls = regard.get_class(entry.name)
    assert entry.paper.url.startswith("https://"), entry.paper
    assert entry.paper.title
    assert entry.paper.year > 1900
    assert isinstance(cls.traits, Traits)
    assert cls.traits == entry.traits, "the index is stale: python -m regard.build_index"
    assert isinstance(cls.example, Example)
    has_heads = "num_heads" in inspect.signature(cls).parameters
    assert "num_heads" in cls.example.kwargs or not has_heads


@pytest.mark.parametrize("module", sorted({entry.module for entry in MIXERS.values()}))
def test_mixer_has_a_test_file_at_its_mirrored_path(module: str) -> None:
    *folders, name = module.split(".")[1:]
    expected = TESTS.joinpath(*folders, f"test_{name}.py")
    assert expected.is_file(), f"{module} has no {expected.relative_to(TESTS.parent)}"


def test_every_test_asserts() -> None:
    sources = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(TESTS.rglob("*.py"))}
    judging = helpers_that_judge(list(sources.values()))
    idle = [
        f"{path.relative_to(TESTS)}:{function.lineno} {function.name}"
        for path, tree in sources.items()
        if path.name.startswith("test_")
        for function in functions_of(tree)
        if function.name.startswith("test_") and not judges(function, judging)
    ]
    assert len(sources) > 2
    assert not idle, f"tests that cannot fail: {', '.join(idle)}"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("x = 1", False),
        ("assert True", False),
        ("print(x)", False),
        ("assert x", True),
        ("helper(x)", True),
        ("idle(x)", False),
        ("with pytest.raises(ValueError): f()", True),
        ("torch.testing.assert_close(a, b)", True),
        ("check_mixer(cls)", True),
    ],
)
def test_idle_tests_are_found(body: str, expected: bool) -> None:
    tree = ast.parse(f"def deep(x):\n assert x\ndef helper(x):\n deep(x)\ndef idle(x): pass\ndef test_it():\n {body}\n")
    function = next(found for found in functions_of(tree) if found.name == "test_it")
    assert judges(function, helpers_that_judge([tree])) is expected


def functions_of(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def judges(function: ast.FunctionDef, judging: set[str]) -> bool:
    """Whether the function asserts, expects an exception, or calls a function that does."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant):
            return True
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called.startswith(FAMILY) or called in OF_PYTEST or called in judging:
                return True
    return False


def helpers_that_judge(trees: list[ast.Module]) -> set[str]:
    """Names of the tests' own helpers that assert, by themselves or through another."""
    helpers = [node for tree in trees for node in functions_of(tree) if not node.name.startswith("test_")]
    judging: set[str] = set()
    while True:
        found = {helper.name for helper in helpers if judges(helper, judging)}
        if found == judging:
            return judging
        judging = found
