"""MaxViT's block: a convolution that also gives positions, then attentions, each with a perceptron.

Paper: "MaxViT: Multi-Axis Vision Transformer", Tu et al., ECCV 2022, https://arxiv.org/abs/2204.01697, section 3.3.
Compared with google-research/maxvit@70a47072, `maxvit/models/maxvit.py:MaxViTBlock`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from regard.contract import FeatureMixer, load_strictly
from regard.layers.drop_path import DropPath
from regard.layers.feed_forward import FeedForward
from regard.layers.mbconv import MBConv
from regard.layers.tensorflow_names import arranged
from regard.models.vision.maxvit_names import block_place

Maps = Float[Tensor, "batch channels y x"]


class AttentionBlock(nn.Module):
    """x + mixer(norm(x)), then x + MLP(norm(x)), with the tanh approximation of GELU.

    Args:
        mixer: the attention, on maps; None = a perceptron alone.
        channels: width.
        hidden: width inside the perceptron.
        drop_path: rate of stochastic depth of both branches.
    """

    def __init__(self, mixer: FeatureMixer | None, *, channels: int, hidden: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.mixer_norm = None if mixer is None else nn.LayerNorm(channels)
        self.mixer = mixer
        self.mlp_norm = nn.LayerNorm(channels)
        self.mlp = FeedForward(channels, hidden, approximate="tanh")
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Maps) -> Maps:
        """Norms and perceptron see the channels last; a map whose memory is so ordered is never copied for it."""
        if self.mixer is not None and self.mixer_norm is not None:
            normed = self.mixer_norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            x = x + self.drop_path(self.mixer(normed))
        return x + self.drop_path(self.mlp(self.mlp_norm(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)


class MaxViTBlock(nn.Module):
    """MBConv, then an attention and a perceptron for each mixer.

    Args:
        conv: the convolution, whose output is `channels` wide.
        mixers: attentions on maps, in order.
        channels: width.
        hidden: width inside the perceptrons.
        drop_path: rate of stochastic depth of the branches after the convolution.
    """

    def __init__(
        self, conv: MBConv, mixers: Sequence[FeatureMixer], *, channels: int, hidden: int, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.conv = conv
        self.attention = nn.ModuleList(
            AttentionBlock(mixer, channels=channels, hidden=hidden, drop_path=drop_path) for mixer in mixers
        )

    def forward(self, x: Maps) -> Float[Tensor, "batch out_channels y_out x_out"]:
        """One after the other."""
        x = self.conv(x)
        for block in self.attention:
            x = block(x)
        return x

    def load_reference(self, state_dict: Mapping[str, Tensor]) -> None:
        """Load the authors' variables of a block: `mbconv/...`, `attention/...`, `attention_1/...` and so on.

        Raises:
            KeyError: an unknown or a missing key, named.
            ValueError: a tensor of the wrong shape.
        """
        load_strictly(self, arranged(state_dict, block_place, self.state_dict()))
