"""Patches with learned positions, whose table may be resized for images of other sizes.

Sources: "An Image is Worth 16x16 Words", Dosovitskiy et al., ICLR 2021, https://arxiv.org/abs/2010.11929, equation 1
and section 3.2 (interpolated positions).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from regard.ops.precision import compute_dtype

Images = Float[Tensor, "batch in_channels y x"]


class PositionedPatches(nn.Module):
    """Square patches without overlap, in row-major order, each a linear map of its pixels plus its position.

    Args:
        image_size: pixels per side of the images that the table of positions belongs to.
        patch_size: pixels per side of a patch; must divide `image_size`.
        in_channels: channels of the images.
        dim: width of a token.
        interpolate_positions: take images of other sizes too: they are padded at the bottom and at the right to whole
            patches, and the table is resized (bicubic).

    Raises:
        ValueError: a size that is not positive, or an image that the patches do not fill.
    """

    def __init__(
        self, *, image_size: int, patch_size: int, in_channels: int, dim: int, interpolate_positions: bool = False
    ) -> None:
        super().__init__()
        if min(image_size, patch_size, in_channels, dim) < 1:
            raise ValueError(
                f"image_size, patch_size, in_channels and dim must be positive, got {image_size}, {patch_size}, "
                f"{in_channels} and {dim}"
            )
        if image_size % patch_size:
            raise ValueError(f"patch_size must divide image_size={image_size}, got {patch_size}")
        self.image_size = image_size
        self.patch_size = patch_size
        self.side = image_size // patch_size
        self.interpolate_positions = interpolate_positions
        self.proj = nn.Conv2d(in_channels, dim, patch_size, stride=patch_size)
        self.positions = nn.Parameter(torch.empty(1, self.side**2, dim))
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, images: Images) -> Float[Tensor, "batch tokens dim"]:
        """One token per patch.

        Raises:
            ValueError: images of another size where positions are not interpolated.
        """
        height, width = images.shape[2:]
        if not self.interpolate_positions and (height, width) != (self.image_size, self.image_size):
            raise ValueError(
                f"images must be {self.image_size} x {self.image_size} pixels, got {height} x {width}; "
                "interpolate_positions=True takes other sizes"
            )
        rows, columns = self.grid(images)
        below, right = rows * self.patch_size - height, columns * self.patch_size - width
        if below or right:
            images = pad(images, (0, right, 0, below))
        return self.proj(images).flatten(2).transpose(1, 2) + self._table(rows, columns)

    def grid(self, images: Images) -> tuple[int, int]:
        """Rows and columns of patches."""
        return -(-images.shape[2] // self.patch_size), -(-images.shape[3] // self.patch_size)

    def _table(self, rows: int, columns: int) -> Tensor:
        if (rows, columns) == (self.side, self.side):
            return self.positions
        table = self.positions.to(compute_dtype(self.positions)).transpose(1, 2).unflatten(2, (self.side, self.side))
        resized = interpolate(table, (rows, columns), mode="bicubic", align_corners=False, antialias=True)
        return resized.flatten(2).transpose(1, 2).to(self.positions.dtype)
