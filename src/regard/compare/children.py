"""A child process of a race, seen from the race: started, listened to, allowed to measure, stopped."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any

from regard.compare.child import PERMISSION
from regard.compare.job import Job
from regard.wording import shown

PATIENCE_S = 3.0
Event = dict[str, Any]
Events = queue.Queue[tuple["Child", Event]]


class Child:
    """One mechanism's process.

    Args:
        job: what it does.
        events: receives its events, and `{"event": "exit"}` when it is gone.
    """

    def __init__(self, job: Job, events: Events) -> None:
        self.job = job
        self.name = job.name
        self.ready = False
        """Has trained, and may be timed."""
        self.waiting = False
        """Is ready, and it is not its turn."""
        self.gone = False
        self.ended: Event | None = None
        """The event with which it ended by itself: done, stopped or failed."""
        self.working = False
        """Has started up."""
        self.active_s = 0.0
        """Seconds in which it was not waiting."""
        self._log = Path(job.folder) / "stderr.log"
        path = job.write()
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                # -P: a file in the current folder must not stand in for a module
                [sys.executable, "-P", "-m", "regard.compare.child", str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment(),
                # Ctrl-C goes to the race alone, which then tells its children
                start_new_session=True,
            )
        assert self._process.stdout is not None
        threading.Thread(target=self._listen, args=(self._process.stdout, events), daemon=True).start()

    def _environment(self) -> dict[str, str]:
        threads = str(self.job.threads)
        modules = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        return {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONPATH": modules}

    def _listen(self, stream: IO[bytes], events: Events) -> None:
        with stream:
            for line in stream:
                events.put((self, json.loads(line)))
        self._process.wait()
        events.put((self, {"event": "exit"}))

    def permit(self) -> None:
        """Let it measure."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            # a broken pipe means that it has just died; its exit is on the way
            self._process.stdin.write(PERMISSION + b"\n")
            self._process.stdin.flush()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()

    def ask_to_stop(self) -> None:
        """Let it save and leave."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            # a broken pipe means that it is gone already
            self._process.stdin.close()

    def wait(self, deadline: float) -> None:
        """Wait until it is gone, and end it if it is still there at the deadline (on the monotonic clock)."""
        try:
            self._process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def why_it_died(self) -> str:
        """Why it is gone without having said so."""
        code = self._process.returncode
        if code == -signal.SIGKILL:
            return "killed (out of memory?)"
        last = self._last_error_line()
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            return f"crashed with {name}" + (f": {last}" if last else "")
        return last or f"ended with exit status {code}"

    def _last_error_line(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines() if self._log.is_file() else []
        return next((shown(line) for line in reversed(lines) if line.strip()), "")


def stop_all(children: list[Child]) -> None:
    """Stop children, all within the same few seconds."""
    deadline = time.monotonic() + PATIENCE_S
    for child in children:
        child.ask_to_stop()
    for child in children:
        child.wait(deadline)
