"""Sink tokens, selected heads and redistributed attention against the formulas restated in loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.ops.visual_sinks import (
    SinkRule,
    active_layers,
    after_image,
    check_tau,
    detect_sink_dims,
    image_centric,
    image_end,
    middle_layers,
    redistribute,
    sink_share,
    sink_tokens,
    sink_values,
    tau_for_width,
)

DOUBLE = torch.float64


def scene(keys: int = 23, queries: int = 23, *, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of 2 rows and 3 heads, image tokens in two spans, and sinks, another set in each row."""
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(2, 3, queries, keys, generator=generator, dtype=DOUBLE)
    hidden = torch.arange(keys) > torch.arange(keys - queries, keys)[:, None]
    image = torch.zeros(2, keys, dtype=torch.bool)
    image[0, 3:9], image[0, 11:14], image[1, 2:13] = True, True, True
    sinks = torch.zeros(2, keys, dtype=torch.bool)
    sinks[0, [0, 4, 12, 16]], sinks[1, [1, 5]] = True, True
    return scores.masked_fill(hidden, -torch.inf).softmax(dim=-1), image, sinks


def one_row(a: list[float], image: list[int], sinks: list[int], rule: SinkRule) -> list[float] | None:
    """The changed row, or None where it is not selected."""
    visual = sum(a[j] for j in image)
    on_sinks = sum(a[j] for j in image if j in sinks)
    others = [j for j in image if j not in sinks]
    if not any(j in sinks for j in image) or visual < rule.summ or sum(a[j] for j in others) == 0:
        return None
    if on_sinks / sum(a[j] + 1e-6 for j in image) > rule.rho:
        return None
    omega = (1 - rule.p) * sum(a[j] for j in sinks)
    changed = [rule.p * a[j] if j in sinks else a[j] for j in range(len(a))]
    for j in others:
        changed[j] += omega * a[j] / sum(a[i] for i in others)
    return changed


@pytest.mark.parametrize("queries", [23, 1])
@pytest.mark.parametrize("rule", [SinkRule(), SinkRule(p=0.0, rho=0.3, summ=0.5), SinkRule(p=0.9, rho=1.0, summ=0.0)])
def test_redistribution_is_the_formula(rule: SinkRule, queries: int) -> None:
    attention, image, sinks = scene(queries=queries)
    changed, selected = redistribute(attention, image, sinks, rule)
    for b in range(2):
        marked = [mask[b].nonzero()[:, 0].tolist() for mask in (image, sinks)]
        for h in range(3):
            for i in range(queries):
                expected = one_row(attention[b, h, i].tolist(), *marked, rule)
                assert bool(selected[b, h, i]) == (expected is not None)
                if expected is None:
                    assert torch.equal(changed[b, h, i], attention[b, h, i])
                else:
                    torch.testing.assert_close(changed[b, h, i], torch.tensor(expected, dtype=DOUBLE))
    assert 0 < int(selected.sum()) < selected.numel() or queries == 1
    torch.testing.assert_close(changed.sum(dim=-1), torch.ones_like(changed[..., 0]))


def test_only_the_given_rows_are_changed() -> None:
    attention, image, sinks = scene()
    rows = after_image(image, queries=23)
    assert rows[0].nonzero()[:, 0].tolist() == list(range(14, 23))
    assert rows[1].nonzero()[:, 0].tolist() == list(range(13, 23))
    rule = SinkRule(rho=1.0, summ=0.0)
    everywhere, some = (
        redistribute(attention, image, sinks, rule),
        redistribute(attention, image, sinks, rule, rows=rows),
    )
    assert torch.equal(some.selected, everywhere.selected & rows[:, None])
    assert torch.equal(some.attention[~some.selected], attention[~some.selected])
    assert torch.equal(some.attention[some.selected], everywhere.attention[some.selected])


@pytest.mark.parametrize("change", ["keep everything", "no visual sink", "no image", "all sinks"])
def test_nothing_to_redistribute_changes_nothing(change: str) -> None:
    attention, image, sinks = scene()
    rule = SinkRule(p=1.0 if change == "keep everything" else 0.5, rho=1.0, summ=0.0)
    if change == "no visual sink":
        sinks = sinks & ~image
    if change == "no image":
        image = torch.zeros_like(image)
    if change == "all sinks":
        sinks = sinks | image
    changed, selected = redistribute(attention, image, sinks, rule)
    assert torch.equal(changed, attention)
    assert bool(selected.any()) == (change == "keep everything")
    assert not after_image(image, queries=23).any() or change != "no image"


def test_narrow_attention_keeps_its_type_and_its_unselected_rows() -> None:
    attention, image, sinks = scene()
    narrow = attention.bfloat16()
    changed, selected = redistribute(narrow, image, sinks, SinkRule())
    assert changed.dtype == torch.bfloat16
    assert torch.equal(changed[~selected], narrow[~selected])
    wide = redistribute(attention, image, sinks, SinkRule()).attention
    torch.testing.assert_close(changed.double(), wide, rtol=0.02, atol=1e-3)


