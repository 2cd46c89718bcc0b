"""Single-head attention on a part of the channels against a loop, its map, and the authors' layout."""

from __future__ import annotations

import backbones
import pytest
import torch
from torch import nn

from regard.mixers.spatial.shsa import SingleHeadAttention


def affine(norm: nn.BatchNorm2d, x: torch.Tensor) -> torch.Tensor:
    """A batch norm in evaluation, on vectors."""
    return (x - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias


def by_loop(mixer: SingleHeadAttention, x: torch.Tensor) -> torch.Tensor:
    """Image by image, query by query."""
    part, width = mixer.partial_dim, mixer.head_dim
    y = torch.empty_like(x)
    for row in range(x.shape[0]):
        tokens = x[row].flatten(1).T
        first = tokens[:, :part]
        centred = (first - first.mean()) / (first.var(correction=0) + 1e-5).sqrt()
        normed = centred * mixer.norm.weight + mixer.norm.bias
        maps = affine(mixer.qkv.norm, normed @ mixer.qkv.conv.weight[:, :, 0, 0].T)
        q, k, v = maps[:, :width], maps[:, width : 2 * width], maps[:, 2 * width :]
        attended = torch.stack([(k @ query / width**0.5).softmax(dim=0) @ v for query in q])
        joined = torch.cat([attended, tokens[:, part:]], dim=1).clamp(min=0)
        out = affine(mixer.o_proj.norm, joined @ mixer.o_proj.conv.weight[:, :, 0, 0].T)
        y[row] = out.T.unflatten(1, x.shape[2:])
    return y


def build(channels: int, part: int, width: int) -> SingleHeadAttention:
    mixer = SingleHeadAttention(channels, partial_dim=part, head_dim=width)
    backbones.randomised(mixer)
    return mixer.double().eval()


@pytest.mark.parametrize(("channels", "part", "width"), [(15, 7, 5), (11, 11, 3), (6, 1, 16)])
@pytest.mark.parametrize("space", [(6, 9), (1, 1), (3, 17), (17, 19)])
def test_is_a_loop_over_queries(channels: int, part: int, width: int, space: tuple[int, int]) -> None:
    mixer = build(channels, part, width)
    x = torch.randn(2, channels, *space, dtype=torch.float64)
    torch.testing.assert_close(mixer(x), by_loop(mixer, x))
    torch.testing.assert_close(mixer(x[:1]), by_loop(mixer, x[:1]))


def test_gradients_are_those_of_the_loop() -> None:
    mixer = build(7, 3, 5)
    x = torch.randn(2, 7, 5, 4, dtype=torch.float64, requires_grad=True)
    weights = torch.randn_like(x)
    leaves = (x, *mixer.parameters())
    ours = torch.autograd.grad((mixer(x) * weights).sum(), leaves)
    torch.testing.assert_close(ours, torch.autograd.grad((by_loop(mixer, x) * weights).sum(), leaves))


def test_the_others_pass_by_without_norm() -> None:
    mixer = build(7, 3, 5)
    x = torch.randn(1, 7, 5, 4, dtype=torch.float64)
    near = x.clone()
    near[0, 5, 2, 2] += 3
    changed = (mixer(near) != mixer(x)).any(dim=1)[0]
    assert changed.nonzero().tolist() == [[2, 2]]
    far = x.clone()
    far[0, 0, 2, 2] += 3
    assert (mixer(far) != mixer(x)).any(dim=1).all()


def test_the_map_is_what_weighs_the_values() -> None:
    mixer = build(7, 3, 5)
    x = torch.randn(2, 7, 5, 4, dtype=torch.float64)
    shown = mixer.attention_map(x)
    assert shown.shape == (2, 1, 20, 20)
    torch.testing.assert_close(shown.sum(dim=-1), torch.ones(2, 1, 20, dtype=torch.float64))
    _, _, v = mixer._project(x)
    attended = (shown[:, 0] @ v).mT.unflatten(2, (5, 4))
    joined = torch.cat([attended, x[:, 3:]], dim=1).relu()
    torch.testing.assert_close(mixer.o_proj(joined), mixer(x))


def test_starts_as_nothing() -> None:
    assert (SingleHeadAttention(7, partial_dim=3)(torch.randn(2, 7, 5, 4)) == 0).all()


def test_its_cost_does_not_depend_on_the_others() -> None:
    def products(channels: int) -> int:
        whole = SingleHeadAttention.macs(batch=1, space=(14, 14), channels=channels, partial_dim=48)
        return whole - 196 * (48 * (32 + 48) + channels**2)

    assert products(224) == products(448) == 196**2 * (16 + 48)


def test_loads_the_authors_layout_strictly() -> None:
    mixer = SingleHeadAttention(7, partial_dim=3)
    layout = {}
    for name, value in mixer.state_dict().items():
        part, _, rest = name.partition(".")
        own = {"norm": "pre_norm", "qkv": "qkv", "o_proj": "proj.1"}[part]
        rest = rest.replace("conv.", "c.").replace("norm.", "bn.")
        layout[f"{own}.{rest}"] = torch.rand_like(value.float()).to(value.dtype)
    mixer.load_reference(layout)
    assert torch.equal(mixer.o_proj.conv.weight, layout["proj.1.c.weight"])
    assert torch.equal(mixer.norm.bias, layout["pre_norm.bias"])
    assert torch.equal(mixer.qkv.norm.running_var, layout["qkv.bn.running_var"])
    with pytest.raises(KeyError, match=r"missing keys: qkv\.conv\.weight"):
        mixer.load_reference({name: value for name, value in layout.items() if name != "qkv.c.weight"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"partial_dim": 8}, "partial_dim must be between 1 and channels=7, got 8"),
        ({"partial_dim": 0}, "partial_dim must be between 1 and channels=7, got 0"),
        ({"partial_dim": 3, "head_dim": 0}, "head_dim must be positive, got 0"),
    ],
)
def test_ill_options_are_named(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SingleHeadAttention(7, **options)


def test_a_part_of_the_channels_is_attended_to_by_default() -> None:
    mixer = SingleHeadAttention(28)
    assert mixer.partial_dim == 6
    assert SingleHeadAttention(2).partial_dim == 1
    assert SingleHeadAttention.macs(space=(3, 5), channels=28) == SingleHeadAttention.macs(
        space=(3, 5), channels=28, partial_dim=6
    )
