"""What gates on channels share: pooling, scaling, and the fusion with a residual addition."""

from __future__ import annotations

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor

from regard.contract import FeatureMixer
from regard.metadata import Traits
from regard.ops.channel_gates import channel_means, gate_of, scale_channels, scale_channels_and_add

TRAITS = Traits.of_feature_mixer(spatial_dims=(1, 2, 3), memory="1")


class ChannelGate(FeatureMixer):
    """y = x * sigmoid(scores(mean of x over all positions)); a subclass is final and says how channels are scored.

    Args:
        channels: number of channels.
    """

    @abstractmethod
    def scores(self, pooled: Float[Tensor, "batch channels"]) -> Float[Tensor, "batch channels"]:
        """A number per channel, whose sigmoid is the gate, from the pooled vector in at least float32."""

    def mix(self, x: Tensor, *, context: Tensor | None) -> Float[Tensor, "batch channels *space"]:
        """The input times the gate."""
        return scale_channels(x, self.scores(channel_means(x)))

    def gate(self, x: Float[Tensor, "batch channels *space"]) -> Float[Tensor, "batch channels *ones"]:
        """The factor on each channel of `x`, between 0 and 1, with axes of length 1 for the positions.

        Raises:
            ValueError: a number of dimensions or channels that does not fit.
        """
        self._check_features(x, "x")
        return gate_of(x, self.scores(channel_means(x)))

    def mix_and_add(
        self, x: Float[Tensor, "batch channels *space"], shortcut: Float[Tensor, "batch channels *space"]
    ) -> Float[Tensor, "batch channels *space"]:
        """`forward(x) + shortcut`, without the pass over memory that a separate addition takes.

        Raises:
            ValueError: a number of dimensions or channels that does not fit.
        """
        self._check_features(x, "x")
        return scale_channels_and_add(x, self.scores(channel_means(x)), shortcut)


def taps_of_conv(weight: Tensor, *, like: Tensor) -> Tensor:
    """The taps of a stencil from the weight `(filters, 1, kernel)` of a one-dimensional convolution.

    Args:
        weight: as the reference stores it.
        like: our parameter, `(kernel,)` or `(channels, kernel)`. A weight that does not fit it is returned as it is,
            for the strict loader to name.
    """
    filters = 1 if like.ndim == 1 else like.shape[0]
    return weight.reshape(like.shape) if tuple(weight.shape) == (filters, 1, like.shape[-1]) else weight
