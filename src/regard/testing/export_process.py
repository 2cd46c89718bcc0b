"""`torch.export` in a process of its own: a failed export can leave global state behind."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from regard.contract import ContractError
from regard.testing.judgement import require

SECONDS = 300
"""Longest time that all forms of one class may take."""


def why_not_exportable(cls: type) -> str | None:
    """The reason why no process of its own can be had for this class; None where one can."""
    if _importable(cls) or "fork" in multiprocessing.get_all_start_methods():
        return None
    return f"{cls.__qualname__} cannot be imported by another process, and this system has no fork"


def check_exports(cls: Any) -> None:
    """Export every form of `cls`, in one process for all.

    Raises:
        ContractError: names each form that failed, and why.
    """
    failures = export_failures([cls])[cls] if _importable(cls) else _in_a_fork(cls)
    require(not failures, "; ".join(f"{form}: {message}" for form, message in failures.items()))


def export_failures(classes: Sequence[type]) -> dict[type, dict[str, str]]:
    """What goes wrong in exporting every form of each class, one after the other in one new process.

    A process takes seconds to start. What a failed export leaves behind can make the classes after it fail, too.

    Args:
        classes: can be imported by another process.

    Raises:
        ContractError: the process took too long or broke off.
    """
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder, "result.json")
        program = "from regard.testing.export_process import main; main()"
        names = [part for cls in classes for part in (cls.__module__, cls.__qualname__)]
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        limit = SECONDS * len(classes)
        try:
            ran = subprocess.run(
                [sys.executable, "-c", program, str(result), *names],
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ContractError(f"torch.export took more than {limit} s") from None
        if ran.returncode != 0:
            raise ContractError(f"the export process ended with status {ran.returncode}: {_shortened(ran.stderr)}")
        found = json.loads(result.read_text(encoding="utf-8"))
    return dict(zip(classes, found, strict=True))


def export_every_form(cls: Any) -> dict[str, str]:
    """What went wrong, by form; empty if nothing did."""
    from regard.testing.plan import subjects_of
    from regard.testing.tracing_checks import exported

    torch.set_num_threads(1)
    failures = {}
    for subject in subjects_of(cls):
        try:
            exported(subject)
        except ContractError as error:
            failures[subject.form] = str(error)
        except Exception as error:
            failures[subject.form] = f"{type(error).__name__}: {_shortened(str(error))}"
    return failures


def main() -> None:
    """Entry point of the new process: the file for the results, then module and qualified name of each class."""
    result, *names = sys.argv[1:]
    classes = [_resolve(module, qualname) for module, qualname in zip(names[::2], names[1::2], strict=True)]
    Path(result).write_text(json.dumps([export_every_form(cls) for cls in classes]), encoding="utf-8")


def _in_a_fork(cls: type) -> dict[str, str]:
    """For a class of a script, notebook or function, which only a copy of this process knows."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_report_exports, args=(cls, sender), daemon=True)
    with warnings.catch_warnings():
        # newer Pythons warn that other threads do not come along: one-threaded export needs none of them
        warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
        process.start()
    sender.close()
    try:
        require(receiver.poll(SECONDS), f"torch.export took more than {SECONDS} s")
        return dict(receiver.recv())
    except EOFError:
        process.join()
        raise ContractError(f"the export process ended with status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()


def _report_exports(cls: type, sender: Connection) -> None:
    torch.set_num_threads(1)
    sender.send(export_every_form(cls))


def _resolve(module: str, qualname: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in qualname.split("."):
        found = getattr(found, part)
    return found


def _importable(cls: type) -> bool:
    return cls.__module__ != "__main__" and "<locals>" not in cls.__qualname__


def _shortened(text: str, *, limit: int = 600) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit // 2] + " ... " + text[-limit // 2 :]
