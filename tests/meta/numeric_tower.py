"""Beartype as `typed_run` uses it: a whole number is also a `float`, as PEP 484 says."""

from __future__ import annotations

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
