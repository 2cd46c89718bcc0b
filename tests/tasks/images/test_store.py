from __future__ import annotations

import numpy as np
import pytest
from odd_images import BAD, GOOD, write_odd
from PIL import Image
from tiny_images import paint, write_images

from regard.errors import UserError
from regard.tasks.images.decoding import pixels_of, squared
from regard.tasks.images.folders import labelled_files
from regard.tasks.images.store import ImageStore, View

PLENTY = 10**9


@pytest.fixture
def files(tmp_path):
    write_images(tmp_path / "photos", {"a": 9, "b": 8}, size=40)
    return labelled_files(tmp_path / "photos").images


def test_views_do_not_depend_on_what_is_kept(files):
    view = View(8)
    stores = [ImageStore(files, view, memory_bytes=budget) for budget in (PLENTY, 5 * 12 * 12 * 3, 0)]
    assert [store.kept for store in stores] == [17, 5, 0]
    numbers = np.array([3, 0, 16, 4, 5])
    for channels in (1, 3):
        first, *others = (store.squares(numbers, channels) for store in stores)
        assert first.shape == (5, channels, 8, 8)
        assert all((first == other).all() for other in others)
    assert all(
        (np.asarray(store.copy(4)) == np.asarray(stores[0].copy(4))).all() and store.copy(4).size == (12, 12)
        for store in stores
    )


def test_a_view_is_made_of_the_copy(files):
    store = ImageStore(files, View(8, 0.75), memory_bytes=PLENTY)
    with Image.open(files[2]) as image:
        copy = image.resize((12, 12), Image.Resampling.BILINEAR)
    assert (store.squares(np.array([2]), 3)[0] == pixels_of(squared(copy, 8, 0.75))).all()


def test_small_images_are_never_changed_twice(tmp_path):
    paint(tmp_path / "a.png", size=(9, 5), shade=90)
    store = ImageStore([tmp_path / "a.png"], View(8), memory_bytes=PLENTY)
    with Image.open(tmp_path / "a.png") as image:
        expected = pixels_of(image.resize((8, 8), Image.Resampling.BILINEAR))
    assert (store.squares(np.array([0]), 3)[0] == expected).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_the_views(files, channels):
    store = ImageStore(files, View(8), memory_bytes=PLENTY)
    numbers = np.array([1, 2, 5, 11])
    views = store.squares(numbers, channels) / 255
    mean, spread = store.statistics(numbers, channels)
    assert mean == pytest.approx(views.mean(axis=(0, 2, 3)), abs=2e-3 if channels == 1 else 1e-9)
    assert spread == pytest.approx(views.std(axis=(0, 2, 3)), abs=2e-3 if channels == 1 else 1e-9)


def test_arrays_are_kept_whatever_the_budget():
    pixels = np.random.default_rng(0).integers(0, 256, (6, 1, 8, 8), dtype=np.uint8)
    store = ImageStore(pixels, View(8), memory_bytes=0)
    assert (store.squares(np.arange(6), 1) == pixels).all()
    assert (store.kept, store.is_colour, len(store)) == (6, False, 6)
    larger = ImageStore(pixels, View(16), memory_bytes=0).squares(np.array([2]), 1)
    assert (larger[0, 0] == np.asarray(Image.fromarray(pixels[2, 0]).resize((16, 16), 2))).all()


def test_a_spread_is_never_zero():
    store = ImageStore(np.full((2, 1, 4, 4), 9, dtype=np.uint8), View(4), memory_bytes=0)
    mean, spread = store.statistics(np.arange(2), 1)
    assert mean == pytest.approx((9 / 255,))
    assert spread == (1e-3,)


def test_bad_images_are_told_and_good_ones_seen(tmp_path):
    names = [*GOOD, *BAD]
    paths = [write_odd(tmp_path / name.replace(" ", "_"), name) for name in names]
    store = ImageStore(paths, View(8), memory_bytes=PLENTY)
    assert [names[number] for number in sorted(store.bad)] == list(BAD)
    good = np.array([number for number in range(len(names)) if number not in store.bad])
    assert store.squares(good, 3).shape == (len(GOOD), 3, 8, 8)
    assert store.is_colour


def test_a_file_that_vanishes_is_one_line(files):
    store = ImageStore(files, View(8), memory_bytes=0)
    files[3].unlink()
    with pytest.raises(UserError, match=r"3\.png does not decode: .*, and it did decode when training began"):
        store.squares(np.array([3]), 3)


@pytest.mark.parametrize(("crop_share", "side"), [(None, 12), (1.0, 12), (0.9, 12), (0.5, 16)])
def test_a_copy_is_never_smaller_than_what_is_cut_out_of_it(crop_share, side):
    assert View(8, crop_share).copy_side == side


def test_the_top_may_be_cut_off_and_files_opened_in_another_way(tmp_path):
    pixels = np.full((20, 10), 50, dtype=np.uint8)
    pixels[:5] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.unique(View(8).square(View(8).copy(tmp_path / "a.png"), 1)).size > 1
    view = View(8, crop_top=0.25)
    assert (view.square(view.copy(tmp_path / "a.png"), 1) == 50).all()
    asked = []

    def opened(path, *, at_least):
        asked.append((path.name, at_least))
        return Image.new("L", (9, 9), 7)

    other = View(8, opened=opened)
    assert (other.square(other.copy(tmp_path / "a.png"), 1) == 7).all()
    assert asked == [("a.png", 12)]
