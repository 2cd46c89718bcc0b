"""An image as a sequence of patches, each a linear map of its pixels.

Source: "An Image is Worth 16x16 Words", Dosovitskiy et al., ICLR 2021, https://arxiv.org/abs/2010.11929, equation 1.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class PatchEmbedding(nn.Module):
    """Square patches without overlap, in row-major order.

    Args:
        image_size: pixels per side of the image.
        patch_size: pixels per side of a patch; must divide `image_size`.
        in_channels: channels of the image.
        dim: width of a token.

    Raises:
        ValueError: a size that is not positive, or an image that the patches do not fill.
    """

    def __init__(self, *, image_size: int, patch_size: int, in_channels: int, dim: int) -> None:
        super().__init__()
        if min(image_size, patch_size, in_channels, dim) < 1:
            raise ValueError(
                f"image_size, patch_size, in_channels and dim must be positive, got {image_size}, {patch_size}, "
                f"{in_channels} and {dim}"
            )
        if image_size % patch_size:
            raise ValueError(f"patch_size must divide image_size={image_size}, got {patch_size}")
        self.image_size = image_size
        self.seq_len = (image_size // patch_size) ** 2
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)

    def forward(self, images: Float[Tensor, "batch in_channels y x"]) -> Float[Tensor, "batch tokens dim"]:
        """One token per patch.

        Raises:
            ValueError: images of another size or number of channels.
        """
        wanted = (self.proj.in_channels, self.image_size, self.image_size)
        if images.ndim != 4 or tuple(images.shape[1:]) != wanted:
            raise ValueError(
                f"images must have shape (batch, {', '.join(map(str, wanted))}), got {tuple(images.shape)}"
            )
        return self.proj(images).flatten(2).transpose(1, 2)
