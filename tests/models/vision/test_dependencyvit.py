"""DependencyViT: counted sizes, the formula written out, pruning, the tree, and forms of the same network."""

from __future__ import annotations

from dataclasses import replace

import backbones
import pytest
import torch

from regard.metadata import Variant
from regard.models.vision.dependencyvit import DependencyViT, DependencyViTConfig

SMALL = DependencyViTConfig(
    image_size=20,
    in_channels=2,
    num_classes=5,
    patch_size=4,
    dim=12,
    num_layers=4,
    num_heads=3,
    mlp_ratio=1.5,
    layer_scale=0.5,
)
LITE = replace(SMALL, prune_layers=(1, 2, 4), prune_ratio=0.2)
SIZE = (20, 20)


@pytest.mark.parametrize(("name", "variant"), DependencyViT.VARIANTS.items())
def test_parameters_are_those_of_the_formula(name: str, variant: Variant) -> None:
    backbones.check_parameters(DependencyViT, variant)
    dim, heads = variant.config.dim, variant.config.num_heads
    block = 4 * dim + dim * heads + dim * dim // 2 + dim // 2 + 3 * dim**2 + dim**2 + dim + 8 * dim**2 + 5 * dim
    formula = 769 * dim + 196 * dim + 12 * (block + 2 * dim) + 2 * dim + 1000 * dim + 1000
    assert formula == variant.reported.params


@pytest.mark.parametrize(("name", "variant"), DependencyViT.VARIANTS.items())
def test_macs_are_those_of_the_formula(name: str, variant: Variant) -> None:
    backbones.check_macs(DependencyViT, variant)


def formula_macs(dim: int, heads: int, counts: list[tuple[int, int]]) -> int:
    """Of tokens before and after the pruning of every layer, at 224 x 224 in patches of 16."""
    total = 196 * 768 * dim + 1000 * dim
    for before, after in counts:
        attention = 4 * dim**2 + dim * heads + dim * dim // 2 + dim // 2 + 2 * before * dim
        total += before * attention + after * 8 * dim**2
    return total


@pytest.mark.parametrize(("dim", "figure"), [(192, 0.849e9), (384, 3.144e9)])
def test_layers_are_counted_from_1(dim: int, figure: float) -> None:
    def counts(first: int) -> list[tuple[int, int]]:
        tokens, found, left = 196, [], iter((164, 132, 100, 69))
        for layer in range(first, first + 12):
            after = next(left) if layer in (2, 5, 8, 11) else tokens
            found.append((tokens, after))
            tokens = after
        return found

    assert formula_macs(dim, 12, counts(1)) == pytest.approx(figure, rel=1e-3)
    assert formula_macs(dim, 12, counts(0)) > 1.05 * figure


def test_lite_networks_keep_the_tokens_of_the_formula() -> None:
    config = DependencyViT.VARIANTS["dependencyvit_lite_tiny"].config
    assert config.tokens_left(196) == [164, 132, 100, 69]
    assert DependencyViT.VARIANTS["dependencyvit_tiny"].config.tokens_left(196) == []


@pytest.mark.parametrize("gate", ["after_norm", "before_norm", "none"])
def test_is_the_formula(gate: str) -> None:
    model = DependencyViT(replace(SMALL, output_gate=gate)).double().eval()
    images = torch.randn(2, 2, *SIZE, dtype=torch.float64)
    x, m = model.patches(images), torch.ones(2, 25, dtype=torch.float64)
    for block in model.blocks:
        sent = block.mixer(block.mixer_norm(x), m)
        x, m = x + 0.5 * sent.y, sent.m
        x = x + 0.5 * block.mlp(block.mlp_norm(x))
    gates = m[..., None]
    x = {
        "after_norm": model.norm(x) * gates,
        "before_norm": model.norm(x * gates),
        "none": model.norm(x),
    }[gate]
    torch.testing.assert_close(model(images), model.head(x.mean(dim=1)))


@pytest.mark.parametrize("config", [SMALL, LITE])
def test_maps_have_the_sizes_that_they_say(config: DependencyViTConfig) -> None:
    backbones.check_maps(DependencyViT(config), SIZE)


