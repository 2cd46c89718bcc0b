"""The frame of the command line: help, version, one-line errors, exit statuses, and no torch where none is needed."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import types

import pytest

from regard import cli
from regard.cli import COMMANDS
from regard.cli.arguments import build_parser
from regard.errors import UserError
from regard.registry import UnknownSystemError

QUESTIONS = {
    "import": "import regard",
    "help": "from regard.cli import main; main(['--help'])",
    "version": "from regard.cli import main; main(['--version'])",
    "list": "from regard.cli import main; main(['list'])",
    "list as json": "from regard.cli import main; main(['list', '--json'])",
    "help of list": "from regard.cli import main; main(['list', '--help'])",
    "help of verify": "from regard.cli import main; main(['verify', '--help'])",
    "help of reproduce": "from regard.cli import main; main(['reproduce', '--help'])",
    "names of claims": "from regard.claims import known_systems; known_systems()",
    "a wrong argument": "from regard.cli import main; main(['verify', '--nope'])",
}


@pytest.mark.parametrize("code", QUESTIONS.values(), ids=QUESTIONS.keys())
def test_asking_imports_no_torch(code) -> None:
    check = f"{code}\nimport sys\nprint('torch' in sys.modules, file=sys.stderr)"
    ran = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert ran.stderr.splitlines()[-1] == "False"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(regard, arguments) -> None:
    ran = regard(*arguments)
    assert ran.status == 0
    assert ran.err == ""
    for command, summary in COMMANDS.items():
        assert any(command in line and summary in line for line in ran.out.splitlines())


def test_version(regard) -> None:
    import regard as package

    assert regard("--version").out == f"regard {package.__version__}\n"


def test_python_dash_m_is_the_command_line() -> None:
    ran = subprocess.run([sys.executable, "-m", "regard", "lst"], capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert ran.stderr == "regard: unknown command 'lst': did you mean list?\n"
    assert ran.stdout == ""


def test_a_command_unlike_any_other_is_answered_with_all_of_them(refused) -> None:
    assert refused("zzzz") == f"regard: unknown command 'zzzz': known are {', '.join(COMMANDS)}"


@pytest.mark.parametrize("command", ["list", "info", "verify", "reproduce", "compare"])
def test_every_command_has_help_with_examples(regard, command) -> None:
    ran = regard(command, "--help")
    assert ran.status == 0
    assert ran.out.startswith(f"usage: regard {command}")
    assert "examples:" in ran.out
    assert f"  regard {command}" in ran.out


@pytest.fixture
def command(monkeypatch):
    """Make `regard try` run a given function."""

    def install(function) -> None:
        module = types.ModuleType("regard.cli.try")

        def run(*, times: int = 1) -> int:
            """Try it.

            Args:
                times: how often.
            """
            return function()

        module.run = run
        module.EXAMPLES = ""
        monkeypatch.setitem(sys.modules, "regard.cli.try", module)
        monkeypatch.setitem(COMMANDS, "try", "try it")

    return install


def raising(error):
    def function() -> int:
        raise error

    return function


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("no such file:\n  a\tb"), "regard try: no such file: a b"),
        (UnknownSystemError("unknown system 'x'"), "regard try: unknown system 'x'"),
    ],
)
def test_known_errors_are_one_line(refused, command, error, line) -> None:
    command(raising(error))
    assert refused("try") == line


def test_ctrl_c_is_one_line_and_130(regard, command) -> None:
    command(raising(KeyboardInterrupt()))
    ran = regard("try")
    assert (ran.status, ran.err) == (130, "regard try: interrupted\n")


def test_an_error_of_ours_is_not_hidden(regard, command) -> None:
    command(raising(ZeroDivisionError("ours")))
    with pytest.raises(ZeroDivisionError, match="ours"):
        regard("try")


def test_the_status_is_the_commands(regard, command) -> None:
    command(lambda: 7)
    assert regard("try").status == 7


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """What `regard list | head -1` does, with a reader that is gone before anything is written."""
    code = "import sys, regard.cli; sys.stdin.read(); sys.exit(regard.cli.main(['list', '--json']))"
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=writing, stderr=subprocess.PIPE, text=True
    )
    os.close(writing)
    os.close(reading)
    _, complaint = process.communicate("", timeout=60)
    assert complaint == ""
    assert process.returncode == 128 + signal.SIGPIPE


def test_every_command_module_builds_a_parser() -> None:
    for name in COMMANDS:
        module = importlib.import_module(f"regard.cli.{name}")
        assert build_parser(name, module.run, examples=module.EXAMPLES).prog == f"regard {name}"


def test_the_entry_point_is_main() -> None:
    from importlib.metadata import entry_points

    (found,) = [point for point in entry_points(group="console_scripts") if point.name == "regard"]
    assert found.load() is cli.main
