"""Image files of every odd kind, and files that only pretend to be some."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def _noise(mode: str, size: tuple[int, int]) -> Image.Image:
    random = np.random.default_rng(3)
    channels = len(Image.new(mode, (1, 1)).getbands())
    shape = (size[1], size[0]) if channels == 1 else (size[1], size[0], channels)
    pixels = random.integers(0, 256, shape, dtype=np.uint8)
    if channels in (1, 3):
        return Image.fromarray(pixels)
    return Image.merge(mode, [Image.fromarray(pixels[..., number].copy()) for number in range(channels)])


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _sixteen_bits() -> bytes:
    values = np.random.default_rng(3).integers(0, 65_536, (11, 13)).astype(np.uint16)
    return _saved(Image.fromarray(values), "PNG")


def _animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (20, 14), (50 * number, 90, 200)) for number in range(4)]
    return _saved(frames[0], kind, save_all=True, append_images=frames[1:])


def _palette() -> bytes:
    return _saved(_noise("RGB", (12, 12)).quantize(8), "PNG", transparency=2)


_FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "1x1": ("one.png", lambda: _saved(_noise("RGB", (1, 1)), "PNG")),
    "3x5000": ("tall.png", lambda: _saved(_noise("RGB", (3, 5000)), "PNG")),
    "5000x3": ("wide.jpg", lambda: _saved(_noise("RGB", (5000, 3)), "JPEG")),
    "RGBA": ("rgba.png", lambda: _saved(_noise("RGBA", (20, 15)), "PNG")),
    "16 bits": ("deep.png", _sixteen_bits),
    "CMYK": ("cmyk.jpg", lambda: _saved(_noise("CMYK", (16, 17)), "JPEG")),
    "palette": ("palette.png", _palette),
    "black and white": ("bits.png", lambda: _saved(_noise("L", (9, 9)).convert("1"), "PNG")),
    "animated gif": ("moving.gif", lambda: _animated("GIF")),
    "animated webp": ("moving.webp", lambda: _animated("WEBP")),
    "animated png": ("moving.png", lambda: _animated("PNG")),
    "another name": ("really_a_png.jpg", lambda: _saved(_noise("RGB", (8, 8)), "PNG")),
    "truncated": ("cut.jpg", lambda: _saved(_noise("RGB", (64, 64)), "JPEG")[:900]),
    "truncated png": ("cut.png", lambda: _saved(_noise("RGB", (64, 64)), "PNG")[:900]),
    "zero bytes": ("nothing.jpg", lambda: b""),
    "text": ("text.jpg", lambda: b"this is not an image\n" * 20),
    "html": ("page.png", lambda: b"<html><script>alert(1)</script></html>"),
}
GOOD = tuple(name for name in _FILES if name not in ("truncated", "truncated png", "zero bytes", "text", "html"))
BAD = {
    "truncated": "does not decode: .*truncated",
    "truncated png": "does not decode: ",
    "zero bytes": "is empty",
    "text": "is not an image",
    "html": "is not an image",
}


def write_odd(folder: Path, name: str) -> Path:
    """Write one of them."""
    folder.mkdir(parents=True, exist_ok=True)
    file, make = _FILES[name]
    (folder / file).write_bytes(make())
    return folder / file
