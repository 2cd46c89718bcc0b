"""Checks of the class itself, without an instance: constructor, traits, example."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

from regard.contract import FeatureMixer, SequenceMixer
from regard.metadata import No
from regard.testing.judgement import require

HOOKS = {"decodes": ("init_state", "mix_step"), "has_map": ("weights", "values")}


def constructor(cls: Any) -> None:
    """Every argument is named in the signature and used; the class can be built; the form is an argument."""
    require(not inspect.isabstract(cls), f"the class is abstract: {', '.join(sorted(cls.__abstractmethods__))} missing")
    parameters = inspect.signature(cls).parameters
    loose = [str(item) for item in parameters.values() if item.kind in (item.VAR_KEYWORD, item.VAR_POSITIONAL)]
    require(not loose, f"the constructor takes {', '.join(loose)}: every argument must be explicit")
    needed = ("dim", "causal") if issubclass(cls, SequenceMixer) else ("channels",)
    missing = [name for name in needed if name not in parameters]
    require(not missing, f"the constructor has no argument {' and '.join(missing)}, it has {', '.join(parameters)}")
    used = _names_used_in(cls.__init__)
    unused = [] if used is None else sorted(set(parameters) - used)
    require(not unused, f"the constructor never uses {', '.join(unused)}")


def traits(cls: Any) -> None:
    """Traits fit each other and the class; the example fits the traits; every missing capability has a reason."""
    given = cls.traits
    for name, value in given.capabilities().items():
        if isinstance(value, No):
            require(bool(value.reason.strip()), f"the trait {name} is missing without a reason")
    if issubclass(cls, FeatureMixer):
        _feature_traits(cls)
        return
    for name, hooks in HOOKS.items():
        own = [hook for hook in hooks if getattr(cls, hook) is not getattr(SequenceMixer, hook)]
        held = not given.capabilities()[name] or len(own) == len(hooks)
        require(held, f"the trait {name} needs {' and '.join(hooks)}, the class has {' and '.join(own) or 'neither'}")
    require(bool(given.causal) or bool(given.bidirectional), "the traits deny both the causal and bidirectional form")
    for name, needs in (("cross", "bidirectional"), ("decodes", "causal"), ("step_exact", "decodes")):
        held = given.capabilities()
        require(not held[name] or bool(held[needs]), f"the trait {name} needs {needs}, which is missing")
    require(not given.row_stochastic or bool(given.has_map), "the trait row_stochastic needs has_map, which is missing")
    _awkward_sizes(cls, {"tokens": cls.example.tokens, "context": cls.example.context})
    require("causal" not in cls.example.kwargs, "the example fixes causal: the checks choose it")
    require("dim" in cls.example.kwargs, "the example has no dim")


def _feature_traits(cls: Any) -> None:
    dimensions, space = cls.traits.spatial_dims, cls.example.space
    allowed = set(dimensions) <= {1, 2, 3} and len(dimensions) > 0
    require(allowed, f"spatial_dims must name some of 1, 2 and 3, got {dimensions}")
    require(len(space) == max(dimensions), f"the example's space {space} needs {max(dimensions)} sizes")
    _awkward_sizes(cls, {f"space[{axis}]": size for axis, size in enumerate(space)})
    require("channels" in cls.example.kwargs, "the example has no channels")
    missing_map = cls.traits.has_map
    promised = isinstance(missing_map, No) and "gate(x)" in missing_map.reason
    require(not promised or hasattr(cls, "gate"), f"the traits promise gate(x) ({missing_map}), the class has none")
    require(not missing_map or hasattr(cls, "attention_map"), "the trait has_map needs attention_map(x)")


def _awkward_sizes(cls: Any, sizes: dict[str, int]) -> None:
    """A mechanism with fixed sizes may need even ones; every other must face odd ones that differ."""
    if not cls.traits.any_length:
        return
    shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
    even = [name for name, size in sizes.items() if size & (size - 1) == 0]
    require(not even, f"the example must avoid powers of two, got {shown}")
    require(len(set(sizes.values())) == len(sizes), f"the example's sizes must all differ, got {shown}")


def _names_used_in(function: Any) -> set[str] | None:
    """Names that the function reads; None where its source is not to be had (typed at a prompt)."""
    try:
        source = inspect.getsource(function)
    except OSError:
        return None
    tree = ast.parse(textwrap.dedent(source))
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
