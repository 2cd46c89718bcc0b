"""Trust: check a mechanism of your own against the contract, and see a defect caught.

Run: python examples/trust.py
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from regard import ContractError, Example, No, SequenceMixer, Traits
from regard.ops.heads import merge_heads, split_heads
from regard.testing import check_mixer

NOT_YET = No("not written yet")


class RunningMean(SequenceMixer):
    """The mean of all values so far."""

    traits = Traits(
        bidirectional=No("the mean runs over the past"),
        cross=No("the mean runs over the past"),
        segments=NOT_YET,
        bias=No("has no scores"),
        decodes=NOT_YET,
        step_exact=NOT_YET,
        has_map=NOT_YET,
        row_stochastic=NOT_YET,
        exports=No("lives in a script, which a process of its own cannot import"),
        time="n",
    )
    example = Example(kwargs={"dim": 15, "num_heads": 3}, batch=2, tokens=13)

    def __init__(self, dim: int, *, num_heads: int = 3, causal: bool = True) -> None:
        super().__init__(dim, num_heads=num_heads, causal=causal)
        self.v_proj = nn.Linear(dim, dim, bias=False)
        self.o_proj = nn.Linear(dim, dim)

    def mix(self, x: Tensor, **_: Any) -> Tensor:
        v = split_heads(self.v_proj(x), self.num_heads)
        return v.cumsum(dim=2) / torch.arange(1, x.shape[1] + 1, dtype=x.dtype)[:, None]

    def out(self, mixed: Tensor, x: Tensor) -> Tensor:
        return self.o_proj(merge_heads(mixed))

    @classmethod
    def count_macs(cls, options: SimpleNamespace, *, batch: int, tokens: int, keys: int) -> int:
        return 2 * batch * tokens * options.dim**2


class LeakingMean(SequenceMixer):
    """The mean of all values, the future included: a defect."""

    traits = RunningMean.traits
    example = RunningMean.example
    __init__ = RunningMean.__init__
    out = RunningMean.out
    count_macs = RunningMean.__dict__["count_macs"]

    def mix(self, x: Tensor, **_: Any) -> Tensor:
        v = split_heads(self.v_proj(x), self.num_heads)
        return v.mean(dim=2, keepdim=True).expand_as(v)


def main() -> None:
    check_mixer(RunningMean)
    print("RunningMean keeps the contract")
    try:
        check_mixer(LeakingMean)
    except ContractError as error:
        print(f"LeakingMean does not:\n{error}")
    else:
        raise AssertionError("the leak was not caught")


if __name__ == "__main__":
    main()