def test_gradients_are_those_of_differences() -> None:
    attention, image, sinks = scene(keys=17, queries=5)
    assert torch.autograd.gradcheck(
        lambda scores: redistribute(scores.softmax(dim=-1), image, sinks, SinkRule()).attention,
        (attention.log().nan_to_num(neginf=-30.0).requires_grad_(),),
    )


def test_share_and_end_of_the_image() -> None:
    attention, image, sinks = scene()
    share = sink_share(attention, image, sinks)
    for h in range(3):
        row = attention[0, h, 20]
        wanted = (row[4] + row[12]) / (sum(row[j] for j in (3, 4, 5, 6, 7, 8, 11, 12, 13)) + 9e-6)
        torch.testing.assert_close(share[0, h, 20], wanted)
    assert image_end(image).tolist() == [14, 13]
    assert image_end(torch.zeros(2, 5, dtype=torch.bool)).tolist() == [0, 0]
    assert not image_centric(attention, image, sinks, SinkRule(summ=1.0)).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_phi_is_the_formula(dtype: torch.dtype) -> None:
    x = torch.randn(2, 7, 29).to(dtype)
    phi = sink_values(x, (4, 28))
    assert phi.dtype == torch.promote_types(dtype, torch.float32)
    for b in range(2):
        for t in range(7):
            row = x[b, t].double().tolist()
            size = math.sqrt(sum(number**2 for number in row) / 29 + 1e-6)
            assert float(phi[b, t]) == pytest.approx(max(abs(row[4]), abs(row[28])) / size, rel=1e-5)
    assert torch.equal(sink_tokens(x, (4, 28), tau=1.0), phi > 1.0)
    assert float(sink_values(torch.zeros(1, 1, 29), (3,))) == 0


def test_the_detector_finds_planted_dimensions() -> None:
    first = torch.randn(6, 257)
    first[:, [13, 200]] += torch.tensor([90.0, -40.0])
    assert tau_for_width(257) == pytest.approx(20 * math.sqrt(257 / 4096))
    # 40 / sqrt((90^2 + 40^2) / 257) exceeds 5.01
    assert detect_sink_dims(first) == (13, 200)
    assert detect_sink_dims(first, count=1) == (13,)
    assert detect_sink_dims(first, tau=10.0) == (13,)
    with pytest.raises(
        ValueError, match=r"no dimension of the first token exceeds tau=16: the largest is .* dimension 13"
    ):
        detect_sink_dims(first, tau=16.0)
    with pytest.raises(ValueError, match=r"count must be positive, got 0"):
        detect_sink_dims(first, count=0)


def test_layers_and_thresholds() -> None:
    assert list(active_layers(6)) == [2, 3, 4]
    assert list(active_layers(6, except_last=False)) == [2, 3, 4, 5]
    assert list(middle_layers(32)) == list(range(8, 24))
    assert list(middle_layers(1)) == [0]
    assert tau_for_width(4096) == tau_for_width(5120) == 20.0
    check_tau(19.9, 400)
    with pytest.raises(ValueError, match=r"below sqrt\(dim=400\) = 20, which no phi exceeds, got 20"):
        check_tau(20, 400)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attention": torch.rand(2, 3, 4, 23)}, r"attention must be normalised: rows must sum to 1, one sums to"),
        ({"image": torch.ones(2, 22, dtype=torch.bool)}, r"image must be bool of shape \(2, 23\), got .*\(2, 22\)"),
        ({"sinks": torch.ones(2, 23)}, r"sinks must be bool of shape \(2, 23\), got torch.float32"),
        ({"rows": torch.ones(2, 3, dtype=torch.bool)}, r"rows must be bool of shape \(2, 23\), got .*\(2, 3\)"),
    ],
)
def test_ill_arguments_are_named(changed: dict[str, Any], message: str) -> None:
    attention, image, sinks = scene()
    given = {"attention": attention, "image": image, "sinks": sinks, **changed}
    with pytest.raises(ValueError, match=message):
        redistribute(given["attention"], given["image"], given["sinks"], SinkRule(), rows=given.get("rows"))


@pytest.mark.parametrize("name", ["p", "rho", "summ"])
@pytest.mark.parametrize("number", [-0.1, 1.1])
def test_a_rule_has_shares(name: str, number: float) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\], got {number}"):
        SinkRule(**{name: number})


@pytest.mark.parametrize(
    ("dims", "message"),
    [((29,), r"dim - 1 = 28, got 29"), ((-1,), r"got -1"), ((), r"at least one"), ((3, 3), r"each once, got \(3, 3\)")],
)
def test_ill_dimensions_are_named(dims: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sink_values(torch.randn(1, 2, 29), dims)


def test_rows_that_see_nothing_are_no_error() -> None:
    attention, image, sinks = scene()
    attention[0, :, 3] = 0
    assert torch.equal(redistribute(attention, image, sinks, SinkRule()).attention[0, :, 3], attention[0, :, 3])
