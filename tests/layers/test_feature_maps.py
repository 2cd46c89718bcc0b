"""Hedgehog's feature map against its formula, head by head."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from regard.layers.feature_maps import ACTIVATIONS, HedgehogFeatureMap, feature_width

OPTIONS: tuple[dict[str, Any], ...] = (
    {"activation": "softmax_dim"},
    {"activation": "softmax_dim", "fullspace": False, "bias": True, "feature_dim": 3},
    {"activation": "softmax_dim", "skip": True},
    {"activation": "exp_dim"},
    {"activation": "exp_dim", "stabilize": False, "bias": True},
    {"activation": "exp_dim", "fullspace": False, "feature_dim": 11},
    {"activation": "pos_elu", "bias": True},
    {"activation": "relu", "skip": True},
    {"activation": "taylor"},
)


def features_by_loops(z: list[float], options: dict[str, Any]) -> list[float]:
    """f of one token of one head."""
    activation = options["activation"]
    if activation == "pos_elu":
        return [max(1e-12, 1 + value if value > 0 else math.exp(value)) for value in z]
    if activation == "relu":
        return [max(1e-12, value) for value in z]
    if activation == "taylor":
        u = [value / len(z) ** 0.25 for value in z]
        return [1.0, *u, *(a * b / math.sqrt(2) for a in u for b in u)]
    found = []
    for sign in (1, -1) if options.get("fullspace", True) else (1,):
        exponents = [sign * value for value in z]
        lowered = max(exponents) if activation == "exp_dim" and options.get("stabilize", True) else 0.0
        powers = [math.exp(value - lowered) for value in exponents]
        total = sum(powers) if activation == "softmax_dim" else 1.0
        found += [max(1e-12, power / total) for power in powers]
    return found


def map_by_loops(of: HedgehogFeatureMap, x: Tensor, options: dict[str, Any]) -> Tensor:
    rows = []
    for b in range(x.shape[0]):
        for h in range(x.shape[1]):
            for i in range(x.shape[2]):
                token = x[b, h, i]
                if of.weight is None:
                    z = token.tolist()
                else:
                    scalar = 0.0 if of.bias is None else float(of.bias[0, h, 0, 0])
                    columns = range(of.weight.shape[2])
                    z = [float((token * of.weight[h, :, c]).sum()) + scalar for c in columns]
                    z = [value + float(token[c]) for c, value in enumerate(z)] if options.get("skip") else z
                rows.append(features_by_loops(z, options))
    return torch.tensor(rows, dtype=x.dtype).view(*x.shape[:3], -1)


def scattered(options: dict[str, Any]) -> HedgehogFeatureMap:
    """A map whose parameters are no longer those of the start."""
    of = HedgehogFeatureMap(3, 5, **options).double()
    with torch.no_grad():
        for parameter in of.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return of


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(map(str, options.values())))
def test_map_is_the_formula(options: dict[str, Any]) -> None:
    of, x = scattered(options), torch.randn(2, 3, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        features = of(x)
        torch.testing.assert_close(features, map_by_loops(of, x, options), rtol=1e-10, atol=1e-12)
    assert features.shape[-1] == of.width
    assert f"features={of.width}" in repr(of)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: " ".join(map(str, options.values())))
def test_derivatives_by_differences(options: dict[str, Any]) -> None:
    of = scattered(options)
    x = torch.randn(1, 3, 2, 5, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in of.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(of, dict(zip(names, parameters, strict=True)), (x,))

    leaves = [parameter.detach().clone().requires_grad_() for parameter in of.parameters()]
    assert torch.autograd.gradcheck(call, (x, *leaves))


def test_the_identity_is_the_start() -> None:
    x = torch.randn(2, 3, 7, 5)
    plain = torch.cat((x.softmax(-1), (-x).softmax(-1)), dim=-1)
    torch.testing.assert_close(HedgehogFeatureMap(3, 5)(x), plain)
    torch.testing.assert_close(HedgehogFeatureMap(3, 5, skip=True)(x), plain)
    exponentials = torch.cat((x.exp(), (-x).exp()), dim=-1)
    torch.testing.assert_close(HedgehogFeatureMap(3, 5, activation="exp_dim", stabilize=False)(x), exponentials)
    rectangle = HedgehogFeatureMap(3, 5, feature_dim=3).weight
    assert torch.equal(rectangle, torch.eye(5, 3).expand(3, 5, 3))


def test_the_kaiming_start_is_random_and_of_its_size() -> None:
    of = HedgehogFeatureMap(2, 64, start="kaiming", bias=True)
    first = of.weight.detach().clone()
    of.reset_parameters()
    assert not torch.equal(first, of.weight)
    assert not torch.equal(of.weight[0], of.weight[1])
    assert 0 < of.weight.abs().max() < 1
    assert of.bias.abs().max() == 0


def test_heads_and_maps_are_separate() -> None:
    of = HedgehogFeatureMap(3, 5)
    x = torch.randn(1, 3, 7, 5)
    before = of(x)
    with torch.no_grad():
        of.weight[1] += 1.0 + torch.arange(5)
    changed = (of(x) - before).abs().amax(dim=(0, 2, 3)) > 0
    assert changed.tolist() == [False, True, False]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_widths(activation: str) -> None:
    for fullspace in (True, False):
        doubled = fullspace and activation in ("softmax_dim", "exp_dim")
        wanted = 31 if activation == "taylor" else 10 if doubled else 5
        assert HedgehogFeatureMap(2, 5, activation=activation, fullspace=fullspace).width == wanted
        assert feature_width(activation, head_dim=5, feature_dim=5, fullspace=fullspace) == wanted


@pytest.mark.parametrize("options", [each for each in OPTIONS if each["activation"] != "taylor"], ids=str)
def test_whether_the_scalar_cancels_is_known(options: dict[str, Any]) -> None:
    of = scattered({**options, "bias": True})
    x = torch.randn(1, 3, 7, 5, dtype=torch.float64)
    with torch.no_grad():
        before = of(x)
        of.bias.add_(0.3)
        ratio = of(x) / before
    scaled_alike = bool((ratio - ratio[..., :1]).abs().max() < 1e-9)
    assert scaled_alike == of.bias_cancels


@pytest.mark.parametrize("activation", ["softmax_dim", "exp_dim", "pos_elu", "relu"])
def test_large_inputs_give_finite_positive_features_and_gradients(activation: str) -> None:
    of = HedgehogFeatureMap(3, 5, activation=activation)
    x = (1e4 * torch.randn(2, 3, 7, 5)).requires_grad_()
    features = of(x)
    features.sum().backward()
    assert features.isfinite().all()
    assert (features >= 1e-12).all()
    assert x.grad.isfinite().all()
    assert of.weight.grad.isfinite().all()


def test_the_clamp_stops_the_gradient_of_tiny_features() -> None:
    of = HedgehogFeatureMap(1, 2, activation="exp_dim", fullspace=False)
    x = torch.tensor([[[[0.0, -100.0]]]], requires_grad=True)
    features = of(x)
    assert features[0, 0, 0].tolist() == [1.0, pytest.approx(1e-12)]
    assert torch.autograd.grad(features[..., 1].sum(), x)[0].abs().max() == 0


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bfloat16_is_computed_in_float32(activation: str) -> None:
    of = HedgehogFeatureMap(3, 5, activation=activation).bfloat16()
    x = torch.randn(2, 3, 7, 5).bfloat16()
    features = of(x)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features, of.float()(x.float()))


def test_reference_layout_is_loaded_strictly() -> None:
    of = HedgehogFeatureMap(3, 5, feature_dim=4, bias=True)
    weight, scalar = torch.randn(3, 5, 4), torch.randn(1, 3, 1, 1)
    of.load_reference({"mlp.layer": weight, "mlp.bias": scalar})
    assert torch.equal(of.weight, weight)
    assert torch.equal(of.bias, scalar)
    with pytest.raises(KeyError, match="missing keys: bias"):
        of.load_reference({"mlp.layer": weight})
    with pytest.raises(KeyError, match=r"unknown keys: reference mlp\.extra"):
        of.load_reference({"mlp.layer": weight, "mlp.bias": scalar, "mlp.extra": scalar})
    with pytest.raises(KeyError, match="unknown keys: reference weight"):
        of.load_reference({"weight": weight, "mlp.bias": scalar})
    with pytest.raises(ValueError, match=r"weight has shape \(3, 4, 5\), it must be \(3, 5, 4\)"):
        of.load_reference({"mlp.layer": weight.transpose(1, 2), "mlp.bias": scalar})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation": "gelu"}, "softmax_dim, exp_dim, pos_elu, relu, taylor, got 'gelu'"),
        ({"start": "zero"}, "identity or kaiming, got 'zero'"),
        ({"num_heads": 0}, "num_heads=0, head_dim=5"),
        ({"feature_dim": 0}, "feature_dim=0"),
        ({"skip": True, "feature_dim": 4}, "feature_dim=4 and head_dim=5"),
        ({"activation": "taylor", "bias": True}, "the taylor map has no matrix"),
        ({"activation": "taylor", "feature_dim": 3}, "the taylor map has no matrix"),
    ],
)
def test_ill_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HedgehogFeatureMap(**{"num_heads": 3, "head_dim": 5, **options})


def test_inputs_of_another_width_are_refused() -> None:
    with pytest.raises(RuntimeError):
        HedgehogFeatureMap(3, 5)(torch.randn(2, 3, 7, 4))