@pytest.mark.parametrize("config", [SMALL, LITE])
def test_the_classifier_sees_the_mean_of_the_map(config: DependencyViTConfig) -> None:
    model, images = DependencyViT(config).eval(), torch.randn(2, 2, *SIZE)
    with torch.no_grad():
        (last,) = model.features(images)
        torch.testing.assert_close(model(images), model.head(model.pool(last)))


def test_pruned_places_are_empty() -> None:
    model = DependencyViT(LITE).eval()
    with torch.no_grad():
        tokens, kept = model.tokens(torch.randn(2, 2, *SIZE))
        assert LITE.tokens_left(25) == [20, 15, 10]
        assert tokens.shape == (2, 10, 12)
        (last,) = model.features(torch.randn(2, 2, *SIZE))
    assert (last.abs().amax(dim=1) > 0).sum(dim=(1, 2)).tolist() == [10, 10]
    assert (kept.diff(dim=1) > 0).all()


def test_pruning_nothing_changes_nothing() -> None:
    model, images = DependencyViT(SMALL).eval(), torch.randn(2, 2, *SIZE)
    lite = model.pruned((1, 3), ratio=0.0)
    with torch.no_grad():
        torch.testing.assert_close(lite(images), model(images))
        assert not torch.allclose(model.pruned((1, 3), ratio=0.3)(images), model(images))
    assert not lite.training


@pytest.mark.parametrize("interpolate", [True, False])
@pytest.mark.parametrize("size", [(3, 5), (23, 41), (20, 20)])
def test_other_sizes(size: tuple[int, int], interpolate: bool) -> None:
    model = DependencyViT(replace(LITE, interpolate_positions=interpolate)).eval()
    images = torch.randn(2, 2, *size)
    if interpolate or size == SIZE:
        with torch.no_grad():
            assert model(images).isfinite().all()
            assert model.features(images)[0].shape == (2, 12, -(-size[0] // 4), -(-size[1] // 4))
            assert model.dependency_tree(images).saliency.shape == (2, *size)
    else:
        with pytest.raises(ValueError, match=r"images must be 20 x 20 pixels, got .*interpolate_positions=True"):
            model(images)


@pytest.mark.parametrize("config", [SMALL, LITE])
def test_checkpointing_changes_nothing_but_memory(config: DependencyViTConfig) -> None:
    backbones.check_checkpointing(DependencyViT, replace(config, drop_path=0.3), SIZE)


def test_all_forms_agree() -> None:
    backbones.check_forms(DependencyViT(replace(SMALL, temperature=1.0)), SIZE)


def test_the_lite_network_compiles_and_exports() -> None:
    model, images = DependencyViT(LITE).eval(), torch.randn(2, 2, *SIZE)
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(images), expected)
        torch.testing.assert_close(torch.export.export(model, (images,)).module()(images), expected)


@pytest.mark.parametrize("config", [SMALL, LITE])
def test_masks_are_summed_over_layers(config: DependencyViTConfig) -> None:
    model, images = DependencyViT(config).eval(), torch.randn(2, 2, *SIZE)
    masks, m = model.dependency_masks(images)
    assert masks.shape == (2, 25, 25)
    with torch.no_grad():
        x, sent, kept = model.patches(images), None, torch.arange(25).expand(2, 25)
        expected, expected_m = torch.zeros(2, 25, 25), torch.zeros(2, 25)
        for block in model.blocks:
            found = block.mixer.dependency_mask(block.mixer_norm(x), sent)
            for row in range(2):
                for j, receiver in enumerate(kept[row].tolist()):
                    expected[row, receiver, kept[row]] += found[row, j]
            x, sent, after = block(x, sent, kept)
            kept = kept if after is None else after
        for row in range(2):
            expected_m[row, kept[row]] = sent[row]
    torch.testing.assert_close(masks, expected)
    torch.testing.assert_close(m, expected_m)


def test_trees_are_read_from_the_masks() -> None:
    model, images = DependencyViT(SMALL).eval(), torch.randn(3, 2, *SIZE)
    parse = model.dependency_tree(images)
    masks, m = model.dependency_masks(images)
    others = masks.sum(dim=2) - masks.diagonal(dim1=1, dim2=2)
    assert parse.roots.tolist() == others.argmax(dim=1).tolist()
    assert parse.grid == (5, 5)
    assert (parse.parents.gather(1, parse.roots[:, None])[:, 0] == parse.roots).all()
    assert set(parse.saliency.unique().tolist()) <= {value / 64 for value in range(65)}
    assert model.dependency_tree(images, root="m").roots.tolist() == m.argmax(dim=1).tolist()
    with pytest.raises(ValueError, match="root must be received or m, got 'first'"):
        model.dependency_tree(images, root="first")


def test_a_broken_network_has_no_tree() -> None:
    model = DependencyViT(SMALL).eval()
    with torch.no_grad():
        model.patches.proj.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="a dependency mask must be finite"):
        model.dependency_tree(torch.randn(1, 2, *SIZE))


