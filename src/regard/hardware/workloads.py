"""Attention layers of well-known models at lengths from 1K to 1M, as the accelerators of the paper run them."""

from __future__ import annotations

from dataclasses import dataclass

from regard.wording import suggestion

BATCH = 64
LENGTHS = tuple(2**power for power in (10, 12, 14, 16, 18, 20))


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One attention layer with the linear layers around it.

    Args:
        model: name of the model.
        dim: width of the model, D.
        num_heads: number of heads, H.
        head_dim: width of queries and keys, E.
        value_dim: width of values, F.
        hidden: width inside the feed-forward layer, S.
        keys: length of keys and values, M.
        queries: length of queries, P.
        batch: rows, B.

    Raises:
        ValueError: a size that is not positive.
    """

    model: str
    dim: int
    num_heads: int
    head_dim: int
    value_dim: int
    hidden: int
    keys: int
    queries: int
    batch: int = BATCH

    def __post_init__(self) -> None:
        for name in ("dim", "num_heads", "head_dim", "value_dim", "hidden", "keys", "queries", "batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")

    @property
    def scores(self) -> int:
        """Number of scores, B H M P."""
        return self.batch * self.num_heads * self.keys * self.queries

    @property
    def rows(self) -> int:
        """B H."""
        return self.batch * self.num_heads


MODELS: dict[str, dict[str, int]] = {
    "bert": {"dim": 768, "num_heads": 12, "head_dim": 64, "hidden": 3072},
    "trxl": {"dim": 1024, "num_heads": 16, "head_dim": 64, "hidden": 4096},
    "t5": {"dim": 512, "num_heads": 8, "head_dim": 64, "hidden": 2048},
    "xlm": {"dim": 2048, "num_heads": 16, "head_dim": 128, "hidden": 8192},
}
TITLES = {"bert": "BERT", "trxl": "TrXL", "t5": "T5", "xlm": "XLM"}


def workload(model: str, seq_len: int) -> Workload:
    """A model's layer at some length.

    Args:
        model: "bert", "trxl", "t5" or "xlm".
        seq_len: length of queries and of keys.

    Raises:
        ValueError: an unknown model, or a length that is not positive.
    """
    if model not in MODELS:
        raise ValueError(f"unknown workload {model!r}: {suggestion(model, MODELS)}")
    sizes = MODELS[model]
    return Workload(model=model, **sizes, value_dim=sizes["head_dim"], keys=seq_len, queries=seq_len)


def workloads(model: str | None = None, seq_len: int | None = None) -> list[Workload]:
    """Workloads of the paper's four models at its six lengths.

    Args:
        model: only this model; None = all.
        seq_len: only this length, which need not be one of the six; None = all.

    Raises:
        ValueError: an unknown model, or a length that is not positive.
    """
    models = MODELS if model is None else (model,)
    lengths = LENGTHS if seq_len is None else (seq_len,)
    return [workload(name, length) for name in models for length in lengths]


def all_workloads() -> list[Workload]:
    """The paper's 24: four models at six lengths."""
    return workloads()


def length_in_words(length: int) -> str:
    """1024 as "1K", 1048576 as "1M"; others as they are."""
    for unit, letter in ((2**20, "M"), (2**10, "K")):
        if length % unit == 0 and length >= unit:
            return f"{length // unit}{letter}"
    return f"{length:,}"
