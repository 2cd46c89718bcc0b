"""An image network behind the interface of timm's models."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from jaxtyping import Float
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from regard.models.vision.backbone import Backbone
from regard.registry import get_class

WRAPPED = "network."
Images = Float[Tensor, "batch in_channels y x"]
Maps = Float[Tensor, "batch channels y x"]


class TimmBackbone(nn.Module):
    """A network of ours with timm's constructor arguments, methods and attributes.

    Args:
        variant: public name of the network's variant.
        num_classes: number of classes; 0 = none, the pooled features come out.
        in_chans: channels of the images.
        img_size: pixels per side, for networks that are built for one size; others take any and ignore it.
        global_pool: "avg" (the network's own pooling) or "" (none: the last map comes out of `forward`).
        drop_rate: probability of dropping a pooled feature before the classifier.
        drop_path_rate: of stochastic depth at the last block.
        options: further fields of the network's config.

    Raises:
        TypeError: an option that is no field of the config.
        ValueError: a size that the network refuses.
    """

    def __init__(
        self,
        variant: str,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int | tuple[int, int] | None = None,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        cls: Any = get_class(variant)
        config = cls.VARIANTS[variant].config
        known = {item.name for item in fields(config)}
        unknown = sorted(set(options) - known)
        if unknown:
            raise TypeError(f"{variant} has no option {unknown[0]!r}: it takes {', '.join(sorted(known))}")
        changes: dict[str, Any] = {"in_channels": in_chans, "num_classes": max(1, num_classes), **options}
        if img_size is not None and "image_size" in known:
            changes["image_size"] = _square(img_size)
        if drop_path_rate is not None:
            changes["drop_path"] = drop_path_rate
        self.network: Backbone = cls(replace(config, **changes))
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.num_features = self.head_hidden_size = self._classifier().in_features
        self.global_pool = global_pool
        self.head_drop = nn.Dropout(drop_rate)
        self.feature_info = [
            {"num_chs": channels, "reduction": stride, "module": f"network.stages.{stage}"}
            for stage, (channels, stride) in enumerate(
                zip(self.network.stage_channels, self.network.stage_strides, strict=True)
            )
        ]
        if num_classes == 0:
            self.network.head = nn.Identity()

    # -- what timm calls

    def forward(self, x: Images) -> Tensor:
        """Scores of the classes."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Images) -> Maps:
        """The last stage's map."""
        return self.network.features(x)[-1]

    def forward_head(self, x: Maps, pre_logits: bool = False) -> Tensor:
        """Pooling and classifier; with `pre_logits` the pooled features."""
        if not self.global_pool:
            return x
        pooled = self.head_drop(self.network.pool(x))
        return pooled if pre_logits else self.network.head(pooled)

    def forward_intermediates(
        self,
        x: Images,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """The maps of the stages, and unless `intermediates_only` the last map before them.

        Raises:
            ValueError: a format other than NCHW.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be NCHW, got {output_fmt}")
        maps = self.network.features(x)
        taken, _ = feature_take_indices(len(maps), indices)
        chosen = [maps[index] for index in taken]
        return chosen if intermediates_only else (maps[-1], chosen)

    def get_classifier(self) -> nn.Module:
        """The linear map to the classes."""
        return self.network.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier for another number of classes; 0 = none."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = global_pool
        weight = next(self.network.parameters())
        self.network.head = (
            nn.Linear(self.num_features, num_classes, device=weight.device, dtype=weight.dtype)
            if num_classes
            else nn.Identity()
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute activations inside blocks again for the gradient instead of keeping them."""
        self.network.config = replace(self.network.config, checkpointing=enable)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Which parameters belong together, for learning rates that decay layer by layer."""
        blocks = r"^network\.stages\.(\d+)" if coarse else r"^network\.stages\.(\d+)\.(?:blocks\.)?(\d+)"
        # what a stage has beside its blocks leads to the first of them; what is in no stage is the head
        rest = [(r"^network\.stages\.(\d+)", (0,)), (r"^network\.", (99999,))]
        return {"stem": r"^network\.(?:stem|patches|stages\.0\.embedding)", "blocks": [(blocks, None), *rest]}

    def no_weight_decay(self) -> set[str]:
        """Parameters that optimisers leave undecayed beside norms and biases."""
        named: Callable[[], set[str]] = getattr(self.network, "no_weight_decay", set)
        return {WRAPPED + name for name in named()}

    def _classifier(self) -> nn.Linear:
        return [part for part in self.network.head.modules() if isinstance(part, nn.Linear)][-1]


def _square(size: int | Sequence[int]) -> int:
    if isinstance(size, int):
        return size
    if len(set(size)) != 1:
        raise ValueError(f"img_size must be square for this network, got {tuple(size)}")
    return size[0]


def first_convolution(network: nn.Module) -> str:
    """The name of the convolution that sees the pixels."""
    return next(name for name, part in network.named_modules() if isinstance(part, nn.Conv2d))


def as_wrapped_state(state_dict: Mapping[str, Tensor], model: TimmBackbone) -> dict[str, Tensor]:
    """A checkpoint in any layout that the network's `load_reference` takes, under the wrapper's names.

    timm fits the first convolution and the classifier to the model afterwards.

    Args:
        state_dict: the wrapper's own names, or a published layout.
        model: what it is for.

    Raises:
        KeyError: an unknown or a missing key, named.
    """
    if all(name.startswith(WRAPPED) for name in state_dict):
        return dict(state_dict)
    config = replace(model.network.config, num_classes=_classes_in(state_dict, model), in_channels=3)
    twin = type(model.network)(copy.deepcopy(config))
    twin.load_reference(state_dict)
    return {WRAPPED + name: tensor for name, tensor in twin.state_dict().items()}


def _classes_in(state_dict: Mapping[str, Tensor], model: TimmBackbone) -> int:
    """Rows of the classifier: the last matrix whose columns are the pooled features."""
    rows = [
        tensor.shape[0]
        for name, tensor in state_dict.items()
        if name.endswith("weight") and "head" in name and tensor.ndim == 2 and tensor.shape[1] == model.num_features
    ]
    if not rows:
        raise KeyError(f"missing keys: a classifier's weight with {model.num_features} columns")
    return int(rows[-1])
