from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image

from regard.tasks.radiographs.overlay import overlay


def picture(pixels: np.ndarray, attention: torch.Tensor) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(overlay(pixels, attention)))).astype(int)


def test_the_image_is_red_where_the_map_is_high() -> None:
    attention = torch.zeros(6, 6)
    attention[:, 3:] = 5.0
    found = picture(np.full((1, 16, 16), 100, dtype=np.uint8), attention)
    assert found.shape == (256, 256, 3)
    assert (found[:, 40] == 100).all()
    assert (found[:, 250, 0] > 180).all()
    assert (found[:, 250, 1] < 60).all()


def test_a_flat_map_leaves_the_image_as_it_is() -> None:
    found = picture(np.full((3, 300, 280), 77, dtype=np.uint8), torch.ones(4, 4))
    assert found.shape == (300, 280, 3)
    assert (found == 77).all()
