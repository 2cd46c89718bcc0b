"""Runs every mechanism with its shape annotations checked, in a process of its own: the hook changes what is imported.

Under the hook bad input raises the hook's error and graphs break, so nothing else is tested here.
"""

from __future__ import annotations

import sys
from typing import Any

import jaxtyping

with jaxtyping.install_import_hook(
    ["regard.contract", "regard.ops", "regard.layers", "regard.mixers"], "beartype.beartype"
):
    import torch

    import regard
    from regard.ops.heads import split_heads


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
        mixer(x).sum().backward()
        mixer.gate(x)
        calls += 1
    return calls


def main() -> int:
    calls = sum(run_sequence(regard.get_class(name)) for name in regard.systems("sequence"))
    calls += sum(run_feature(regard.get_class(name)) for name in regard.systems("feature"))
    try:
        split_heads(torch.zeros(2, 3), 1)
    except jaxtyping.TypeCheckError:
        print(f"{calls} calls agree with their annotations")
        return 0
    print("the hook is not active: a wrong shape was accepted")
    return 1


if __name__ == "__main__":
    sys.exit(main())
