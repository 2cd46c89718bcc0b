from __future__ import annotations

from regard.models.language.decoder import DecoderConfig
from regard.tasks.fit import Hardware

SENTENCE = "the quick brown fox jumps over the lazy dog, and the dog sleeps on.\n"
TINY = DecoderConfig(dim=12, num_layers=2, num_heads=2, mixer="lightning", hidden=16)
QUIET = Hardware(progress=False)
