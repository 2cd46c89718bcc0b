"""What the hierarchical networks with agent attention share: stages of blocks, of which some have it, and a head."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from regard.layers.drop_path import linear_rates
from regard.layers.pre_norm_block import PreNormBlock, initialise_linear
from regard.layers.reference_names import Rules
from regard.metadata import Reported
from regard.models.vision.backbone import Backbone, Images, Maps

MACS_TOLERANCE = 0.01
"""The reported figures count norms (5 per number), pooling and interpolation as well: 0.2 to 0.7 % of all."""


class Stage(nn.Module):
    """A coarser map, and blocks on it.

    Args:
        embedding: from the map before, whose channels lie last, to the stage's.
        blocks: applied one after the other.
    """

    def __init__(self, embedding: nn.Module, blocks: Iterable[PreNormBlock]) -> None:
        super().__init__()
        self.embedding = embedding
        self.blocks = nn.ModuleList(blocks)


class AgentBackbone(Backbone):
    """Stages on ever coarser maps, each half as large as the one before; a subclass is final.

    Args:
        config: its sizes; has `dims`, `depths`, `image_size`, `patch_size` and `drop_path`.
    """

    has_head_norm: ClassVar[bool] = True

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        rates = linear_rates(config.drop_path, sum(config.depths))
        sides = stage_sides(config.image_size, config.patch_size, len(config.dims))
        self.stages = nn.ModuleList()
        for stage, side in enumerate(sides):
            self.stages.append(self.make_stage(stage, side, rates[: config.depths[stage]]))
            rates = rates[config.depths[stage] :]
        self.stage_channels = config.dims
        self.stage_strides = tuple(config.patch_size << stage for stage in range(len(config.dims)))
        self.head_norm = nn.LayerNorm(config.dims[-1]) if self.has_head_norm else None
        self.head = nn.Linear(config.dims[-1], config.num_classes)
        self.apply(initialise_linear)

    @abstractmethod
    def make_stage(self, stage: int, side: int, rates: list[float]) -> Stage:
        """A stage by its number.

        Args:
            stage: counted from 0.
            side: rows and columns of its map, for images of the config's size.
            rates: of stochastic depth, one per block.
        """

    def features(self, images: Images) -> tuple[Maps, ...]:
        """The output of every stage, finest first."""
        self.check_images(images)
        x, outputs = images.permute(0, 2, 3, 1), []
        for stage in self.stages:
            assert isinstance(stage, Stage)
            x = stage.embedding(x)
            for block in stage.blocks:
                x = self.run(block, x)
            outputs.append(x.permute(0, 3, 1, 2))
        return tuple(outputs)

    def pool(self, last: Maps) -> Float[Tensor, "batch channels"]:
        """The mean over positions, which are normed first where the network has a last norm."""
        rows = last.permute(0, 2, 3, 1)
        return (rows if self.head_norm is None else self.head_norm(rows)).mean(dim=(1, 2))


def reported_sizes(network: str, params: float, macs: float, params_tolerance: float) -> Reported:
    """The paper's rounded sizes, or, with no tolerance for the parameters, those of the authors' code."""
    return Reported(
        params=params,
        macs=macs,
        where=f"table of Agent-{network}" if params_tolerance else "counted on the authors' code",
        params_tolerance=params_tolerance,
        macs_tolerance=MACS_TOLERANCE,
    )


def check_agents(
    depths: Sequence[int], agent_depths: Sequence[int], image_size: int, patch_size: int, mlp_ratios: Sequence[float]
) -> None:
    """Refuse a number of agent blocks that does not fit the stages, and other sizes that are not positive.

    Raises:
        ValueError: the field, named.
    """
    fits = len(agent_depths) == len(depths)
    if not fits or any(not 0 <= agents <= depth for agents, depth in zip(agent_depths, depths, strict=True)):
        raise ValueError(
            f"agent_depths must have for each of the {len(depths)} stages a number from 0 to its depth, "
            f"got {tuple(agent_depths)} for depths {tuple(depths)}"
        )
    if image_size < 1 or patch_size < 1 or min(mlp_ratios) <= 0:
        raise ValueError(
            "image_size, patch_size and the ratios of perceptrons must be positive, got "
            f"{image_size}, {patch_size} and {', '.join(map(str, mlp_ratios))}"
        )


def stage_sides(image_size: int, patch_size: int, stages: int) -> tuple[int, ...]:
    """Positions per side of each stage's map, for square images; each is half of the one before, rounded up."""
    sides = [-(-image_size // patch_size)]
    while len(sides) < stages:
        sides.append(-(-sides[-1] // 2))
    return tuple(sides)


def attention_names(rules: Rules) -> tuple[tuple[str, str], ...]:
    """Rules for an attention's parts, confined to what a block calls `attn`, which becomes `mixer`."""
    confined = ((pattern.replace(r"(^|\.)", r"(\.attn\.)"), replacement) for pattern, replacement in rules)
    return (*confined, (r"\.attn\.", ".mixer."))
