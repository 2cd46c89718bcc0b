"""Every kind of image file gives pixels, and whatever is none says why in a few words."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from odd_images import BAD, GOOD, write_odd
from PIL import Image
from tiny_images import paint

from regard.tasks.images.decoding import (
    BadImageError,
    decode,
    limited,
    open_image,
    pixels_of,
    squared,
    tolerant,
    with_channels,
)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "RGBA", "LA"])
def test_one_image_is_decoded_to_the_wanted_size(tmp_path, mode):
    paint(tmp_path / "a.png", mode=mode, shade=77)
    pixels = decode(tmp_path / "a.png", 6)
    assert pixels.dtype == np.uint8
    assert pixels.shape == ((3 if "RGB" in mode else 1), 6, 6)
    wanted = {"RGB": [77, 2, 3], "L": [77], "1": [255], "RGBA": [1, 2, 77], "LA": [77]}[mode]
    assert pixels.reshape(len(wanted), -1).T.tolist() == [wanted] * 36


@pytest.mark.parametrize("name", GOOD)
def test_odd_images_have_pixels(tmp_path, name):
    path = write_odd(tmp_path, name)
    with tolerant():
        image = open_image(path)
    assert image.mode in ("L", "RGB")
    assert pixels_of(squared(image, 7)).shape[1:] == (7, 7)
    assert decode(path, 5).shape[1:] == (5, 5)


@pytest.mark.parametrize(("name", "why"), BAD.items(), ids=BAD)
def test_what_is_no_image_says_why(tmp_path, name, why):
    path = write_odd(tmp_path, name)
    with tolerant(), pytest.raises(BadImageError, match=why) as refused:
        open_image(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 200
    assert decode(path, 8) is None


def test_what_is_no_file_says_so(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path, why in (
        (tmp_path, "is not a file"),
        (tmp_path / "pipe.png", "is not a file"),
        (tmp_path / "no", "No such"),
    ):
        with pytest.raises(BadImageError, match=why):
            open_image(path)


def test_an_image_is_turned_as_its_metadata_say(tmp_path):
    image = Image.new("RGB", (8, 8), (0, 0, 0))
    image.paste((250, 250, 250), (0, 0, 8, 4))
    metadata = image.getexif()
    metadata[0x0112] = 3
    image.save(tmp_path / "turned.png", exif=metadata)
    pixels = decode(tmp_path / "turned.png", 8)
    assert (pixels[:, :4] == 0).all()
    assert (pixels[:, 4:] == 250).all()


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_deep_grey_is_scaled_and_not_cut_off(tmp_path, mode):
    ramp = np.linspace(0, 1, 64).reshape(8, 8)
    values = {
        "I;16": (ramp * 65_535).astype(np.uint16),
        "I": (ramp * 2e9).astype(np.int32),
        "F": ramp.astype(np.float32),
    }
    path = tmp_path / ("a.png" if mode == "I;16" else "a.tiff")
    Image.fromarray(values[mode]).save(path)
    found = pixels_of(open_image(path))[0]
    np.testing.assert_allclose(found, ramp * 255, atol=1)
    assert len(np.unique(found)) == 64


def test_floating_point_that_is_no_number_is_black(tmp_path):
    values = np.array([[0.0, np.nan], [np.inf, 1.0]], dtype=np.float32)
    Image.fromarray(values).save(tmp_path / "a.tiff")
    assert pixels_of(open_image(tmp_path / "a.tiff"))[0].tolist() == [[0, 0], [0, 255]]


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10**6)))
    (tmp_path / "bomb.png").write_bytes(content)
    with tolerant(), pytest.raises(BadImageError, match=r"has (30,000 by 30,000|too many) pixels"):
        open_image(tmp_path / "bomb.png")


def test_no_file_starts_another_program(tmp_path):
    (tmp_path / "a.jpg").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    with pytest.raises(BadImageError, match="is not an image"):
        open_image(tmp_path / "a.jpg")


def test_a_large_jpeg_is_decoded_no_larger_than_needed(tmp_path):
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    small.resize((1600, 1200), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    whole, drafted = open_image(tmp_path / "a.jpg"), open_image(tmp_path / "a.jpg", at_least=64)
    assert whole.size == (1600, 1200)
    assert drafted.size == (200, 150)
    one, two = (np.asarray(squared(image, 64)).astype(float) for image in (whole, drafted))
    assert np.abs(one - two).mean() < 3


def test_tolerance_ends_with_its_block():
    before = list(warnings.filters)
    with tolerant():
        warnings.warn("damaged metadata", stacklevel=1)
    assert warnings.filters == before


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((9, 5), 4, (7, 4)), ((5, 9), 7, (5, 9)), ((3, 5000), 2, (2, 3333)), ((1, 1), 1, (1, 1))],
)
def test_a_copy_keeps_the_shape_and_is_never_enlarged(size, side, expected):
    assert limited(Image.new("L", size), side).size == expected


def test_the_middle_is_cut_out_where_a_share_is_wanted():
    image = Image.new("L", (30, 10), 0)
    image.paste(200, (10, 0, 20, 10))
    # the filter reaches a little beyond the edge of what is cut out
    assert pixels_of(squared(image, 6, 1.0)).min() > 170
    assert pixels_of(squared(image, 6, 1.0))[0, :, 1:-1].min() == 200
    squeezed = pixels_of(squared(image, 6))[0]
    assert squeezed[:, 0].max() == 0
    assert squeezed[:, 2:4].min() > 170
    edge = Image.new("L", (10, 10), 50)
    edge.paste(200, (1, 1, 9, 9))
    assert pixels_of(squared(edge, 4, 0.8)).min() > 150
    assert pixels_of(squared(edge, 4, 0.8))[0, 1:-1, 1:-1].min() == 200


def test_channels_are_changed_by_luminance():
    image = Image.new("RGB", (2, 2), (200, 100, 50))
    assert pixels_of(with_channels(image, 1))[0, 0, 0] == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)
    assert pixels_of(with_channels(Image.new("L", (2, 2), 7), 3)).tolist() == [[[7, 7], [7, 7]]] * 3


def test_random_bytes_after_a_header_never_raise_anything_else(tmp_path):
    random = np.random.default_rng(5)
    stream = io.BytesIO()
    for number, kind in enumerate(("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000", "ICO")):
        stream.seek(0)
        stream.truncate()
        Image.fromarray(random.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(stream, kind)
        content = bytearray(stream.getvalue())
        for trial in range(40):
            broken = bytearray(content)
            for place in random.integers(0, len(broken), 1 + trial % 12):
                broken[place] = random.integers(256)
            path = Path(tmp_path, f"{number}-{trial}.img")
            path.write_bytes(broken[: random.integers(1, len(broken) + 1)] if trial % 3 == 0 else broken)
            found = decode(path, 8)
            assert found is None or found.shape[1:] == (8, 8)
