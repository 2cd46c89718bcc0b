"""How the threads of a command wait for each other: briefly, so that a busy machine does not stop them.

GNU's OpenMP, which PyTorch's builds for Linux bring, lets a thread that has nothing to do spin for milliseconds. Where
another program has a core, a thread that is needed then waits behind one that spins: beside a single busy process on
two cores, `regard train transnormer` took twelve times as long as with the shorter wait set here, which costs nothing
on an idle machine (docs/LOG.md has the figures).
"""

from __future__ import annotations

from collections.abc import MutableMapping

SPINS = "10000"
"""Rounds of waiting before a thread sleeps: GNU's own number is 300,000; at 1,000 an idle machine is slower."""


def wait_briefly(environ: MutableMapping[str, str]) -> None:
    """Shorten the wait, unless the user has said how to wait; has effect only before PyTorch is imported."""
    if "OMP_WAIT_POLICY" not in environ:
        environ.setdefault("GOMP_SPINCOUNT", SPINS)
