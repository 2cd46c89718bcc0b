"""What is remembered where a long-term memory and attention in a sliding window stand together."""

from __future__ import annotations

from regard.contract import State, state
from regard.layers.neural_memory import MemoryState
from regard.layers.prefix_attention import PrefixWindowState


@state
class MemoryAndWindowState(State):
    """A memory and a window; their size does not depend on the number of tokens."""

    memory: MemoryState
    attention: PrefixWindowState
