"""From a command's `run` function to its command line: the signature says it all.

- A parameter before `*` is positional on the command line; with a default it may be left out; `list[str]` takes any
  number.
- A keyword-only parameter `out_dir` is the option `--out-dir`; `bool` with the default False is a flag, `bool | None`
  takes true or false.
- The first paragraph of the docstring is the command's description, its `Args` are the help of the arguments, and the
  module's `EXAMPLES` are shown last.
"""

from __future__ import annotations

import argparse
import difflib
import inspect
import re
import typing
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any, NoReturn

import jsonargparse
from docstring_parser import parse_from_object

from regard.cli.errors import UserError, one_line

Run = Callable[..., int]


class _Formatter(jsonargparse.DefaultHelpFormatter):
    """Keeps the line breaks of descriptions and examples, and shows a default only where there is one."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))

    def _get_help_string(self, action: argparse.Action) -> str:
        no_default = action.default in (None, False, argparse.SUPPRESS) or action.nargs in ("*", "+")
        return (action.help or "") + ("" if no_default else f" (default: {action.default})")


class _Parser(jsonargparse.ArgumentParser):
    """Raises a `UserError` of one line where its parent prints the usage and exits."""

    kinds: dict[str, Any]

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise UserError(self._shorten(one_line(message)))

    def _shorten(self, message: str) -> str:
        surplus = re.match(r"unrecognized arguments: (\S+)", message)
        if surplus:
            return f"unknown argument {surplus[1]}"
        missing = re.match(r"the following arguments are required: (.*)$", message)
        if missing:
            return f"missing {' and '.join(self._shown(name) for name in missing[1].split(', '))}"
        refused = re.match(r'Parser key "(\w+)": .*(?:Got value|Given value): (.*)$', message)
        if refused is None or refused[1] not in self.kinds:
            return message
        return f"{self._shown(refused[1])} must be {_in_words(self.kinds[refused[1]])}, got {refused[2]}"

    def _shown(self, name: str) -> str:
        """A parameter as the user types it."""
        options = [option for action in self._actions if action.dest == name for option in action.option_strings]
        return options[0] if options else name.upper()


def _in_words(kind: Any) -> str:
    """A type as a user would say it."""
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(str(value) for value in typing.get_args(kind))
    inner = [part for part in typing.get_args(kind) if part is not NoneType]
    if inner and typing.get_origin(kind) not in (list, tuple):
        return " or ".join(_in_words(part) for part in inner)
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def build_parser(command: str, run: Run, *, examples: str = "") -> _Parser:
    """The parser of one command.

    Args:
        command: its name, as typed.
        run: its function; every parameter is annotated and described.
        examples: shown at the end of its help.

    Raises:
        TypeError: a parameter that has no annotation or no description, which is an error of ours.
    """
    described = parse_from_object(run)
    help_of = {param.arg_name: one_line(param.description or "") for param in described.params}
    paragraphs = [described.short_description, described.long_description]
    parser = _Parser(
        prog=f"regard {command}",
        description="\n\n".join(paragraph for paragraph in paragraphs if paragraph),
        epilog=f"examples:\n{examples.strip(chr(10))}" if examples else None,
        formatter_class=_Formatter,
        default_env=False,
        allow_abbrev=False,
    )
    parser.kinds = typing.get_type_hints(run)
    for parameter in inspect.signature(run).parameters.values():
        if parameter.name not in parser.kinds or not help_of.get(parameter.name):
            raise TypeError(f"regard {command}: the parameter {parameter.name!r} needs an annotation and a description")
        _add_argument(parser, parameter, parser.kinds[parameter.name], help_of[parameter.name])
    return parser


def _add_argument(parser: _Parser, parameter: inspect.Parameter, kind: Any, help_text: str) -> None:
    has_default = parameter.default is not inspect.Parameter.empty
    if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
        # a trailing underscore sets a name apart from one of Python's own words: `import_` is --import
        option = "--" + parameter.name.rstrip("_").replace("_", "-")
        named: dict[str, Any] = {} if option[2:] == parameter.name.replace("_", "-") else {"dest": parameter.name}
        if kind is bool and parameter.default is False:
            parser.add_argument(option, action="store_true", help=help_text, **named)
            return
        required = {} if has_default else {"required": True}
        default = {"default": parameter.default} if has_default else {}
        metavar = _metavar(parameter.name.rstrip("_"), kind)
        parser.add_argument(option, type=kind, help=help_text, metavar=metavar, **default, **required, **named)
        return
    if typing.get_origin(kind) is list:
        (element,) = typing.get_args(kind)
        action = parser.add_argument(
            parameter.name,
            type=element,
            nargs="*" if has_default else "+",
            metavar=_metavar(parameter.name, element),
            help=help_text,
        )
        action.required = not has_default
        return
    optional = {"nargs": "?", "default": parameter.default} if has_default else {}
    metavar = _metavar(parameter.name, kind)
    parser.add_argument(parameter.name, type=kind, help=help_text, metavar=metavar, **optional)


def _metavar(name: str, kind: Any) -> str:
    """What stands for a value in the help: its choices, or the argument's name."""
    choices = [value for part in (kind, *typing.get_args(kind)) for value in _choices(part)]
    return "{" + ",".join(choices) + "}" if choices else name.upper()


def _choices(kind: Any) -> list[str]:
    if kind is bool:
        return ["true", "false"]
    return [str(value) for value in typing.get_args(kind)] if typing.get_origin(kind) is typing.Literal else []


def parse(parser: _Parser, arguments: Sequence[str]) -> dict[str, Any]:
    """The keyword arguments for `run`.

    Raises:
        UserError: an argument that does not fit.
        SystemExit: after `--help`.
    """
    return dict(vars(parser.parse_args(_positionals_first(parser, arguments))))


def _positionals_first(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> list[str]:
    """Arguments in an order that argparse can digest: it takes optional positionals only in one run.

    Raises:
        UserError: an option that the command does not have; the nearest is suggested.
    """
    flag_of = {option: action.nargs == 0 for action in parser._actions for option in action.option_strings}
    options: list[str] = []
    positionals: list[str] = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            positionals += rest
            break
        if not re.match(r"-[^\d]", argument):
            positionals.append(argument)
            continue
        option, given, _ = argument.partition("=")
        if option not in flag_of:
            near = difflib.get_close_matches(option, flag_of, n=1)
            raise UserError(f"unknown argument {argument}" + (f"; did you mean {near[0]}?" if near else ""))
        options.append(argument)
        if not flag_of[option] and not given and rest and not rest[0].startswith("--"):
            options.append(rest.pop(0))
    return [*options, "--", *positionals] if positionals else options
