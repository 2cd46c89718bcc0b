"""timm: the image networks as timm models, and the sequence mixers as attention layers of timm's ViTs.

`register()` makes `timm.create_model("regard_davit_tiny", features_only=True)` work like any timm model, and
`timm.create_model("vit_tiny_patch16_224", attn_layer="regard_agent")` build a ViT around a mixer. Feature mixers
go into timm's convolutional networks by class, which `channel_attention_class` makes.
Written for timm 1.0's interfaces: `timm/models/_builder.py`, `_features.py` and `vision_transformer.py`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import timm
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from regard.integrations.timm_attention import attention_class, channel_attention_class
from regard.integrations.timm_backbone import TimmBackbone, as_wrapped_state, first_convolution
from regard.meta_device import sizes_only
from regard.metadata import Entry, No
from regard.models.vision.backbone import Backbone
from regard.registry import get_class, systems

__all__ = ["channel_attention_class", "default_cfgs", "register"]

PREFIX = "regard_"

default_cfgs: dict[str, Any] = {}
"""What timm knows of each network's input; timm looks for it in the module of the registered function."""


def register() -> list[str]:
    """Tell timm of all image networks and all mixers that fit; a second call changes nothing.

    Returns:
        The names of the networks, as `timm.create_model` takes them.
    """
    _register_attention()
    names = []
    for entry in systems("model").values():
        if ".models.vision." not in entry.module:
            continue
        cls: Any = get_class(entry.name)
        if issubclass(cls, Backbone):
            names += [_register_network(cls, variant, entry) for variant in cls.VARIANTS]
    return sorted(names)


def _register_network(cls: Any, variant: str, entry: Entry) -> str:
    name = PREFIX + variant
    if timm.is_model(name):
        return name
    config, size = cls.VARIANTS[variant].config, cls.VARIANTS[variant].image_size
    with sizes_only():
        network: Backbone = cls(config)
    cfg = {
        "url": "",
        "input_size": (3, size, size),
        "fixed_input_size": hasattr(config, "image_size"),
        "num_classes": 1000,
        "pool_size": None,
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": getattr(cls, "IMAGE_MEAN", IMAGENET_DEFAULT_MEAN),
        "std": getattr(cls, "IMAGE_STD", IMAGENET_DEFAULT_STD),
        "first_conv": f"network.{first_convolution(network)}",
        "classifier": "network.head",
        "origin_url": entry.paper.url,
    }
    default_cfgs.update(generate_default_cfgs({name: cfg}))
    stages = range(len(network.stage_channels))
    register_model(_entrypoint(name, variant, tuple(stages)))
    return name


def _entrypoint(name: str, variant: str, stages: tuple[int, ...]) -> Callable[..., nn.Module]:
    def build(pretrained: bool = False, **options: Any) -> nn.Module:
        # timm hands over whatever its user gave: TimmBackbone's constructor refuses what it does not know
        return build_model_with_cfg(
            functools.partial(TimmBackbone, variant),
            name,
            pretrained,
            feature_cfg={"out_indices": stages, "feature_cls": "getter"},
            pretrained_filter_fn=as_wrapped_state,
            **options,
        )

    build.__name__ = build.__qualname__ = name
    build.__doc__ = f"The network {variant} of regard."
    return build


def _register_attention() -> None:
    from timm.models import vision_transformer

    layers = getattr(vision_transformer, "ATTN_LAYERS", None)
    if layers is None:
        raise RuntimeError(f"timm {timm.__version__} has no vision_transformer.ATTN_LAYERS to register mixers in")
    for name, entry in systems("sequence").items():
        if fits_vit(entry):
            layers.setdefault(PREFIX + name, attention_class(name))


def fits_vit(entry: Entry) -> bool:
    """Whether a sequence mixer can stand in a ViT: it sees both ways, takes any length, and needs no more options."""
    traits = entry.traits
    if traits is None or isinstance(traits.bidirectional, No) or isinstance(traits.any_length, No):
        return False
    parameters = inspect.signature(get_class(entry.name)).parameters.values()
    needed = {parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty}
    return needed <= {"dim", "num_heads", "causal", "layer_idx", "num_layers"}
