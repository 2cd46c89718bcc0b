"""Mixers behind the interfaces of timm's attention layers: in ViTs, and at the end of convolutional blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from regard.contract import FeatureMixer
from regard.layers.mixer_by_name import mixer_by_name
from regard.registry import create, get_class


class TimmAttention(nn.Module):
    """What timm's `Block` builds and calls instead of its own attention; subclasses name a mixer.

    Args:
        dim: width.
        num_heads: number of heads.
        qkv_bias: biases in the projections, where the mixer has the option.
        qk_norm: refused: mixers own their norms.
        scale_norm: refused, for the same reason.
        proj_bias: refused when False, unless the mixer has the option.
        attn_drop: probability of dropping a weight, where the mixer has the option.
        proj_drop: probability of dropping a number of the output.
        norm_layer: unused, as there is no norm to build.
        device: where to build the parameters.
        dtype: of which type.

    Raises:
        ValueError: an option that the mixer does not have.
    """

    mixer_name: ClassVar[str]

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        scale_norm: bool = False,
        proj_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        norm_layer: type[nn.Module] | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        name = self.mixer_name
        accepted = get_class(name).__init__.__annotations__  # type: ignore[misc]
        if qk_norm or scale_norm:
            raise ValueError(f"{name} owns its norms: build the network without qk_norm and scale_attn_norm")
        options: dict[str, object] = {}
        # what is timm's default needs no option of the mixer
        for option, value, default in (("qkv_bias", qkv_bias, None), ("proj_bias", proj_bias, True)):
            if option in accepted:
                options[option] = value
            elif default is not None and value != default:
                raise ValueError(f"{name} has no option {option}: leave it at {default}")
        if attn_drop:
            dropout = next((option for option in ("attn_drop", "dropout") if option in accepted), None)
            if dropout is None:
                raise ValueError(f"{name} has no dropout of weights: leave attn_drop at 0")
            options[dropout] = attn_drop
        with torch.device(device or torch.get_default_device()):
            self.mixer = mixer_by_name(name, dim=dim, num_heads=num_heads, causal=False, rotary=False, options=options)
        if dtype is not None:
            self.mixer.to(dtype)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        attn_mask: Bool[Tensor, "batch ..."] | None = None,
        is_causal: bool = False,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Mix the tokens.

        Args:
            x: the tokens.
            attn_mask: True = real token: `(batch, tokens)`, or timm's padding mask `(batch, 1, 1, tokens)`.
            is_causal: refused when True.

        Raises:
            ValueError: a mask between tokens, or a causal call.
        """
        if is_causal:
            raise ValueError(f"{self.mixer_name} was built without a causal form here")
        if attn_mask is not None:
            if attn_mask.dtype != torch.bool or attn_mask.numel() != x.shape[0] * x.shape[1]:
                raise ValueError(
                    f"{self.mixer_name} takes a boolean mask of {x.shape[0]} x {x.shape[1]} tokens, got "
                    f"{attn_mask.dtype} of shape {tuple(attn_mask.shape)}"
                )
            attn_mask = attn_mask.reshape(x.shape[:2])
        return self.proj_drop(self.mixer(x, mask=attn_mask))


def attention_class(name: str) -> type[TimmAttention]:
    """A class for timm's `attn_layer` around the mixer registered as `name`."""
    return type(
        f"Timm{_title(name)}", (TimmAttention,), {"mixer_name": name, "__doc__": f"The mixer {name} in timm's ViTs."}
    )


class TimmChannelAttention(nn.Module):
    """What timm's convolutional networks build and call at the end of a block; subclasses name a feature mixer.

    Args:
        channels: number of channels.
        device: where to build the parameters.
        dtype: of which type.
    """

    mixer_name: ClassVar[str]
    mixer_options: ClassVar[Mapping[str, Any]]

    def __init__(self, channels: int, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        with torch.device(device or torch.get_default_device()):
            self.mixer: FeatureMixer = create(self.mixer_name, channels=channels, **self.mixer_options)
        if dtype is not None:
            self.mixer.to(dtype)

    def forward(self, x: Float[Tensor, "batch channels y x"]) -> Float[Tensor, "batch channels y x"]:
        """The mixer's output."""
        return self.mixer(x)


def channel_attention_class(name: str, **options: Any) -> type[TimmChannelAttention]:
    """A class for `attn_layer` of timm's convolutional networks around the feature mixer registered as `name`.

    Args:
        name: public name of a mechanism on two-dimensional maps.
        options: its constructor arguments beside the number of channels.

    Raises:
        UnknownSystemError: no such name.
        ValueError: it is no feature mixer.
    """
    if getattr(get_class(name), "kind", "") != "feature":
        raise ValueError(f"{name} is no feature mixer, and the blocks of convolutional networks hold maps")
    members = {"mixer_name": name, "mixer_options": options, "__doc__": f"The mixer {name} in timm's networks."}
    return type(f"Timm{_title(name)}", (TimmChannelAttention,), members)


def _title(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
