"""One check of the contract, and the report of all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from regard.contract import ContractError

SEED = 7919


@dataclass(frozen=True)
class Check:
    """One property of one mixer in one form; calling it checks the property.

    Args:
        name: the property, such as `padding`.
        form: "causal", "bidirectional", "cross", "1-D", "2-D", "3-D", or "class" for what needs no instance.
        subject: name of the class.
        slow: whether it takes seconds (compilation, export).
        judge: does the work; raises `ContractError`.
    """

    name: str
    form: str
    subject: str
    slow: bool
    judge: Callable[[], None] = field(repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.name}-{self.form}"

    def __call__(self) -> None:
        """Check the property, with seeds of its own; the caller's random state is left as it was.

        Raises:
            ContractError: the property does not hold; the message names class, check, form and numbers.
        """
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(SEED)
            try:
                self.judge()
            except ContractError as error:
                raise ContractError(f"{self.subject} fails {self}: {error}") from None
            except Exception as error:
                raise ContractError(f"{self.subject} fails {self}: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Report:
    """What `check_mixer` did when every check passed.

    Args:
        subject: name of the class.
        seconds: time per check, by its `name-form`.
        skipped: checks that the traits took away, each with its reason.
    """

    subject: str
    seconds: Mapping[str, float]
    skipped: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{self.subject}: {len(self.seconds)} checks passed in {sum(self.seconds.values()):.1f} s"]
        lines += [f"  not asked: {name} ({reason})" for name, reason in self.skipped.items()]
        return "\n".join(lines)