def independent_layout(model: DependencyViT) -> dict[str, torch.Tensor]:
    """The weights under the independent implementation's names, written by a rule of the test's own."""
    inner = {
        "mixer_norm": "norm1",
        "mlp_norm": "norm2",
        "mixer.qkv": "attn.qkv",
        "mixer.head_selector": "attn.head_selector",
        "mixer.message_controller.up_proj": "attn.message_controller.fc1",
        "mixer.message_controller.down_proj": "attn.message_controller.fc2",
        "mixer.o_proj": "attn.proj",
        "mlp.up_proj": "mlp.fc1",
        "mlp.down_proj": "mlp.fc2",
    }
    made = {}
    for name, tensor in model.state_dict().items():
        if name == "patches.positions":
            name = "pos_embed"
        elif name.startswith("patches"):
            name = f"patch_embed.{name.removeprefix('patches.')}"
        elif name.startswith("blocks"):
            block, number, rest = name.split(".", 2)
            part, _, kind = rest.rpartition(".")
            scales = {"mixer_scale": "ls1.gamma", "mlp_scale": "ls2.gamma"}
            name = f"{block}.{number}.{scales[kind] if kind in scales else f'{inner[part]}.{kind}'}"
        made[name] = torch.rand_like(tensor)
    return made


def test_loads_the_independent_layout_strictly() -> None:
    model = DependencyViT(SMALL)
    layout = independent_layout(model)
    model.load_reference(layout)
    assert torch.equal(model.blocks[2].mixer.o_proj.weight, layout["blocks.2.attn.proj.weight"])
    assert torch.equal(model.blocks[3].mlp_scale, layout["blocks.3.ls2.gamma"])
    assert torch.equal(model.patches.positions, layout["pos_embed"])
    backbones.check_strict(model, layout)


def test_depth_is_dropped_more_and_more() -> None:
    rates = [block.drop_path.rate for block in DependencyViT(replace(SMALL, drop_path=0.3)).blocks]
    assert rates == pytest.approx([0, 0.1, 0.2, 0.3])


def test_ill_images_are_named() -> None:
    backbones.check_rejects(DependencyViT(SMALL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 5}, "dim=12 and num_heads=5"),
        ({"prune_layers": (1, 5)}, r"prune_layers must rise and lie in 1..4 \(num_layers\), got \(1, 5\)"),
        ({"prune_layers": (0,)}, r"got \(0,\)"),
        ({"prune_layers": (3, 2)}, "prune_layers must rise"),
        ({"prune_layers": (2, 2)}, "prune_layers must rise"),
        ({"prune_layers": (1, 2, 3, 4), "prune_ratio": 0.25}, r"must be in \[0, 1\), got 0.25"),
        ({"prune_ratio": -0.1}, "got -0.1"),
        ({"prune_score": "rows"}, "prune_score must be one of received, sent, random, got 'rows'"),
        ({"output_gate": "both"}, "output_gate must be one of after_norm, before_norm, none, got 'both'"),
        ({"patch_size": 3}, "patch_size must divide image_size=20, got 3"),
        ({"num_classes": 0}, "num_classes must be positive, got 0"),
        ({"in_channels": 0}, "must be positive, got 20, 4, 0 and 12"),
        ({"drop_path": 1.0}, "drop_path must be in"),
        ({"temperature": 0.0}, "temperature and controller_width must be positive"),
    ],
)
def test_ill_configs_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DependencyViT(replace(SMALL, **changes))
