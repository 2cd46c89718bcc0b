from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import label as connected

from regard.tasks.radiographs.lists import covidx_lists, read_covidx
from regard.tasks.radiographs.synthetic import SPOTS, chest, write_sample


@pytest.mark.parametrize("size", [64, 47])
def test_a_lesion_lies_in_the_lungs_of_positive_images_alone(size: int) -> None:
    random = np.random.default_rng(3)
    made = [chest(random, size=size) for _ in range(60)]
    for image, lungs, lesion, label in made:
        assert image.shape == lungs.shape == lesion.shape == (size, size)
        assert image.dtype == np.float32
        assert image.min() >= 0
        assert image.max() <= 1
        assert lesion.any() == bool(label)
        assert not (lesion & ~lungs).any()
        assert connected(lungs)[1] == 2
    assert 15 < sum(each.label for each in made) < 45


def test_lungs_are_darker_and_lesions_brighter_than_their_surroundings() -> None:
    random = np.random.default_rng(4)
    made = [each for each in (chest(random) for _ in range(80)) if each.label]
    inside = np.mean([each.image[each.lungs & ~each.lesion].mean() for each in made])
    assert inside < np.mean([each.image[~each.lungs].mean() for each in made]) - 0.1
    assert np.mean([each.image[each.lesion].mean() for each in made]) > inside + 0.05


def test_brightness_and_contrast_hardly_tell_the_class() -> None:
    random = np.random.default_rng(5)
    made = [chest(random) for _ in range(400)]
    labels = np.array([each.label for each in made], dtype=bool)
    for number in (np.mean, np.std, np.max):
        values = np.array([number(each.image) for each in made])
        apart = abs(values[labels].mean() - values[~labels].mean()) / values.std()
        assert apart < 0.6, number


def test_is_the_same_for_the_same_seed() -> None:
    one, two, other = (chest(np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert (one.image == two.image).all()
    assert (one.image != other.image).any()
    assert SPOTS[0] > 1, "every image has a spot outside of the lungs"
    with pytest.raises(ValueError, match="size must be at least 16, got 9"):
        chest(np.random.default_rng(0), size=9)


def test_a_sample_is_read_as_a_users_lists_are(tmp_path) -> None:
    write_sample(tmp_path, train=9, test=5, size=24)
    found = read_covidx(tmp_path, covidx_lists(tmp_path))
    assert found.classes == ("negative", "positive")
    assert found.parts == ["train"] * 9 + ["test"] * 5
    assert set(found.patients[:9]).isdisjoint(found.patients[9:])
    assert len(set(found.patients)) == 11
    for path in found.images:
        with Image.open(path) as image:
            assert image.size == (24, 24)
