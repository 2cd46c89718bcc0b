"""Checks that ill arguments are refused with a `ValueError` that names the numbers and the rule."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from regard.metadata import No
from regard.testing.judgement import refused
from regard.testing.subjects import FeatureSubject, Inputs, SequenceSubject, Subject, random_tensor, run


def sequence_arguments(subject: SequenceSubject) -> None:
    """Ill tokens, context, masks, segments and biases; ill sizes; whatever the traits deny."""
    module, inputs = subject.build(), subject.inputs()
    _ill_tokens(subject, module, inputs)
    _ill_context(subject, module, inputs)
    _ill_masks(subject, module, inputs)
    _ill_segments(subject, module, inputs)
    _ill_biases(subject, module, inputs)
    _ill_decoding(subject, module, inputs)
    _ill_options(subject, {"dim": (0, -3), "num_heads": (0, -2)}, {"tokens": 5})
    for causal, missing in ((True, subject.cls.traits.causal), (False, subject.cls.traits.bidirectional)):
        if isinstance(missing, No):
            build = partial(subject.build_untouched, changes={"causal": causal})
            refused(build, f"causal={causal}", missing.reason)


def feature_arguments(subject: FeatureSubject) -> None:
    """Ill ranks, channels, sizes and dtypes; a context that the traits deny."""
    module, inputs = subject.build(), subject.inputs()
    x = inputs["x"]

    def call(**changed: Tensor) -> partial[Tensor]:
        return partial(run, module, {**inputs, **changed})

    wrong = random_tensor((x.shape[0], x.shape[1] + 1, *x.shape[2:]), seed=20)
    refused(call(x=wrong), "x with one channel too many", x.shape[1], x.shape[1] + 1)
    allowed = subject.cls.traits.spatial_dims
    for dimensions in range(5):
        if dimensions not in allowed:
            ill = torch.zeros(x.shape[0], x.shape[1], *[3] * dimensions)
            shown = tuple(ill.shape)
            refused(call(x=ill), f"x with {dimensions} spatial dimensions", shown, *allowed)
    refused(call(x=x.narrow(2, 0, 0)), "x with an empty spatial axis", 0)
    refused(call(x=x.long()), "integer x", "int64")
    cross = subject.cls.traits.cross
    if isinstance(cross, No):
        refused(call(context=x), "a context", cross.reason)
    else:
        refused(call(context=wrong), "a context with one channel too many", x.shape[1], x.shape[1] + 1)
    _ill_options(subject, {"channels": (0, -3)}, {"space": subject.space})


# --------------------------------------------------------------------------------------------------- parts


def _ill_tokens(subject: SequenceSubject, module: Any, inputs: Inputs) -> None:
    x, dim = inputs["x"], subject.dim
    for ill, what, fragments in (
        (random_tensor((*x.shape[:2], dim + 1), seed=21), "x whose last axis is dim + 1", (dim, dim + 1)),
        (x[0], "x without a batch axis", tuple(x[0].shape)),
        (x[None], "x with four axes", tuple(x[None].shape)),
        (x[:, :0], "x with zero tokens", (0,)),
        (x.long(), "integer x", ("int64",)),
    ):
        refused(partial(run, module, {**inputs, "x": ill}), what, *fragments)
        if subject.cls.traits.has_map:
            mapped = partial(module.attention_map, **{**inputs, "x": ill})
            refused(mapped, f"attention_map of {what}", *fragments)
        elif what == "integer x":
            refused(lambda: module.attention_map(**inputs), "attention_map", subject.cls.traits.has_map.reason)


def _ill_context(subject: SequenceSubject, module: Any, inputs: Inputs) -> None:
    x, cross = inputs["x"], subject.cls.traits.cross
    if subject.causal:
        refused(lambda: run(module, inputs, context=x), "a context with causal=True", "causal=True", "context")
        return
    if isinstance(cross, No):
        refused(lambda: run(module, inputs, context=x), "a context", cross.reason)
        return
    batch, tokens, dim = x.shape
    more = random_tensor((batch + 1, tokens, dim), seed=22)
    refused(lambda: run(module, {**inputs, "context": more}), "a context with one row too many", batch, batch + 1)
    wide = random_tensor((batch, tokens, dim + 1), seed=22)
    refused(lambda: run(module, {**inputs, "context": wide}), "a context whose last axis is dim + 1", dim, dim + 1)
    refused(lambda: run(module, {**inputs, "context": x[:, :0]}), "a context with zero tokens", 0)


def _ill_masks(subject: SequenceSubject, module: Any, inputs: Inputs) -> None:
    keys = inputs[subject.masked_input]
    batch, length = keys.shape[:2]
    right = torch.ones(batch, length, dtype=torch.bool)
    masks = subject.cls.traits.masks
    if isinstance(masks, No):
        refused(lambda: run(module, inputs, mask=right), "a mask", masks.reason)
        return
    for ill, what, fragments in (
        (torch.ones(batch, length + 1, dtype=torch.bool), "a mask that is too long", (length, length + 1)),
        (torch.ones(batch + 1, length, dtype=torch.bool), "a mask with one row too many", (batch, batch + 1)),
        (right[0], "a mask without a batch axis", (length, batch)),
        (right.double(), "a mask of floats", ("bool", "float64")),
        (right.long(), "a mask of integers", ("bool", "int64")),
    ):
        refused(partial(run, module, inputs, mask=ill), what, *fragments)


def _ill_segments(subject: SequenceSubject, module: Any, inputs: Inputs) -> None:
    batch, tokens = inputs["x"].shape[:2]
    right = torch.zeros(batch, tokens, dtype=torch.int64)
    segments = subject.cls.traits.segments
    if isinstance(segments, No):
        refused(lambda: run(module, inputs, segments=right), "segments", segments.reason)
        return
    if subject.cross:
        refused(lambda: run(module, inputs, segments=right), "segments with a context", "segments", "context")
        return
    long = torch.zeros(batch, tokens + 1, dtype=torch.int64)
    refused(lambda: run(module, inputs, segments=long), "segments that are too long", tokens, tokens + 1)
    refused(lambda: run(module, inputs, segments=right.double()), "segments of floats", "int64", "float64")


def _ill_biases(subject: SequenceSubject, module: Any, inputs: Inputs) -> None:
    batch, queries = inputs["x"].shape[:2]
    heads, keys = subject.num_heads, inputs[subject.masked_input].shape[1]
    bias = subject.cls.traits.bias
    right = torch.zeros(batch, heads, queries, keys, dtype=torch.float64)
    if isinstance(bias, No):
        refused(lambda: run(module, inputs, bias=right), "a bias", bias.reason)
        return
    for ill, what, fragments in (
        (torch.zeros(batch, heads + 1, queries, keys), "a bias with one head too many", (heads, heads + 1)),
        (torch.zeros(batch, heads, queries, keys + 1), "a bias with one key too many", (keys, keys + 1)),
        (torch.zeros(batch + 1, heads, queries, keys), "a bias with one row too many", (batch, batch + 1)),
        (right[0], "a bias without a batch axis", (heads, queries, keys)),
    ):
        refused(partial(run, module, inputs, bias=ill), what, *fragments)


def _ill_decoding(subject: SequenceSubject, module: Any, inputs: Inputs) -> None:
    x, decodes = inputs["x"], subject.cls.traits.decodes
    if isinstance(decodes, No):
        refused(lambda: module.init_state(len(x)), "init_state", decodes.reason)
        refused(lambda: module.step(x, None), "step", decodes.reason)
        return
    if not subject.causal:
        refused(lambda: module.step(x, module.init_state(len(x))), "step with causal=False", "causal=True")
        return
    wide = random_tensor((*x.shape[:2], subject.dim + 1), seed=23)
    fresh = module.init_state
    refused(lambda: module.step(wide, fresh(len(x))), "step of a wide x", subject.dim, subject.dim + 1)
    refused(lambda: module.step(x, fresh(len(x) + 1)), "step with one row too many", len(x), len(x) + 1)
    refused(lambda: module.step(x, {}), "step with a dict for a state", "dict")
    if subject.cls.traits.masks:
        long = torch.ones(len(x), x.shape[1] + 1, dtype=torch.bool)
        what = "step with a mask that is too long"
        refused(lambda: module.step(x, fresh(len(x)), mask=long), what, x.shape[1], x.shape[1] + 1)


def _ill_options(subject: Subject, sizes: dict[str, tuple[int, ...]], where: dict[str, Any]) -> None:
    for name, ill in sizes.items():
        if name not in subject.options() and name not in ("dim", "channels"):
            continue
        for size in ill:
            refused(partial(subject.build_untouched, changes={name: size}), f"{name}={size}", name, size)
    unknown = {**subject.options(), "not_an_option": 1}
    refused(lambda: subject.cls(**unknown), "an option that the constructor lacks", "not_an_option", error=TypeError)
    what = "macs with an option that the constructor lacks"
    refused(lambda: subject.cls.macs(**where, **unknown), what, "not_an_option", error=TypeError)
