"""Runs every mechanism with its shape annotations checked, in a process of its own: the hook changes what is imported.

Under the hook bad input raises the hook's error and graphs break, so nothing else is tested here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import jaxtyping

with jaxtyping.install_import_hook(
    ["regard.contract", "regard.ops", "regard.layers", "regard.mixers"], "numeric_tower.check"
):
    import torch

    import regard
    from regard.ops.heads import split_heads

    # a class is imported when it is first asked for, and only what is imported under the hook is checked
    SEQUENCE = [regard.get_class(name) for name in regard.systems("sequence")]
    FEATURE = [regard.get_class(name) for name in regard.systems("feature")]


def run_sequence(cls: Any) -> int:
    calls, example = 0, cls.example
    traits = cls.traits
    x = torch.randn(example.batch, example.tokens, example.kwargs["dim"])
    mask = torch.rand(x.shape[:2]) < 0.7
    segments = torch.arange(example.tokens).div(5, rounding_mode="floor").expand(example.batch, -1)
    for causal in (True, False):
        if not (traits.causal if causal else traits.bidirectional):
            continue
        mixer = cls(**example.kwargs, causal=causal)
        for options in ({}, {"mask": mask} if traits.masks else {}, {"segments": segments} if traits.segments else {}):
            mixer(x, **options).sum().backward()
            if traits.has_map:
                mixer.attention_map(x, **options)
            calls += 1
        if traits.cross and not causal:
            mixer(x, context=torch.randn(example.batch, example.context, example.kwargs["dim"]))
            calls += 1
        if traits.decodes and causal:
            mixer.eval()
            with torch.no_grad():
                state = mixer.init_state(example.batch)
                for piece in (x[:, :5], x[:, 5:6], x[:, 6:]):
                    _, state = mixer.step(piece, state)
                mixer.step(x, state, mask=mask)
            calls += 1
    return calls


def run_feature(cls: Any) -> int:
    calls, example = 0, cls.example
    for dimensions in cls.traits.spatial_dims:
        mixer = cls(**example.kwargs)
        x = torch.randn(example.batch, example.kwargs["channels"], *example.space[:dimensions], requires_grad=True)
        options = {"context": torch.randn_like(x)} if cls.traits.cross else {}
        mixer(x, **options).sum().backward()
        for shown in ("gate", "attention_map", "affinity"):
            if hasattr(mixer, shown):
                getattr(mixer, shown)(x, **options)
                calls += 1
        calls += 1
    return calls


def refused(call: Callable[[], object]) -> bool:
    try:
        call()
    except jaxtyping.TypeCheckError:
        return True
    return False


def main() -> int:
    calls = sum(run_sequence(cls) for cls in SEQUENCE) + sum(run_feature(cls) for cls in FEATURE)
    wrong = {
        "an op": lambda: split_heads(torch.zeros(2, 3), 1),
        "a mixer": lambda: regard.create("sea", dim=8, num_heads=2, causal=True).project(torch.zeros(2, 3)),
    }
    for name, call in wrong.items():
        if not refused(call):
            print(f"the hook is not active: {name} accepted a wrong shape")
            return 1
    print(f"{calls} calls agree with their annotations")
    return 0


if __name__ == "__main__":
    sys.exit(main())
