"""A mechanism's options as a user writes them: `top_k=256,stride=none`."""

from __future__ import annotations

import difflib
import inspect
from typing import Any

from regard.errors import UserError
from regard.integrations.transformers.attention import MECHANISMS, PREFIX
from regard.tasks.set_option import split_settings
from regard.wording import shown


def read_options(name: str, text: str | None, *, option: str = "--options") -> dict[str, Any]:
    """The options of a mechanism: whole numbers, numbers, `none`, or a word.

    Args:
        name: the mechanism, with or without `regard_` before it.
        text: what the user gave; None = nothing.
        option: where, for messages.

    Raises:
        UserError: an unknown mechanism or option, a part that is not NAME=VALUE, or values that do not fit.
    """
    short = name.removeprefix(PREFIX)
    if short not in MECHANISMS:
        near = difflib.get_close_matches(short, MECHANISMS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(MECHANISMS)}"
        raise UserError(f"no attention {shown(name)!r} for models of transformers: {hint}")
    known = inspect.signature(MECHANISMS[short]).parameters
    found = split_settings(text, option=option)
    for each in found:
        if each not in known:
            raise UserError(f"{short} has no option {shown(each)!r}, only {', '.join(known) or 'none at all'}")
    options = {each: _value(value) for each, value in found.items()}
    try:
        MECHANISMS[short](**options)
    except (ValueError, TypeError) as error:
        raise UserError(f"{short}: {error}") from None
    return options


def _value(text: str) -> Any:
    if text.lower() == "none":
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
