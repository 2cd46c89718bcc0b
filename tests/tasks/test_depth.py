from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from regard.errors import UserError
from regard.models.language.decoder import Decoder
from regard.models.vision.davit import DaViT
from regard.models.vision.mlp_mixer import MLPMixer
from regard.models.vision.vit import ViT
from regard.registry import get_class, systems
from regard.tasks.depth import LEVELS, blocks_of, freeze, frozen_parts, head_of, levels_of, parameter_groups
from regard.tasks.networks import default_config
from regard.tasks.recipe import Recipe

CLASSIFIERS = sorted(name for name in systems("model") if getattr(get_class(name), "task", "") == "classification")


def trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("model", "blocks", "stem", "last"),
    [
        (
            ViT(ViT.SMALL),
            ["encoder.blocks.0", "encoder.blocks.1", "encoder.blocks.2"],
            "positions",
            "encoder.norm.bias",
        ),
        (MLPMixer(MLPMixer.SMALL), ["blocks.0", "blocks.1", "blocks.2"], "patches.proj.weight", "norm.weight"),
        (
            DaViT(DaViT.SMALL),
            [f"stages.{stage}.blocks.0.{number}" for stage in range(2) for number in range(2)],
            "stages.0.embedding.conv.weight",
            "head_norm.weight",
        ),
    ],
    ids=["vit", "mlp_mixer", "davit"],
)
def test_blocks_stem_and_head_are_found(model, blocks, stem, last):
    assert blocks_of(model) == blocks
    levels = levels_of(model)
    assert list(levels) == [name for name, _ in model.named_parameters()]
    assert levels[stem] == 0
    assert levels[last] == levels["head.weight"] == len(blocks) + 1
    for number, path in enumerate(blocks):
        assert {level for name, level in levels.items() if name.startswith(f"{path}.")} == {number + 1}


def test_what_lies_between_blocks_belongs_to_the_next():
    levels = levels_of(DaViT(DaViT.SMALL))
    assert levels["stages.1.embedding.conv.weight"] == levels["stages.1.blocks.0.0.mlp.up_proj.weight"] == 3


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_has_a_stem_blocks_and_a_head(name):
    model = get_class(name)(default_config(name))
    levels = levels_of(model)
    assert blocks_of(model), "no blocks"
    assert 0 in levels.values(), "no stem"
    head = head_of(model)
    assert head
    assert {levels[parameter] for parameter in head} == {max(levels.values())}
    stem = sum(model.get_parameter(parameter).numel() for parameter, level in levels.items() if level == 0)
    assert stem < 0.7 * sum(parameter.numel() for parameter in model.parameters())


def test_many_blocks_share_levels():
    model = ViT(replace(ViT.SMALL, num_layers=30, dim=8, num_heads=2, hidden=8))
    levels = levels_of(model)
    assert max(levels.values()) == LEVELS + 1
    found = [levels[f"encoder.blocks.{number}.mlp.up_proj.weight"] for number in range(30)]
    assert found == sorted(found)
    assert set(found) == set(range(1, LEVELS + 1))


def test_a_language_model_has_levels_too():
    config = replace(Decoder.SMALL, num_layers=2)
    levels = levels_of(Decoder(config))
    assert levels["embedding.weight"] == 0
    assert max(levels.values()) == 3


def test_parts_are_frozen():
    model = DaViT(DaViT.SMALL)
    everything = trained(model)
    freeze(model, "none")
    assert trained(model) == everything
    freeze(model, "stem")
    assert everything - trained(model) == {name for name in everything if name.startswith("stages.0.embedding.")}
    assert frozen_parts(model) == [model.stages[0].embedding]
    freeze(model, "body")
    assert trained(model) == {"head.weight", "head.bias"}
    assert model.stages in frozen_parts(model)


def test_what_cannot_be_frozen_is_refused():
    with pytest.raises(UserError, match="Decoder has no classifier"):
        freeze(Decoder(Decoder.SMALL), "body")

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

    with pytest.raises(UserError, match="Bare has no stem that could be frozen"):
        freeze(Bare(), "stem")


def test_without_wishes_there_is_one_group():
    model = ViT(ViT.SMALL)
    (group,) = parameter_groups(model, Recipe())
    assert group["lr_scale"] == 1.0
    assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in model.parameters()]


def test_rates_fall_with_depth_and_vectors_do_not_decay():
    model = ViT(ViT.SMALL)
    recipe = Recipe(layer_decay=0.5, decay_vectors=False, weight_decay=0.3)
    groups = parameter_groups(model, recipe)
    scale_of = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    decay_of = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    levels = levels_of(model)
    for name, parameter in model.named_parameters():
        assert scale_of[id(parameter)] == 0.5 ** (4 - levels[name])
        assert decay_of[id(parameter)] == (0.3 if parameter.ndim > 1 else 0.0)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    freeze(model, "body")
    assert [len(group["params"]) for group in parameter_groups(model, recipe)] == [1, 1]


def test_groups_reach_the_optimiser():
    model = MLPMixer(MLPMixer.SMALL)
    optimizer = torch.optim.AdamW(parameter_groups(model, Recipe(layer_decay=0.9)), lr=1.0)
    assert {group["lr_scale"] for group in optimizer.param_groups} == {0.9**power for power in range(5)}
