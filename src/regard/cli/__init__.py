"""The command line: `regard COMMAND ...`.

Each command is a module `regard.cli.<command>` with a function `run`, whose signature and docstring are the command's
arguments and help (see `regard.cli.arguments`), and a text `EXAMPLES`. It is imported only when it is called, so that
`regard --help` and `regard list` need no torch.
"""

from __future__ import annotations

# the frame is a module of its own: here `list` would soon mean the command's module instead of Python's type
from regard.cli.program import COMMANDS, main

__all__ = ["COMMANDS", "main"]
