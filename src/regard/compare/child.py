"""One mechanism's part of a race, in a process of its own: `python -m regard.compare.child JOB.json`.

It trains and evaluates, says that it is ready, waits for the word `measure` on its standard input, then times. Events
go to its standard output as one JSON object per line; results go to its part file after every stage, so that a child
that is started again goes on where the last one stopped. When its input ends, the race is gone or was interrupted: the
child saves and leaves.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, TextIO

PERMISSION = b"measure"
_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


class Stopped(BaseException):
    """The race has told this child to stop; not an error, and caught by nobody but `main`."""


class Wire:
    """Talks to the race: events out, permission in.

    Args:
        source: descriptor of the lines from the race; its end means stop.
        sink: takes events.
    """

    def __init__(self, source: int, sink: TextIO) -> None:
        self._sink = sink
        self._stopped = threading.Event()
        self._may_measure = threading.Event()
        threading.Thread(target=self._listen, args=(source,), daemon=True).start()

    def _listen(self, source: int) -> None:
        # not through sys.stdin: its lock, held while waiting, would break the interpreter's shutdown
        while words := os.read(source, 64):
            if PERMISSION in words:
                self._may_measure.set()
        self._stopped.set()
        self._may_measure.set()

    def send(self, event: str, **details: Any) -> None:
        """Tell the race something."""
        try:
            print(json.dumps({"event": event, **details}), file=self._sink, flush=True)
        except BrokenPipeError:
            self._stopped.set()

    def tick(self) -> None:
        """Raise `Stopped` if the race wants this child to stop."""
        if self._stopped.is_set():
            raise Stopped

    def wait_for_turn(self) -> None:
        """Block until this child may measure, alone on the machine."""
        self._may_measure.wait()
        self.tick()


def _private_output() -> TextIO:
    """The events' own channel: whatever else prints, also from C, goes to the error log."""
    sink = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return sink


def main(argv: list[str]) -> int:
    """Run one job; the exit status is 0 unless the mechanism failed."""
    wire = Wire(sys.stdin.fileno(), _private_output())
    # torch is imported here, after the channel has been split from everything that prints
    from regard.compare.job import Job, Part
    from regard.compare.stages import Contestant

    job = Job.read(Path(argv[0]))
    part = Part.read(Path(job.folder))
    try:
        Contestant(job, part, wire).run()
    except Stopped:
        wire.send("stopped")
        return 0
    except Exception as error:
        traceback.print_exc()
        _tell_failure(wire, error)
        return 1
    wire.send("done")
    return 0


def _tell_failure(wire: Wire, error: Exception) -> None:
    from regard.compare.budget import BudgetError
    from regard.compare.cost import is_out_of_memory
    from regard.compare.training import DivergedError
    from regard.errors import describe_exception

    if isinstance(error, OSError) and error.errno in _UNWRITABLE:
        wire.send("cannot_write", why=os.strerror(error.errno))
    elif isinstance(error, DivergedError | BudgetError):
        wire.send("failed", why=str(error), final=True)
    elif is_out_of_memory(error):
        wire.send("failed", why=f"out of memory: {error}", final=False)
    else:
        wire.send("failed", why=describe_exception(error), final=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
