from __future__ import annotations

import numpy as np
import pytest
from volume_files import read

from regard.tasks.volumes.cases import find_cases
from regard.tasks.volumes.sample import write_sample


@pytest.mark.parametrize(("kind", "shape"), [("volumes", (48, 48, 48)), ("slices", (96, 96, 4, 3))])
def test_the_sample_is_written_as_a_users_files_would_be(kind, shape, tmp_path) -> None:
    folder = write_sample(tmp_path, kind, count=3)
    found = find_cases(folder)
    assert len(found.cases) == 3
    image, affine = read(found.cases[1].images[0])
    mask, same = read(found.cases[1].mask)
    assert image.shape == shape
    assert mask.shape == shape[:3]
    assert np.array_equal(affine, same)
    assert set(np.unique(mask)) <= {0, 1}
    assert len(found.channels) == (1 if kind == "volumes" else 3)
    before = found.cases[1].images[0].read_bytes()
    again = write_sample(tmp_path / "other", kind, count=3)
    assert np.array_equal(read(again / "imagesTr" / found.cases[1].images[0].name)[0], image)
    assert write_sample(tmp_path, kind) == folder
    assert found.cases[1].images[0].read_bytes() == before
