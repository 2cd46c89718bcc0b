"""A network's global map over the image it was made of, as a PNG file."""

from __future__ import annotations

import io

import numpy as np
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from regard.tasks.images.decoding import Pixels

SMALLEST = 256
"""Pixels per side of a picture, at least."""
STRENGTH = 0.6


def overlay(pixels: Pixels, attention: Float[Tensor, "y x"]) -> bytes:
    """The image in grey, red where the map is high: its values from the smallest to the largest as 0 to 1.

    Args:
        pixels: `(channels, y, x)` bytes.
        attention: a map of any size.
    """
    values = attention.detach().float().cpu().numpy()
    spread = float(values.max() - values.min())
    shares = (values - values.min()) / spread if spread > 0 else np.zeros_like(values)
    height, width = pixels.shape[1:]
    factor = max(1, -(-SMALLEST // min(height, width)))
    size = (width * factor, height * factor)
    grey = np.asarray(Image.fromarray(pixels[0]).resize(size, Image.Resampling.BILINEAR)).astype(np.float32)
    red = STRENGTH * np.asarray(Image.fromarray(shares.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
    mixed = np.stack([grey + (255 - grey) * red, grey * (1 - red), grey * (1 - red)], axis=-1)
    stream = io.BytesIO()
    Image.fromarray(np.rint(mixed).clip(0, 255).astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()
