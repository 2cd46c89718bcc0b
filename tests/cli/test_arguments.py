"""A signature becomes a command line; what does not fit is one line that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from regard.cli.arguments import build_parser, parse
from regard.errors import UserError


def run(
    task: Literal["text", "image"] = "text",
    extra: list[str] = [],  # noqa: B006 - read only
    *,
    data: Path | None = None,
    num_steps: int = 7,
    rate: float = 0.5,
    resume: bool = False,
    causal: bool | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
    names: str | None = None,
) -> int:
    """Do something.

    It takes a while.

    Args:
        task: what to do.
        extra: more of it.
        data: where the data is.
        num_steps: how many
            steps.
        rate: how fast.
        resume: go on.
        causal: only the past.
        device: where.
        names: of what.
    """
    return 0


def needs(folder: Path, *, out: Path) -> int:
    """Need something.

    Args:
        folder: from where.
        out: to where.
    """
    return 0


DEFAULTS = {
    "task": "text",
    "extra": [],
    "data": None,
    "num_steps": 7,
    "rate": 0.5,
    "resume": False,
    "causal": None,
    "device": "cpu",
    "names": None,
}


@pytest.mark.parametrize(
    ("line", "given"),
    [
        ("", {}),
        ("image", {"task": "image"}),
        ("image a b", {"task": "image", "extra": ["a", "b"]}),
        ("--num-steps 3", {"num_steps": 3}),
        ("--num-steps=3 image", {"num_steps": 3, "task": "image"}),
        ("--num-steps -3", {"num_steps": -3}),
        ("image --num-steps 3 a --resume b", {"task": "image", "extra": ["a", "b"], "num_steps": 3, "resume": True}),
        ("--resume image", {"resume": True, "task": "image"}),
        ("--data some/where", {"data": Path("some/where")}),
        ("--causal true", {"causal": True}),
        ("--causal false", {"causal": False}),
        ("--rate 1e-3 --device cuda", {"rate": 1e-3, "device": "cuda"}),
        ("--names a,b", {"names": "a,b"}),
        ("--names 12", {"names": "12"}),
        ("image -- --odd", {"task": "image", "extra": ["--odd"]}),
    ],
)
def test_arguments_are_parsed(line, given) -> None:
    assert parse(build_parser("do", run), line.split()) == {**DEFAULTS, **given}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("movie", "TASK must be text or image, got movie"),
        ("--num-steps many", "--num-steps must be a whole number, got many"),
        ("--num-steps 2.5", "--num-steps must be a whole number, got 2.5"),
        ("--rate fast", "--rate must be a number, got fast"),
        ("--causal maybe", "--causal must be true or false, got maybe"),
        ("--device tpu", "--device must be cpu or cuda, got tpu"),
        ("--num-step 3", "unknown argument --num-step; did you mean --num-steps?"),
        ("--num-step=3", "unknown argument --num-step=3; did you mean --num-steps?"),
        ("--zzzz", "unknown argument --zzzz"),
        ("--num-steps", "argument --num-steps: expected one argument"),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(line, message) -> None:
    with pytest.raises(UserError) as refused:
        parse(build_parser("do", run), line.split())
    assert str(refused.value) == message


@pytest.mark.parametrize(("line", "named"), [("", "FOLDER and --out"), ("here", "--out"), ("--out there", "FOLDER")])
def test_what_is_missing_is_named(line, named) -> None:
    with pytest.raises(UserError, match=f"missing .*{named}"):
        parse(build_parser("need", needs), line.split())


def test_what_is_too_much_is_named() -> None:
    with pytest.raises(UserError, match="unknown argument more"):
        parse(build_parser("need", needs), ["here", "more", "--out", "there"])


def test_the_help_comes_from_the_docstring(capsys) -> None:
    with pytest.raises(SystemExit):
        parse(build_parser("do", run, examples="\n  regard do image\n"), ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "usage: regard do" in shown
    assert "Do something. It takes a while." in shown
    assert "--num-steps NUM_STEPS how many steps. (default: 7)" in shown
    assert "{text,image} what to do. (default: text)" in shown
    assert "--causal {true,false} only the past." in shown
    assert "--resume go on." in shown
    assert "examples: regard do image" in shown


def test_a_parameter_without_description_is_an_error_of_ours() -> None:
    def silent(*, depth: int = 3) -> int:
        """Say nothing."""
        return 0

    def untyped(*, depth=3) -> int:
        """Say something.

        Args:
            depth: how deep.
        """
        return 0

    for function in (silent, untyped):
        with pytest.raises(TypeError, match="'depth' needs an annotation and a description"):
            build_parser("do", function)
