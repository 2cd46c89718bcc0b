"""The frame of the command line: choose the command, call it, and turn its errors into one line.

Exit status: what the command returns (0 = done); 2 for wrong arguments and for what the user can put right, said in one
line on stderr; 130 after Ctrl-C.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence

from regard.cli.errors import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, EXIT_USAGE, one_line
from regard.cli.threads import wait_briefly
from regard.errors import UserError
from regard.registry import UnknownSystemError

COMMANDS = {
    "compare": "race mechanisms on your own data and lengths; a ranked table and a report",
    "train": "train a system on your files, or on a sample, to a checkpoint",
    "evaluate": "measure a checkpoint on your files",
    "predict": "write a checkpoint's predictions for your files",
    "export": "write a checkpoint for other programs: ONNX or torch.export",
    "generate": "continue a prompt with a trained language model",
    "convert": "give a trained softmax language model another mechanism, by distillation",
    "list": "list all mechanisms and what each can do",
    "info": "show one mechanism: paper, capabilities, arguments, cost",
    "hardware": "say what attention costs on an accelerator, from passes to seconds",
    "verify": "check parity with the authors' implementations, case by case",
    "reproduce": "measure the papers' claims on this machine",
}


def help_text() -> str:
    """What `regard --help` prints."""
    rows = [f"  {name:<{max(map(len, COMMANDS))}}  {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "usage: regard COMMAND [ARGUMENTS]",
            "",
            "Attention mechanisms under one contract: choose, use, trust and see them.",
            "",
            "commands:",
            *rows,
            "",
            "options:",
            "  --help     show this, or with a command the command's arguments and examples",
            "  --version  show the version",
            "",
            "examples:",
            "  regard list --causal true --decodes true",
            "  regard compare text --out runs/first",
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the arguments, without the program's name; those of the process when None.

    Returns:
        The exit status.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    prefix = "regard"
    wait_briefly(os.environ)
    try:
        if arguments and arguments[0] in COMMANDS:
            prefix = f"regard {arguments[0]}"
        status = _dispatch(arguments)
        sys.stdout.flush()
        return status
    except (UserError, UnknownSystemError) as error:
        print(f"{prefix}: {one_line(str(error))}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(f"{prefix}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # the reader has gone (`| head`): what is still buffered must not raise again when Python exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(help_text())
        return 0
    if arguments[0] in ("-V", "--version"):
        from regard._version import VERSION

        print(f"regard {VERSION}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {command!r}: {hint}")
    return _run(command, rest)


def _run(command: str, arguments: list[str]) -> int:
    from regard.cli.arguments import build_parser, parse

    module = importlib.import_module(f"regard.cli.{command}")
    parser = build_parser(command, module.run, examples=module.EXAMPLES)
    try:
        options = parse(parser, arguments)
    except SystemExit as stop:
        # jsonargparse has printed the help
        return int(stop.code or 0)
    return int(module.run(**options))
